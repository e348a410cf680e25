"""Linear layers: torch's, layers that scale themselves, transposed ones, and users' own."""

import dataclasses
from typing import Any, final

from torch import Tensor, nn

from kobai.layers.form import LayerForm, Slot, tensor_at
from kobai.layers.interface import MatrixKind, Reading, by_first_axis, unchanged
from kobai.layers.rows import LAST_AXIS


def linear_scales(module: Any) -> tuple[float, float] | None:
    """The factors (s, t) of a layer that computes s W h + t b; None for others.

    They are a layer's property ``linear_scales``, which must be defined in the same class as the
    `forward` for which it speaks.
    """
    owners = [_owner(module, name) for name in ("linear_scales", "forward")]
    return module.linear_scales if owners[0] is not None and owners[0] is owners[1] else None


def _owner(module: Any, name: str) -> type | None:
    """The class that defines a member of a module."""
    return next((base for base in type(module).__mro__ if name in vars(base)), None)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(MatrixKind):
    """Layers that compute W h + b on the last axis of their input.

    Attributes:
        types: Classes; a subclass with a `forward` of its own does not match.
        weight: Name of W.
        bias: Name of b; None, or a module without it, for none.
        transposed: Whether W is stored as (inputs, outputs).
    """

    name = "linear"
    types: tuple[type[nn.Module], ...] = (nn.Linear,)
    weight: str = "weight"
    bias: str | None = "bias"
    transposed: bool = False

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is of one of the types, with their `forward`."""
        return unchanged(module, self.types)

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """The one matrix."""
        shape = tensor_at(module, self.weight).shape
        if len(shape) != 2:
            raise ValueError(
                f"{type(module).__name__}.{self.weight} must be a matrix to be read as a linear "
                f"layer's weight, got shape {tuple(shape)}; register the layer differently"
            )
        outputs, inputs = reversed(shape) if self.transposed else shape
        present = self.bias is not None and tensor_at(module, self.bias) is not None
        form = LayerForm(
            groups=1, outputs=outputs, inputs=inputs + present, bias=present,
            transposed=self.transposed,
        )  # fmt: skip
        return (Slot(name="", weight=self.weight, bias=self.bias if present else None, form=form),)

    def units(self, module: Any, positions: Tensor) -> Tensor:
        """Outputs are rows of W, or its columns."""
        if self.transposed and positions.ndim > 1:
            return positions.T
        return by_first_axis(positions)

    def reading(self, module: Any) -> Reading:
        """Rows along the last axis."""
        return LAST_AXIS

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs as they are."""
        return inputs


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledLinear(MatrixKind):
    """Layers that compute s W h + t b, known by a property `linear_scales`."""

    name = "linear"
    types: tuple[type[nn.Module], ...] = ()

    def matches(self, module: nn.Module) -> bool:
        """Tell whether the property speaks for the module's `forward`."""
        return linear_scales(module) is not None

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """The one matrix; its bias is multiplied by t."""
        (own,) = Linear().slots(module)
        form = dataclasses.replace(own.form, bias_input=float(module.linear_scales[1]))
        return (dataclasses.replace(own, form=form),)

    def units(self, module: Any, positions: Tensor) -> Tensor:
        """Outputs are rows of W."""
        return by_first_axis(positions)

    def reading(self, module: Any) -> Reading:
        """Rows along the last axis."""
        return LAST_AXIS

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs times s."""
        return module.linear_scales[0] * inputs


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv1DLinear(MatrixKind):
    """The layer `Conv1D` of Hugging Face's transformers: W h + b, with W as (inputs, outputs).

    It is recognised without that package: `forward` comes from a class of this name, which holds a
    weight (inputs, nf), a bias (nf,) and nothing else.
    """

    name = "linear"
    types: tuple[type[nn.Module], ...] = ()

    def matches(self, module: nn.Module) -> bool:
        """Tell whether name, parameters and shapes are those of `Conv1D`."""
        owner = _owner(module, "forward")
        if owner is None or owner.__name__ != "Conv1D" or owner is nn.Conv1d:
            return False
        weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
        return (
            set(module._parameters) == {"weight", "bias"}
            and not module._modules
            and weight is not None
            and bias is not None
            and weight.ndim == 2
            and weight.shape[1:] == bias.shape == (getattr(module, "nf", -1),)
        )

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """The one matrix."""
        return Linear(transposed=True).slots(module)

    def units(self, module: Any, positions: Tensor) -> Tensor:
        """Outputs are columns of W."""
        return Linear(transposed=True).units(module, positions)

    def reading(self, module: Any) -> Reading:
        """Rows along the last axis."""
        return LAST_AXIS

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The inputs as they are."""
        return inputs
