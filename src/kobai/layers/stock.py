"""Questions about torch's own layers: how outputs depend on parameters, inputs and batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear_in_parameters(module: nn.Module) -> bool:
    """Tell whether a stock layer's output is linear in its parameters, for a fixed input."""
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return type(module) in (nn.Linear, *_CONVOLUTIONS)


def output_with(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the output that a layer linear in its parameters has with others in their place."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight)
    assert isinstance(module, _CONVOLUTIONS)
    return module._conv_forward(x, weight, bias)


def is_convolution(module: nn.Module) -> bool:
    """Tell whether a module is a stock convolution."""
    return type(module) in _CONVOLUTIONS


def writes_fresh_output(module: nn.Module) -> bool:
    """Tell whether a stock layer's output is a new tensor that its backward pass does not need."""
    return type(module) in (nn.Linear, *_CONVOLUTIONS)


def is_relu(module: nn.Module) -> bool:
    """Tell whether a module is torch's ReLU."""
    return type(module) is nn.ReLU


def is_sequence(module: nn.Module) -> bool:
    """Tell whether a module only calls its children one after the other."""
    return type(module) is nn.Sequential


def running_statistics(model: nn.Module) -> dict[str, nn.Module]:
    """Find the submodules that keep a running mean and variance over batches."""
    return {
        path: part
        for path, part in model.named_modules()
        if isinstance(getattr(part, "running_mean", None), Tensor)
        and isinstance(getattr(part, "running_var", None), Tensor)
        and not isinstance(part, nn.modules.instancenorm._InstanceNorm)
    }


def scales_by_running_statistics(module: nn.Module, x: Tensor) -> bool:
    """Tell by what it computes whether a module is batch normalisation in evaluation mode."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or module.training:
        return False
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    epsilon = getattr(module, "eps", None)
    if x.ndim < 3 or x.shape[1] != len(mean) or not isinstance(epsilon, float):
        return False
    with torch.no_grad():
        wanted = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)
        return bool(torch.allclose(module(x), wanted, rtol=1e-5, atol=1e-6, equal_nan=True))
