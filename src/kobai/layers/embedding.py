"""Embedding tables: linear maps of one-hot vectors, none of which is written out."""

import dataclasses
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.layers.form import LayerForm, Slot
from kobai.layers.interface import MatrixKind, Reading, by_first_axis, unchanged
from kobai.layers.rows import LAST_AXIS


@final
class Lookups(Reading):
    """Rows are one-hot: the moment of the inputs is diagonal, the counts of the lines."""

    axes = 2
    channel_axis = -1
    taps = 1
    worth_rounding = True

    def input_rows(self, inputs: Tensor, examples: int) -> Tensor | None:
        """Places as they are; the lines that they look up are not written out."""
        return LAST_AXIS.input_rows(inputs, examples)

    def gradient_rows(self, gradients: Tensor, examples: int) -> Tensor | None:
        """See `Reading.gradient_rows`."""
        return LAST_AXIS.gradient_rows(gradients, examples)

    def input_moment(self, form: LayerForm, inputs: Tensor) -> tuple[Tensor, int]:
        """Count how often each line was looked up, (V,)."""
        counts = torch.bincount(inputs.reshape(-1), minlength=form.inputs)
        return counts, inputs.numel()

    def output_moment(self, form: LayerForm, gradients: Tensor) -> Tensor:
        """See `Reading.output_moment`."""
        return LAST_AXIS.output_moment(form, gradients)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedding(MatrixKind):
    """Embedding tables whose lines are not renormalised as they are looked up.

    Attributes:
        types: Classes; bags of embeddings are laid out alike but add lines, and do not match.
    """

    name = "embedding"
    types: tuple[type[nn.Module], ...] = (nn.Embedding, nn.EmbeddingBag)

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is a table of one of the types that only looks up lines."""
        return (
            unchanged(module, self.types)
            and not isinstance(module, nn.EmbeddingBag)
            and getattr(module, "max_norm", None) is None
        )

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """The table, (V, D), as a matrix of D outputs."""
        lines, width = module.weight.shape
        form = LayerForm(
            groups=1, outputs=width, inputs=lines, bias=False, transposed=True, lookup=True
        )
        return (Slot(name="", weight="weight", bias=None, form=form),)

    def units(self, module: Any, positions: Tensor) -> Tensor:
        """A unit is a line of the table."""
        return by_first_axis(positions)

    def reading(self, module: Any) -> Reading:
        """One-hot rows."""
        return Lookups()

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The lines that are looked up."""
        return inputs
