"""Calls of layers written out as rows: inputs and gradients by example and place."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kobai.curvature.rows.interface import Rows
from kobai.curvature.rows.outer_products import EmbeddingRows, OuterRows
from kobai.layers import LayerForm, LayerUse

_WORKSPACE = 2**24
"""Numbers that rows written out may have."""


def joint_uses(uses: Sequence[LayerUse]) -> list[list[LayerUse]]:
    """Uses that make up all groups of a matrix, together; one by one where each does."""
    if all(use.group is None for use in uses):
        return [[use] for use in uses]
    groups = sorted({use.group for use in uses if use.group is not None})
    columns = [[use for use in uses if use.group == group] for group in groups]
    return [list(together) for together in zip(*columns, strict=True)]


def outer_rows(
    form: LayerForm, uses: Sequence[LayerUse], examples: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "G E T K"], Float[Tensor, "G E Q T M"], tuple[int, ...]] | None:
    """Inputs and gradients of one joint use; None if examples do not divide them.

    Args:
        form: Of the matrix; where it is a bias alone the inputs are ones.
        uses: One use, or one per group.
        examples: E.
        dtype: Of the result.

    Returns:
        a and g, and the number of places T of each group; where groups differ in it the shorter
        ones end in zeros.
    """
    pairs = []
    for use in uses:
        reading = use.reading
        g = reading.gradient_rows(use.gradients.to(dtype), examples)
        a = reading.input_rows(use.inputs.to(dtype), examples)
        if g is None or a is None or a.shape[2] != g.shape[3]:
            return None
        pairs.append((a, g))
    lengths = tuple(a.shape[2] for a, _ in pairs for _ in range(a.shape[0]))
    longest = max(lengths)
    missing = [longest - a.shape[2] for a, _ in pairs]
    if len(pairs) == 1:
        # Not copied: gradients of a convolution keep their places next to each other in memory.
        a, g = pairs[0]
    else:
        a = torch.cat([F.pad(a, (0, 0, 0, n)) for (a, _), n in zip(pairs, missing, strict=True)])
        g = torch.cat([F.pad(g, (0, 0, 0, n)) for (_, g), n in zip(pairs, missing, strict=True)])
    if form.inputs == 1 and form.bias:
        # A bias is an input that is always one, whatever the groups of its layer.
        g = g.permute(1, 2, 3, 0, 4).flatten(3).unsqueeze(0)
        ones = g.new_full((1, examples, longest, 1), form.bias_input)
        return ones, g, (longest,)
    if form.bias:
        ones = a.new_zeros(*a.shape[:3], 1)
        for group, length in enumerate(lengths):
            ones[group, :, :length] = form.bias_input
        a = torch.cat([a, ones], 3)
    return a, g, lengths


def example_rows(
    form: LayerForm,
    uses: Sequence[LayerUse],
    examples: int,
    dtype: torch.dtype,
    indices: Int[Tensor, " p"],
) -> Rows | None:
    """Return the gradients of all examples and cotangents in a matrix, one row each.

    Args:
        form: Form of the matrix.
        uses: All its uses in one batch.
        examples: Number of examples.
        dtype: Precision of the result.
        indices: Coordinates of the matrix's entries.

    Returns:
        Rows over the matrix's entries in the order (G, M, K), or (V, D) for an embedding; None
        where the examples do not divide what a layer was called with.
    """
    if form.lookup:
        tokens, values = [], []
        for use in uses:
            if use.inputs.numel() % examples:
                return None
            ids = use.inputs.reshape(examples, -1)
            g = use.unpadded(use.gradients.to(dtype))
            g = g.reshape(len(g), examples, -1, form.outputs)
            tokens.append(ids)
            values.append(g.transpose(0, 1))
        return EmbeddingRows(torch.cat(tokens, 1), torch.cat(values, 2), indices, form.inputs)
    inputs, gradients = [], []
    for joint in joint_uses(uses):
        found = outer_rows(form, joint, examples, dtype)
        if found is None:
            return None
        inputs.append(found[0])
        gradients.append(found[1])
    if len(inputs) == 1:
        return OuterRows(inputs[0], gradients[0], indices)
    return OuterRows(torch.cat(inputs, 2), torch.cat(gradients, 3), indices)


def first_examples(
    uses: Sequence[LayerUse], examples: int, most: int | None
) -> tuple[Sequence[LayerUse], int]:
    """The same uses for no more than so many examples, and how many; all if they are mixed up."""
    if most is None or most >= examples or not _examples_first(uses, examples):
        return uses, examples
    return _part(uses, slice(0, most)), most


def _examples_first(uses: Sequence[LayerUse], examples: int) -> bool:
    return all(
        use.inputs.shape[0] == examples and use.gradients.shape[1] == examples for use in uses
    )


def _part(uses: Sequence[LayerUse], chosen: slice) -> list[LayerUse]:
    return [
        dataclasses.replace(use, inputs=use.inputs[chosen], gradients=use.gradients[:, chosen])
        for use in uses
    ]


def by_examples(
    uses: Sequence[LayerUse], examples: int
) -> Iterator[tuple[int, Sequence[LayerUse]]]:
    """The same uses for some examples at a time, so that rows written out stay small."""
    size = sum(use.inputs.numel() + use.gradients.numel() for use in uses)
    taps = max((use.reading.taps for use in uses), default=1)
    step = max(1, examples * _WORKSPACE // max(1, size * taps))
    if step >= examples or not _examples_first(uses, examples):
        yield examples, uses
        return
    for start in range(0, examples, step):
        pieces = _part(uses, slice(start, start + step))
        yield pieces[0].inputs.shape[0], pieces
