"""What a layer's matrix multiplies, as places × inputs: convolutions unfolded, norms undone."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call


def matrix_inputs(
    module: nn.Module | None, inputs: Tensor, examples: int
) -> Float[Tensor, "G E T K"] | None:
    """The vectors that a layer's matrix multiplies, place by place; None if they do not divide.

    Args:
        module: A convolution, or None (or any other module) for rows as they are.
        inputs: What it was called with; the first axis holds the examples in order, perhaps with
            places inside each.
        examples: E.
    """
    if not isinstance(module, nn.modules.conv._ConvNd):
        flat = inputs.reshape(-1, inputs.shape[-1])
        if flat.shape[0] % examples:
            return None
        return flat.reshape(1, examples, -1, flat.shape[1])
    patches = convolution_patches(module, inputs)
    images, groups, _, inner = patches.shape
    if images % examples:
        return None
    return patches.permute(1, 0, 2, 3).reshape(groups, examples, -1, inner)


def matrix_gradients(
    module: nn.Module | None, gradients: Float[Tensor, "Q *output"], examples: int
) -> Float[Tensor, "G E Q T M"] | None:
    """Gradients in a layer's output, arranged like `matrix_inputs`; None if they do not divide."""
    count = gradients.shape[0]
    if not isinstance(module, nn.modules.conv._ConvNd):
        flat = gradients.reshape(count, -1, gradients.shape[-1])
        if flat.shape[1] % examples:
            return None
        return flat.reshape(1, count, examples, -1, flat.shape[2]).transpose(1, 2)
    if gradients.ndim == len(module.kernel_size) + 2:
        gradients = gradients.unsqueeze(1)
    images, groups = gradients.shape[1], int(module.groups)
    if images % examples:
        return None
    split = gradients.reshape(count, examples, images // examples, groups, -1, math.prod(
        gradients.shape[3:]
    ))  # fmt: skip
    # (Q, E, images, G, M, places) -> (G, E, Q, images, places, M)
    ordered = split.permute(3, 1, 0, 2, 5, 4)
    return ordered.reshape(groups, examples, count, -1, split.shape[4])


def batched_images(module: Any, inputs: Tensor) -> Tensor:
    """What a convolution was called with, with an axis for images if there was none."""
    return inputs if inputs.ndim == len(module.kernel_size) + 2 else inputs.unsqueeze(0)


def convolution_pads(module: Any) -> list[int]:
    """What is added before and after each axis of the images, last axis first, as `F.pad` wants."""
    pads: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
        if module.padding == "valid":
            before = after = 0
        elif module.padding == "same":
            # An odd total puts the extra line last, as torch does.
            before, after = reach // 2, reach - reach // 2
        else:
            before = after = int(module.padding[axis])
        pads += [before, after]
    return pads


def padded_images(module: Any, images: Tensor) -> Tensor:
    """Images as a convolution sees them, in its padding mode."""
    pads = convolution_pads(module)
    if not any(pads):
        return images
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(images, pads, mode=mode)


def convolution_patches(module: Any, inputs: Tensor) -> Float[Tensor, "N G T K"]:
    """All patches that a convolution, or a transposed one, multiplies by its kernels.

    A transposed convolution is an ordinary one with its kernel turned round, on images with zeros
    between their entries; its patches are turned back here.
    """
    images, axes, groups = batched_images(module, inputs), len(module.kernel_size), module.groups
    turned = module.transposed
    if turned:
        images, strides = _spread(module, images), (1,) * axes
    else:
        images, strides = padded_images(module, images), module.stride
    windows = images
    for axis in range(axes):
        size, dilation = module.kernel_size[axis], module.dilation[axis]
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, strides[axis])
        windows = windows[..., ::dilation]
    if turned:
        windows = windows.flip(tuple(range(2 + axes, 2 + 2 * axes)))
    places = math.prod(windows.shape[2 : 2 + axes])
    split = windows.unflatten(1, (groups, -1))
    # (N, G, I, places, taps) -> (N, G, places, I, taps), copied once.
    order = (0, 1, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
    return split.permute(order).reshape(images.shape[0], groups, places, -1)


def _spread(module: Any, images: Tensor) -> Tensor:
    """Images with stride − 1 zeros between entries, and the margins of a transposed convolution.

    A call with an `output_size` of its own is not covered: its places do not match the gradients.
    """
    axes = len(module.kernel_size)
    sizes = [(n - 1) * s + 1 for n, s in zip(images.shape[2:], module.stride, strict=True)]
    wide = images.new_zeros(*images.shape[:2], *sizes)
    wide[(..., *(slice(None, None, s) for s in module.stride))] = images
    pads: list[int] = []
    for axis in reversed(range(axes)):
        margin = module.dilation[axis] * (module.kernel_size[axis] - 1) - module.padding[axis]
        pads += [margin, margin + module.output_padding[axis]]
    return F.pad(wide, pads)


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


def scale_rows(
    module: nn.Module, names: Sequence[str], inputs: Tensor, gradients: Tensor, examples: int
) -> Float[Tensor, "E Q U k"] | None:
    """Per-example gradients of scale and shift, side by side; None if examples do not divide.

    Args:
        module: A module with a `scale_axis`.
        names: Which of "weight" and "bias" in what order; their number is k.
        inputs: What it was called with.
        gradients: Gradients in its output, (Q, *output).
        examples: E.
    """
    axis = scale_axis(module)
    if axis is None:
        return None
    columns = []
    for name in names:
        values = gradients
        if name == "weight":
            values = values * normalised_inputs(module, inputs)
        split = per_unit(values, axis, gradients.ndim - 1, examples)
        if split is None:
            return None
        columns.append(split.sum(2).transpose(0, 1))
    return torch.stack(columns, 3)
