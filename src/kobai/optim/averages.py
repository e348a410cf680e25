"""Numbers that an optimizer averages over time: their precision, weights and smallest values."""

import math

import torch
from torch import Tensor

STATISTICS_DECAY = 0.95
"""Weight of the past in a moving average once it is older than twenty updates; younger ones are
plain means, which is the bias correction of Martens and Grosse 2015, §5."""


def past_weight(count: int) -> float:
    """Weight of the past when update number `count` (from 1) enters a moving average."""
    return min(1.0 - 1.0 / count, STATISTICS_DECAY)


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of second moments: the parameters' own, but at least float32."""
    return torch.promote_types(dtype, torch.float32)


def waits(tensor: Tensor) -> bool:
    """Whether reading a number of a tensor waits for a device."""
    return tensor.device.type != "cpu"


def inner(a: Tensor, b: Tensor) -> float | Tensor:
    """Inner product of all entries, in float64 where its own precision overflows.

    On a device a tensor without axes, for which nobody has waited; it may have overflowed.
    """
    product = torch.dot(a.reshape(-1), b.reshape(-1))
    if waits(product):
        return product.double()
    value = float(product)
    if math.isfinite(value):
        return value
    return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))


def flush_(tensor: Tensor) -> None:
    """Set entries that are subnormal numbers, or about to become so, to zero, in place.

    Averages of what has ceased (a dead unit, a pixel that is always black, a certain prediction)
    decay into numbers that processors multiply many times slower than others.
    """
    torch.hardshrink(tensor, torch.finfo(tensor.dtype).tiny * 2.0**20, out=tensor)
