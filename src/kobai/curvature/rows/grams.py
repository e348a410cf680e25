"""Sums of Gram matrices over the parts of a network, added up in one place.

Nothing else of its size is made: no Gram matrix of a part alone, and one half of a symmetric one.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows.interface import DenseRows, Rows
from kobai.curvature.rows.outer_products import (
    EmbeddingRows,
    OuterRows,
    add_product,
    add_single,
)


def sum_of_grams(
    batches: Sequence[Sequence[Rows]],
    others: Sequence[Sequence[Rows]] | None = None,
    *,
    result: Float[Tensor, "R S"],
) -> None:
    """Add Σ over parts of G Hᵀ to a matrix in place: no second one of its size is made.

    Args:
        batches: For every batch the rows of some parts, as `ScoreRows` yields them.
        others: The same parts on the data of the columns. Default: the same rows; then only what is
            above the diagonal is added at least, and `mirrored` completes the matrix.
        result: What is added to; rows follow the batches.
    """
    half = others is None
    others = batches if others is None else others
    top = 0
    for i, parts in enumerate(batches):
        height = parts[0].count
        left = 0
        for j, partners in enumerate(others):
            width = partners[0].count
            if not half or j >= i:
                target = result[top : top + height, left : left + width]
                _add_grams(target, parts, None if half and i == j else partners)
            left += width
        top += height


def _add_grams(result: Tensor, parts: Sequence[Rows], others: Sequence[Rows] | None) -> None:
    """The Gram matrices of all parts of one batch; those of the commonest kind in one sweep."""
    together: list[tuple[OuterRows, OuterRows | None]] = []
    partners: Sequence[Rows | None] = [None] * len(parts) if others is None else others
    for rows, other in zip(parts, partners, strict=True):
        if (
            isinstance(rows, OuterRows)
            and (other is None or isinstance(other, OuterRows))
            and rows.single(other)
        ):
            together.append((rows, other))
        else:
            _add_gram(result, rows, other)
    if together:
        add_single(result, together)


def _add_gram(result: Tensor, rows: Rows, other: Rows | None) -> None:
    if isinstance(rows, OuterRows) and (other is None or isinstance(other, OuterRows)):
        rows.add_gram(result, other)
    elif isinstance(rows, DenseRows):
        add_product(
            result, rows.matrix, (rows if other is None else other).dense(), half=other is None
        )
    else:
        result += rows.gram(other)


def for_trace(rows: Rows, each: int) -> Rows:
    """Rows whose Gram matrix is the sum over outputs, one row an example.

    The outputs stand side by side as columns, so that each coordinate occurs Q times.

    Args:
        rows: As `ScoreRows` yields them, `each` rows an example.
        each: Q.
    """
    indices = rows.indices.repeat(each)
    if isinstance(rows, OuterRows):
        gradients = rows.gradients.movedim(2, 3).flatten(3).unsqueeze(2)
        return OuterRows(rows.inputs, gradients, indices)
    if isinstance(rows, EmbeddingRows):
        gradients = rows.gradients.transpose(1, 2).flatten(2).unsqueeze(1)
        return EmbeddingRows(rows.tokens, gradients, indices, rows.lines)
    return DenseRows(rows.dense().reshape(rows.count // each, -1), indices)


def for_output(rows: Rows, each: int, output: int) -> Rows:
    """The rows of one output, one an example.

    Args:
        rows: As `ScoreRows` yields them, `each` rows an example.
        each: Q.
        output: Which.
    """
    if isinstance(rows, OuterRows):
        return OuterRows(rows.inputs, rows.gradients[:, :, output : output + 1], rows.indices)
    if isinstance(rows, EmbeddingRows):
        gradients = rows.gradients[:, output : output + 1]
        return EmbeddingRows(rows.tokens, gradients, rows.indices, rows.lines)
    return DenseRows(rows.dense()[output::each], rows.indices)
