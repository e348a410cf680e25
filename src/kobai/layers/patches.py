"""The patches that a convolution multiplies by its kernels."""

import math
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def batched_images(module: Any, inputs: Tensor) -> Tensor:
    """Give the inputs of a convolution an axis for images if they have none."""
    return inputs if inputs.ndim == len(module.kernel_size) + 2 else inputs.unsqueeze(0)


def convolution_pads(module: Any) -> list[int]:
    """Margins before and after each axis of the images, last axis first, as `F.pad` takes them."""
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

    A transposed convolution is an ordinary one with its kernel reversed, on images with zeros
    between their entries; its patches are reversed back here.
    """
    images, axes, groups = batched_images(module, inputs), len(module.kernel_size), module.groups
    transposed = module.transposed
    if transposed:
        images, strides = _spread(module, images), (1,) * axes
    else:
        images, strides = padded_images(module, images), module.stride
    windows = images
    for axis in range(axes):
        size, dilation = module.kernel_size[axis], module.dilation[axis]
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, strides[axis])
        windows = windows[..., ::dilation]
    if transposed:
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
