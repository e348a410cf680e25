"""Fisher structure "tridiagonal": blocks of layers further apart than neighbours set to zero.

Not to be confused with "chain", whose inverse is block-tridiagonal. This matrix is indefinite for
three layers and more, so there is neither a Cholesky factor nor a conjugate-gradient solve, and
damping near minus a negative eigenvalue makes it singular: solved by LU, with a small damping.
In the wide limit its natural gradient acts in function space as ⌈L/3⌉ times the exact one.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Coverage
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.structures.coupled_layers import (
    LayerRows,
    coupled_coverage,
    coupled_inverse,
    dense_power,
    layer_rows,
)
from kobai.curvature.structures.interface import Structure
from kobai.linalg import LinearOperator
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator


@final
class Tridiagonal(SolvableOperator):
    """Sᵀ (Σ ⊗ I) S / W with Σ_ij = 1 for |i − j| ≤ 1, layers in the order of their parameters.

    Every damping form is exact. The inverse's status is "singular" where the damped matrix is;
    its log determinant is NaN unless it is positive definite.

    Args:
        rows: The rows of every layer.
        weight: W.
        like: θ, for dtype and device.

    Source: Karakida and Osawa 2020, Understanding approximate Fisher information for fast
    convergence of natural gradient descent in wide neural networks.
    """

    def __init__(self, rows: LayerRows, weight: float, like: Tensor) -> None:
        self.rows, self.weight = rows, weight
        super().__init__(
            (rows.size, rows.size), dtype=like.dtype, device=like.device, symmetric=True,
            positive_semidefinite=len(rows.layers) < 3,
        )  # fmt: skip

    def trace(self) -> float:
        """Sum of squares of all rows, over W."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " P"]:
        """Sums of squares of the columns, over W."""
        return self.rows.squares() / self.weight

    def _matmat(self, columns: Tensor) -> Tensor:
        pushed = self.rows.product(columns)
        mixed = pushed.clone()
        mixed[1:] += pushed[:-1]
        mixed[:-1] += pushed[1:]
        return self.rows.transpose(mixed) / self.weight

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        coupling = torch.kron(
            neighbours(len(self.rows.layers), self.dtype, self.device),
            torch.eye(self.rows.count, dtype=self.dtype, device=self.device),
        )
        return coupled_inverse(self, self.rows, coupling, self.weight, damping)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return dense_power(self, exponent, damping, damping_form)


def neighbours(count: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "L L"]:
    """Σ: ones on the diagonal and beside it."""
    ones = torch.ones(count, count, dtype=dtype, device=device)
    return ones.tril(1).triu(-1)


@final
class TridiagonalStructure(Structure):
    """The matrix with blocks beyond neighbouring layers zeroed; keeps all rows."""

    definite: ClassVar[bool] = False

    def coverage(self, source: ScoreRows) -> Coverage:
        """See `Structure.coverage`: one line per layer."""
        return coupled_coverage(source, "tridiagonal", 0)

    def build(self, source: ScoreRows) -> SolvableOperator:
        """The operator over all layers."""
        return Tridiagonal(layer_rows(source), source.objective.weight, source.theta)
