"""Embedding tables: linear maps of one-hot vectors, none of which is written out."""

import dataclasses
from typing import Any, final

from torch import Tensor, nn

from kobai.layers.form import LayerForm, Slot
from kobai.layers.interface import MatrixKind, Reading, unchanged
from kobai.layers.rows import LAST_AXIS


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

    def reading(self, module: Any) -> Reading:
        """Rows along the last axis; those that are looked up are not written out."""
        return LAST_AXIS

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The lines that are looked up."""
        return inputs
