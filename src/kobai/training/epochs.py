"""Count steps and epochs: how long a run is, and when something is due in it."""

import bisect
import math
from collections.abc import Callable
from typing import final

DEFAULT_EPOCHS = 10
"""The length of a run for which neither epochs nor steps are given."""


@final
class EpochCounter:
    """Steps and epochs, where epochs may differ in length.

    Args:
        length: Number of an epoch, from 0, to its minibatches.
    """

    def __init__(self, length: Callable[[int], int]) -> None:
        self._length = length
        self._ends = [0]

    def starts_at(self, epoch: int) -> int:
        """Steps before an epoch."""
        while len(self._ends) <= epoch:
            self._ends.append(self._ends[-1] + self._length(len(self._ends) - 1))
        return self._ends[epoch]

    def at(self, step: float | int) -> float:
        """Epochs done after so many steps; fractions of a step allowed."""
        while self._ends[-1] <= step:
            self.starts_at(len(self._ends))
        whole = bisect.bisect_right(self._ends, step) - 1
        return whole + (step - self._ends[whole]) / self._length(whole)

    def steps(self, epochs: float | int) -> int:
        """Steps in so many epochs, rounded to whole ones."""
        whole = math.floor(epochs)
        return self.starts_at(whole) + round((epochs - whole) * self._length(whole))


@final
class Timetable:
    """The steps after which something is due that is done every so many epochs.

    Args:
        epochs: Counts epochs in steps.
        every: Epochs from one time to the next; an interval shorter than a step means every step.
    """

    def __init__(self, epochs: EpochCounter, *, every: float | int) -> None:
        self._epochs, self._every = epochs, float(every)

    def due(self, step: int) -> bool:
        """Whether a step passes a multiple of the interval."""
        # A millionth of a step forgives rounding, such as of 10 steps as 0.1 of 100.
        before, after = self._epochs.at(step - 1 + 1e-6), self._epochs.at(step + 1e-6)
        return math.floor(after / self._every) > math.floor(before / self._every)


def run_length(epochs: float | int | None, steps: int | None, *, counter: EpochCounter) -> int:
    """Steps of a run whose length is given in steps or else in epochs, rounded to whole steps."""
    if steps is not None:
        return steps
    return max(1, counter.steps(DEFAULT_EPOCHS if epochs is None else epochs))
