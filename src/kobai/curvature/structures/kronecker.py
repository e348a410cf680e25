"""Fisher structure "kronecker": K-FAC blocks B ⊗ A from captured layers, expand and reduce.

`kobai.curvature.blocks.factor_sums` says what the factors are, under weight sharing and repeated
use too.
"""

import dataclasses
from typing import final

from torch import Tensor

from kobai.curvature.blocks.factor_sums import FactorSums, Sharing, check_sharing
from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.rows import Rows
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.parts import Part
from kobai.curvature.structures.interface import Structure
from kobai.curvature.structures.table_blocks import table_product
from kobai.curvature.structures.unit import EqualBlocks
from kobai.linalg.operators.blocks import BlockDiagonal
from kobai.linalg.operators.kronecker import Kronecker
from kobai.linalg.operators.leaves import Diagonal
from kobai.linalg.operators.solvable import SolvableOperator


@dataclasses.dataclass(eq=False, kw_only=True)
class PartSums:
    """What K-FAC needs of one part, summed over batches.

    Attributes:
        factors: For parts that multiply by a matrix; None if no batch has used it.
        blocks: Σ of the outer products of each unit's rows, (U, k, k), for scale and shift.
        squares: Σ of squares, for parts with a diagonal block.
    """

    factors: FactorSums | None = None
    blocks: Tensor | None = None
    squares: Tensor | None = None


def sum_parts(source: ScoreRows, sharing: Sharing) -> list[PartSums]:
    """Second moments of every part, streamed over the batches."""
    sums = [PartSums() for _ in source.parts]
    for examples, pieces in source.uses():
        for part, total, piece in zip(source.parts, sums, pieces, strict=True):
            if isinstance(piece, Rows):
                if part.kind == "scale":
                    stacks = piece.dense().view(piece.count, *part.shape[1:]).transpose(0, 1)
                    total.blocks = _plus(total.blocks, stacks.mT @ stacks)
                else:
                    total.squares = _plus(total.squares, piece.squares())
            elif piece:
                assert part.form is not None
                total.factors = total.factors or FactorSums()
                total.factors.add(
                    part.form, piece, examples=examples, sharing=sharing, dtype=source.theta.dtype
                )
    return sums


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def group_indices(part: Part) -> list[Tensor]:
    """Coordinates of each group's matrix."""
    return list(part.indices.view(part.shape[0], -1))


def uncorrelated_block(
    part: Part, sums: PartSums, weight: float, theta: Tensor
) -> tuple[SolvableOperator, Tensor] | None:
    """The block of a part that is not Kronecker-factored, with its coordinates, or None."""
    if sums.blocks is not None:
        return EqualBlocks(sums.blocks / weight), part.indices
    if sums.squares is not None:
        return Diagonal(sums.squares / weight), part.indices
    if sums.factors is None:
        return Diagonal(theta.new_zeros(part.size)), part.indices
    return None


@final
class KroneckerStructure(Structure):
    """K-FAC blocks for matrices and embeddings, unit-wise ones for norms, diagonal ones elsewhere.

    Args:
        sharing: How places under weight sharing are taken, "expand", "trace" or "reduce".

    Source: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
    curvature; Grosse and Martens 2016 (convolutions); Eschenhagen et al. 2023.
    """

    def __init__(self, sharing: Sharing = "expand") -> None:
        self.sharing: Sharing = check_sharing(sharing)

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line a part."""
        return factored_coverage(source, "kronecker")

    def build(self, source: ScoreRows) -> SolvableOperator:
        """Block-diagonal over parts and groups."""
        weight = source.objective.weight
        blocks: list[SolvableOperator] = []
        indices: list[Tensor] = []
        for part, sums in zip(source.parts, sum_parts(source, self.sharing), strict=True):
            other = uncorrelated_block(part, sums, weight, source.theta)
            if other is not None:
                blocks.append(other[0])
                indices.append(other[1])
                continue
            assert sums.factors is not None
            a, b = sums.factors.factors(weight)
            if part.kind == "embedding":
                blocks.append(table_product(a, b[0]))
                indices.append(part.indices)
                continue
            for left, right, places in zip(b, a, group_indices(part), strict=True):
                blocks.append(Kronecker(left, right))
                indices.append(places)
        return BlockDiagonal(blocks, indices)


def factored_coverage(source: ScoreRows, block: str) -> Coverage:
    """Lines of "kronecker" and "ekfac"."""
    lines = []
    count = float(source.count)
    for part, places in zip(source.parts, source.places, strict=True):
        groups, outer, inner = part.shape
        examples = float(source.objective.size) * places
        if part.kind in ("matrix", "bias"):
            pair = f"{outer}×{outer} ⊗ {inner}×{inner}"
            kept = 2 * (outer**2 + inner**2) + (outer * inner if block == "ekfac" else 0)
            corrected = count * outer * inner * places if block == "ekfac" else 0.0
            line = Covered(
                parameters=part.parameters, block=block,
                size=f"{groups} of {pair}" if groups > 1 else pair, numbers=groups * kept,
                build=groups * (examples * inner**2 + count * places * outer**2 + corrected),
                solve=groups * float(outer**3 + inner**3) * (1 if block == "kronecker" else 10),
                reason=part.reason,
            )  # fmt: skip
        elif part.kind == "embedding":
            line = Covered(
                parameters=part.parameters, block=block,
                size=f"diagonal {outer} ⊗ {inner}×{inner}",
                numbers=outer + 2 * inner**2 + outer * inner,
                build=count * places * inner**2, solve=10.0 * inner**3,
                reason="Embedding: the input factor is diagonal",
            )  # fmt: skip
        elif part.kind == "scale":
            line = Covered(
                parameters=part.parameters, block="unit",
                size=f"{outer} of {inner}×{inner}", numbers=2 * outer * inner**2,
                build=count * outer * inner**2, solve=outer * inner**3 / 3, reason=part.reason,
            )  # fmt: skip
        else:
            line = Covered(
                parameters=part.parameters, block="diagonal", size=str(part.size),
                numbers=part.size, build=count * part.size, solve=float(part.size),
                reason=f"no Kronecker form: {part.reason}",
            )  # fmt: skip
        lines.append(line)
    return Coverage(lines)
