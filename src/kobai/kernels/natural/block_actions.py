"""What one block of a damped Fisher matrix does between rows: G' (M + λ)⁻¹ Gᵀ / W.

The textbook form of a low-rank inverse subtracts two numbers of size 1/λ. Every action here stays
in the range of the rows instead, so that it has a limit for λ → 0 and reaches it: the
pseudo-inverse.
"""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kobai.curvature.rows import Joined, Rows, Stacked
from kobai.curvature.rows.outer_products import OuterRows
from kobai.curvature.structures import EqualBlocks
from kobai.curvature.structures.table_blocks import TableBlocks
from kobai.linalg import Dense, Diagonal, Kronecker, LinearOperator
from kobai.linalg.factor import cholesky, eigh, worst
from kobai.linalg.operators.kronecker import KroneckerEigen
from kobai.linalg.operators.solvable import DampingForm, SolvableOperator

_COLUMNS = 2**25
"""Numbers that the columns of a block may have at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Action:
    """One block's share of a kernel.

    Attributes:
        kernel: G' (M + λ)⁻¹ Gᵀ / W, (R', R).
        status: "ok", "pseudo-inverse" (undamped and singular), or how the factorisation failed.
    """

    kernel: Float[Tensor, "S R"]
    status: str


def pseudo_inverse(matrix: Float[Tensor, "n n"]) -> tuple[Float[Tensor, "n n"], str]:
    """Of a positive semidefinite matrix, with a status."""
    spectral = eigh(matrix)
    if spectral.status != "ok":
        return torch.full_like(matrix, torch.nan), spectral.status
    values, vectors = spectral.values, spectral.vectors
    # Rounding in a matrix of sums of products of its own dtype.
    limit = values.abs().max() * len(values) * torch.finfo(matrix.dtype).eps
    kept = values > limit
    chosen = vectors[:, kept]
    inverse = (chosen / values[kept]) @ chosen.T
    status = "ok" if bool(kept.all()) else "pseudo-inverse"
    return inverse.to(matrix.dtype), status


def damped_inverse(
    matrix: Float[Tensor, "n n"], damping: float
) -> tuple[Float[Tensor, "n n"], str]:
    """(M + λ)⁻¹, for λ = 0 the pseudo-inverse, with a status."""
    if damping == 0:
        return pseudo_inverse(matrix)
    factor = cholesky(matrix, damping=damping)
    return factor.inverse(), factor.status


def low_rank_action(left: Rows, right: Rows, weight: float, damping: float) -> Action:
    """A block GᵀG/W with fewer rows than columns, by the Gram matrix of the rows."""
    inverse, status = damped_inverse(right.gram() / weight, damping)
    own = left is right
    cross = right.gram() if own else left.gram(right)
    return Action(kernel=cross @ inverse / weight, status=status)


def kronecker_action(
    block: Kronecker,
    left: Sequence[OuterRows],
    right: Sequence[OuterRows],
    weight: float,
    damping: float,
    damping_form: DampingForm,
) -> Action:
    """A block B ⊗ A whose factors are damped each: turn the rows and not the weights.

    (B + β)⁻¹ ⊗ (A + α)⁻¹ maps a row g ⊗ a to (B + β)⁻¹g ⊗ (A + α)⁻¹a, so the kernel is a Gram
    matrix of rows that are kept in factors.
    """
    first, second = block.damped_factors(damping, "each" if damping == 0 else damping_form)
    outer, one = damped_inverse(block.left, first)
    inner, two = damped_inverse(block.right, second)
    turned = [rows.rotated(outer.unsqueeze(0), inner.unsqueeze(0)) for rows in right]
    kernel = Stacked(list(left)).gram(Stacked(turned)) / weight
    return Action(kernel=kernel, status=severest([one, two]))


def column_action(
    block: SolvableOperator,
    coordinates: Int[Tensor, " p"],
    left: Rows,
    right: Rows,
    weight: float,
    damping: float,
    damping_form: DampingForm,
) -> Action:
    """Any other block: its inverse times the rows as columns, some at a time.

    Args:
        block: M.
        coordinates: Of the block's own order in θ.
        left: G', covering these coordinates.
        right: G, in the order of the left.
        weight: W.
        damping: λ.
        damping_form: How it enters.
    """
    inverse, status = block_inverse(block, damping, damping_form)
    places = torch.full((int(right.indices.max()) + 1,), -1)
    places[right.indices.cpu()] = torch.arange(right.size)
    order = places[coordinates.cpu()].to(block.device)
    result = torch.empty(left.count, right.count, dtype=block.dtype, device=block.device)
    step = max(1, _COLUMNS // max(1, right.size))
    for start in range(0, right.count, step):
        stop = min(start + step, right.count)
        columns = right.transpose(block_unit(right.count, start, stop, block))
        # Coordinates outside the block (other groups of one part) stay zero.
        solved = torch.zeros_like(columns)
        solved[order] = inverse @ columns[order]
        result[:, start:stop] = left.product(solved) / weight
    return Action(kernel=result, status=status)


def block_unit(count: int, start: int, stop: int, like: LinearOperator) -> Float[Tensor, "R c"]:
    """Columns start…stop−1 of the identity."""
    columns = torch.zeros(count, stop - start, dtype=like.dtype, device=like.device)
    columns[torch.arange(start, stop), torch.arange(stop - start)] = 1.0
    return columns


def block_inverse(
    block: SolvableOperator, damping: float, damping_form: DampingForm
) -> tuple[LinearOperator, str]:
    """The damped inverse; undamped the pseudo-inverse, in the block's own eigenbasis."""
    if damping > 0:
        inverse = block.inverse(damping, damping_form)
        return inverse, inverse.status
    if isinstance(block, Dense):
        matrix, status = pseudo_inverse(block.dense())
        return Dense(matrix, symmetric=True), status
    if isinstance(block, EqualBlocks):
        return _equal_blocks(block)
    if isinstance(block, Diagonal):
        values, status = _reciprocals(block.diagonal())
        return Diagonal(values), status
    if isinstance(block, KroneckerEigen):
        values, status = _reciprocals(block.values)
        return KroneckerEigen(block.left, block.right, values), status
    if isinstance(block, TableBlocks):
        values, status = _reciprocals(block.values)
        return TableBlocks(values, block.basis), status
    inverse = block.inverse(0.0, damping_form)
    return inverse, inverse.status


def _equal_blocks(block: EqualBlocks) -> tuple[LinearOperator, str]:
    spectral = eigh(block.matrices)
    values, vectors = spectral.values, spectral.vectors
    eps = torch.finfo(block.dtype).eps
    limit = values.abs().amax(1, keepdim=True) * values.shape[1] * eps
    kept = values > limit
    inverted = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    matrices = ((vectors * inverted.unsqueeze(1)) @ vectors.mT).to(block.dtype)
    status = spectral.status
    if status == "ok" and not bool(kept.all()):
        status = "pseudo-inverse"
    return EqualBlocks(matrices), status


def _reciprocals(values: Tensor) -> tuple[Tensor, str]:
    limit = values.abs().max() * torch.finfo(values.dtype).eps ** 2
    kept = values > limit
    inverted = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return inverted, "ok" if bool(kept.all()) else "pseudo-inverse"


def severest(statuses: Sequence[str]) -> str:
    """The worst of several statuses; a pseudo-inverse is no failure."""
    failures = [status for status in statuses if status not in ("ok", "pseudo-inverse")]
    if failures:
        return worst(failures)
    return "pseudo-inverse" if "pseudo-inverse" in statuses else "ok"


def single_group(rows: OuterRows, group: int) -> OuterRows:
    """The rows of one group of a grouped layer."""
    width = rows.outer * rows.inner
    return OuterRows(
        rows.inputs[group : group + 1],
        rows.gradients[group : group + 1],
        rows.indices[group * width : (group + 1) * width],
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Several parts side by side, one alone as it is."""
    return parts[0] if len(parts) == 1 else Joined(parts)
