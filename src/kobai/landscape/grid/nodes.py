"""Every node of a grid, in the order of its coordinates."""

import itertools
from collections.abc import Sequence

import numpy as np

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.backends.loop import Point
from kobai.landscape.grid.blocks import Collector, Progress, Stop


def grid_points(axes: Sequence[np.ndarray]) -> list[Point]:
    """Coordinates of all nodes, the last axis running fastest."""
    return [tuple(map(float, point)) for point in itertools.product(*axes)]


def on_grid(
    axes: Sequence[np.ndarray], names: Sequence[str], values: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of values at `grid_points` as arrays with one axis a direction."""
    shape = tuple(len(axis) for axis in axes)
    return {name: values[:, k].reshape(shape).copy() for k, name in enumerate(names)}


def sweep(
    axes: Sequence[np.ndarray],
    evaluator: Evaluator,
    *,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Measure all fields at all nodes of a grid.

    Args:
        axes: Coordinates along each direction; values at node (i, j, …) belong to
            (axes[0][i], axes[1][j], …).
        evaluator: What measures.
        progress: Called with (nodes done, nodes in all).
        stop: Asked between blocks; True ends the sweep.

    Returns:
        Field name to array with one axis a direction, NaN at nodes that were not reached; and the
        number of nodes reached.
    """
    points = grid_points(axes)
    collector = Collector(evaluator, len(points), progress=progress, stop=stop)
    values, reached = collector.measure(points)
    return on_grid(axes, evaluator.fields, values), int(reached.sum())
