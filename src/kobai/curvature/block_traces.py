"""Traces of a matrix's Fisher blocks: mean squares of examples' gradients, without the blocks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.layer_forms import LayerForm
from kobai.curvature.layer_uses import LayerUse
from kobai.curvature.use_rows import by_examples, joint_uses, outer_rows

_WORKSPACE = 2**24
"""Numbers that examples' gradients, or Gram matrices of their places, may have at a time."""


def block_traces(
    form: LayerForm,
    uses: Sequence[LayerUse],
    examples: int,
    dtype: torch.dtype,
    fewest: int = 2,
) -> Float[Tensor, " G"] | None:
    """Σ over examples and cotangents of ‖Σ_t g_t a_tᵀ‖², over all places and uses t of an example.

    Args:
        form: Of the matrix.
        uses: All its uses in one batch.
        examples: Number of examples.
        dtype: Of the result.
        fewest: Places and uses of an example below which there is nothing to be told: with one,
            ‖g‖²‖a‖² is all there is.

    Returns:
        A number a group; None where there are fewer, for an embedding, and where examples are not
        kept apart. Cost: that of a weight gradient, or T²(M + K) an example where its T places are
        few.
    """
    if form.lookup:
        return None
    total: Tensor | None = None
    for own, pieces in by_examples(uses, examples):
        rows = [outer_rows(form, joint, own, dtype) for joint in joint_uses(pieces)]
        known = [found for found in rows if found is not None]
        if len(known) < len(rows):
            return None
        inputs = torch.cat([found[0] for found in known], 2)
        gradients = torch.cat([found[1] for found in known], 3)
        if inputs.shape[2] < fewest:
            return None
        part = _squares(inputs, gradients)
        total = part if total is None else total + part
    return total


def _squares(
    inputs: Float[Tensor, "G E T K"], gradients: Float[Tensor, "G E Q T M"]
) -> Float[Tensor, " G"]:
    """By Gram matrices of the places or by the gradients themselves, whichever is cheaper."""
    groups, examples, places, width = inputs.shape
    height = gradients.shape[4]
    grams = places * (height + width) < height * width
    size = groups * gradients.shape[2] * (places * places if grams else height * width)
    step = max(1, _WORKSPACE // size)
    total = inputs.new_zeros(groups)
    for start in range(0, examples, step):
        a, g = inputs[:, start : start + step], gradients[:, start : start + step]
        if grams:
            total += ((a @ a.mT).unsqueeze(2) * (g @ g.mT)).sum((1, 2, 3, 4))
        else:
            total += (g.mT @ a.unsqueeze(2)).square().sum((1, 2, 3, 4))
    return total
