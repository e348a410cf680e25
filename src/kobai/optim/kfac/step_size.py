"""How far to go along preconditioned gradients: the interface, and a learning rate in numbers."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.optim.kfac.observe import Observation
from kobai.optim.kfac.settings import FIXED_BOUND, KFACSettings
from kobai.optim.kfac.stack import Preconditioned

Directions = Sequence[tuple[dict[str, Any], Preconditioned]]
"""Preconditioned gradients with the settings of their parameter groups."""


@dataclasses.dataclass(slots=True, eq=False)
class Move:
    """Says how parameters are to move.

    Attributes:
        steps: Parameter groups with parameters and what is added to them, times a factor each.
        decay: What weight decay is multiplied with, besides learning rates.
        made: Where that is known on the device alone: whether the step is made at all.
    """

    steps: list[tuple[dict[str, Any], list[nn.Parameter], list[Tensor], float]]
    decay: float = 1.0
    made: Tensor | None = None

    def apply(self) -> None:
        """Move the parameters: θ ← (1 − lr · decay · weight_decay) θ + factor · step."""
        for group, parameters, steps, factor in self.steps:
            kept: float | Tensor = 1 - float(group["lr"]) * self.decay * group["weight_decay"]
            if self.made is not None:
                kept = 1.0 - (1.0 - kept) * self.made.to(torch.float64)
                steps = [step.masked_fill(~self.made, 0.0) for step in steps]
            for parameter, step in zip(parameters, steps, strict=True):
                if group["weight_decay"]:
                    parameter.mul_(kept)
                parameter.add_(step, alpha=factor)


class StepSize(ABC):
    """Decides about lengths of steps (interface).

    Attributes:
        counts: What is counted over an optimizer's life.
        last: Numbers of the last step.
    """

    counts: dict[str, int]
    last: dict[str, float]

    @abstractmethod
    def move(
        self,
        step: int,
        groups: Sequence[dict[str, Any]],
        directions: Directions,
        seen: Observation,
        inversions: int,
        closure: Callable[[], Any] | None,
    ) -> Move | None:
        """Decide how the parameters move.

        Args:
            step: Number of steps made before.
            groups: All parameter groups.
            directions: Preconditioned gradients.
            seen: The step's passes.
            inversions: Inversions made so far.
            closure: The user's, for losses that cannot be read off the gradient.

        Returns:
            The move; None if the size of the step is not finite although the gradients are.

        Raises:
            RuntimeError: If the loss cannot be known, saying what to do.
        """

    @abstractmethod
    def keeps_passes(self, step: int) -> bool:
        """Say whether the passes of the coming step are needed."""

    @abstractmethod
    def diagnostics(self) -> dict[str, Any]:
        """Return counts and numbers of the last step."""

    @abstractmethod
    def export(self) -> dict[str, Any] | None:
        """Return what is to be saved besides the parameters' own memory."""

    @abstractmethod
    def restore(self, saved: dict[str, Any] | None) -> None:
        """Put back what `export` gave.

        Raises:
            ValueError: If it was saved under another choice of numbers and "auto".
        """

    def memory(self) -> dict[int, Tensor]:
        """Return a tensor by ``id(parameter)`` that is to be saved with the parameter."""
        return {}


@final
class Fixed(StepSize):
    """The learning rate as it is, inside a trust region of a fixed radius.

    On an accelerator nothing is read: reading a number makes the host wait until everything before
    it is done, and the accelerator wait for the host afterwards. What this step decides is a factor
    of zero or one, or a scale: a gradient that is not finite leaves momentum and parameters alone,
    a size that is not finite starts the momentum afresh, and a step beyond the trust region is
    shortened. What happened is added up on the device as well, until somebody asks.

    Args:
        settings: The bound on a step.
        forget: Starts the momentum afresh, for all layers or, on a device, where a flag says so.
    """

    def __init__(self, settings: KFACSettings, forget: Callable[[Tensor], None]) -> None:
        bound = settings.kl_bound
        self.bound = FIXED_BOUND if isinstance(bound, str) else float(bound)
        self.finite: Tensor | None = None
        """Whether the present gradients are finite, where that is known on the device alone."""
        self._forget = forget
        self.counts = {"skipped_steps": 0, "bounded_steps": 0}
        self.last = {"step_scale": 1.0, "kl": 0.0}
        self._device_counts: Tensor | None = None
        self._device_last: Tensor | None = None

    def move(
        self,
        step: int,
        groups: Sequence[dict[str, Any]],
        directions: Directions,
        seen: Observation,
        inversions: int,
        closure: Callable[[], Any] | None,
    ) -> Move | None:
        """See `StepSize.move`."""
        del step, groups, seen, inversions, closure
        size = size_of(directions)
        if self.finite is not None:
            # A number without a tensor: no layer has an inverse yet, so nothing moves.
            return self._on_device(directions, size, self.finite) if torch.is_tensor(size) else None
        scale = self.scale(float(size))
        if scale is None:
            return None
        return Move(
            [
                (group, own.parameters, own.directions, -scale * float(group["lr"]))
                for group, own in directions
            ]
        )

    def scale(self, size: float) -> float | None:
        """Return the factor ν ≤ 1 that keeps a step of this size inside; None if not finite."""
        if not math.isfinite(size):
            return None
        scale = 1.0
        if size > self.bound:
            scale = math.sqrt(self.bound / size)
            self.counts["bounded_steps"] += 1
        self.last = {"step_scale": scale, "kl": scale * scale * size}
        return scale

    def _on_device(self, directions: Directions, size: Tensor, finite: Tensor) -> Move:
        sound = torch.isfinite(size)
        scale = torch.ones_like(size)
        if math.isfinite(self.bound):
            scale = torch.where(size > self.bound, (self.bound / size).sqrt(), scale)
        made = finite & sound
        self._forget(~sound)
        happened = torch.stack([~made, made & (scale < 1)]).to(torch.int64)
        known = self._device_counts
        self._device_counts = happened if known is None else known + happened
        now = torch.stack([scale, scale * scale * size]).double()
        before = self._device_last
        if before is None:
            before = torch.stack([torch.ones_like(scale), torch.zeros_like(scale)]).double()
        self._device_last = torch.where(made, now, before)
        return Move(
            [
                (group, own.parameters, [d * scale.to(d.dtype) for d in own.directions],
                 -float(group["lr"]))
                for group, own in directions
            ],
            made=made,
        )  # fmt: skip

    def keeps_passes(self, step: int) -> bool:
        """No."""
        return False

    def diagnostics(self) -> dict[str, Any]:
        """See `StepSize.diagnostics`; waits for a device."""
        if self._device_counts is not None:
            skipped, bounded = self._device_counts.tolist()
            self.counts["skipped_steps"] += skipped
            self.counts["bounded_steps"] += bounded
        if self._device_last is not None:
            scale, size = self._device_last.tolist()
            self.last = {"step_scale": scale, "kl": size}
        self._device_counts = self._device_last = None
        return {**self.counts, **self.last}

    def export(self) -> dict[str, Any] | None:
        """See `StepSize.export`."""
        return None

    def restore(self, saved: dict[str, Any] | None) -> None:
        """See `StepSize.restore`."""
        self._device_counts = self._device_last = None
        check_same_choice(saved, automatic=False)


def size_of(directions: Directions) -> float | Tensor:
    """Return dᵀ(F + λ)d of the step with the groups' learning rates."""
    size: float | Tensor = 0.0
    for group, own in directions:
        size += own.size * float(group["lr"]) ** 2
    return size


def finite_on_device(gradients: Sequence[Tensor]) -> Tensor:
    """Return whether all entries are finite, a tensor without axes on the device of the first."""
    foreach: Any = torch  # not exported by name
    largest = foreach._foreach_norm(list(gradients), math.inf)
    device = largest[0].device
    return torch.isfinite(torch.stack([one.to(device, torch.float32) for one in largest])).all()


def check_same_choice(saved: dict[str, Any] | None, *, automatic: bool) -> None:
    """Refuse the state of another choice of numbers and "auto".

    Raises:
        ValueError: Saying what to do.
    """
    if (saved is not None) != automatic:
        raise ValueError(
            "this state was saved with another choice of numbers and 'auto' for lr and damping; "
            "make the optimizer as it was made then"
        )
