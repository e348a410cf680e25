"""Fisher structure "ekfac": Kronecker eigenbases with the exact second moments in them.

K-FAC's eigenvalues are products; the best diagonal in the same basis is the mean square of the
gradients turned into it, per example also under weight sharing. Never further from the layer's
Fisher block in Frobenius norm than K-FAC.

Source: George et al. 2018, Fast approximate natural gradient descent in a Kronecker-factored
eigenbasis.
"""

from typing import final

import torch
from torch import Tensor

from kobai.curvature.blocks.factor_sums import Sharing, check_sharing
from kobai.curvature.coverage import Coverage
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.outer_products import EmbeddingRows, OuterRows
from kobai.curvature.structures.interface import Structure
from kobai.curvature.structures.kronecker import (
    factored_coverage,
    group_indices,
    sum_parts,
    uncorrelated_block,
)
from kobai.curvature.structures.table_blocks import TableBlocks
from kobai.linalg.factor import eigh
from kobai.linalg.operators.blocks import BlockDiagonal
from kobai.linalg.operators.kronecker import KroneckerEigen
from kobai.linalg.operators.solvable import SolvableOperator


@final
class EKFACStructure(Structure):
    """K-FAC's eigenbases with corrected eigenvalues; two passes over the data.

    Every damping form is exact, for the eigenvalues are not products.

    Args:
        sharing: Of the factors that give the bases, "expand", "trace" or "reduce".
    """

    def __init__(self, sharing: Sharing = "expand") -> None:
        self.sharing: Sharing = check_sharing(sharing)

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line a part."""
        return factored_coverage(source, "ekfac")

    def build(self, source: ScoreRows) -> SolvableOperator:
        """Block-diagonal over parts and groups."""
        weight = source.objective.weight
        sums = sum_parts(source, self.sharing)
        bases: dict[int, tuple[Tensor, Tensor]] = {}
        others: dict[int, tuple[SolvableOperator, Tensor]] = {}
        for i, (part, own) in enumerate(zip(source.parts, sums, strict=True)):
            other = uncorrelated_block(part, own, weight, source.theta)
            if other is not None:
                others[i] = other
                continue
            assert own.factors is not None
            a, b = own.factors.factors(weight)
            b = b[0] if part.kind == "embedding" else b
            outer = eigh(b).vectors.to(b.dtype)
            bases[i] = (outer, outer if part.kind == "embedding" else eigh(a).vectors.to(a.dtype))
        values: dict[int, Tensor] = {}
        for pieces in source:
            for i, (outer, inner) in bases.items():
                rows = pieces[i]
                if isinstance(rows, OuterRows):
                    square = rows.rotated(outer, inner).squares().view(source.parts[i].shape)
                elif isinstance(rows, EmbeddingRows):
                    turned = EmbeddingRows(
                        rows.tokens, rows.gradients @ outer, rows.indices, rows.lines
                    )
                    square = turned.squares().view(rows.lines, rows.width)
                else:
                    square = torch.zeros(source.parts[i].shape).to(source.theta)
                values[i] = square if i not in values else values[i] + square
        blocks: list[SolvableOperator] = []
        indices: list[Tensor] = []
        for i, part in enumerate(source.parts):
            if i in others:
                blocks.append(others[i][0])
                indices.append(others[i][1])
            elif part.kind == "embedding":
                blocks.append(TableBlocks(values[i] / weight, bases[i][0]))
                indices.append(part.indices)
            else:
                outer, inner = bases[i]
                for group, places in enumerate(group_indices(part)):
                    blocks.append(
                        KroneckerEigen(outer[group], inner[group], values[i][group] / weight)
                    )
                    indices.append(places)
        return BlockDiagonal(blocks, indices)
