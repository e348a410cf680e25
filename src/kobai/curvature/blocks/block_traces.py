"""How much larger a matrix's Fisher block is than with independent places, in its trace."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows.layer_calls import by_examples, first_examples, joint_uses, outer_rows
from kobai.layers import LayerForm, LayerUse

_WORKSPACE = 2**24
"""Numbers that examples' gradients, or Gram matrices of their places, may have at a time."""


def block_traces(
    form: LayerForm,
    uses: Sequence[LayerUse],
    examples: int,
    dtype: torch.dtype,
    most: int | None = None,
) -> Float[Tensor, "4 G"] | None:
    """Sums over examples and cotangents that tell the trace of E‖Σ_t g_t a_tᵀ‖², a number a group.

    Args:
        form: Of the matrix.
        uses: All its uses in one batch; places and uses t of an example count alike.
        examples: Number of examples.
        dtype: Of the result.
        most: How many examples to sum over, from the first on; default: all.

    Returns:
        Σ ‖Σ_t g_t a_tᵀ‖², Σ ‖a_t‖², Σ ‖g_t‖² and the number of a_t. None where an example has one
        place and use, for an embedding, and where examples are not kept apart. Cost: that of a
        weight gradient, or T²(M + K) an example where its T places are few.
    """
    if form.lookup:
        return None
    uses, examples = first_examples(uses, examples, most)
    total: Tensor | None = None
    for own, pieces in by_examples(uses, examples):
        rows = [outer_rows(form, joint, own, dtype) for joint in joint_uses(pieces)]
        known = [found for found in rows if found is not None]
        if len(known) < len(rows):
            return None
        a, g = torch.cat([r[0] for r in known], 2), torch.cat([r[1] for r in known], 3)
        if a.shape[2] == 1:
            return None
        # Groups may have places of different number, filled up by zeros.
        counts = torch.tensor([r[2] for r in known]).sum(0).to(a).expand(a.shape[0])
        part = torch.stack(
            [
                _squares(a, g),
                g.shape[2] * a.square().sum((1, 2, 3)),
                g.square().sum((1, 2, 3, 4)),
                own * g.shape[2] * counts,
            ]
        )
        total = part if total is None else total + part
    return total


def trace_ratios(sums: Float[Tensor, "4 G"]) -> Float[Tensor, " G"]:
    """The trace over that with independent places, tr(A) tr(B); 1 where either vanishes."""
    exact, inputs, outputs, rows = sums
    ratio = exact * rows / (inputs * outputs)
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)


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
