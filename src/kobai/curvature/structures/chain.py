"""Fisher structure "chain": the positive definite matrix with a block-tridiagonal inverse.

If gradients of different layers were a Gaussian chain (each layer independent of the others given
its neighbours), the Fisher matrix would be fixed by its diagonal and first off-diagonal blocks:
F_{l,l+2} = F_{l,l+1} F_{l+1,l+1}⁻¹ F_{l+1,l+2} and so on. Here the blocks are the exact ones of the
layers, not Kronecker products.

Source: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
curvature, §4.3.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Coverage
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.structures.coupled_layers import (
    LayerRows,
    check_system,
    coupled_coverage,
    coupled_inverse,
    dense_power,
    layer_rows,
)
from kobai.curvature.structures.interface import Structure
from kobai.linalg import LinearOperator
from kobai.linalg.factor import LU, Factor, cholesky, eigh, lu, worst
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator


@final
class Chain(SolvableOperator):
    """The chain through the layers in the order of their parameters, as an operator.

    In function space the blocks between layers i < j are G_iᵀ P_{i+1}…P_{j−1} G_j / W, with P_l the
    projector on the range of G_l: where all layers can fit every output (wide networks), the chain
    is the exact Fisher matrix.

    Damping forms: "exact", (C + λ I)⁻¹ by a dense system. "each" and "pi": λ is added to the blocks
    before the chain is formed, which is the inverse of Martens and Grosse: block-tridiagonal,
    positive definite for any λ > 0, and L systems of R rows instead of one of L R.

    Args:
        rows: The rows of every layer.
        weight: W.
        like: θ, for dtype and device.
    """

    def __init__(self, rows: LayerRows, weight: float, like: Tensor) -> None:
        self.rows, self.weight = rows, weight
        check_system(rows.count)
        self._bases: list[Tensor] | None = None
        super().__init__(
            (rows.size, rows.size), dtype=like.dtype, device=like.device,
            positive_semidefinite=True,
        )  # fmt: skip

    def trace(self) -> float:
        """Sum of squares of all rows, over W."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " P"]:
        """Sums of squares of the columns, over W."""
        return self.rows.squares() / self.weight

    def _ranges(self) -> list[Float[Tensor, "R r"]]:
        """Orthonormal bases of the ranges of all G_l."""
        if self._bases is None:
            self._bases = []
            for gram in self.rows.grams():
                spectral = eigh(gram)
                limit = len(gram) * torch.finfo(torch.float64).eps * spectral.values[-1]
                kept = spectral.values > limit
                self._bases.append(spectral.vectors[:, kept].to(self.dtype))
        return self._bases

    def _mix(self, pushed: Float[Tensor, "L R k"]) -> Float[Tensor, "L R k"]:
        """Π times rows: each layer receives from all others through the projectors between."""
        bases = self._ranges()
        mixed = pushed.clone()
        for order in (range(len(bases)), range(len(bases) - 1, -1, -1)):
            carried, previous = None, None
            for i in order:
                if previous is not None:
                    known = bases[previous]
                    carried = pushed[previous] + (
                        0 if carried is None else known @ (known.T @ carried)
                    )
                    mixed[i] += carried
                previous = i
        return mixed

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.rows.transpose(self._mix(self.rows.product(columns))) / self.weight

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        if damping_form != "exact":
            return self._damped_chain(damping)
        layers, count = len(self.rows.layers), self.rows.count
        check_system(min(layers * count, self.shape[0]))
        unit = torch.eye(layers * count, dtype=self.dtype, device=self.device)
        coupling = self._mix(unit.view(layers, count, -1)).flatten(0, 1)
        return coupled_inverse(self, self.rows, coupling, self.weight, damping)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return dense_power(self, exponent, damping, damping_form)

    def _damped_chain(self, damping: float) -> MatrixFunction:
        """The inverse of the chain whose blocks are damped first."""
        if not damping > 0:
            raise ValueError(f"the chain of damped blocks needs a positive damping, got {damping}")
        duals = [gram / self.weight for gram in self.rows.grams()]
        factors = [cholesky(dual, damping=damping) for dual in duals]
        conditionals: list[LU | None] = []
        spreads: list[Tensor | None] = []
        logdet = 0.0
        size = self.rows.count
        eye = torch.eye(size, dtype=self.dtype, device=self.device)
        for i, (rows, dual) in enumerate(zip(self.rows.layers, duals, strict=True)):
            free = (rows.size - size) * math.log(damping)
            if i + 1 == len(duals):
                conditionals.append(None)
                spreads.append(None)
                logdet += float(factors[i].logdet()) + free
                continue
            # Covariance of layer i given the next: λ I + G_iᵀ M G_i / W, M = λ (K_{i+1}/W + λ)⁻¹.
            spread = damping * factors[i + 1].solve(eye)
            inner = spread @ dual + damping * eye
            conditionals.append(lu(inner))
            spreads.append(spread)
            logdet += float(torch.linalg.slogdet(inner.double())[1]) + free
        statuses = [factor.status for factor in factors]
        statuses += [found.status for found in conditionals if found is not None]
        return MatrixFunction(
            _ChainInverse(self, factors, conditionals, spreads, damping),
            status=worst(statuses),
            jitter=max(float(factor.jitter) for factor in factors),
            log_determinant=logdet,
        )


@final
class _ChainInverse(LinearOperator):
    """Ξᵀ Λ Ξ: subtract what the next layer predicts, divide by what is left, and go back."""

    def __init__(
        self,
        chain: Chain,
        factors: list[Factor],
        conditionals: list[LU | None],
        spreads: list[Tensor | None],
        damping: float,
    ) -> None:
        self._chain, self._factors = chain, factors
        self._conditionals, self._spreads, self._damping = conditionals, spreads, damping
        super().__init__(
            chain.shape, dtype=chain.dtype, device=chain.device, positive_semidefinite=True
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        rows, weight, damping = self._chain.rows, self._chain.weight, self._damping
        layers = rows.layers
        pieces = [columns[index] for index in rows.indices]
        # Ξ: v_i − Ψ_i v_{i+1} with Ψ_i = G_iᵀ (K_{i+1}/W + λ)⁻¹ G_{i+1} / W.
        left = [
            piece
            if i + 1 == len(layers)
            else piece
            - layers[i].transpose(
                self._factors[i + 1].solve(layers[i + 1].product(pieces[i + 1])) / weight
            )
            for i, piece in enumerate(pieces)
        ]
        scaled = []
        for i, piece in enumerate(left):
            spread, conditional = self._spreads[i], self._conditionals[i]
            pushed = layers[i].product(piece)
            if spread is None or conditional is None:
                inner = self._factors[i].solve(pushed)
            else:
                inner = conditional.solve(spread @ pushed)
            scaled.append((piece - layers[i].transpose(inner) / weight) / damping)
        result = torch.empty_like(columns)
        for i, piece in enumerate(scaled):
            back = piece
            if i > 0:
                inner = self._factors[i].solve(layers[i - 1].product(scaled[i - 1])) / weight
                back = piece - layers[i].transpose(inner)
            result[rows.indices[i]] = back
        return result

    def _adjoint(self) -> LinearOperator:
        return self


@final
class ChainStructure(Structure):
    """The Gaussian chain over exact layer blocks; keeps all rows."""

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line a layer."""
        return coupled_coverage(source, "chain", 2)

    def build(self, source: ScoreRows) -> SolvableOperator:
        """The operator over all layers."""
        return Chain(layer_rows(source), source.objective.weight, source.theta)
