"""The full Fisher block of a layer: every correlation between its parameters."""

from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.blocks.interface import Block
from kobai.curvature.blocks.shifted_inverse import shifted_inverse
from kobai.curvature.rows import Rows


@final
class DenseBlock(Block):
    """The P × P block of a layer with P = S M K parameters; memory 2 P², inversion P³/2.

    Args:
        shape: (S, M, K).
        dtype: Precision.
        device: Where everything lies.

    Attributes:
        fisher: Moving average of the second moments, (1, P, P).
        inverse: (F + λ)⁻¹, (1, P, P).
    """

    kind: ClassVar[str] = "layer"

    def __init__(
        self, shape: tuple[int, int, int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        size = shape[0] * shape[1] * shape[2]
        self.cost = float(size**3)
        self.fisher = torch.zeros(1, size, size, dtype=dtype, device=device)
        self.inverse = torch.zeros_like(self.fisher)

    def average(self, own: slice, moments: Tensor, past: float, weight: float) -> bool:
        """See `Block.average`; the moments are sums of outer products, (P, P)."""
        if not bool(torch.isfinite(moments.sum())):
            return False
        self.fisher.mul_(past).add_(moments, alpha=(1 - past) / weight)
        return True

    def moments_of(self, rows: Rows) -> Tensor:
        """See `Block.moments_of`."""
        matrix = rows.dense()
        return matrix.T @ matrix

    def empty_moments(self) -> Tensor:
        """See `Block.empty_moments`."""
        return self.fisher.new_zeros(self.fisher.shape[1:])

    def multiply(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """See `Block.multiply`."""
        return (self.fisher[0] @ matrices.reshape(-1)).view(matrices.shape)

    def solve(self, matrices: Tensor, damping: float, own: slice, out: Tensor) -> None:
        """See `Block.solve`; the damping lies in the inverse."""
        out.copy_((self.inverse[0] @ matrices.reshape(-1)).view(out.shape))

    def factor(
        self, damping: float, entries: Sequence[int], sample: Tensor | None = None
    ) -> dict[int, int]:
        """See `Block.factor`."""
        del sample
        inverse, status = shifted_inverse(self.fisher, self.fisher.new_full((1,), damping))
        if int(status) < 3:
            self.inverse.copy_(inverse)
        return dict.fromkeys(entries, int(status))

    def tensors(self) -> dict[str, Tensor]:
        """See `Block.tensors`."""
        return {"layer_fisher": self.fisher, "layer_inverse": self.inverse}

    def averages(self) -> list[Tensor]:
        """See `Block.averages`."""
        return [self.fisher]

    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """See `Block.sketch`."""
        return [self.fisher @ probe(self.fisher)]
