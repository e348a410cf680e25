"""Second moments of the patches of a convolution.

Patches that repeat each other are not written out where their moments are known without: those of a
convolution with stride one are shifts of each other, so that moments of two entries of a patch
depend on their distance only, up to what happens at the border.
"""

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kobai.layers.form import LayerForm
from kobai.layers.moments import sum_of_grams
from kobai.layers.patches import batched_images, convolution_patches, padded_images


def convolution_moment(
    module: Any, form: LayerForm, inputs: Tensor
) -> tuple[Float[Tensor, "G K K"], int]:
    """Σ a aᵀ over all patches of a call, and their number; see `kobai.layers.interface.Reading`.

    Cost: R K² multiplications per group; see `shifted_moment` for those that need fewer.
    """
    images = batched_images(module, inputs)
    if _repeats_by_shift(module, images):
        moment, sums, rows = shifted_moment(module, images)
        moment, sums = moment.unsqueeze(0), sums.unsqueeze(0)
    else:
        if len(module.kernel_size) == 2 and not module.transposed:
            patches = F.unfold(
                padded_images(module, images),
                kernel_size=module.kernel_size,
                dilation=module.dilation,
                stride=module.stride,
            )
            stack = patches.unflatten(1, (form.groups, -1))
        else:
            stack = convolution_patches(module, images).mT
        rows = stack.shape[0] * stack.shape[3]
        if form.groups == 1:
            moment = sum_of_grams(stack.squeeze(1)).unsqueeze(0)
        else:
            flat = stack.permute(1, 2, 0, 3).reshape(form.groups, stack.shape[2], rows)
            moment = flat @ flat.mT
        sums = stack.sum((0, 3)) if form.bias else moment
    if form.bias:
        moment = _with_ones(moment, sums, rows)
    return moment, rows


def _repeats_by_shift(module: Any, images: Tensor) -> bool:
    """Tell whether `shifted_moment` knows a convolution, and saves work."""
    return (
        len(module.kernel_size) == 2
        and not module.transposed
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.kernel_size[0] == module.kernel_size[1]
        and module.kernel_size[0] in (3, 5)
        and module.padding in ("same", (module.kernel_size[0] // 2,) * 2)
        and min(images.shape[2:]) > module.kernel_size[0]
    )


def _with_ones(moment: Tensor, sums: Tensor, count: int) -> Tensor:
    """Border a moment matrix by the moments with an input that is always one."""
    width = moment.shape[-1]
    bordered = moment.new_empty(*moment.shape[:-2], width + 1, width + 1)
    bordered[..., :width, :width] = moment
    bordered[..., :width, width] = sums
    bordered[..., width, :width] = sums
    bordered[..., width, width] = count
    return bordered


def shifted_moment(
    module: Any, images: Float[Tensor, "N C H W"]
) -> tuple[Float[Tensor, "K K"], Float[Tensor, " K"], int]:
    """Σ a aᵀ and Σ a over the patches of a stride-one convolution, without writing patches out.

    With the patches of all places from which an image is seen at all (some lie outside it) the
    moment of two entries depends on their distance only; those of the places outside, a ring around
    the image, are then taken off. They have few entries that are not zero.

    Args:
        module: Square odd kernel, stride and dilation 1, zeros around to keep the size, one group.
        images: What it was called with.

    Returns:
        The moment, the sums, and the number of rows. Cost: N H W C² (2k − 1) k multiplications for
        a kernel of k × k instead of N H W C² k⁴, and k shifted copies of the images.
    """
    size = module.kernel_size[0]
    reach = size // 2
    count, channels, height, width = images.shape
    # With this margin no shift along a line meets the next line, or image, in a number.
    margin = size - 1
    line, lines = width + margin, height + margin
    flat = images.new_zeros(channels, count * lines * line + margin * (line + 1))
    framed = flat[:, : count * lines * line].view(channels, count, lines, line)
    framed[:, :, :height, :width] = images.transpose(0, 1)
    length = count * lines * line
    base = flat[:, :length]
    moment = images.new_empty(channels, size, size, channels, size, size)
    # Correlations at every distance (dy, dx) with dy ≥ 0: rows of one product are the shifts in x.
    span = range(-margin, margin + 1)
    for dy in range(size):
        block = images.new_empty(len(span), channels, channels)
        for i, dx in enumerate(span):
            if dy or dx >= 0:
                offset = dy * line + dx
                torch.mm(base, flat[:, offset : offset + length].T, out=block[i])
        if dy == 0:
            block[:margin] = block[margin + 1 :].flip(0).mT
        for y, x, x2 in itertools.product(range(size - dy), range(size), range(size)):
            own = block[x2 - x + margin]
            moment[:, y, x, :, y + dy, x2] = own
            if dy:
                moment[:, y + dy, x2, :, y, x] = own.T
    total = images.sum((0, 2, 3)).view(channels, 1, 1).expand(channels, size, size).clone()
    for rows, (ys, xs), places in _ring(images, size, reach):
        stack = rows.reshape(count, -1, places)
        part = sum_of_grams(stack).view(channels, len(ys), len(xs), channels, len(ys), len(xs))
        chosen = slice(ys.start, ys.stop), slice(xs.start, xs.stop)
        moment[(slice(None), *chosen, slice(None), *chosen)] -= part
        total[(slice(None), *chosen)] -= stack.sum((0, 2)).view(channels, len(ys), len(xs))
    inner = channels * size * size
    return moment.reshape(inner, inner), total.reshape(inner), count * height * width


def _ring(
    images: Float[Tensor, "N C H W"], size: int, reach: int
) -> list[tuple[Tensor, tuple[range, range], int]]:
    """Patches of the places around an image, in strips, by the entries of theirs that see it.

    Each strip: patches (N, C · entries, places), ranges of kernel lines and columns, places.
    """
    height, width = images.shape[2:]
    found = []
    everything = range(size)
    near, far = range(reach + 1, size), range(reach)
    # Strips above and below, with the corners: kernel lines that reach the image from there.
    for strip, ys in (
        (images[:, :, :reach], near),
        (images[:, :, height - reach :], far),
    ):
        top = reach - 1 if ys is near else 0
        bottom = 0 if ys is near else reach - 1
        padded = F.pad(strip, (size - 1, size - 1, top, bottom))
        patches = F.unfold(padded, (reach, size))
        found.append((patches, (ys, everything), patches.shape[2]))
    # Strips left and right, without the corners.
    for strip, xs in (
        (images[:, :, :, :reach], near),
        (images[:, :, :, width - reach :], far),
    ):
        left = reach - 1 if xs is near else 0
        right = 0 if xs is near else reach - 1
        padded = F.pad(strip, (left, right, reach, reach))
        patches = F.unfold(padded, (size, reach))
        found.append((patches, (everything, xs), patches.shape[2]))
    return found
