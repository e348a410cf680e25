"""Second moments of what a layer's matrices multiply, and of the gradients in their products.

Rows that a layer repeats are not written out where their moments are known without: the patches of
a convolution with stride one are shifts of each other, so that moments of two entries of a patch
depend on their distance only, up to what happens at the border.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kobai.layers.convolution import batched_images, convolution_patches, padded_images
from kobai.layers.form import LayerForm

# Narrower or shorter matrices are multiplied whole: halving saves less than it costs.
_SPLIT_WIDTH = 192
_SPLIT_ROWS = 256
_SPLIT_ROUNDED_WIDTH = 400
_SPLIT_ROUNDED_ROWS = 1024


@contextlib.contextmanager
def rounded_rows() -> Iterator[None]:
    """Let matrix products of float32 numbers on a CPU round what they multiply to bfloat16.

    Sums stay in float32. A second moment taken so is that of the rounded rows, hence positive
    semi-definite as before; entry ij is wrong by 2⁻⁸ √(A_ii A_jj) at most, which is less than a
    batch of examples leaves open. Products are about two to four times faster where the processor
    multiplies bfloat16 matrices; elsewhere nothing changes. The switch is torch's, for the whole
    process: products that other threads start meanwhile fall under it.
    """
    if not multiplies_bfloat16():
        yield
        return
    setting = _precision()
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def _precision() -> Any:
    """Torch's switch for products of float32 matrices on a CPU."""
    return torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16 matrices that torch uses."""
    return bool(
        torch.backends.mkldnn.is_available() and torch.cpu.get_capabilities().get("amx_bf16")
    )


def input_moment(module: nn.Module | None, form: LayerForm, inputs: Tensor) -> tuple[Tensor, int]:
    """Σ a aᵀ over all rows of one use, and the number of rows R.

    Args:
        module: A convolution or an embedding; None (or any other module) for rows as they are.
        form: The form of its matrices.
        inputs: What it was called with.

    Returns:
        The sum (not divided), (G, K, K), and R = examples times places; for an embedding the
        counts of its lines, (V,). Cost: R K² multiplications a group (about 5/8 of that for wide
        layers, by symmetry); see `shifted_moment` for convolutions.
    """
    if form.lookup:
        counts = torch.bincount(inputs.reshape(-1), minlength=form.inputs)
        return counts, inputs.numel()
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution_moment(module, form, inputs)
    rows = inputs.reshape(-1, inputs.shape[-1])
    moment = _bordered_gram(rows) if form.bias else gram(rows)
    return moment.unsqueeze(0), rows.shape[0]


def output_moment(
    module: nn.Module | None, form: LayerForm, gradients: Tensor
) -> Float[Tensor, "G M M"]:
    """Σ g gᵀ over all rows of one use, not divided.

    Args:
        module: See `input_moment`.
        form: The form of its matrices.
        gradients: Gradients in the products, with any axes in front.
    """
    if not isinstance(module, nn.modules.conv._ConvNd):
        return gram(gradients.reshape(-1, form.outputs)).unsqueeze(0)
    axes = len(module.kernel_size)
    images = gradients.reshape(-1, *gradients.shape[-axes - 1 :])
    rows = images.reshape(images.shape[0], form.groups, form.outputs, -1)
    if form.groups == 1:
        return _sum_of_grams(rows.squeeze(1)).unsqueeze(0)
    flat = rows.permute(1, 2, 0, 3).reshape(form.groups, form.outputs, -1)
    return flat @ flat.mT


def gram(rows: Float[Tensor, "R K"]) -> Float[Tensor, "K K"]:
    """XᵀX of a matrix of rows; wide ones by quarters, so that symmetry saves work."""
    result = rows.new_empty(rows.shape[1], rows.shape[1])
    _gram_into(rows, result)
    return result


def _gram_into(rows: Tensor, result: Tensor) -> None:
    count, width = rows.shape
    rounded = rows.dtype == torch.float32 and _precision().fp32_precision == "bf16"
    narrow = _SPLIT_ROUNDED_WIDTH if rounded else _SPLIT_WIDTH
    if width < narrow or count < (_SPLIT_ROUNDED_ROWS if rounded else _SPLIT_ROWS):
        torch.mm(rows.T, rows, out=result)
        return
    half = (width // 2 + 15) // 16 * 16
    left, right = rows[:, :half], rows[:, half:]
    _gram_into(left, result[:half, :half])
    _gram_into(right, result[half:, half:])
    torch.mm(left.T, right, out=result[:half, half:])
    result[half:, :half] = result[:half, half:].T


def _bordered_gram(rows: Float[Tensor, "R K"]) -> Float[Tensor, "K1 K1"]:
    """The Gram matrix of rows with an input more that is always one."""
    count, width = rows.shape
    if count <= width:
        # The rows are smaller than the result: widen them.
        return gram(torch.cat([rows, rows.new_ones(count, 1)], 1))
    result = rows.new_empty(width + 1, width + 1)
    _gram_into(rows, result[:width, :width])
    sums = rows.sum(0)
    result[:width, width], result[width, :width], result[width, width] = sums, sums, count
    return result


def _sum_of_grams(stack: Float[Tensor, "N K L"]) -> Float[Tensor, "K K"]:
    """Σ_n X_n X_nᵀ without transposing the stack in memory."""
    width = stack.shape[1]
    return torch.addbmm(stack.new_zeros(width, width), stack, stack.mT, beta=0.0)


def _with_ones(moment: Tensor, sums: Tensor, count: int) -> Tensor:
    """Border a moment matrix by the moments with an input that is always one."""
    width = moment.shape[-1]
    bordered = moment.new_empty(*moment.shape[:-2], width + 1, width + 1)
    bordered[..., :width, :width] = moment
    bordered[..., :width, width] = sums
    bordered[..., width, :width] = sums
    bordered[..., width, width] = count
    return bordered


def _convolution_moment(
    module: Any, form: LayerForm, inputs: Tensor
) -> tuple[Float[Tensor, "G K K"], int]:
    images = batched_images(module, inputs)
    if _repeats_by_shift(module, images):
        moment, sums, rows = shifted_moment(module, images)
        moment, sums = moment.unsqueeze(0), sums.unsqueeze(0)
    else:
        if isinstance(module, nn.Conv2d):
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
            moment = _sum_of_grams(stack.squeeze(1)).unsqueeze(0)
        else:
            flat = stack.permute(1, 2, 0, 3).reshape(form.groups, stack.shape[2], rows)
            moment = flat @ flat.mT
        sums = stack.sum((0, 3)) if form.bias else moment
    if form.bias:
        moment = _with_ones(moment, sums, rows)
    return moment, rows


def _repeats_by_shift(module: Any, images: Tensor) -> bool:
    """Whether `shifted_moment` knows a convolution, and saves work."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
        and module.kernel_size[0] == module.kernel_size[1]
        and module.kernel_size[0] in (3, 5)
        and module.padding in ("same", (module.kernel_size[0] // 2,) * 2)
        and min(images.shape[2:]) > module.kernel_size[0]
    )


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
        part = _sum_of_grams(stack).view(channels, len(ys), len(xs), channels, len(ys), len(xs))
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
