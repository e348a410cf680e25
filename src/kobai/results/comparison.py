"""Several optimizers on one problem, summed up over seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kobai.results.fields import coerce_fields
from kobai.results.look import Look
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """One number over seeds.

    Attributes:
        mean: Mean of the finite values; NaN when there are none.
        sd: Sample standard deviation (n − 1); NaN with fewer than two values.
        count: How many finite values there were.
    """

    mean: float
    sd: float
    count: int

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("mean", "sd"), integers=("count",))


def aggregate(values: Iterable[float]) -> Aggregate:
    """Mean, sample standard deviation and count of the finite values.

    Args:
        values: One number a seed; values that are not finite (a diverged run) are left out and
            show in the count.

    Returns:
        The aggregate.
    """
    numbers = np.array(list(values), dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    return Aggregate(
        mean=float(finite.mean()) if len(finite) else float("nan"),
        sd=float(finite.std(ddof=1)) if len(finite) > 1 else float("nan"),
        count=len(finite),
    )


@register
@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """What one optimizer did, over its seeds.

    Attributes:
        optimizer: Name of the optimizer.
        seeds: Number of seeds run.
        statuses: Status to how many runs ended so.
        train_loss: Final loss on the training data.
        train_accuracy: Final accuracy on the training data, a fraction.
        test_loss: Final loss on the test data.
        test_accuracy: Final accuracy on the test data, a fraction.
        seconds_per_epoch: Training time of one epoch, without evaluation, in seconds.
        steps_to_95: Steps until 95 % of the best test accuracy of the comparison.
        lambda_max: Largest Hessian eigenvalue at the end.
        trace: Hessian trace at the end.
        look: Look of the optimizer in figures, or None.
    """

    optimizer: str
    seeds: int
    statuses: dict[str, int]
    train_loss: Aggregate
    train_accuracy: Aggregate
    test_loss: Aggregate
    test_accuracy: Aggregate
    seconds_per_epoch: Aggregate
    steps_to_95: Aggregate
    lambda_max: Aggregate
    trace: Aggregate
    look: Look | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, integers=("seeds",))


@register
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table of a comparison.

    Attributes:
        title: What was compared.
        data: Name of the data set.
        model: Name of the model.
        parameters: P, the number of its parameters.
        rows: One row an optimizer.
        note: Anything worth saying.
    """

    title: str
    data: str
    model: str
    parameters: int
    rows: tuple[ComparisonRow, ...]
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, integers=("parameters",))
        object.__setattr__(self, "rows", tuple(self.rows))
