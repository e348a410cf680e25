"""Batch-size schedules: pure functions from the number of the epoch to examples a minibatch.

The size changes between epochs only, so that every epoch still uses every example once. A batch
that grows does for the noise of the gradient what a falling learning rate does, in fewer steps
(Smith et al. 2018, Don't decay the learning rate, increase the batch size).
"""

import abc
import bisect
import dataclasses
import math
from typing import final


class BatchSchedule(abc.ABC):
    """Batch sizes over a run, from the one the run was given."""

    @abc.abstractmethod
    def size(self, epoch: int, *, first: int) -> int:
        """Examples a minibatch in an epoch.

        Args:
            epoch: Epochs done, from 0.
            first: The batch size the run was given.

        Returns:
            At least 1; more than there are examples means all of them.
        """


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstantBatch(BatchSchedule):
    """The same batch size throughout."""

    def size(self, epoch: int, *, first: int) -> int:
        """The first size."""
        return first


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricBatch(BatchSchedule):
    """The batch size times a factor every few epochs.

    Attributes:
        factor: What a growth multiplies the size by; below 1 it shrinks.
        every: Epochs from one growth to the next.
        largest: Bound on the size (None: all examples).

    Raises:
        ValueError: If a number is out of its range.
    """

    factor: float = 2.0
    every: int = 1
    largest: int | None = None

    def __post_init__(self) -> None:
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"factor must be positive and finite, got {self.factor}")
        _check(every=self.every, largest=self.largest)

    def size(self, epoch: int, *, first: int) -> int:
        """round(first · factor^⌊epoch / every⌋), within the bound."""
        # A cap on the logarithm: a factor to a large power must not overflow.
        grown = math.log(first) + (epoch // self.every) * math.log(self.factor)
        return _bounded(math.exp(min(grown, 700.0)), self.largest)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBatch(BatchSchedule):
    """The batch size plus a number every few epochs.

    Attributes:
        add: Examples a growth adds; negative ones shrink it.
        every: Epochs from one growth to the next.
        largest: Bound on the size (None: all examples).

    Raises:
        ValueError: If a number is out of its range.
    """

    add: int = 64
    every: int = 1
    largest: int | None = None

    def __post_init__(self) -> None:
        _check(every=self.every, largest=self.largest)

    def size(self, epoch: int, *, first: int) -> int:
        """First + add · ⌊epoch / every⌋, within the bound."""
        return _bounded(first + self.add * (epoch // self.every), self.largest)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBatch(BatchSchedule):
    """Named sizes from named epochs on.

    Attributes:
        epochs: Epochs at which the size changes, counted from 0, ascending.
        sizes: The size from each of them on.

    Raises:
        ValueError: If there are not as many sizes as epochs, or a number is out of its range.
    """

    epochs: tuple[int, ...] = (5,)
    sizes: tuple[int, ...] = (1024,)

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.sizes):
            raise ValueError(
                f"every epoch needs a size of its own, got epochs {self.epochs} and sizes "
                f"{self.sizes}"
            )
        if any(b <= a for a, b in zip((0, *self.epochs), self.epochs, strict=False)):
            raise ValueError(f"epochs must be positive and ascending, got {self.epochs}")
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"sizes must be at least 1, got {self.sizes}")

    def size(self, epoch: int, *, first: int) -> int:
        """The size of the last change so far."""
        return (first, *self.sizes)[bisect.bisect_right(self.epochs, epoch)]


BATCH_SCHEDULES: dict[
    str, type[ConstantBatch] | type[GeometricBatch] | type[LinearBatch] | type[StepBatch]
] = {
    "constant": ConstantBatch,
    "geometric": GeometricBatch,
    "linear": LinearBatch,
    "steps": StepBatch,
}
"""The schedules by name; each is a config whose fields all have defaults."""


def _bounded(size: float | int, largest: int | None) -> int:
    return max(1, round(size if largest is None else min(size, largest)))


def _check(*, every: int, largest: int | None) -> None:
    if every < 1:
        raise ValueError(f"every must be at least 1 epoch, got {every}")
    if largest is not None and largest < 1:
        raise ValueError(f"largest must be at least 1 example, got {largest}")
