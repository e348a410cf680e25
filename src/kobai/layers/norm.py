"""Normalisations: a scale and a shift for each unit, behind a function without parameters."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from kobai.layers.form import Slot
from kobai.layers.interface import ScaleKind


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(ScaleKind):
    """Layers that normalise, then scale and shift.

    A module of a class of its own is taken for one if it has a vector `weight`, perhaps a `bias`,
    no other parameters, and the attribute that marks the kind.

    Attributes:
        types: Classes.
        channels: Whether scale and shift belong to channels (axis 1); else to the last axes.
        mark: Attribute that modules of other classes are recognised by; None to recognise none.
        unless: Attribute that those must not have.
    """

    name = "norm"
    types: tuple[type[nn.Module], ...]
    channels: bool
    mark: str | None = None
    unless: str | None = None

    def matches(self, module: nn.Module) -> bool:
        """Tell whether the module has a scale, and is of one of the types or bears the mark."""
        weight = module._parameters.get("weight")
        if weight is None:
            return False
        if isinstance(module, self.types):
            return True
        return (
            self.mark is not None
            and weight.ndim == 1
            and set(module._parameters) <= {"weight", "bias"}
            and hasattr(module, self.mark)
            and not (self.unless is not None and hasattr(module, self.unless))
        )

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """No matrices."""
        return ()

    def rows(
        self, module: Any, names: Sequence[str], inputs: Tensor, gradients: Tensor, examples: int
    ) -> Float[Tensor, "E Q U k"] | None:
        """See `ScaleKind.rows`. Cost: one more forward pass of the layer for a scale."""
        columns = []
        for name in names:
            values = gradients
            if name == "weight":
                values = values * normalised_inputs(module, inputs)
            split = self._by_unit(module, values, gradients.ndim - 1, examples)
            if split is None:
                return None
            columns.append(split.sum(2).transpose(0, 1))
        return torch.stack(columns, 3)

    def _by_unit(self, module: Any, values: Tensor, dims: int, examples: int) -> Tensor | None:
        """Arrange (…, N, axes) as (…, E, places, units); None if the examples do not divide N.

        Args:
            module: The layer.
            values: With the module's output axes last.
            dims: Number of axes of the module's output.
            examples: E.
        """
        lead = values.shape[: values.ndim - dims]
        own = values.shape[values.ndim - dims :]
        if own[0] % examples:
            return None
        if not self.channels:
            units = math.prod(own[-module.weight.ndim :])
            return values.reshape(*lead, examples, -1, units)
        moved = values.movedim(len(lead) + 1, -1)
        return moved.reshape(*lead, examples, -1, own[1])


def normalised_inputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Compute what a normalisation multiplies by its scale: its output at scale 1 and shift 0."""
    state = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            fill = torch.ones_like if name == "weight" else torch.zeros_like
            state[name] = fill(parameter.detach())
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        return functional_call(module, {**state, **buffers}, (inputs,))


NORMS = (
    Norm(types=(nn.LayerNorm, nn.RMSNorm), channels=False),
    Norm(types=(nn.GroupNorm, nn.modules.batchnorm._NormBase), channels=True),
    Norm(types=(), channels=True, mark="coupled_batch"),
    Norm(types=(), channels=False, mark="eps", unless="coupled_batch"),
)
"""Torch's normalisations, and modules of other classes over examples and over the last axis."""


def normalises_batches(module: nn.Module) -> bool:
    """Tell whether a layer normalises by the statistics of a minibatch in training mode."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or hasattr(module, "coupled_batch")
