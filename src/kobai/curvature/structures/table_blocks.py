"""diag(a) ⊗ B and its eigenvalue-corrected form: blocks of an embedding, never V × V."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg import LinearOperator
from kobai.linalg.factor import eigh
from kobai.linalg.operators.solvable import (
    DampingForm,
    MatrixFunction,
    SolvableOperator,
    shifted_power,
)


@final
class TableBlocks(SolvableOperator):
    """Blocks Q diag(s_v) Qᵀ, one a line v of a table, with a common basis Q; order (V, D).

    Args:
        values: s, (V, D).
        basis: Q, (D, D), orthogonal.
        factors: a (V,) and b (D,) with s = a ⊗ b, where that is so: then the damping forms "pi" and
            "each" damp the two factors; otherwise every form is exact.
    """

    def __init__(
        self,
        values: Float[Tensor, "V D"],
        basis: Float[Tensor, "D D"],
        factors: tuple[Float[Tensor, " V"], Float[Tensor, " D"]] | None = None,
    ) -> None:
        self.values, self.basis, self.factors = values, basis, factors
        super().__init__(
            (values.numel(), values.numel()), dtype=values.dtype, device=values.device,
            symmetric=True, positive_semidefinite=bool((values >= 0).all()),
        )  # fmt: skip

    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return float(self.values.sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " VD"]:
        """The diagonal, line by line."""
        return (self.values @ self.basis.square().T).reshape(-1)

    def _matmat(self, columns: Tensor) -> Tensor:
        lines, width = self.values.shape
        turned = self.basis.T @ columns.reshape(lines, width, -1)
        return (self.basis @ (self.values.unsqueeze(2) * turned)).flatten(0, 1)

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self._power(-1.0, damping, damping_form)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        values, amount = self.values, damping
        if self.factors is not None and damping_form != "exact":
            a, b = self.factors
            left = right = damping
            if damping_form == "pi":
                ratio = float(a.mean() / b.mean())
                pi = ratio**0.5 if 0 < ratio < float("inf") else 1.0
                left, right = damping**0.5 * pi, damping**0.5 / pi
            values, amount = torch.outer(a + left, b + right), 0.0
        powers, status, jitter, logdet = shifted_power(values, exponent, amount, 0.0)
        return MatrixFunction(
            TableBlocks(powers.to(self.dtype), self.basis),
            status=status,
            jitter=jitter,
            log_determinant=logdet,
        )


def table_product(a: Float[Tensor, " V"], b: Float[Tensor, "D D"]) -> TableBlocks:
    """diag(a) ⊗ B for a ≥ 0 and positive semidefinite B."""
    spectral = eigh(b)
    values = spectral.values.clamp(min=0.0).to(a.dtype)
    return TableBlocks(torch.outer(a, values), spectral.vectors.to(a.dtype), factors=(a, values))
