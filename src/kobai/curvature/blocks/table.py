"""The Fisher block of an embedding: lines share B, each with a number of its own for A."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.curvature.blocks.interface import Block, past_weight
from kobai.curvature.blocks.shifted_inverse import REPLACED, InverseMethod, shifted_inverse
from kobai.linalg import eigh


@final
class TableBlock(Block):
    """The block diag(a) ⊗ B of a table with V lines of width D, never V × V.

    Args:
        shape: (1, V, D).
        dtype: Precision.
        device: Where everything lies.
        eigen: Whether to keep a second moment for every entry in B's eigenbasis (EKFAC).
        method: How B is inverted.

    Attributes:
        frequency: a, the moving average of how often a line is looked up, (V,).
        matrix: B, the moving average of the gradients' second moments, (D, D).
        inverse: (B + …)⁻¹, or B's eigenvectors.
        shift: What is added to a, (1,).
        squares: Second moments in B's eigenbasis, (V, D), or None.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        eigen: bool = False,
        method: InverseMethod = "cholesky",
    ) -> None:
        self.shape = shape
        _, lines, width = shape
        self.method: InverseMethod = method
        self.cost = (10.0 if eigen else 1.0) * width**3
        self.frequency = torch.zeros(lines, dtype=dtype, device=device)
        self.matrix = self.frequency.new_zeros(width, width)
        self.inverse = torch.zeros_like(self.matrix)
        self.shift = self.frequency.new_zeros(1)
        self.squares = self.frequency.new_zeros(lines, width) if eigen else None
        self.corrections = self.frequency.new_zeros(1)

    kind: ClassVar[str] = "kronecker"

    def average(self, own: slice, moments: FactorSums, past: float, weight: float) -> bool:
        """See `Block.average`."""
        return moments.into((self.frequency, self.matrix), past, weight)

    def correct(self, own: slice, squares: Tensor, weight: float) -> bool:
        """Take new second moments in the eigenbasis, (V, D), into their average."""
        if self.squares is None or not bool(torch.isfinite(squares.sum())):
            return False
        self.corrections += 1
        past = past_weight(int(self.corrections) + 1)
        self.squares.mul_(past).add_(squares, alpha=(1 - past) / weight)
        return True

    def bases(self, own: slice) -> tuple[Tensor, None]:
        """Return B's eigenvectors; lines are a basis already."""
        return self.inverse, None

    def multiply(self, matrices: Float[Tensor, "1 V D"]) -> Float[Tensor, "1 V D"]:
        """See `Block.multiply`."""
        if self.squares is None:
            return self.frequency.unsqueeze(1) * (matrices @ self.matrix)
        return (self.squares * (matrices @ self.inverse)) @ self.inverse.T

    def solve(self, matrices: Tensor, damping: float, own: slice, out: Tensor) -> None:
        """See `Block.solve`."""
        if self.squares is None:
            torch.matmul(matrices, self.inverse, out=out)
            out /= (self.frequency + self.shift).unsqueeze(1)
        else:
            rotated = (matrices @ self.inverse) / (self.squares + damping)
            torch.matmul(rotated, self.inverse.T, out=out)

    def factor(
        self, damping: float, entries: Sequence[int], sample: Tensor | None = None
    ) -> dict[int, int]:
        """See `Block.factor`: B's inverse, or its eigenvectors."""
        del sample
        if self.squares is not None:
            return {0: self._rotate()}
        tiny = torch.finfo(self.matrix.dtype).tiny ** 0.25
        a = self.frequency.mean().clamp(min=tiny)
        b = torch.maximum(self.matrix.diagonal().mean(), 1e-6 * damping / a).clamp(min=tiny)
        balance, root = (a / b).sqrt(), math.sqrt(damping)
        inverse, status = shifted_inverse(
            self.matrix.unsqueeze(0), (root / balance).reshape(1), self.method,
            self.inverse.unsqueeze(0),
        )  # fmt: skip
        code = int(status)
        if code % REPLACED < 3:
            self.inverse.copy_(inverse[0])
            self.shift.fill_(float(balance) * root)
        return {0: code}

    def _rotate(self) -> int:
        """Renew the eigenbasis; second moments in it start afresh."""
        spectral = eigh(self.matrix, precision=self.matrix.dtype)
        if spectral.statuses[0] != "ok":
            return 3
        values = spectral.values.clamp(min=0).to(self.matrix.dtype)
        self.inverse.copy_(spectral.vectors)
        assert self.squares is not None
        torch.outer(self.frequency, values, out=self.squares)
        self.corrections.zero_()
        return 0

    def tensors(self) -> dict[str, Tensor]:
        """See `Block.tensors`."""
        kept = {
            "frequency": self.frequency,
            "table_factor": self.matrix,
            "table_inverse" if self.squares is None else "table_basis": self.inverse,
            "table_shift": self.shift,
        }
        if self.squares is None:
            return kept
        return {**kept, "squares": self.squares, "corrections": self.corrections}

    def averages(self) -> list[Tensor]:
        """See `Block.averages`."""
        own = [self.frequency, self.matrix]
        return own if self.squares is None else [*own, self.squares]

    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """See `Block.sketch`."""
        return [self.matrix @ probe(self.matrix)]
