"""Averages over seeds and exponents over sizes, in the presence of values that are missing."""

from typing import Any

import numpy as np


def standard_error(values: Any) -> float:
    """Standard error of the mean of the finite values; NaN of fewer than two.

    Args:
        values: Any array.

    Returns:
        The error.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else float("nan")


def geometric_mean(values: Any, axis: int | None = None) -> Any:
    """Geometric mean of the finite values; NaN where there is none.

    Args:
        values: Positive numbers, NaN for missing ones.
        axis: Along which; None for all.

    Returns:
        A number, or an array without the axis.
    """
    given = np.asarray(values, dtype=float)
    known = np.isfinite(given)
    logs = np.where(known, np.log(np.where(known, given, 1.0)), 0.0)
    count = known.sum(axis)
    return np.where(count > 0, np.exp(logs.sum(axis) / np.maximum(count, 1)), np.nan)[()]


def exponent(sizes: Any, values: Any) -> float:
    """Exponent of a power law through the finite values, by least squares on logarithms.

    Args:
        sizes: Positive.
        values: Positive, NaN for missing ones.

    Returns:
        The exponent; NaN of fewer than two values.
    """
    x, y = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    good = np.isfinite(y) & (y > 0)
    if good.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(x[good]), np.log(y[good]), 1)[0])
