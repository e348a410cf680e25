"""Matrices Sᵀ Π S / W over the layers' rows, S = blockdiag(G_l): tridiagonal and chain forms.

With Π all ones this is the Fisher matrix, with Π the identity its layer blocks. What stands between
layers decides: zeros beyond neighbours ("tridiagonal"), or products of projectors ("chain").
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.rows import Rows, Stacked
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.structures.interface import covered_layer, gram_cost, layers_of, row_numbers
from kobai.linalg import LinearOperator
from kobai.linalg.factor import LU, lu
from kobai.linalg.operators.leaves import Dense
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator

LARGEST_SYSTEM = 20_000
"""Rows of the largest dense system that is solved."""


@final
class LayerRows:
    """The rows of every layer over all data, as one map S and its transpose.

    Args:
        layers: One a layer, with equal numbers of rows.
        like: θ.
    """

    def __init__(self, layers: list[Rows], like: Tensor) -> None:
        self.layers = layers
        self.indices = [rows.indices.to(like.device) for rows in layers]
        self.count = layers[0].count
        self.size = like.numel()

    def product(self, columns: Float[Tensor, "P k"]) -> Float[Tensor, "L R k"]:
        """S V: the outputs' change through each layer alone."""
        return torch.stack(
            [r.product(columns[i]) for r, i in zip(self.layers, self.indices, strict=True)]
        )

    def transpose(self, weights: Float[Tensor, "L R k"]) -> Float[Tensor, "P k"]:
        """Sᵀ U."""
        total = weights.new_zeros(self.size, weights.shape[2])
        for rows, index, own in zip(self.layers, self.indices, weights, strict=True):
            total[index] = rows.transpose(own)
        return total

    def squares(self) -> Float[Tensor, " P"]:
        """Sums of squares of the columns."""
        total = torch.empty(
            self.size, dtype=self.layers[0].squares().dtype, device=self.indices[0].device
        )
        for rows, index in zip(self.layers, self.indices, strict=True):
            total[index] = rows.squares()
        return total

    def grams(self) -> list[Float[Tensor, "R R"]]:
        """K_l = G_l G_lᵀ of every layer."""
        return [rows.gram() for rows in self.layers]


def layer_rows(source: ScoreRows) -> LayerRows:
    """All rows of all layers, kept."""
    layers = layers_of(source)
    kept: list[list[Rows]] = [[] for _ in layers]
    for parts in source:
        for pieces, layer in zip(kept, layers, strict=True):
            pieces.append(layer.rows(parts))
    return LayerRows([Stacked(pieces) for pieces in kept], source.theta)


def coupled_coverage(source: ScoreRows, block: str, extra: int) -> Coverage:
    """Lines of a structure that keeps all rows and solves one system over all layers.

    Args:
        source: The rows.
        block: What the lines call it.
        extra: R × R matrices a layer beyond its Gram matrix.
    """
    layers = layers_of(source)
    count = source.count
    system = min(source.theta.numel(), len(layers) * count)
    lines: list[Covered] = []
    for layer in layers:
        chosen = [(source.parts[i], source.places[i]) for i in layer.positions]
        lines.append(
            Covered(
                parameters=layer.parameters, block=block,
                size=f"{layer.size} by {count} rows",
                numbers=sum(row_numbers(source, p, t) for p, t in chosen)
                + (1 + extra) * count**2 + system**2 // len(layers),
                build=sum(gram_cost(source, p, t) for p, t in chosen),
                solve=2 * system**3 / 3 / len(layers),
                reason=covered_layer(source, layer, block).reason.partition("; solved")[0],
            )
        )  # fmt: skip
    return Coverage(lines)


def coupled_inverse(
    matrix: SolvableOperator,
    rows: LayerRows,
    coupling: Float[Tensor, "LR LR"],
    weight: float,
    damping: float,
) -> MatrixFunction:
    """(Sᵀ Π S / W + λ)⁻¹ by LU on the smaller of both sides.

    On the side of the rows: (v − Sᵀ (Π K / W + λ)⁻¹ Π S v / W) / λ with K = blockdiag(K_l).

    Args:
        matrix: The operator itself.
        rows: S.
        coupling: Π, (L R, L R).
        weight: W.
        damping: λ; on the side of the rows it must be positive, for Sᵀ Π S is singular there.

    Raises:
        ValueError: If both sides are too large for a dense system.
    """
    size, system = matrix.shape[0], coupling.shape[0]
    if size <= system:
        written = matrix.dense()
        written.diagonal().add_(damping)
        factor = lu(written)
        return MatrixFunction(
            _DenseInverse(factor, matrix), status=factor.status, jitter=0.0,
            log_determinant=lambda: _definite_logdet(written),
        )  # fmt: skip
    check_system(system)
    grams = torch.block_diag(*rows.grams())
    inner = coupling @ grams / weight
    inner.diagonal().add_(damping)
    factor = lu(inner)
    status = factor.status if damping > 0 else "singular"
    return MatrixFunction(
        _RowInverse(factor, matrix, rows, coupling, weight, damping), status=status, jitter=0.0,
        # Its eigenvalues cost several times the factors.
        log_determinant=lambda: _row_logdet(coupling, grams / weight, damping, size),
    )  # fmt: skip


def check_system(size: int) -> None:
    """Raise ValueError for a dense system that does not fit."""
    if size > LARGEST_SYSTEM:
        raise ValueError(
            f"the solve needs a dense system of {size} rows, more than {LARGEST_SYSTEM}; take "
            "fewer examples, labels='sampled', or structure='kronecker'"
        )


def dense_power(
    matrix: SolvableOperator, exponent: float, damping: float, damping_form: DampingForm
) -> MatrixFunction:
    """A power through the dense matrix; "indefinite" where that has none."""
    check_system(matrix.shape[0])
    return Dense(matrix.dense(), symmetric=True).power(exponent, damping, damping_form)


def _definite_logdet(matrix: Tensor) -> float:
    """Log determinant of a symmetric matrix, NaN unless it is positive definite."""
    triangle, info = torch.linalg.cholesky_ex(matrix.to(torch.float64))
    if int(info) or not bool(torch.isfinite(triangle).all()):
        return math.nan
    return float(2 * triangle.diagonal().log().sum())


def _row_logdet(coupling: Tensor, grams: Tensor, damping: float, size: int) -> float:
    """The same from the side of the rows: the spectrum of K^½ Π K^½ / W, and λ elsewhere."""
    if damping <= 0:
        return math.nan
    values, vectors = torch.linalg.eigh(grams.to(torch.float64))
    root = vectors * values.clamp(min=0.0).sqrt()
    small = root.T @ coupling.to(torch.float64) @ root
    small.diagonal().add_(damping)
    return _definite_logdet(small) + (size - len(small)) * math.log(damping)


@final
class _DenseInverse(LinearOperator):
    """Solves by the LU factors of the damped matrix."""

    def __init__(self, factor: LU, matrix: LinearOperator) -> None:
        self._factor = factor
        super().__init__(matrix.shape, dtype=matrix.dtype, device=matrix.device, symmetric=True)

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._factor.solve(columns)

    def _adjoint(self) -> LinearOperator:
        return self


@final
class _RowInverse(LinearOperator):
    """Solves on the side of the rows."""

    def __init__(
        self,
        factor: LU,
        matrix: LinearOperator,
        rows: LayerRows,
        coupling: Tensor,
        weight: float,
        damping: float,
    ) -> None:
        self._factor, self._rows, self._coupling = factor, rows, coupling
        self._weight = weight
        self._damping = damping if damping > 0 else math.nan
        super().__init__(matrix.shape, dtype=matrix.dtype, device=matrix.device, symmetric=True)

    def _matmat(self, columns: Tensor) -> Tensor:
        pushed = self._rows.product(columns)
        right = self._coupling @ pushed.flatten(0, 1) / self._weight
        inner = self._factor.solve(right).view(pushed.shape)
        return (columns - self._rows.transpose(inner)) / self._damping

    def _adjoint(self) -> LinearOperator:
        return self
