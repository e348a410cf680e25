"""How long a run is and when it is evaluated and saved, counted in steps."""

import dataclasses
import math
from typing import final

DEFAULT_EPOCHS = 10


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The length of a run and the steps after which something is due.

    Attributes:
        steps_per_epoch: Minibatches in one pass over the training data.
        total: Steps of the whole run.
        evaluate_every: Epochs between evaluations.
        save_every: Epochs between checkpoints, or None.
    """

    steps_per_epoch: int
    total: int
    evaluate_every: float
    save_every: float | None = None

    def epoch(self, step: int) -> float:
        """Passes over the training data after so many steps."""
        return step / self.steps_per_epoch

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after a step: at multiples of its interval and at the end.

        An interval shorter than a step means every step.
        """
        return step in (0, self.total) or self._crosses(step, self.evaluate_every)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return self.save_every is not None and self._crosses(step, self.save_every)

    def _crosses(self, step: int, epochs: float) -> bool:
        interval = epochs * self.steps_per_epoch
        # A millionth of a step forgives rounding, such as of 10 steps as 0.1 of 100.
        return math.floor((step + 1e-6) / interval) > math.floor((step - 1 + 1e-6) / interval)


def run_length(epochs: float | int | None, steps: int | None, *, steps_per_epoch: int) -> int:
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
    return max(1, round(epochs * steps_per_epoch))
