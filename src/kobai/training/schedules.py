"""Learning-rate schedules: pure functions from the number of steps done to a factor.

The factor multiplies the learning rate each parameter group started with. Step 0 is the first step,
so the k-th step (counted from 0) runs at ε_k.
"""

import abc
import dataclasses
import math
from typing import Any, final

import torch
from torch import Tensor


def linear_decay(step: int, *, until: int, final_fraction: float) -> float:
    """ε_k / ε_0 of the linear decay: ε_k = (1 − α) ε_0 + α ε_τ with α = k/τ, then constant ε_τ.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, equation 8.14.

    Args:
        step: k, steps done, from 0.
        until: τ, the step from which the rate is constant.
        final_fraction: ε_τ / ε_0.

    Returns:
        The factor, from 1 at k = 0 to `final_fraction` at k ≥ τ.
    """
    alpha = min(step / until, 1.0)
    return (1.0 - alpha) + alpha * final_fraction


def cosine(step: int, *, until: int, final_fraction: float) -> float:
    """ε_k / ε_0 of half a cosine wave without restarts.

    Source: Loshchilov and Hutter (2017), SGDR, equation 5, one period.

    Args:
        step: k, steps done, from 0.
        until: The step at which the wave ends.
        final_fraction: The factor from there on.

    Returns:
        The factor, from 1 at k = 0 to `final_fraction` at k ≥ `until`.
    """
    wave = 0.5 * (1.0 + math.cos(math.pi * min(step / until, 1.0)))
    return final_fraction + (1.0 - final_fraction) * wave


def warm_up(step: int, *, warmup: int) -> float:
    """The linear rise (k + 1) / w over the first w steps; 1 from step w − 1 on.

    Args:
        step: k, steps done, from 0.
        warmup: w, how many steps it takes; 0 for none.

    Returns:
        The factor, never 0, so that no step is wasted.
    """
    return 1.0 if step >= warmup else (step + 1) / warmup


class Schedule(abc.ABC):
    """A learning rate over a run, relative to the one the optimizer was made with."""

    @abc.abstractmethod
    def factor(self, step: int, *, total: int) -> float:
        """The factor on the learning rate.

        Args:
            step: Steps done so far, from 0.
            total: Steps of the whole run, for schedules that end with it.
        """


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The learning rate as given, after an optional warm-up.

    Attributes:
        warmup: Steps of linear warm-up at the start (0: none).

    Raises:
        ValueError: If `warmup` is negative.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        _check(warmup=self.warmup)

    def factor(self, step: int, *, total: int) -> float:
        """1, after the warm-up."""
        return warm_up(step, warmup=self.warmup)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decay(Schedule):
    """A linear warm-up, then a fall to a fraction of the learning rate, constant from there on.

    Attributes:
        until: Steps of the fall, counted after the warm-up (None: the rest of the run).
        final_fraction: Final learning rate as a fraction of the initial one, in [0, 1].
        warmup: Steps of linear warm-up at the start (0: none).

    Raises:
        ValueError: If a number is out of its range.
    """

    until: int | None = None
    final_fraction: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        _check(until=self.until, final_fraction=self.final_fraction, warmup=self.warmup)

    def factor(self, step: int, *, total: int) -> float:
        """The warm-up, then the fall counted from its end."""
        if step < self.warmup:
            return warm_up(step, warmup=self.warmup)
        until = max(total - self.warmup, 1) if self.until is None else self.until
        return self._fall(step - self.warmup, until=until, final_fraction=self.final_fraction)

    @staticmethod
    @abc.abstractmethod
    def _fall(step: int, *, until: int, final_fraction: float) -> float:
        """The factor after so many steps of the fall."""


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearDecay(_Decay):
    """Linear decay to a fraction of the learning rate, constant from there on.

    Attributes:
        until: Steps of the decay (τ), counted after the warm-up (None: the rest of the run).
        final_fraction: Final learning rate as a fraction of the initial one, in [0, 1].
        warmup: Steps of linear warm-up at the start (0: none).

    Raises:
        ValueError: If a number is out of its range.
    """

    final_fraction: float = 0.01

    _fall = staticmethod(linear_decay)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(_Decay):
    """Half a cosine wave down to a fraction of the learning rate, constant from there on.

    Attributes:
        until: Steps of the wave, counted after the warm-up (None: the rest of the run).
        final_fraction: Final learning rate as a fraction of the initial one, in [0, 1].
        warmup: Steps of linear warm-up at the start (0: none).

    Raises:
        ValueError: If a number is out of its range.
    """

    _fall = staticmethod(cosine)


SCHEDULES: dict[str, type[Constant] | type[LinearDecay] | type[Cosine]] = {
    "constant": Constant,
    "linear": LinearDecay,
    "cosine": Cosine,
}
"""The schedules by name; each is a config whose fields all have defaults."""


@final
class ScheduledRates:
    """The learning rates of an optimizer's groups, moved by a schedule.

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


def _check(*, warmup: int, until: int | None = None, final_fraction: float = 0.0) -> None:
    if warmup < 0:
        raise ValueError(f"warmup must be a number of steps, 0 or more, got {warmup}")
    if until is not None and until < 1:
        raise ValueError(
            f"until must be at least 1 step, got {until}; None means the rest of the run"
        )
    if not 0.0 <= final_fraction <= 1.0:
        raise ValueError(
            f"final_fraction must be a fraction of the learning rate in [0, 1], got "
            f"{final_fraction}"
        )
