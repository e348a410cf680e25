"""A layer's gradient as the product it was made of: rows of inputs and of output gradients.

The gradient of a linear layer is G = gᵀa, with a row of inputs a and a row of gradients g for each
of n examples. Where n is small against the layer its preconditioned gradient is cheaper from these
rows than from G,

    B⁻¹ G A⁻¹ = (B⁻¹gᵀ)(a A⁻¹),     n (M² + K² + MK) multiplications instead of MK (M + K),

and the same matrix up to rounding. The rows are noted in the user's own forward and backward pass.
Whether the gradient is still their product when the optimizer steps is asked each time, with a
random vector z: Gz = c gᵀ(az) for one number c, which is the scale of a loss scaler that was taken
back, or of a gradient that was clipped by its norm. Anything else that happened to the gradient (a
penalty added, entries clipped, an average over processes, a pass that was not seen) fails that
test, and the product is then taken from the gradient as it stands.
"""

import dataclasses
import math
import weakref
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.layers import is_plain_linear
from kobai.optim.kfac.plan import KroneckerLayer

_PAYS = 0.9
"""Share of the multiplications from which rows are taken: they have their own overhead."""

_ROUNDINGS = 8.0
"""Differences between Gz and gᵀ(az), in roundings of numbers of the size ‖g‖ ‖a‖, that are put down
to rounding."""

_SCALE_ERROR = 1e-5
"""Largest relative error of the number c; where examples cancel so that it is less certain, the
gradient itself is taken."""


def pays(rows: int, outputs: int, inputs: int) -> bool:
    """Say whether a layer's preconditioned gradient costs less from rows than from the gradient."""
    own = rows * (outputs * outputs + inputs * inputs + outputs * inputs)
    return own <= _PAYS * outputs * inputs * (outputs + inputs)


def has_rows(layer: KroneckerLayer) -> bool:
    """Say whether a layer's gradient is the plain product of the rows that pass its one module."""
    return (
        len(layer.modules) == 1
        and is_plain_linear(layer.modules[0][1])
        and layer.weight.ndim == 2
        and layer.form.inputs - layer.form.bias == layer.weight.shape[1]
    )


@final
@dataclasses.dataclass(slots=True, eq=False)
class GradientRows:
    """The rows whose product is the gradient of a layer.

    Attributes:
        inputs: a, (n, K), without the ones of a bias.
        gradients: g, (n, M).
        scale: c, with G = c gᵀa.
        used: Whether a step was made from them.
    """

    inputs: Tensor
    gradients: Tensor
    scale: float = 1.0
    used: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class _Noted:
    """What passes since the last step have brought for a layer; None once it no longer pays."""

    pairs: list[tuple[Tensor, Tensor]] | None = dataclasses.field(default_factory=list)
    count: int = 0


@final
class RowNotes:
    """The rows of chosen layers in the passes since the last step.

    Inputs of these layers are held until `take`: fewer numbers than their parameters have.

    Attributes:
        layers: The chosen layers, by position in the plan.
        paused: Whether backward passes at present are not the user's.
    """

    def __init__(self) -> None:
        self.layers: dict[int, KroneckerLayer] = {}
        self.paused = False
        self._noted: dict[int, _Noted] = {}
        self._probes: dict[int, Tensor] = {}

    def choose(self, layers: Mapping[int, KroneckerLayer]) -> None:
        """Note the rows of these layers, by position in the plan, and of no others."""
        self.layers = {i: layer for i, layer in layers.items() if has_rows(layer)}
        self._noted.clear()
        self._probes.clear()

    def attach(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Note what goes through the layers in the forward pass that begins."""
        owner, handles = weakref.ref(self), []
        for position, layer in self.layers.items():

            def called(module: nn.Module, inputs: Any, output: Any, position: int = position):
                notes = owner()
                if notes is not None and isinstance(output, Tensor) and output.requires_grad:
                    notes._called(position, inputs, output)

            module = layer.modules[0][1]
            if module is not model:
                handles.append(module.register_forward_hook(called))
        return handles

    def take(self) -> tuple[dict[int, GradientRows], int]:
        """Return the rows whose product the gradients are now, and let go of everything noted.

        Returns:
            Rows by position in the plan, and the number of layers that had rows whose product the
            gradient is not.
        """
        noted, self._noted = self._noted, {}
        found, changed = {}, 0
        for position, own in noted.items():
            if not own.pairs:
                continue
            inputs, gradients = zip(*own.pairs, strict=True)
            rows = GradientRows(
                inputs[0] if len(inputs) == 1 else torch.cat(inputs),
                gradients[0] if len(gradients) == 1 else torch.cat(gradients),
            )
            if self._explains(position, rows):
                found[position] = rows
            else:
                changed += 1
        return found, changed

    def forget(self) -> None:
        """Let go of everything noted."""
        self._noted.clear()

    def _called(self, position: int, arguments: tuple[Any, ...], output: Tensor) -> None:
        weight = self.layers[position].weight
        if len(arguments) != 1 or not arguments[0].dtype == weight.dtype == output.dtype:
            return
        rows = arguments[0].detach().reshape(-1, weight.shape[1])
        if not pays(len(rows), *weight.shape):
            return
        # The graph owns this hook and the hook must not own the graph.
        owner = weakref.ref(self)

        def arrived(gradient: Tensor) -> None:
            notes = owner()
            if notes is not None and not notes.paused:
                notes._arrived(position, rows, gradient.detach().reshape(len(rows), -1))

        output.register_hook(arrived)

    def _arrived(self, position: int, rows: Tensor, gradients: Tensor) -> None:
        layer = self.layers.get(position)
        if layer is None or gradients.shape[1] != layer.weight.shape[0]:
            return
        own = self._noted.setdefault(position, _Noted())
        own.count += len(rows)
        if not pays(own.count, *layer.weight.shape):
            own.pairs = None
        if own.pairs is not None:
            own.pairs.append((rows, gradients))

    def _explains(self, position: int, rows: GradientRows) -> bool:
        """Say whether a gradient is c gᵀa, and set the rows' c."""
        layer = self.layers[position]
        whole, a, g = layer.weight.grad, rows.inputs, rows.gradients
        if whole is None or not whole.dtype == a.dtype == g.dtype:
            return False
        probe = self._probe(position, whole)
        image, sums = whole @ probe[:-1], a @ probe[:-1]
        length = float(a.norm()) ** 2
        if layer.bias is not None:
            if layer.bias.grad is None:
                return False
            image = image + layer.bias.grad * probe[-1]
            sums = sums + probe[-1]
            length += len(a)
        product = g.T @ sums
        # Rounding is that of a product of ‖g‖ and ‖a‖, however much its terms cancel.
        step = torch.finfo(whole.dtype).eps * float(g.norm()) * math.sqrt(length)
        inner, square = float(image @ product), float(product @ product)
        if not (math.isfinite(inner) and math.isfinite(square)):
            return False
        scale = inner / square if square else 1.0
        size = math.sqrt(square)
        if abs(scale - 1) * size <= _ROUNDINGS * step:
            scale = 1.0
        elif step > _SCALE_ERROR * size:
            return False
        rows.scale = scale
        wrong = float((image - scale * product).norm())
        return wrong <= _ROUNDINGS * abs(scale) * step

    def _probe(self, position: int, like: Tensor) -> Tensor:
        """A fixed vector without small entries, of random signs; the last entry for the bias."""
        known = self._probes.get(position)
        if known is None or known.dtype != like.dtype or known.device != like.device:
            draws = torch.rand(
                2, like.shape[1] + 1, generator=torch.Generator().manual_seed(position)
            )
            known = ((0.5 + draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0)).to(like)
            self._probes[position] = known
        return known
