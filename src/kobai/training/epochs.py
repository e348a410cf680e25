"""How long a run is and when it is evaluated and saved, counted in steps."""

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import final

DEFAULT_EPOCHS = 10


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a run and the steps after which something is due.

    Attributes:
        passes: How steps add up to passes over the training data.
        total: Steps of the whole run.
        evaluate_every: Epochs between evaluations.
        save_every: Epochs between checkpoints, or None.
    """

    passes: "Passes"
    total: int
    evaluate_every: float
    save_every: float | None = None

    def epoch(self, step: int) -> float:
        """Passes over the training data after so many steps."""
        return self.passes.epoch(step)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after a step: at multiples of its interval and at the end.

        An interval shorter than a step means every step.
        """
        return step in (0, self.total) or self._crosses(step, self.evaluate_every)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return self.save_every is not None and self._crosses(step, self.save_every)

    def _crosses(self, step: int, epochs: float) -> bool:
        # A millionth of a step forgives rounding, such as of 10 steps as 0.1 of 100.
        before, after = self.passes.epoch(step - 1 + 1e-6), self.passes.epoch(step + 1e-6)
        return math.floor(after / epochs) > math.floor(before / epochs)


@final
class Passes:
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

    def epoch(self, step: float | int) -> float:
        """Passes after so many steps; fractions of a step allowed."""
        while self._ends[-1] <= step:
            self.starts_at(len(self._ends))
        whole = bisect.bisect_right(self._ends, step) - 1
        return whole + (step - self._ends[whole]) / self._length(whole)

    def steps(self, epochs: float | int) -> int:
        """Steps in so many passes, rounded to whole ones."""
        whole = math.floor(epochs)
        return self.starts_at(whole) + round((epochs - whole) * self._length(whole))


def run_length(epochs: float | int | None, steps: int | None, *, passes: Passes) -> int:
    """Steps of a run given in epochs (rounded to whole steps) or in steps.

    Raises:
        ValueError: If both are given, or the one given is not positive.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"give epochs or steps, not both; got epochs={epochs}, steps={steps}")
    if steps is not None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        return steps
    epochs = DEFAULT_EPOCHS if epochs is None else epochs
    if not (epochs > 0 and math.isfinite(epochs)):
        raise ValueError(f"epochs must be positive and finite, got {epochs}")
    return max(1, passes.steps(epochs))
