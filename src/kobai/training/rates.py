"""Puts a schedule's learning rate into an optimizer's parameter groups."""

from typing import Any, final

import torch
from torch import Tensor

from kobai.training.schedules import Schedule


@final
class LearningRates:
    """The learning rates of an optimizer's groups, and what a schedule makes of them.

    Without a schedule nothing is written, so that an optimizer may adapt its own rate.

    Args:
        optimizer: Its groups' rates now are what the schedule's factor multiplies.
        schedule: The factor over the run, or None.
        total: Steps of the run.

    Raises:
        ValueError: If there is a schedule and a group has no learning rate.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Schedule | None, *, total: int
    ) -> None:
        self._optimizer = optimizer
        self._schedule = schedule
        self._total = total
        if schedule is None:
            self._initial: list[float] = []
            return
        if any("lr" not in group for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has a parameter group without 'lr', so there is "
                "nothing a schedule could set; pass schedule=None"
            )
        self._initial = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Write the rates of the step after `step` steps into the groups."""
        if self._schedule is not None:
            self._write(self._schedule.factor(step, total=self._total))

    def restore(self) -> None:
        """Write the rates the groups started with, so that the optimizer can be used again."""
        if self._schedule is not None:
            self._write(1.0)

    def current(self) -> float:
        """The first group's rate; NaN if it has none."""
        return float(self._optimizer.param_groups[0].get("lr", float("nan")))

    def _write(self, factor: float) -> None:
        for group, initial in zip(self._optimizer.param_groups, self._initial, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(initial * factor)
            else:
                group["lr"] = initial * factor

    def state_dict(self) -> dict[str, Any]:
        """The rates the groups started with."""
        return {"initial": list(self._initial)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the rates a run started with."""
        self._initial = list(state["initial"])
