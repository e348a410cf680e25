"""Gradients example by example of one matrix, from what it multiplied and the gradients there."""

from collections.abc import Sequence

import torch

from kobai.curvature.rows import Rows
from kobai.curvature.rows.layer_calls import joint_uses, outer_rows
from kobai.curvature.rows.outer_products import EmbeddingRows, OuterRows
from kobai.layers import LayerForm, LayerUse


def example_rows(
    form: LayerForm, uses: Sequence[LayerUse], examples: int, dtype: torch.dtype
) -> Rows | None:
    """Return the gradients of all examples and cotangents in a matrix, one row each.

    Args:
        form: Form of the matrix.
        uses: All its uses in one batch.
        examples: Number of examples.
        dtype: Precision of the result.

    Returns:
        Rows over the matrix's entries in the order (G, M, K), or (V, D) for an embedding; None
        where the examples do not divide what a layer was called with.
    """
    indices = torch.arange(form.size)
    if form.lookup:
        tokens, values = [], []
        for use in uses:
            if use.inputs.numel() % examples:
                return None
            ids = use.inputs.reshape(examples, -1)
            g = use.gradients.to(dtype).reshape(len(use.gradients), examples, -1, form.outputs)
            padding = getattr(use.module, "padding_idx", None)
            if padding is not None:
                g = g * (ids != padding).unsqueeze(-1)
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
