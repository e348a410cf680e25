"""Fisher blocks of single units: what feeds one output unit, or its scale and shift."""

from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.blocks.interface import Block
from kobai.curvature.blocks.shifted_inverse import shifted_inverse
from kobai.curvature.rows import Rows
from kobai.curvature.rows.outer_products import OuterRows


@final
class UnitBlock(Block):
    """A k × k block for each of U units.

    Systems of one or two unknowns are solved in closed form at every step, with the damping of that
    step; larger ones are inverted when `factor` is called. Memory: U k², twice where inverted.

    Args:
        shape: (S, M, K): U = S M units of k = K parameters.
        dtype: Precision.
        device: Where everything lies.

    Attributes:
        fisher: Moving average of the units' second moments, (U, k, k).
        inverse: (F + λ)⁻¹, (U, k, k), or None for k ≤ 2.
    """

    kind: ClassVar[str] = "unit"

    def __init__(
        self, shape: tuple[int, int, int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        units, size = shape[0] * shape[1], shape[2]
        self.cost = float(units * size**3)
        self.fisher = torch.zeros(units, size, size, dtype=dtype, device=device)
        self.factored = size > 2
        self.inverse = torch.zeros_like(self.fisher) if self.factored else None

    def average(self, own: slice, moments: Tensor, past: float, weight: float) -> bool:
        """See `Block.average`; the moments are sums of outer products, (U, k, k)."""
        if not bool(torch.isfinite(moments.sum())):
            return False
        self.fisher.mul_(past).add_(moments, alpha=(1 - past) / weight)
        return True

    def moments_of(self, rows: Rows) -> Tensor:
        """See `Block.moments_of`."""
        if isinstance(rows, OuterRows):
            return rows.unit_moments()
        units = rows.dense().view(-1, self.shape[0] * self.shape[1], self.shape[2]).transpose(0, 1)
        return units.mT @ units

    def empty_moments(self) -> Tensor:
        """See `Block.empty_moments`."""
        return self.fisher.new_zeros(self.fisher.shape)

    def multiply(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """See `Block.multiply`."""
        return (self.fisher @ matrices.reshape(-1, self.shape[2], 1)).view(matrices.shape)

    def solve(self, matrices: Tensor, damping: float, own: slice, out: Tensor) -> None:
        """See `Block.solve`."""
        m = matrices.view(-1, self.shape[2])
        if self.inverse is not None:
            out.copy_((self.inverse @ m.unsqueeze(2)).view(out.shape))
        elif self.shape[2] == 1:
            out.copy_((m / (self.fisher[:, 0] + damping)).view(out.shape))
        else:
            a = self.fisher[:, 0, 0] + damping
            d = self.fisher[:, 1, 1] + damping
            # |b| ≤ √(ad) up to rounding: eliminate, with the damping as the least pivot.
            ratio = self.fisher[:, 0, 1] / a
            rest = (d - ratio * self.fisher[:, 0, 1]).clamp(min=damping)
            second = (m[:, 1] - ratio * m[:, 0]) / rest
            torch.stack([m[:, 0] / a - ratio * second, second], 1, out=out.view(-1, 2))

    def factor(
        self, damping: float, entries: Sequence[int], sample: Tensor | None = None
    ) -> dict[int, int]:
        """See `Block.factor`."""
        del sample
        if self.inverse is None:
            return dict.fromkeys(entries, 0)
        shifts = self.fisher.new_full((len(self.fisher),), damping)
        inverse, status = shifted_inverse(self.fisher, shifts)
        good = status < 3
        self.inverse[good] = inverse[good]
        return dict.fromkeys(entries, int(status.max()))

    def tensors(self) -> dict[str, Tensor]:
        """See `Block.tensors`."""
        kept = {"unit_fisher": self.fisher}
        return kept if self.inverse is None else {**kept, "unit_inverse": self.inverse}

    def averages(self) -> list[Tensor]:
        """See `Block.averages`."""
        return [self.fisher]

    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """See `Block.sketch`."""
        return [self.fisher.sum().reshape(1)]
