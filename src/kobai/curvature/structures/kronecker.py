"""Fisher structure "kronecker": K-FAC blocks B ⊗ A from captured layers, expand and reduce.

"expand" takes the places where a matrix is used (tokens, positions) as independent examples: A =
mean over examples and places of a aᵀ, B = Σ g gᵀ / W. "reduce" sums over places first: A = mean of
ā āᵀ with ā the mean of a over the places, B = Σ ḡ ḡᵀ / W with ḡ the sum of g. In a linear network
expand is exact if every place has its own loss, reduce if the loss sees the mean over places only
(Eschenhagen et al. 2023, Kronecker-factored approximate curvature for modern neural network
architectures, §3). Without weight sharing the two agree.
"""

import dataclasses
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.kronecker import gram
from kobai.curvature.outer_rows import EmbeddingRows, OuterRows
from kobai.curvature.parts import Part
from kobai.curvature.rows import Rows
from kobai.curvature.score_rows import ScoreRows
from kobai.curvature.structures.interface import Structure
from kobai.curvature.structures.table_blocks import table_product
from kobai.curvature.structures.unit import EqualBlocks
from kobai.linalg.blocks import BlockDiagonal
from kobai.linalg.leaves import Diagonal
from kobai.linalg.solvable import SolvableOperator
from kobai.linalg.structured import Kronecker

Sharing = Literal["expand", "reduce"]


@dataclasses.dataclass(eq=False, kw_only=True)
class PartSums:
    """What K-FAC needs of one part, summed over batches.

    Attributes:
        inputs: Σ a aᵀ, (groups, K, K); counts of the lines, (V,), for an embedding.
        outputs: Σ g gᵀ, (groups, M, M); (D, D) for an embedding.
        rows: Number of inputs summed over (examples times places, or examples under "reduce").
        blocks: Σ of the outer products of each unit's rows, (U, k, k), for scale and shift.
        squares: Σ of squares, for parts with a diagonal block.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    rows: int = 0
    blocks: Tensor | None = None
    squares: Tensor | None = None


def sum_parts(source: ScoreRows, sharing: Sharing) -> list[PartSums]:
    """Second moments of every part, streamed over the batches."""
    sums = [PartSums() for _ in source.parts]
    for pieces in source:
        for part, total, rows in zip(source.parts, sums, pieces, strict=True):
            _add(part, total, rows, sharing, source.each)
    return sums


def _add(part: Part, total: PartSums, rows: Rows, sharing: Sharing, each: int) -> None:
    if isinstance(rows, OuterRows):
        inputs, gradients = rows.inputs, rows.gradients
        if sharing == "reduce":
            inputs, gradients = inputs.mean(2, keepdim=True), gradients.sum(3, keepdim=True)
        total.inputs = _plus(total.inputs, torch.stack([gram(a.flatten(0, 1)) for a in inputs]))
        total.outputs = _plus(
            total.outputs, torch.stack([gram(g.flatten(0, 2)) for g in gradients])
        )
        total.rows += inputs.shape[1] * inputs.shape[2]
    elif isinstance(rows, EmbeddingRows):
        tokens, gradients = rows.tokens, rows.gradients
        counts = torch.bincount(tokens.reshape(-1), minlength=rows.lines).to(gradients.dtype)
        if sharing == "reduce":
            # Lines of the table are orthogonal inputs: only the diagonal of ā āᵀ is kept.
            hot = torch.zeros(
                tokens.shape[0], rows.lines, dtype=gradients.dtype, device=gradients.device
            )
            hot.scatter_add_(1, tokens, torch.ones_like(tokens, dtype=gradients.dtype))
            counts = (hot / tokens.shape[1]).square().sum(0)
            gradients = gradients.sum(2, keepdim=True)
        total.inputs = _plus(total.inputs, counts)
        total.outputs = _plus(total.outputs, gram(gradients.flatten(0, 2)))
        total.rows += tokens.shape[0] * (1 if sharing == "reduce" else tokens.shape[1])
    elif part.kind == "scale":
        stacks = rows.dense().view(rows.count, *part.shape[1:]).transpose(0, 1)
        total.blocks = _plus(total.blocks, stacks.mT @ stacks)
    else:
        total.squares = _plus(total.squares, rows.squares())


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


def group_indices(part: Part) -> list[Tensor]:
    """Coordinates of each group's matrix."""
    return list(part.indices.view(part.shape[0], -1))


def uncorrelated_block(
    part: Part, sums: PartSums, weight: float
) -> tuple[SolvableOperator, Tensor] | None:
    """The block of a part that is not Kronecker-factored, with its coordinates, or None."""
    if sums.blocks is not None:
        return EqualBlocks(sums.blocks / weight), part.indices
    # A layer that some batch did not call has zeros there besides its factors.
    if sums.squares is not None and sums.inputs is None:
        return Diagonal(sums.squares / weight), part.indices
    return None


@final
class KroneckerStructure(Structure):
    """K-FAC blocks for matrices and embeddings, unit-wise ones for norms, diagonal ones elsewhere.

    Args:
        sharing: How places under weight sharing are taken, "expand" or "reduce".

    Source: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
    curvature; Grosse and Martens 2016 (convolutions); Eschenhagen et al. 2023.
    """

    def __init__(self, sharing: Sharing = "expand") -> None:
        if sharing not in ("expand", "reduce"):
            raise ValueError(f"sharing must be 'expand' or 'reduce', got {sharing!r}")
        self.sharing: Sharing = sharing

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line a part."""
        return factored_coverage(source, "kronecker")

    def build(self, source: ScoreRows) -> SolvableOperator:
        """Block-diagonal over parts and groups."""
        weight = source.objective.weight
        blocks: list[SolvableOperator] = []
        indices: list[Tensor] = []
        for part, sums in zip(source.parts, sum_parts(source, self.sharing), strict=True):
            other = uncorrelated_block(part, sums, weight)
            if other is not None:
                blocks.append(other[0])
                indices.append(other[1])
                continue
            a, b = factors(sums, weight)
            if part.kind == "embedding":
                blocks.append(table_product(a, b))
                indices.append(part.indices)
                continue
            for left, right, places in zip(b, a, group_indices(part), strict=True):
                blocks.append(Kronecker(left, right))
                indices.append(places)
        return BlockDiagonal(blocks, indices)


def factors(sums: PartSums, weight: float) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """A and B of a Kronecker part."""
    if sums.inputs is None or sums.outputs is None:
        raise ValueError("this part has no Kronecker factors")
    return sums.inputs / max(sums.rows, 1), sums.outputs / weight


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
