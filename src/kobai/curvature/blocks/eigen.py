"""Fisher blocks in Kronecker-factored eigenbases, with the second moments in them measured (EKFAC).

Source: George et al. 2018, Fast approximate natural gradient descent in a Kronecker-factored
eigenbasis (§3, Algorithm 1).
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.curvature.blocks.interface import Block, past_weight
from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.linalg import eigh


@final
class EigenBlock(Block):
    """Blocks (Q_B ⊗ Q_A) diag(s) (Q_B ⊗ Q_A)ᵀ, s the mean square of gradients in that basis.

    When the basis is renewed, s starts at the products of the factors' eigenvalues, which count as
    one observation. The damping is exact and may change from step to step.

    Args:
        shape: (S, M, K).
        dtype: Precision of the matrices that are solved for, and of bases and second moments.
        device: Where everything lies.
        precision: Precision of the factors and their decomposition; default: `dtype`.

    Attributes:
        factors: The moving averages of A and B.
        input_basis: Q_A, (S, K, K).
        output_basis: Q_B, (S, M, M).
        squares: s, (S, M, K).
        corrections: Number of observations in s, (S,).
    """

    kind: ClassVar[str] = "ekfac"

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        precision: torch.dtype | None = None,
    ) -> None:
        self.shape = shape
        count, m, k = shape
        # An eigendecomposition takes about ten times the multiplications of an inverse.
        self.cost = 10.0 * (m**3 + k**3)

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(count, *sizes, dtype=dtype, device=device)

        averaged = precision or dtype
        self.factors = KroneckerFactors(
            inputs=zeros(k, k).to(averaged), outputs=zeros(m, m).to(averaged)
        )
        self.input_basis, self.output_basis = zeros(k, k), zeros(m, m)
        self.squares, self.corrections = zeros(m, k), zeros()

    def average(self, own: slice, moments: FactorSums, past: float, weight: float) -> bool:
        """See `Block.average`."""
        return moments.into((self.factors.inputs[own], self.factors.outputs[own]), past, weight)

    def correct(self, own: slice, squares: Tensor, weight: float) -> bool:
        """Take new second moments in the present bases into their averages; see `average`."""
        if not bool(torch.isfinite(squares.sum())):
            return False
        self.corrections[own] += 1
        past = past_weight(int(self.corrections[own.start]) + 1)
        self.squares[own].mul_(past).add_(squares, alpha=(1 - past) / weight)
        return True

    def bases(self, own: slice) -> tuple[Tensor, Tensor]:
        """Return Q_B and Q_A of some entries."""
        return self.output_basis[own], self.input_basis[own]

    def multiply(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """See `Block.multiply`."""
        outer, within = self.output_basis, self.input_basis
        return outer @ (self.squares * (outer.mT @ (matrices @ within))) @ within.mT

    def solve(self, matrices: Tensor, damping: float, own: slice, out: Tensor) -> None:
        """See `Block.solve`. Cost: 2 MK(M + K) per entry."""
        outer, within = self.output_basis[own], self.input_basis[own]
        rotated = outer.mT @ (matrices @ within)
        rotated /= self.squares[own] + damping
        torch.bmm(outer, rotated @ within.mT, out=out)

    def factor(
        self, damping: float, entries: Sequence[int], sample: Tensor | None = None
    ) -> dict[int, int]:
        """See `Block.factor`: renew the bases."""
        del damping, sample
        own, dtype = list(entries), self.squares.dtype
        left = eigh(self.factors.outputs[own], precision=self.factors.outputs.dtype)
        right = eigh(self.factors.inputs[own], precision=self.factors.inputs.dtype)
        statuses = {}
        for i, entry in enumerate(own):
            good = left.statuses[i] == right.statuses[i] == "ok"
            statuses[entry] = 0 if good else 3
            if good:
                self.output_basis[entry] = left.vectors[i].to(dtype)
                self.input_basis[entry] = right.vectors[i].to(dtype)
                b, a = left.values[i].clamp(min=0), right.values[i].clamp(min=0)
                self.squares[entry] = torch.outer(b, a).to(dtype)
        return statuses

    def renewed(self, entries: Sequence[int]) -> None:
        """See `Block.renewed`: second moments have been observed in older bases only."""
        for entry in entries:
            self.corrections[entry] = 0

    def tensors(self) -> dict[str, Tensor]:
        """See `Block.tensors`."""
        return {
            "input_factor": self.factors.inputs,
            "output_factor": self.factors.outputs,
            "input_basis": self.input_basis,
            "output_basis": self.output_basis,
            "squares": self.squares,
            "corrections": self.corrections,
        }

    def averages(self) -> list[Tensor]:
        """See `Block.averages`."""
        return [self.factors.inputs, self.factors.outputs, self.squares]

    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """See `Block.sketch`."""
        return [matrix @ probe(matrix) for matrix in (self.factors.inputs, self.factors.outputs)]

    def shared(self) -> list[Tensor]:
        """See `Block.shared`."""
        return [self.output_basis, self.input_basis, self.squares]
