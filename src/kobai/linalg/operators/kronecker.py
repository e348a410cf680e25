"""Kronecker products and their eigenbases: the structure of curvature blocks, as operators.

A vector of length m n stands for an (m, n) matrix W written row by row, so that
(A ⊗ B) vec(W) = vec(A W Bᵀ), and `torch.kron(A, B)` is the dense form.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.factor import Spectral, cholesky_many, eigh, worst
from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.operators.solvable import (
    DampingForm,
    MatrixFunction,
    SolvableOperator,
    shifted_power,
)


@final
class Kronecker(SolvableOperator):
    """A ⊗ B for symmetric positive semidefinite factors.

    One product takes 2 m n (m + n) operations a column. The inverse takes the Cholesky inverses of
    both damped factors ("pi", "each"; m³ + n³ operations) or both eigendecompositions ("exact";
    roughly ten times as much, but kept for any further damping). Factorisations run in float64,
    products in the factors' dtype.

    Args:
        left: A, (m, m).
        right: B, (n, n).

    Raises:
        ValueError: factors not square, or visibly not symmetric.
        TypeError: factors of different dtype or device.
    """

    def __init__(self, left: Float[Tensor, "m m2"], right: Float[Tensor, "n n2"]) -> None:
        for name, factor in (("left", left), ("right", right)):
            if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or factor.shape[0] < 1:
                raise ValueError(f"the {name} factor is a square matrix; got {tuple(factor.shape)}")
            # Rounding is forgiven, a wrong matrix is not; NaN passes and becomes a status later.
            slack = 100 * math.sqrt(torch.finfo(factor.dtype).eps) * factor.abs().max()
            if bool((factor - factor.T).abs().max() > slack):
                raise ValueError(f"the {name} factor is not symmetric")
        if left.dtype != right.dtype or left.device != right.device:
            raise TypeError(
                f"the factors share dtype and device; got {left.dtype} on {left.device} and "
                f"{right.dtype} on {right.device}"
            )
        self.left, self.right = left, right
        self._spectra: tuple[Spectral, Spectral] | None = None
        size = left.shape[0] * right.shape[0]
        super().__init__(
            (size, size), dtype=left.dtype, device=left.device, positive_semidefinite=True
        )

    def trace(self) -> float:
        """tr(A) tr(B)."""
        return float(_trace(self.left) * _trace(self.right))

    def diagonal(self) -> Float[Tensor, "mn"]:
        """diag(A) ⊗ diag(B)."""
        return torch.outer(self.left.diagonal(), self.right.diagonal()).reshape(-1)

    def eigen(self) -> "KroneckerEigen":
        """The same matrix in its eigenbasis; the decompositions are kept."""
        left, right = self._decompositions()
        return KroneckerEigen(
            left.vectors.to(self.dtype),
            right.vectors.to(self.dtype),
            torch.outer(left.values.clamp(min=0.0), right.values.clamp(min=0.0)).to(self.dtype),
        )

    def damped_factors(
        self, damping: float | int, damping_form: DampingForm
    ) -> tuple[float, float]:
        """Return what the forms "pi" and "each" add to the diagonals of A and of B."""
        if damping_form == "each":
            return float(damping), float(damping)
        if damping_form != "pi":
            raise ValueError(f"only 'pi' and 'each' damp the factors; got {damping_form!r}")
        balance = float(
            (_trace(self.left) / self.left.shape[0]) / (_trace(self.right) / self.right.shape[0])
        )
        # A factor of zeros has no trace to balance: split evenly.
        pi = math.sqrt(balance) if balance > 0 and math.isfinite(balance) else 1.0
        return math.sqrt(damping) * pi, math.sqrt(damping) / pi

    def _matmat(self, columns: Tensor) -> Tensor:
        return kronecker_product(self.left, columns, self.right)

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        if damping_form == "exact":
            return self._power(-1.0, damping, damping_form)
        return _factored_inverses([self], damping, damping_form)[0]

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        left, right = self._decompositions()
        broken = worst([left.status, right.status])
        if damping_form == "exact":
            values = torch.outer(left.values, right.values)
            powers, status, jitter, logdet = shifted_power(
                values, exponent, damping, self._resolution
            )
            operator: LinearOperator = KroneckerEigen(
                left.vectors.to(self.dtype), right.vectors.to(self.dtype), powers.to(self.dtype)
            )
        else:
            parts = []
            statuses, jitter, logdet = [], 0.0, 0.0
            amounts = self.damped_factors(damping, damping_form)
            others = (self.right.shape[0], self.left.shape[0])
            for spectral, amount, other in zip((left, right), amounts, others, strict=True):
                powers, status, extra, part = shifted_power(
                    spectral.values, exponent, amount, self._resolution
                )
                matrix = (spectral.vectors * powers) @ spectral.vectors.T
                parts.append(((matrix + matrix.T) / 2).to(self.dtype))
                statuses.append(status)
                jitter, logdet = max(jitter, extra), logdet + other * part
            status, operator = worst(statuses), Kronecker(*parts)
        return MatrixFunction(
            operator,
            status=status if broken == "ok" else broken,
            jitter=jitter,
            log_determinant=logdet,
        )

    def _decompositions(self) -> tuple[Spectral, Spectral]:
        if self._spectra is None:
            self._spectra = (eigh(self.left), eigh(self.right))
        return self._spectra

    @property
    def _resolution(self) -> float:
        return (self.left.shape[0] + self.right.shape[0]) * torch.finfo(torch.float64).eps


@final
class KroneckerEigen(SolvableOperator):
    """(Q_A ⊗ Q_B) diag(s) (Q_A ⊗ Q_B)ᵀ: a Kronecker eigenbasis with eigenvalues of any pattern.

    With s = s_A ⊗ s_B it is a Kronecker product; with s the second moments of the gradient in that
    basis it is the eigenvalue-corrected form [George et al. 2018]. Every damping form is exact
    here. One product takes 4 m n (m + n) operations a column.

    Args:
        left: Q_A, (m, m), orthogonal, eigenvectors in columns.
        right: Q_B, (n, n), orthogonal.
        values: s, (m, n).

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(
        self,
        left: Float[Tensor, "m m2"],
        right: Float[Tensor, "n n2"],
        values: Float[Tensor, "m3 n3"],
    ) -> None:
        rows, columns = values.shape
        if left.shape != (rows, rows) or right.shape != (columns, columns):
            raise ValueError(
                f"values of shape {tuple(values.shape)} need bases of shapes {(rows, rows)} and "
                f"{(columns, columns)}; got {tuple(left.shape)} and {tuple(right.shape)}"
            )
        if not left.dtype == right.dtype == values.dtype:
            raise TypeError(
                f"bases and values share a dtype; got {left.dtype}, {right.dtype}, {values.dtype}"
            )
        self.left, self.right, self.values = left, right, values
        super().__init__(
            (values.numel(), values.numel()),
            dtype=values.dtype,
            device=values.device,
            symmetric=True,
            positive_semidefinite=bool((values >= 0).all()),
        )

    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.values.sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, "mn"]:
        """Q∘Q s, without forming Q."""
        return (self.left.square() @ self.values @ self.right.square().T).reshape(-1)

    def _matmat(self, columns: Tensor) -> Tensor:
        turned = kronecker_product(self.left.T, columns, self.right.T)
        turned = self.values.reshape(-1, 1) * turned
        return kronecker_product(self.left, turned, self.right)

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self._power(-1.0, damping, damping_form)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        powers, status, jitter, logdet = shifted_power(self.values, exponent, damping, 0.0)
        return MatrixFunction(
            KroneckerEigen(self.left, self.right, powers.to(self.dtype)),
            status=status,
            jitter=jitter,
            log_determinant=logdet,
        )


def kronecker_product(
    left: Float[Tensor, "p m"], columns: Float[Tensor, "mn k"], right: Float[Tensor, "q n"]
) -> Float[Tensor, "pq k"]:
    """(left ⊗ right) @ columns for matrices of any shapes, without forming the product.

    Args:
        left: (p, m).
        columns: (m n, k); each column an (m, n) matrix written row by row.
        right: (q, n).
    """
    count = columns.shape[1]
    if count == 1:
        matrix = columns.reshape(left.shape[1], right.shape[1])
        return (left @ matrix @ right.T).reshape(-1, 1)
    stack = columns.T.reshape(count, left.shape[1], right.shape[1])
    return (left @ stack @ right.T).reshape(count, -1).T


def inverses(
    operators: Sequence[SolvableOperator], damping: float | int, damping_form: DampingForm = "exact"
) -> list[MatrixFunction]:
    """The inverses of several operators, Kronecker factors of one shape factorised together.

    Args:
        operators: any solvable operators.
        damping: λ >= 0, the same for all.
        damping_form: see `SolvableOperator`.

    Raises:
        ValueError: as `SolvableOperator.inverse`.
    """
    found: dict[int, MatrixFunction] = {}
    if damping_form != "exact":
        where = [i for i, operator in enumerate(operators) if isinstance(operator, Kronecker)]
        batch = [operator for operator in operators if isinstance(operator, Kronecker)]
        for operator in batch:
            operator.check_damping(damping, damping_form)
        found.update(zip(where, _factored_inverses(batch, damping, damping_form), strict=True))
    return [
        found[i] if i in found else operator.inverse(damping, damping_form)
        for i, operator in enumerate(operators)
    ]


def _factored_inverses(
    operators: Sequence[Kronecker], damping: float, damping_form: DampingForm
) -> list[MatrixFunction]:
    """Inverses of damped factors by Cholesky, equal shapes together."""
    matrices: list[Tensor] = []
    amounts: list[float] = []
    for operator in operators:
        matrices += [operator.left, operator.right]
        amounts += operator.damped_factors(damping, damping_form)
    factors = cholesky_many(matrices, damping=amounts)
    results = []
    for i, operator in enumerate(operators):
        left, right = factors[2 * i : 2 * i + 2]
        m, n = operator.left.shape[0], operator.right.shape[0]
        results.append(
            MatrixFunction(
                Kronecker(left.inverse(), right.inverse()),
                status=worst([left.status, right.status]),
                jitter=max(float(left.jitter), float(right.jitter)),
                log_determinant=n * float(left.logdet()) + m * float(right.logdet()),
            )
        )
    return results


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal().sum(dtype=torch.float64)
