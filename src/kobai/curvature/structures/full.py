"""Fisher structure "full": every entry, as products that form nothing of size P²."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.linearization import Linearization
from kobai.curvature.rows import Rows, Stacked
from kobai.curvature.rows.grams import sum_of_grams
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.outer_products import mirrored
from kobai.curvature.rows.parts import all_indices
from kobai.curvature.structures.coupled_layers import LARGEST_SYSTEM, check_system
from kobai.curvature.structures.diagonal import row_squares
from kobai.curvature.structures.interface import Structure, gram_cost, row_numbers
from kobai.curvature.structures.low_rank import LowRank
from kobai.linalg import LinearOperator, iterative_inverse
from kobai.linalg.operators.leaves import Dense
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator


@final
class FullFisher(SolvableOperator):
    """(1/W) Σ (Jₙᵀu)(Jₙᵀu)ᵀ as products of about a forward and a backward pass each.

    Solves are direct, on the smaller side: the P × P matrix, or the R × R Gram matrix of the rows,
    by layer Grams (Woodbury). Beyond 20,000 on both sides they are conjugate gradients on products
    alone, to a relative residual of 10⁻⁶: ``inverse(damping)`` then has the status of the latest
    solve, and its ``operator`` what it cost (`kobai.linalg.IterativeInverse`); the log determinant
    is unknown, and powers are refused.

    Args:
        source: The rows.
    """

    def __init__(self, source: ScoreRows) -> None:
        self.source = source
        self._linear: Linearization | None = None
        self._solver: SolvableOperator | None = None
        self._diagonal: Tensor | None = None
        size = source.theta.numel()
        super().__init__(
            (size, size), dtype=source.theta.dtype, device=source.theta.device,
            positive_semidefinite=True,
        )  # fmt: skip

    def trace(self) -> float:
        """Sum of squares of all rows, over W; exact, at the cost of their backward passes."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " P"]:
        """Sums of squares of the columns, over W."""
        if self._diagonal is None:
            self._diagonal = row_squares(self.source) / self.source.objective.weight
        return self._diagonal.clone()

    def _matmat(self, columns: Tensor) -> Tensor:
        source = self.source
        weight = source.objective.weight
        cotangents = source.scores.start()
        total = torch.zeros_like(columns)
        if self._linear is None:
            # Not before it is needed: direct solves go without.
            self._linear = Linearization(source.objective, source.theta)
        for batch in self._linear:
            pushed = batch.jvp(columns)
            if source.scores.labels == "exact":
                curved = batch.curved(pushed)
            else:
                scores = cotangents(batch.outputs, batch.targets).flatten(2)
                inner = torch.einsum("kno,qno->kqn", pushed.flatten(2), scores)
                curved = torch.einsum("kqn,qno->kno", inner, scores).view(pushed.shape)
            total += batch.vjp(curved / weight)
        return total

    def _adjoint(self) -> LinearOperator:
        return self

    def solver(self) -> SolvableOperator:
        """The same matrix in the form that is solved: dense, or its rows in the order of parts."""
        if self._solver is None:
            size, count = self.shape[0], self.source.count
            check_system(min(size, count))
            if size <= count:
                matrix = self.dense()
                self._solver = Dense((matrix + matrix.T) / 2, positive_semidefinite=True)
            else:
                weight = self.source.objective.weight
                indices = all_indices(self.source.objective.space)
                rows = InThetaOrder(list(self.source.compact()), self.source.theta, indices)
                self._solver = LowRank(rows, weight, self.source.theta)
        return self._solver

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        if min(self.shape[0], self.source.count) > LARGEST_SYSTEM:
            return iterative_inverse(self, damping)
        return self.solver().inverse(damping, damping_form)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self.solver().power(exponent, damping, damping_form)


@final
class InThetaOrder(Rows):
    """Rows of all coordinates, with the columns put into the order of θ.

    Args:
        batches: For every batch the rows of all parts, whose indices together are a permutation of
            0…P−1.
        like: θ.
        indices: 0…P−1.
    """

    def __init__(
        self, batches: Sequence[Sequence[Rows]], like: Tensor, indices: Int[Tensor, " P"]
    ) -> None:
        self._batches, self._like = batches, like
        self._parts = [Stacked(pieces) for pieces in zip(*batches, strict=True)]
        self._places = [part.indices.to(like.device) for part in self._parts]
        self.indices = indices
        self.count = self._parts[0].count

    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V."""
        total = columns.new_zeros(self.count, columns.shape[1])
        for part, places in zip(self._parts, self._places, strict=True):
            total += part.product(columns.index_select(0, places))
        return total

    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U."""
        total = weights.new_empty(self.size, weights.shape[1])
        for part, places in zip(self._parts, self._places, strict=True):
            own = part.transpose(weights)
            if own.shape[1] == 1:
                # A third of the time of whole rows.
                total.view(-1).scatter_(0, places, own.reshape(-1))
            else:
                total.index_copy_(0, places, own)
        return total

    def gram(self, other: Rows | None = None) -> Float[Tensor, "R S"]:
        """G Hᵀ; the order of the columns plays no part."""
        if other is None:
            result = self._like.new_zeros(self.count, self.count)
            sum_of_grams(self._batches, result=result)
            return mirrored(result)
        if not isinstance(other, InThetaOrder):
            raise TypeError(f"rows in the order of θ meet others of that order, got {other!r}")
        result = self._like.new_zeros(self.count, other.count)
        sum_of_grams(self._batches, other._batches, result=result)
        return result

    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns."""
        total = self._like.new_empty(self.size)
        for part, places in zip(self._parts, self._places, strict=True):
            total.scatter_(0, places, part.squares())
        return total

    def dense(self) -> Float[Tensor, "R p"]:
        """G, written out."""
        total = self._like.new_empty(self.count, self.size)
        for part, places in zip(self._parts, self._places, strict=True):
            total.index_copy_(1, places, part.dense())
        return total


@final
class FullStructure(Structure):
    """The whole matrix, matrix-free."""

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line for everything; memory is that of a solve (products keep graphs instead)."""
        size, count = source.theta.numel(), source.count
        pairs = list(zip(source.parts, source.places, strict=True))
        rows = size > count
        if min(size, count) > LARGEST_SYSTEM:
            return Coverage(
                [
                    Covered(
                        parameters=source.objective.space.names, block="full",
                        size=f"{size}×{size}", numbers=5 * size, build=0.0,
                        solve=4.0 * source.objective.size * size,
                        reason="products are matrix-free; solved by conjugate gradients, at the "
                        "cost given for each step",
                    )
                ]
            )  # fmt: skip
        kept = 2 * min(size, count) ** 2
        return Coverage(
            [
                Covered(
                    parameters=source.objective.space.names, block="full", size=f"{size}×{size}",
                    numbers=kept + rows * sum(row_numbers(source, p, t) for p, t in pairs),
                    build=sum(gram_cost(source, p, t) for p, t in pairs) if rows else 0.0,
                    solve=min(size, count) ** 3 / 3,
                    reason="products are matrix-free; solved "
                    + (f"by {count} rows" if rows else "as a dense matrix"),
                )
            ]
        )  # fmt: skip

    def build(self, source: ScoreRows) -> SolvableOperator:
        """The matrix-free operator."""
        return FullFisher(source)
