"""One point, many random planes: what a single picture does not say."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from kobai.landscape.directions.gaussian import Norm, random_directions
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.axes import Axis, spread
from kobai.landscape.options import BackendName, Stop
from kobai.landscape.smoothness import smoothness
from kobai.landscape.surfaces import evaluate_plane
from kobai.problem import Objective
from kobai.results import Ensemble, Smoothness
from kobai.results.landscape.shape import MEASURES

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles over the planes."""


def evaluate_ensemble(
    objective: Objective,
    theta: Float[torch.Tensor, " P"] | None = None,
    *,
    count: int = 8,
    a: Axis = 11,
    b: Axis = 11,
    norm: Norm = "filter",
    exclude: Sequence[str] = ("bias", "norm"),
    field: str = "loss",
    epsilon: float = 0.1,
    levels: Sequence[float] = LEVELS,
    label: str = "",
    backend: BackendName = "auto",
    checks: bool = False,
    progress: Callable[[int, int], None] | None = None,
    stop: Stop | None = None,
    generator: torch.Generator,
) -> Ensemble:
    """Evaluate one field on many random planes through a point, with quantiles at every node.

    Random directions of one law are exchangeable, so that the planes are a sample: quantiles at a
    node say how the field spreads over directions, and measures of smoothness come with a spread.

    Args:
        objective: Any objective.
        theta: The point; default: the module's parameters now.
        count: How many planes.
        a: Coordinates along the first direction, or how many nodes; the range, where it is to be
            found, is the widest of the first plane's two and serves every direction.
        b: Along the second.
        norm: Normalisation of the directions, see `random_directions`.
        exclude: Filters of parameters that stay where they are.
        field: Which field.
        epsilon: See `smoothness`.
        levels: Levels of the quantiles in (0, 1), increasing.
        label: Name of the point.
        backend: See `evaluate_plane`.
        checks: Prove every plane; a failed check is told in the note.
        progress: Called with (planes done, planes in all).
        stop: Asked between blocks of nodes; the planes that are complete are kept.
        generator: Draws the directions.

    Returns:
        The ensemble. Cost: that of `count` planes.

    Raises:
        ValueError: If count or levels are out of range, or `stop` left no plane complete.
    """
    if count < 2:
        raise ValueError(f"an ensemble has at least 2 planes, got count={count}")
    wanted = np.asarray(levels, dtype=float)
    if not (len(wanted) and wanted.min() > 0 and wanted.max() < 1 and np.all(np.diff(wanted) > 0)):
        raise ValueError(f"levels increase in (0, 1), got {tuple(levels)}")
    theta = objective.theta() if theta is None else theta
    draw = functools.partial(random_directions, objective, theta, norm=norm, exclude=exclude)
    if isinstance(a, int) or isinstance(b, int):
        ahead = torch.Generator(generator.device)  # the first plane's directions come again below
        ahead.set_state(generator.get_state())
        a, b = _common_axes(objective, draw(generator=ahead), a, b, backend)
    values: list[np.ndarray] = []
    shapes: list[Smoothness] = []
    failed = 0
    for k in range(count):
        directions = draw(generator=generator)
        fields = ("loss",) if field == "loss" else ("loss", field)
        plane = evaluate_plane(
            objective, directions, a=a, b=b, fields=fields, label=f"{label} plane {k + 1}".strip(),
            backend=backend, checks=checks, stop=stop,
        )  # fmt: skip
        if "stopped after" in plane.note:
            break
        failed += any(not check.passed for check in plane.checks)
        values.append(plane.fields[field])
        shapes.append(smoothness(plane, field, epsilon=epsilon))
        if progress is not None:
            progress(k + 1, count)
    if not values:
        raise ValueError("stopped before the first plane was complete; nothing to keep")
    stack = np.stack(values)
    note = f"{len(values)} random planes, norm={norm}"
    if len(values) < count:
        note += f", stopped before {count}"
    if failed:
        note += f"; {failed} of them fail a self-check"
    return Ensemble(
        label=label,
        field=field,
        a=np.asarray(a, dtype=float),
        b=np.asarray(b, dtype=float),
        values=stack,
        levels=wanted,
        quantiles=_quantiles(stack, wanted),
        smoothness=tuple(shapes),
        note=note,
    )


def _common_axes(
    objective: Objective, directions: Directions, a: Axis, b: Axis, backend: BackendName
) -> tuple[Axis, Axis]:
    """Make axes of one range, found on a first pair of directions."""
    trial = evaluate_plane(objective, directions, a=3, b=3, backend=backend, checks=False)
    half = max(float(trial.a[-1]), float(trial.b[-1]))
    found = [spread(n, -half, half) if isinstance(n, int) else n for n in (a, b)]
    return found[0], found[1]


def _quantiles(stack: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Take quantiles over the first axis; NaN at nodes where some plane is not finite."""
    good = np.isfinite(stack).all(axis=0)
    found = np.quantile(np.where(good, stack, 0.0), levels, axis=0)
    return np.where(good, found, np.nan)


def median_smoothness(ensemble: Ensemble) -> Smoothness:
    """Take the median of every measure over the planes.

    Args:
        ensemble: With at least one plane.

    Returns:
        Medians, each over all planes by itself; cut off if that of most planes was.
    """
    medians = {name: float(np.median(ensemble.measure(name))) for name in MEASURES}
    return Smoothness(
        label=ensemble.label,
        field=ensemble.field,
        epsilon=ensemble.smoothness[0].epsilon,
        unit=float(np.median([entry.unit for entry in ensemble.smoothness])),
        cut_off=sum(entry.cut_off for entry in ensemble.smoothness) > len(ensemble.values) / 2,
        missing=sum(entry.missing for entry in ensemble.smoothness),
        note=f"medians over {len(ensemble.values)} planes",
        **medians,
    )
