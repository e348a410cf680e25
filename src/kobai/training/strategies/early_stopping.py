"""Early stopping: quit when the validation split stops improving, and go back to the best.

Source: Goodfellow, Bengio and Courville (2016), Deep Learning, algorithm 7.1.
"""

import dataclasses
import math
from typing import Any, Literal, final

from torch import Tensor, nn


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Stop after some evaluations without a better validation result; keep the best parameters.

    Attributes:
        patience: Evaluations in a row without improvement after which the run stops.
        measure: What is to improve on the validation split: "loss" falls, "accuracy" rises.
        min_delta: By how much at least, in units of the measure, to count as an improvement.

    Raises:
        ValueError: If a number is out of its range or the measure is unknown.
    """

    patience: int = 5
    measure: Literal["loss", "accuracy"] = "loss"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1 evaluation, got {self.patience}")
        if self.measure not in ("loss", "accuracy"):
            raise ValueError(f"measure must be 'loss' or 'accuracy', got {self.measure!r}")
        if not (self.min_delta >= 0 and math.isfinite(self.min_delta)):
            raise ValueError(f"min_delta must be 0 or positive, got {self.min_delta}")


@final
class Best:
    """The best point of a run so far, with a copy of parameters and buffers.

    Args:
        model: Copied at each improvement.
        config: What counts as better, and for how long to wait.
    """

    def __init__(self, model: nn.Module, config: EarlyStopping) -> None:
        self._model = model
        self.config = config
        self.value = float("nan")
        self.step = -1
        self.waited = 0
        self._state: dict[str, Tensor] = {}

    def observe(self, step: int, row: dict[str, float]) -> None:
        """Look at a record; a value that is not a number never counts as better."""
        value = row[f"validation_{self.config.measure}"]
        sign = 1.0 if self.config.measure == "loss" else -1.0
        first = self.step < 0 and not math.isnan(value)
        if first or sign * (self.value - value) > self.config.min_delta:
            self.value, self.step, self.waited = value, step, 0
            self._state = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.waited >= self.config.patience

    def restore(self) -> None:
        """Put the best parameters and buffers back into the model."""
        self._model.load_state_dict(self._state)

    def describe(self) -> str:
        """The best value and where it was, in words."""
        return f"validation {self.config.measure} {self.value:.6g} at step {self.step}"

    def state_dict(self) -> dict[str, Any]:
        """The best point and the patience used."""
        return {
            "value": self.value,
            "step": self.step,
            "waited": self.waited,
            "state": dict(self._state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the watch up again."""
        self.value, self.step, self.waited = state["value"], state["step"], state["waited"]
        self._state = dict(state["state"])
