"""A step whose decisions are made on the device, so that the host never waits for a number.

Reading a number of an accelerator makes the host wait until everything before it is done, and the
accelerator wait for the host afterwards. Between refreshes a step with a learning rate and a
damping in numbers decides three things only, and each is a factor of zero or one, or a scale: a
gradient that is not finite leaves momentum and parameters alone, a step whose size is not finite
starts the momentum afresh, and a step beyond the trust region is shortened. What happened is added
up on the device as well, until somebody asks.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

Updates = Sequence[tuple[dict[str, Any], list[nn.Parameter], list[Tensor]]]
"""Parameter groups with the parameters that move and their directions."""


def finite_on_device(gradients: Sequence[Tensor]) -> Tensor:
    """Whether all entries are finite, a tensor without axes on the device of the first."""
    foreach: Any = torch  # not exported by name
    largest = foreach._foreach_norm(list(gradients), math.inf)
    device = largest[0].device
    return torch.isfinite(torch.stack([one.to(device, torch.float32) for one in largest])).all()


def kept_gradient(gradient: Tensor, finite: Tensor | None) -> Tensor:
    """A gradient as momentum takes it: nothing where `finite` says so, itself without it."""
    return gradient if finite is None else gradient.masked_fill(~finite, 0.0)


def kept_share(momentum: float, finite: Tensor | None) -> float | Tensor:
    """Share of the momentum that is kept: all of it where the gradient is not taken."""
    # Numbers of the host enter kernels as arguments; as tensors they would have to be copied.
    return momentum if finite is None else 1.0 - (1.0 - momentum) * finite.to(torch.float64)


@final
class DeviceStep:
    """Makes steps without reading numbers, and counts what it did."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._last: Tensor | None = None

    @torch.no_grad()
    def make(
        self,
        updates: Updates,
        momenta: Sequence[Tensor],
        size: Tensor,
        finite: Tensor,
        bound: float | None,
    ) -> None:
        """Move the parameters.

        Args:
            updates: What moves where; directions are finite where `finite` and `size` are.
            momenta: Set to zero if the size is not finite though the gradients were.
            size: dᵀ(F + λ)d of the whole step.
            finite: Whether the gradients were.
            bound: What the size may not exceed.
        """
        sound = torch.isfinite(size)
        scale = torch.ones_like(size)
        if bound is not None:
            scale = torch.where(size > bound, (bound / size).sqrt(), scale)
        made = finite & sound
        for momentum in momenta:
            momentum.masked_fill_(~sound, 0.0)
        for group, parameters, directions in updates:
            lr = float(group["lr"])
            kept = 1.0 - lr * group["weight_decay"] * made.to(torch.float64)
            for parameter, direction in zip(parameters, directions, strict=True):
                if group["weight_decay"]:
                    parameter.mul_(kept)
                step = direction * scale.to(direction.dtype)
                parameter.add_(step.masked_fill_(~made, 0.0), alpha=-lr)
        happened = torch.stack([~made, made & (scale < 1)]).to(torch.int64)
        self._counts = happened if self._counts is None else self._counts + happened
        now = torch.stack([scale, scale * scale * size]).double()
        last = torch.stack([torch.ones_like(scale), torch.zeros_like(scale)]).double()
        last = last if self._last is None else self._last
        self._last = torch.where(made, now, last)

    def read(self) -> tuple[dict[str, int], dict[str, float]]:
        """Counts since the last call and numbers of the last step that was made; waits for them."""
        counts: dict[str, int] = {}
        if self._counts is not None:
            skipped, bounded = self._counts.tolist()
            counts = {"skipped_steps": skipped, "bounded_steps": bounded}
        last: dict[str, float] = {}
        if self._last is not None:
            scale, size = self._last.tolist()
            last = {"step_scale": scale, "kl": size}
        self._counts = self._last = None
        return counts, last
