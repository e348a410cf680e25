"""A Fisher block Gᵀ G / W kept as its rows: products and solves on the side of the examples."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows import Rows
from kobai.linalg import LinearOperator
from kobai.linalg.factor import JITTERS, Factor, cholesky, eigh
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator


@final
class LowRank(SolvableOperator):
    """Gᵀ G / W, p × p, through R × R systems (Woodbury): the smaller side when R < p.

    (GᵀG/W + λ)⁻¹ b = (b − Gᵀ (G Gᵀ/W + λ)⁻¹ G b / W) / λ. Every damping form is exact. The solve
    costs the Gram matrix of the rows and R³/3 multiplications once, then R² and two passes over the
    rows a column. The matrix has p − R zero eigenvalues: undamped it is solved with the jitter
    ladder of `kobai.linalg.factor`, relative to its mean diagonal, and says so.

    Args:
        rows: G; coordinates are those of its columns, 0…p−1 here.
        weight: W.
        like: A tensor whose dtype and device the operator has.
    """

    def __init__(self, rows: Rows, weight: float, like: Tensor) -> None:
        self.rows, self.weight = rows, weight
        self._dual: Tensor | None = None
        super().__init__(
            (rows.size, rows.size),
            dtype=like.dtype,
            device=like.device,
            positive_semidefinite=True,
        )

    def dual(self) -> Float[Tensor, "R R"]:
        """G Gᵀ / W, which has the same non-zero eigenvalues; kept."""
        if self._dual is None:
            self._dual = self.rows.gram().div_(self.weight)
        return self._dual

    def trace(self) -> float:
        """Sum of the squares of all rows, over W."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns, over W."""
        return self.rows.squares() / self.weight

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.rows.transpose(self.rows.product(columns)) / self.weight

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        dual = self.dual()
        mean = float(dual.diagonal().sum(dtype=torch.float64)) / self.shape[0]
        jitter = 0.0
        if damping <= 0.0 and self.shape[0] > self.rows.count:
            # Singular for certain: the ladder starts at its first rung.
            jitter = JITTERS[0] * mean
        factor = cholesky(dual, damping=damping + jitter)
        jitter += float(factor.jitter)
        shift = damping + jitter
        if not shift > 0:
            status = "singular" if factor.status == "ok" else factor.status
            return MatrixFunction(
                _Woodbury(self, factor, math.nan), status=status, jitter=0.0,
                log_determinant=math.nan,
            )  # fmt: skip
        logdet = float(factor.logdet()) + (self.shape[0] - self.rows.count) * math.log(shift)
        status = "jittered" if jitter and factor.status == "ok" else factor.status
        return MatrixFunction(
            _Woodbury(self, factor, shift), status=status, jitter=jitter, log_determinant=logdet
        )

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        dual = self.dual()
        spectral = eigh(dual)
        values = spectral.values.clamp(min=0.0)
        kept = values > values.max() * len(values) * torch.finfo(torch.float64).eps
        values, vectors = values[kept], spectral.vectors[:, kept]
        jitter = 0.0
        if damping <= 0.0 and exponent < 0 and values.numel() < self.shape[0]:
            jitter = JITTERS[0] * float(values.sum()) / self.shape[0]
        shift = damping + jitter
        base = shift**exponent if shift > 0 or exponent > 0 else math.nan
        factors = ((values + shift) ** exponent - base) / values
        inner = ((vectors * factors) @ vectors.T / self.weight).to(self.dtype)
        null = self.shape[0] - values.numel()
        logdet = float((values + shift).log().sum())
        logdet += null * math.log(shift) if shift > 0 else -math.inf if null else 0.0
        status = spectral.status if spectral.status != "ok" else "jittered" if jitter else "ok"
        return MatrixFunction(
            _Sandwich(self.rows, inner, base, self),
            status=status,
            jitter=jitter,
            log_determinant=logdet,
        )


@final
class _Woodbury(LinearOperator):
    """(GᵀG/W + shift)⁻¹ from the factor of the damped dual."""

    def __init__(self, matrix: LowRank, factor: Factor, shift: float) -> None:
        self._matrix, self._factor, self._shift = matrix, factor, shift
        super().__init__(
            matrix.shape, dtype=matrix.dtype, device=matrix.device, positive_semidefinite=True
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        rows = self._matrix.rows
        inner = self._factor.solve(rows.product(columns)) / self._matrix.weight
        return (columns - rows.transpose(inner)) / self._shift

    def _adjoint(self) -> LinearOperator:
        return self


@final
class _Sandwich(LinearOperator):
    """base · I + Gᵀ M G for a symmetric R × R matrix M."""

    def __init__(self, rows: Rows, inner: Tensor, base: float, like: LinearOperator) -> None:
        self._rows, self._inner, self._base = rows, inner, base
        super().__init__(like.shape, dtype=like.dtype, device=like.device, symmetric=True)

    def _matmat(self, columns: Tensor) -> Tensor:
        turned = self._inner @ self._rows.product(columns)
        return self._base * columns + self._rows.transpose(turned)

    def _adjoint(self) -> LinearOperator:
        return self
