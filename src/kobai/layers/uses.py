"""Every use of every matrix of a model in a forward pass, with the gradients in its products."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from kobai.layers.capture import Capture, attach
from kobai.layers.composite import CompositeCall, attach_composites
from kobai.layers.interface import CompositeKind, LayerKind, MatrixKind, Reading
from kobai.layers.rows import LAST_AXIS
from kobai.layers.table import kind_of, reading_of


@dataclasses.dataclass(slots=True, eq=False)
class LayerUse:
    """One use of a matrix.

    Attributes:
        layer: Path of the module.
        slot: Which of its matrices; empty for modules that have but one.
        module: The module if its inputs and outputs are to be read its way (a convolution, a
            normalisation, an embedding); None for rows: inputs (E, T, K), gradients (Q, E, T, M).
        inputs: What was multiplied (with the layer's scale, where it has one), or what the module
            was called with.
        gradients: In the products, or the module's output, with an axis Q of cotangents in front.
        group: Which of the slot's groups; None for all of them.
        one_step: Whether it is a step of a recurrence, so that repeated uses are places.
        reading: How inputs and gradients are read as rows; default: as the module says.
    """

    layer: str
    slot: str
    module: nn.Module | None
    inputs: Tensor
    gradients: Tensor
    group: int | None = None
    one_step: bool = False
    reading: Reading = None  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        if self.reading is None:
            self.reading = reading_of(self.module)

    def unpadded(self, gradients: Tensor) -> Tensor:
        """Gradients in the lines of a table that it looked up, zero where it passes none on.

        Args:
            gradients: Shaped like `inputs`, with any axes in front and one for the line's entries.
        """
        padding = getattr(self.module, "padding_idx", None)
        if padding is None:
            return gradients
        return gradients * (self.inputs != padding).unsqueeze(-1)


@final
class Watch:
    """Calls of chosen layers, and the uses of their matrices once gradients are known."""

    def __init__(self) -> None:
        self.simple = Capture()
        self.composite: list[CompositeCall] = []
        self._kinds: dict[nn.Module, LayerKind | None] = {}

    def attach(
        self, model: nn.Module, modules: Collection[nn.Module]
    ) -> list[torch.utils.hooks.RemovableHandle]:
        """Install hooks on these modules of the model; removing the handles ends the watch."""
        kinds = self._kinds = {m: kind_of(m) for m in modules}
        inner = {m: kind for m, kind in kinds.items() if isinstance(kind, CompositeKind)}
        return [
            *attach(model, (kinds.keys() - inner.keys()).__contains__, self.simple),
            *attach_composites(model, inner, self.composite),
        ]

    def _kind(self, module: nn.Module) -> LayerKind | None:
        return self._kinds[module] if module in self._kinds else kind_of(module)

    def clear(self) -> None:
        """Forget all calls and let go of their graphs."""
        self.simple.clear()
        self.composite.clear()

    @property
    def layers(self) -> set[str]:
        """Paths of the modules that were called."""
        return {call.layer for call in (*self.simple.calls, *self.composite)}

    @property
    def size(self) -> int:
        """Numbers in all outputs that were noted."""
        return sum(c.shape.numel() for c in self.simple.calls) + sum(c.size for c in self.composite)

    @property
    def edges(self) -> list[GradientEdge]:
        """Places in the graph where gradients are wanted."""
        edges = [call.edge for call in self.simple.calls if call.edge is not None]
        return edges + [edge for call in self.composite for edge in call.edges]

    def uses(self, gradients: Sequence[Tensor | None], *, batched: bool = False) -> list[LayerUse]:
        """Every use that gradients reach.

        Args:
            gradients: At `edges`; None where none flow.
            batched: Whether each has an axis of cotangents in front.
        """
        found: list[LayerUse] = []
        rest = iter(gradients)
        for call in self.simple.calls:
            gradient = next(rest) if call.edge is not None else None
            if gradient is not None:
                own = gradient if batched else gradient.unsqueeze(0)
                kind, inputs, reading = self._kind(call.module), call.inputs, LAST_AXIS
                if isinstance(kind, MatrixKind):
                    inputs = kind.multiplied(call.module, inputs)
                    reading = kind.reading(call.module)
                found.append(LayerUse(call.layer, "", call.module, inputs, own, reading=reading))
        for call in self.composite:
            own = [next(rest) for _ in call.edges]
            for product, gradient in call.products(own, batched=batched):
                found.append(
                    LayerUse(
                        call.layer,
                        product.slot,
                        None,
                        product.inputs,
                        gradient,
                        product.group,
                        call.kind.one_step,
                        LAST_AXIS,
                    )
                )
        return found
