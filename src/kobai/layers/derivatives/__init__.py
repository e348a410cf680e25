"""Functions of layers that differentiate twice at less cost, put in while a graph is built.

Differentiated twice, torch's ReLU hands a tensor of zeros as large as the activations back to the
layer below, where it is added to the true second derivative; a convolution computes four products
where a Jacobian needs two; batch normalisation with fixed statistics runs through the general
formulas; an affine map adds its bias in a pass of its own. The functions here have the same values
and derivatives of every order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kobai.layers.derivatives.convolution import convolution, fixed_normalisation
from kobai.layers.derivatives.linear import affine


@final
class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        output = torch.relu(values)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # Where the output is a constant, only the gradient is differentiated once more.
        (output,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], output.detach(), 0)


@final
class PlainLayers(TorchFunctionMode):
    """While active, some layers are replaced by ones that differentiate twice at less cost.

    They are rectifiers out of place, affine maps, convolutions of images with numeric padding, and
    batch normalisation with fixed statistics. Everything else is torch's own.

    Args:
        once: The gradients of convolutions and affine maps will be differentiated along their
            cotangent only, as for a Jacobian-vector product; nothing else is then computed.
    """

    def __init__(self, *, once: bool = False) -> None:
        super().__init__()
        self.once = once

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.nn.functional.relu, torch.relu, Tensor.relu):
            in_place = kwargs.get("inplace", False) or any(args[1:])
            # Other kinds of tensor (those of torch.func's transforms) keep torch's own function.
            if args and type(args[0]) is Tensor and not in_place:
                return cast(Tensor, _Rectifier.apply(args[0]))
        if func is torch.nn.functional.linear:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            bias = given.get("bias")
            if type(given["input"]) is Tensor and given["input"].ndim > 1 and bias is not None:
                return affine(given["input"], given["weight"], bias, once=self.once)
        if func is torch.nn.functional.batch_norm:
            return self._normalise(func, args, kwargs)
        if func in (torch.conv2d, torch.nn.functional.conv2d):
            return self._convolve(func, args, kwargs)
        return func(*args, **kwargs)

    def _normalise(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum")
        given: dict[str, Any] = {**dict(zip((*names, "eps"), args, strict=False)), **kwargs}
        values, mean, variance = (given.get(name) for name in names[:3])
        plain = type(values) is Tensor and mean is not None and variance is not None
        if not plain or given.get("training", False):
            return func(*args, **kwargs)
        return fixed_normalisation(
            cast(Tensor, values), cast(Tensor, mean), cast(Tensor, variance),
            given.get("weight"), given.get("bias"), given.get("eps", 1e-5),
        )  # fmt: skip

    def _convolve(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **kwargs}
        values, padding = given["input"], given.get("padding", 0)
        if type(values) is not Tensor or values.ndim != 4 or isinstance(padding, str):
            return func(*args, **kwargs)
        spec = (
            _pair(given.get("stride", 1)), _pair(padding), _pair(given.get("dilation", 1)),
            False, (0, 0), given.get("groups", 1),
        )  # fmt: skip
        output = convolution(values, given["weight"], spec, once=self.once)
        bias = given.get("bias")
        return output if bias is None else output + bias.view(-1, 1, 1)


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
