"""Convolutions and fixed normalisation whose second derivatives compute only what is asked for.

torch differentiates a convolution's backward pass by four convolutions whether all are needed or
not, where a product with a Jacobian needs two; and it differentiates batch normalisation with fixed
statistics, a plain scaling, by the formulas of the general case.
"""

from typing import Any, cast, final

import torch
from torch import Tensor

Spec = tuple[Any, ...]
"""stride, padding, dilation, transposed, output padding, groups, as in ``aten.convolution``."""


def convolution(values: Tensor, weight: Tensor, spec: Spec, *, once: bool = False) -> Tensor:
    """The convolution without bias.

    With ``once`` the gradient is a function of its cotangent alone: what it depends on besides
    counts as constant. A function in Python cannot see which of its derivatives are asked for, and
    would compute all that are defined.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _Convolution.apply(values, weight, spec, once))
    return torch.ops.aten.convolution(values, weight, None, *spec)


def _to_values(gradient: Tensor, weight: Tensor, like: torch.Size, spec: Spec) -> Tensor:
    """Gradient in the convolution's values."""
    if torch.is_grad_enabled():
        return cast(Tensor, _ToValues.apply(gradient, weight, like, spec))
    values = gradient.new_empty(1).expand(like)
    return torch.ops.aten.convolution_backward(
        gradient, values, weight, None, *spec, (True, False, False)
    )[0]


def _to_weight(gradient: Tensor, values: Tensor, like: torch.Size, spec: Spec) -> Tensor:
    """Gradient in the convolution's weight."""
    if torch.is_grad_enabled():
        return cast(Tensor, _ToWeight.apply(gradient, values, like, spec))
    weight = gradient.new_empty(1).expand(like)
    return torch.ops.aten.convolution_backward(
        gradient, values, weight, None, *spec, (False, True, False)
    )[1]


@final
class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, spec: Spec, once: bool) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.spec = spec
        ctx.once = once
        return torch.ops.aten.convolution(values, weight, None, *spec)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        values, weight = ctx.saved_tensors
        if ctx.once:
            values, weight = values.detach(), weight.detach()
        (gradient,) = gradients
        first = second = None
        if ctx.needs_input_grad[0]:
            first = _to_values(gradient, weight, values.shape, ctx.spec)
        if ctx.needs_input_grad[1]:
            second = _to_weight(gradient, values, weight.shape, ctx.spec)
        return first, second, None, None


@final
class _ToValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, like: torch.Size, spec: Spec) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.spec = spec
        values = gradient.new_empty(1).expand(like)
        return torch.ops.aten.convolution_backward(
            gradient, values, weight, None, *spec, (True, False, False)
        )[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient, weight = ctx.saved_tensors
        (outer,) = gradients
        first = second = None
        if ctx.needs_input_grad[0]:
            first = convolution(outer, weight, ctx.spec)
        if ctx.needs_input_grad[1]:
            second = _to_weight(gradient, outer, weight.shape, ctx.spec)
        return first, second, None, None


@final
class _ToWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, values: Tensor, like: torch.Size, spec: Spec) -> Tensor:
        ctx.save_for_backward(gradient, values)
        ctx.spec = spec
        weight = gradient.new_empty(1).expand(like)
        return torch.ops.aten.convolution_backward(
            gradient, values, weight, None, *spec, (False, True, False)
        )[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient, values = ctx.saved_tensors
        (outer,) = gradients
        first = second = None
        if ctx.needs_input_grad[0]:
            first = convolution(values, outer, ctx.spec)
        if ctx.needs_input_grad[1]:
            second = _to_values(gradient, outer, values.shape, ctx.spec)
        return first, second, None, None


def fixed_normalisation(
    values: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    epsilon: float | int,
) -> Tensor:
    """Batch normalisation with given statistics, as one scale and one shift per channel."""
    scale = (variance + epsilon).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (-1, *([1] * (values.ndim - 2)))
    return torch.addcmul(shift.view(shape), values, scale.view(shape))
