"""Linear layers: torch's, layers that scale themselves, transposed ones, and users' own."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from kobai.layers.form import LayerForm, Slot, tensor_at
from kobai.layers.interface import MatrixKind, Reading, unchanged
from kobai.layers.rows import LAST_AXIS


def linear_scales(module: Any) -> tuple[float, float] | None:
    """The factors (s, t) of a layer that computes s W h + t b; None for others.

    They are a layer's property ``linear_scales``, which must be defined in the same class as the
    `forward` for which it speaks.
    """
    owners = [_owner(module, name) for name in ("linear_scales", "forward")]
    return module.linear_scales if owners[0] is not None and owners[0] is owners[1] else None


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module is the layer `Conv1D` of Hugging Face's transformers.

    It is recognised without that package: `forward` comes from a class of this name, and the module
    holds a weight (inputs, nf), a bias (nf,) and nothing else.
    """
    owner = _owner(module, "forward")
    if owner is None or owner.__name__ != "Conv1D" or module._modules:
        return False
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    return (
        len(module._parameters) == 2
        and weight is not None
        and bias is not None
        and weight.ndim == 2
        and weight.shape[1:] == bias.shape == (getattr(module, "nf", -1),)
    )


def _owner(module: Any, name: str) -> type | None:
    """The class that defines a member of a module."""
    return next((base for base in type(module).__mro__ if name in vars(base)), None)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(MatrixKind):
    """Layers that compute W h + b, or s W h + t b, on the last axis of their input.

    Attributes:
        types: Classes; a subclass with a `forward` of its own does not match.
        weight: Name of W, a matrix; with any other shape a module does not match.
        bias: Name of b; None, or a module without it, for none.
        transposed: Whether W is stored as (inputs, outputs).
        recognised: Tells whether a module of another class matches; None if none does.
    """

    name = "linear"
    types: tuple[type[nn.Module], ...] = (nn.Linear,)
    weight: str = "weight"
    bias: str | None = "bias"
    transposed: bool = False
    recognised: Callable[[nn.Module], bool] | None = None

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is of one of the types, with their `forward`, or recognised."""
        known = unchanged(module, self.types) or (
            self.recognised is not None and self.recognised(module)
        )
        return known and tensor_at(module, self.weight).ndim == 2

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """The one matrix."""
        shape, scales = tensor_at(module, self.weight).shape, linear_scales(module)
        outputs = shape[-1] if self.transposed else shape[0]
        present = self.bias is not None and tensor_at(module, self.bias) is not None
        form = LayerForm(
            groups=1,
            outputs=outputs,
            inputs=shape.numel() // outputs + present,
            bias=present,
            transposed=self.transposed,
            bias_input=1.0 if scales is None else float(scales[1]),
        )
        return (Slot(name="", weight=self.weight, bias=self.bias if present else None, form=form),)

    def reading(self, module: Any) -> Reading:
        """Rows along the last axis."""
        return LAST_AXIS

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs, times s if there is one."""
        scales = linear_scales(module)
        return inputs if scales is None else scales[0] * inputs
