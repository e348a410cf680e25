"""Rectifiers without the zeros that torch writes for their second derivative.

Differentiated twice, torch's ReLU hands a tensor of zeros as large as the activations back to the
layer below, where it is added to the true second derivative: 0.05 of a gradient for each product on
a perceptron with two hidden layers of 100 units. The function here has the same value, the same
derivative and the same (vanishing) second derivative, and no zeros.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


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
class PlainKinks(TorchFunctionMode):
    """While active, rectifiers that do not work in place are differentiated twice without zeros."""

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
        return func(*args, **kwargs)
