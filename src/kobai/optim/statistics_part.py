"""Factors from part of a large batch: as many of its examples as a matrix of their size needs.

A factor is a moving average over some twenty to forty updates (`kobai.optim.averages`), so that one
update need not know its matrix well. With rows as many as the matrix has lines, the average is
taken over tens of times as many rows as lines. A batch may bring far more: a convolution has a row
for every position of every image, and summing them all costs more than the step itself.

Source of the idea: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored
approximate curvature (§8), who take an eighth of each minibatch.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from kobai.layers import LayerForm, LayerUse

StatisticsExamples = int | Literal["auto", "all"]
"""How many examples of a batch are summed over."""

FEWEST_EXAMPLES = 64
"""Rows of one example resemble each other: never fewer examples than these."""

FEWEST_ROWS = 256
"""Rows cost little for small matrices: never fewer than these."""

TRACED_EXAMPLES = 8
"""The trace of a block is one number: examples' gradients are written out for so many."""


def check_examples(wanted: StatisticsExamples) -> StatisticsExamples:
    """The setting, if it is one.

    Raises:
        ValueError: If it is not.
    """
    if wanted in ("auto", "all") or (not isinstance(wanted, str) and wanted >= 1):
        return wanted
    raise ValueError(
        "statistics_examples must be a number of examples (at least 1), 'auto' or 'all', "
        f"got {wanted!r}"
    )


def part_of(
    form: LayerForm,
    uses: Sequence[LayerUse],
    examples: int,
    wanted: StatisticsExamples,
    turn: int,
    *,
    reduced: bool = False,
) -> tuple[list[LayerUse], int]:
    """A block of the examples of one batch, gradients scaled so that means over blocks are whole.

    Args:
        form: Of the matrix.
        uses: All its uses in the batch.
        examples: Number of examples N in it.
        wanted: A least number of them; "all"; "auto": at least `FEWEST_EXAMPLES`, and rows enough
            for max(M, K) and `FEWEST_ROWS`.
        turn: Which block. The batch falls into equal blocks, as many as have the wanted number;
            successive turns go through all of them, each time beginning with another, so that
            batches that come again and again, one or several by turns, are seen whole.
        reduced: Whether the places of an example count as one row.

    Returns:
        The uses with n of N examples, gradients times √(N/n), and n. As they are, and N, where all
        are wanted, and where examples are not the first axis of what the layer was called with.
        A view of the inputs and a copy of the chosen gradients.
    """
    if wanted == "all" or form.lookup or not all(_by_example(use, examples) for use in uses):
        return list(uses), examples
    if wanted == "auto":
        lines = max(form.outputs, form.inputs, FEWEST_ROWS)
        places = 1 if reduced else min(_places(use) // examples for use in uses)
        count = max(FEWEST_EXAMPLES, math.ceil(lines / places))
    else:
        count = int(wanted)
    blocks = examples // count
    if blocks < 2:
        return list(uses), examples
    block = (turn + turn // blocks) % blocks
    first, end = (b * examples // blocks for b in (block, block + 1))
    count = end - first
    scale = math.sqrt(examples / count)
    chosen = []
    for use in uses:
        each = use.inputs.shape[0] // examples
        own = slice(first * each, end * each)
        chosen.append(
            dataclasses.replace(
                use, inputs=use.inputs[own], gradients=use.gradients[:, own] * scale
            )
        )
    return chosen, count


def _by_example(use: LayerUse, examples: int) -> bool:
    """Whether the first axis of inputs and gradients counts examples, or equal shares of them."""
    count = use.inputs.shape[0] if use.inputs.ndim >= use.reading.axes else 0
    return count > 0 and count % examples == 0 and use.gradients.shape[1] == count


def _places(use: LayerUse) -> int:
    """Rows of one cotangent of a use, over all examples."""
    return use.gradients[0].numel() // use.gradients.shape[use.reading.channel_axis]
