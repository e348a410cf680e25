"""The coordinates of a grid: a number of nodes, or the coordinates themselves."""

from collections.abc import Sequence

import numpy as np

Axis = int | Sequence[float] | np.ndarray


def coordinates(axis: Axis, name: str) -> np.ndarray | int:
    """Check an axis as the user gave it.

    Args:
        axis: How many nodes, or increasing coordinates; they may start at zero.
        name: What the axis is called in messages.

    Returns:
        The number of nodes, or the coordinates (float64).

    Raises:
        ValueError: If there are fewer than two nodes or the coordinates do not increase.
        TypeError: If it is something else.
    """
    if isinstance(axis, bool):
        raise TypeError(f"{name} must be a number of nodes or their coordinates, got {axis}")
    if isinstance(axis, int | np.integer):
        if axis < 2:
            raise ValueError(f"{name} needs at least 2 nodes, got {axis}")
        return int(axis)
    values = np.asarray(axis, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"{name} must be a number of nodes or at least two coordinates in a row, "
            f"got shape {values.shape}"
        )
    if not np.all(np.isfinite(values)) or np.any(np.diff(values) <= 0):
        raise ValueError(f"the coordinates of {name} must be finite and increase, got {values}")
    return values


def spread(count: int, low: float, high: float) -> np.ndarray:
    """Evenly spaced coordinates; exactly zero in the middle of a symmetric range of odd count."""
    values = np.linspace(low, high, count)
    if low == -high and count % 2:
        values[count // 2] = 0.0
    return values
