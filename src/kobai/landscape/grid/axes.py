"""The coordinates of a grid: given, or spread over a range that the loss itself suggests."""

from collections.abc import Iterable, Sequence

import numpy as np

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.options import RATIO, Grid

Axis = int | Sequence[float] | np.ndarray

MARGIN = 0.25
"""Share of the box of marked points and trajectories that is added on each side."""

FLAT = 0.02
"""A side of the box below this share of the widest says nothing about how far to look."""


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
    """Space coordinates evenly; the middle of a symmetric range of odd count is exactly zero."""
    values = np.linspace(low, high, count)
    if low == -high and count % 2:
        values[count // 2] = 0.0
    return values


def wanted_axes(axes: Sequence[Axis], grid: Grid) -> list[np.ndarray | int]:
    """Check the axes of a grid, and make those of a grid that steps from the origin by ones.

    Args:
        axes: How many nodes, or coordinates, for each direction.
        grid: "centred" or "source".

    Raises:
        ValueError: If an axis is not one, or has coordinates where a number of nodes is needed.
    """
    checked = [coordinates(axis, name) for axis, name in zip(axes, "abc", strict=False)]
    if grid == "centred":
        return checked
    stepped: list[np.ndarray | int] = []
    for axis, name in zip(checked, "abc", strict=False):
        if not isinstance(axis, int):
            raise ValueError(
                f"grid='source' steps from the origin by ones and takes a number of nodes, got "
                f"coordinates for {name}; leave grid out to give coordinates"
            )
        stepped.append(np.arange(axis, dtype=np.float64))
    return stepped


def spread_axes(
    axes: Sequence[np.ndarray | int],
    evaluator: Evaluator,
    directions: Directions,
    marked: Sequence[Sequence[float] | np.ndarray],
    ratio: float,
) -> list[np.ndarray]:
    """Give every axis its coordinates; a range is looked for only for a number of nodes.

    Args:
        axes: From `wanted_axes`.
        evaluator: Measures the loss.
        directions: The subspace.
        marked: Points that automatic ranges should hold.
        ratio: See `find_range`.
    """
    if all(isinstance(axis, np.ndarray) for axis in axes):
        return [np.asarray(axis) for axis in axes]
    ranges = box_range(marked, directions.count) if len(marked) else None
    if ranges is None:
        ranges = find_range(evaluator, directions, ratio=ratio)
    return [
        spread(axis, *limits) if isinstance(axis, int) else axis
        for axis, limits in zip(axes, ranges, strict=True)
    ]


def find_range(
    evaluator: Evaluator, directions: Directions, *, ratio: float = RATIO
) -> tuple[tuple[float, float], ...]:
    """Find a range for each direction, symmetric about the centre, by bisection on its line.

    The half-width is the smallest r at which the larger of L(±r d) reaches L₀ + (ratio - 1)(|L₀| +
    σ), where σ is the standard error of L₀ (so that a loss of almost zero still has a scale). Where
    the loss does not rise that far within 16 lengths of the origin vector, and where L₀ = σ = 0
    leaves no scale, the half-width is one such length.

    Args:
        evaluator: Measures the loss.
        directions: The subspace.
        ratio: What multiple of the centre's loss to reach, above 1.

    Returns:
        (low, high) for each direction. Cost: about a dozen evaluations per direction.
    """
    if not ratio > 1:
        raise ValueError(f"ratio must be above 1, got {ratio}")
    count = directions.count
    centre = evaluator.measure([(0.0,) * count])[0]
    loss = float(centre[0])
    error = float(centre[1]) if "stderr" in evaluator.fields else 0.0
    scale = abs(loss) + (error if np.isfinite(error) else 0.0)
    target = loss + (ratio - 1.0) * scale
    size = float(directions.origin.double().norm())
    ranges = []
    for k, norm in enumerate(directions.norms):
        unit = size / norm if size > 0 else 1.0
        found = None
        if np.isfinite(target) and scale > 0:
            found = _first_crossing(evaluator, count, k, unit, target)
        half = unit if found is None else found
        ranges.append((-half, half))
    return tuple(ranges)


def _first_crossing(
    evaluator: Evaluator, count: int, k: int, unit: float, target: float
) -> float | None:
    """Find the smallest half-width at which a side reaches the target, to 3 %."""

    def reached(half: float) -> bool:
        sides = [tuple(s * half if i == k else 0.0 for i in range(count)) for s in (-1.0, 1.0)]
        losses = evaluator.measure(sides)[:, 0].numpy()
        return bool(np.any(~np.isfinite(losses) | (losses >= target)))

    # From small to large, so that a crossing further out cannot hide a nearer one.
    low, high = 0.0, unit / 64
    while not reached(high):
        low, high = high, 2 * high
        if high > 16 * unit:
            return None
    if low == 0.0:
        # Already reached at the smallest step: walk down until it is not.
        low = high / 2
        while reached(low) and low > 1e-9 * unit:
            low, high = low / 2, low
    while high > 1.03 * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def box_range(
    coordinates: Iterable[Sequence[float] | np.ndarray], count: int
) -> tuple[tuple[float, float], ...] | None:
    """Make the box of all given coordinates and the centre with a margin, or None if it is flat."""
    places = np.array([(0.0,) * count, *[tuple(c) for c in coordinates]], dtype=float)
    places = places[np.all(np.isfinite(places), axis=1)]
    low, high = places.min(0), places.max(0)
    width = high - low
    if not width.max() > 1e-12 * max(1.0, float(np.abs(places).max())):
        return None
    # A flat side, such as that of a random direction which paths hardly move along, takes the
    # width of the widest, so that the picture is to scale.
    width = np.where(width > FLAT * width.max(), width, width.max())
    middle, half = (low + high) / 2, (0.5 + MARGIN) * width
    return tuple(zip((middle - half).tolist(), (middle + half).tolist(), strict=True))
