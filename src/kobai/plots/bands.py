"""Several seeds as one line: mean and standard deviation along a common axis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kobai.results import History


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """Mean and spread of one measured column over the seeds of an optimizer.

    Attributes:
        epoch: (T,) epochs at which at least one run has a value.
        seconds: (T,) mean training time there.
        mean: (T,) mean over the runs that have a value there.
        sd: (T,) sample standard deviation; 0 where only one run has a value.
        count: (T,) number of runs with a value.
    """

    epoch: Float[np.ndarray, "T"]
    seconds: Float[np.ndarray, "T"]
    mean: Float[np.ndarray, "T"]
    sd: Float[np.ndarray, "T"]
    count: Int[np.ndarray, "T"]


def by_optimizer(histories: Iterable[History]) -> dict[str, list[History]]:
    """Runs grouped by optimizer, in order of first appearance.

    Args:
        histories: The runs.

    Returns:
        Optimizer to its runs.
    """
    groups: dict[str, list[History]] = {}
    for history in histories:
        groups.setdefault(history.optimizer, []).append(history)
    return groups


def seed_band(histories: Sequence[History], column: str) -> Band | None:
    """Mean and standard deviation of one column over runs that did not diverge.

    Runs are joined at the union of their recorded epochs; a run counts inside the range it
    recorded, linearly interpolated, and not beyond. Diverged runs are left out: their numbers
    have no scale; draw them one by one.

    Args:
        histories: Runs of one optimizer.
        column: A measured column of ``History``, such as ``test_loss``.

    Returns:
        The band; None when no run that did not diverge has a finite value.
    """
    sources = []
    for history in histories:
        values = getattr(history, column)
        good = np.isfinite(values)
        if history.status != "diverged" and good.any():
            sources.append((history.epoch[good], values[good], history.seconds[good]))
    if not sources:
        return None
    epoch = np.unique(np.concatenate([run[0] for run in sources]))
    values = np.stack([np.interp(epoch, x, y, np.nan, np.nan) for x, y, _ in sources])
    seconds = np.stack([np.interp(epoch, x, s, np.nan, np.nan) for x, _, s in sources])
    count = np.isfinite(values).sum(axis=0)
    # Between two runs that recorded disjoint ranges there may be epochs nobody covers.
    seen = count > 0
    epoch, values, seconds, count = epoch[seen], values[:, seen], seconds[:, seen], count[seen]
    mean = np.nanmean(values, axis=0)
    spread = np.nansum((values - mean) ** 2, axis=0) / np.maximum(count - 1, 1)
    return Band(
        epoch=epoch,
        seconds=np.nanmean(seconds, axis=0),
        mean=mean,
        sd=np.sqrt(spread),
        count=count,
    )
