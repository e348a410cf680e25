"""What a layer's matrix multiplies, as places × inputs: convolutions unfolded, norms undone."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matrix_shape(module: nn.Module) -> tuple[int, int, int] | None:
    """(groups, M, K) of the weight of a layer that multiplies by a matrix, the bias left out.

    Linear and Conv1d to Conv3d and their subclasses that compute the same function; None for every
    other module.
    """
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return 1, module.out_features, module.in_features
    for kind in CONVOLUTIONS:
        if isinstance(module, kind) and type(module).forward is kind.forward:
            inner = module.in_channels // module.groups * math.prod(module.kernel_size)
            return module.groups, module.out_channels // module.groups, inner
    return None


def matrix_inputs(
    module: nn.Module, inputs: Tensor, examples: int
) -> Float[Tensor, "G E T K"] | None:
    """The vectors that a layer's matrix multiplies, place by place; None if they do not divide.

    Args:
        module: A layer with a `matrix_shape`.
        inputs: What it was called with; the first axis holds the examples in order, perhaps with
            places inside each.
        examples: E.
    """
    if isinstance(module, nn.Linear):
        flat = inputs.reshape(-1, inputs.shape[-1])
        if flat.shape[0] % examples:
            return None
        return flat.reshape(1, examples, -1, flat.shape[1])
    patches = _patches(module, inputs)
    images, groups, _, inner = patches.shape
    if images % examples:
        return None
    return patches.permute(1, 0, 2, 3).reshape(groups, examples, -1, inner)


def matrix_gradients(
    module: nn.Module, gradients: Float[Tensor, "Q *output"], examples: int
) -> Float[Tensor, "G E Q T M"] | None:
    """Gradients in a layer's output, arranged like `matrix_inputs`; None if they do not divide."""
    count = gradients.shape[0]
    if isinstance(module, nn.Linear):
        flat = gradients.reshape(count, -1, gradients.shape[-1])
        if flat.shape[1] % examples:
            return None
        return flat.reshape(1, count, examples, -1, flat.shape[2]).transpose(1, 2)
    axes = len(module.kernel_size)  # pyright: ignore[reportArgumentType]
    if gradients.ndim == axes + 2:
        gradients = gradients.unsqueeze(1)
    images, groups = gradients.shape[1], int(module.groups)  # pyright: ignore[reportArgumentType]
    if images % examples:
        return None
    split = gradients.reshape(count, examples, images // examples, groups, -1, math.prod(
        gradients.shape[3:]
    ))  # fmt: skip
    # (Q, E, images, G, M, places) -> (G, E, Q, images, places, M)
    ordered = split.permute(3, 1, 0, 2, 5, 4)
    return ordered.reshape(groups, examples, count, -1, split.shape[4])


def _patches(module: Any, inputs: Tensor) -> Float[Tensor, "N G T K"]:
    """All patches that a convolution multiplies: its padding, stride, dilation and groups."""
    axes = len(module.kernel_size)
    images = inputs if inputs.ndim == axes + 2 else inputs.unsqueeze(0)
    pads: list[int] = []
    for axis in reversed(range(axes)):
        if module.padding == "valid":
            before = after = 0
        elif module.padding == "same":
            # An odd total puts the extra line last, as torch does.
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            before, after = total // 2, total - total // 2
        else:
            before = after = int(module.padding[axis])
        pads += [before, after]
    if any(pads):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        images = F.pad(images, pads, mode=mode)
    windows = images
    for axis in range(axes):
        size, dilation = module.kernel_size[axis], module.dilation[axis]
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, module.stride[axis])
        windows = windows[..., ::dilation]
    count, groups = images.shape[0], module.groups
    windows = windows.reshape(
        count, groups, -1, math.prod(windows.shape[2 : 2 + axes]), math.prod(module.kernel_size)
    )
    return windows.permute(0, 1, 3, 2, 4).flatten(3)


def scale_axis(module: nn.Module) -> int | None:
    """First axis (from the front) of a scale-and-shift layer's parameters in its input.

    1 for layers with a scale a channel, −d for those over the last d axes, None for other modules.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return -weight.ndim
    if isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase):
        return 1
    # Layers of one's own: normalisation over the last axis, or over examples a channel.
    if weight.ndim == 1 and set(module._parameters) <= {"weight", "bias"}:
        if hasattr(module, "coupled_batch"):
            return 1
        if hasattr(module, "eps"):
            return -1
    return None


def normalised_inputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a scale-and-shift layer multiplies by its scale: its output at scale 1 and shift 0."""
    state = {}
    for name, parameter in module._parameters.items():
        if parameter is not None:
            fill = torch.ones_like if name == "weight" else torch.zeros_like
            state[name] = fill(parameter.detach())
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad():
        return functional_call(module, {**state, **buffers}, (inputs,))


def per_unit(values: Tensor, axis: int, dims: int, examples: int) -> Tensor | None:
    """Arrange (…, N, axes) as (…, E, places, units) for a scale-and-shift layer; None if it fails.

    Args:
        values: With the module's output axes last.
        axis: See `scale_axis`.
        dims: Number of axes of the module's output.
        examples: E.
    """
    lead = values.shape[: values.ndim - dims]
    own = values.shape[values.ndim - dims :]
    if own[0] % examples:
        return None
    if axis < 0:
        units = math.prod(own[axis:])
        return values.reshape(*lead, examples, -1, units)
    moved = values.movedim(len(lead) + 1, -1)
    return moved.reshape(*lead, examples, -1, own[1])
