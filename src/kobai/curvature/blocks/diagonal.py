"""The diagonal Fisher block: the mean square of every entry of the gradient."""

from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.blocks.interface import Block
from kobai.curvature.rows import Rows


@final
class DiagonalBlock(Block):
    """Parameters with a diagonal Fisher matrix.

    Args:
        shape: (S, M, K).
        dtype: Precision.
        device: Where everything lies.

    Attributes:
        fisher: Moving average of the squares, (S, M, K).
    """

    kind: ClassVar[str] = "diagonal"
    factored: ClassVar[bool] = False

    def __init__(
        self, shape: tuple[int, int, int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self.fisher = torch.zeros(shape, dtype=dtype, device=device)

    def average(self, own: slice, moments: Tensor, past: float, weight: float) -> bool:
        """See `Block.average`; the moments are sums of squares, of any shape with as many."""
        if not bool(torch.isfinite(moments.sum())):
            return False
        average = self.fisher[own]
        average.mul_(past).add_(moments.view(average.shape), alpha=(1 - past) / weight)
        return True

    def moments_of(self, rows: Rows) -> Tensor:
        """See `Block.moments_of`."""
        return rows.squares()

    def empty_moments(self) -> Tensor:
        """See `Block.empty_moments`."""
        return self.fisher.new_zeros(self.fisher.shape)

    def multiply(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """See `Block.multiply`."""
        return self.fisher * matrices

    def solve(self, matrices: Tensor, damping: float, own: slice, out: Tensor) -> None:
        """See `Block.solve`; the damping is exact."""
        torch.div(matrices, self.fisher[own] + damping, out=out)

    def tensors(self) -> dict[str, Tensor]:
        """See `Block.tensors`."""
        return {"fisher": self.fisher}

    def averages(self) -> list[Tensor]:
        """See `Block.averages`."""
        return [self.fisher]

    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """See `Block.sketch`."""
        return [self.fisher.sum().reshape(1)]
