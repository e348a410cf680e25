"""Affine maps whose second derivatives add the bias inside the matrix product.

torch keeps the gradients in weight and bias as two operations. Differentiated once more along
(V, v), they hand back x Vᵀ and v separately: a tensor as large as the activations is written, read
and added for each layer. Kept as one operation, they hand back x Vᵀ + v from one product.
"""

from typing import Any, cast, final

import torch
from torch import Tensor


def affine(values: Tensor, weight: Tensor, bias: Tensor, *, once: bool = False) -> Tensor:
    """``values @ weight.T + bias`` for values (..., inputs), with gradients of every order.

    With ``once`` the gradient is a function of its cotangent alone, and what it depends on besides
    counts as constant.
    """
    rows = values.reshape(-1, values.shape[-1])
    output = cast(Tensor, _Affine.apply(rows, weight, bias, once))
    return output.view(*values.shape[:-1], weight.shape[0])


def _forward(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None and torch.is_grad_enabled():
        return cast(Tensor, _Affine.apply(values, weight, bias, False))
    return torch.nn.functional.linear(values, weight, bias)


def _to_parameters(gradient: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients in weight and bias."""
    if torch.is_grad_enabled():
        return cast(tuple[Tensor, Tensor], _ToParameters.apply(gradient, values))
    return gradient.T @ values, gradient.sum(dim=0)


@final
class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, once: bool) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.once = once
        return torch.nn.functional.linear(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        values, weight = ctx.saved_tensors
        if ctx.once:
            values, weight = values.detach(), weight.detach()
        (gradient,) = gradients
        needs_values, needs_weight, needs_bias, _ = ctx.needs_input_grad
        first = gradient @ weight if needs_values else None
        if needs_weight and needs_bias:
            return first, *_to_parameters(gradient, values), None
        second = gradient.T @ values if needs_weight else None
        return first, second, gradient.sum(dim=0) if needs_bias else None, None


@final
class _ToParameters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, values)
        return gradient.T @ values, gradient.sum(dim=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient, values = ctx.saved_tensors
        weight, bias = gradients
        first = second = None
        if ctx.needs_input_grad[0]:
            if weight is not None:
                first = _forward(values, weight, bias)
            elif bias is not None:
                first = bias.expand_as(gradient)
        if ctx.needs_input_grad[1] and weight is not None:
            second = gradient @ weight
        return first, second
