"""Sums of outer products of rows, by as few multiplications as symmetry leaves."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

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
    """Tell whether the CPU has instructions for products of bfloat16 matrices that torch uses."""
    return bool(
        torch.backends.mkldnn.is_available() and torch.cpu.get_capabilities().get("amx_bf16")
    )


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


def bordered_gram(rows: Float[Tensor, "R K"]) -> Float[Tensor, "K1 K1"]:
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


def sum_of_grams(stack: Float[Tensor, "N K L"]) -> Float[Tensor, "K K"]:
    """Σ_n X_n X_nᵀ without transposing the stack in memory."""
    width = stack.shape[1]
    return torch.addbmm(stack.new_zeros(width, width), stack, stack.mT, beta=0.0)
