"""Every node of a grid, in blocks, with progress and a way to stop."""

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from kobai.landscape.evaluator import Evaluator

BLOCK_SECONDS = 0.25
"""About how long a block takes: between two blocks progress is told and stopping is asked."""

BLOCK_LIMIT = 1024
"""Most nodes in a block."""

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


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
    shape = tuple(len(axis) for axis in axes)
    points = [tuple(map(float, point)) for point in itertools.product(*axes)]
    flat = np.full((len(points), len(evaluator.fields)), np.nan)
    done, block = 0, 1
    while done < len(points):
        if stop is not None and stop():
            break
        start = time.perf_counter()
        some = points[done : done + block]
        flat[done : done + len(some)] = evaluator.measure(some).numpy()
        done += len(some)
        each = (time.perf_counter() - start) / len(some)
        # Small steps up, because the first node may be slow for reasons of its own.
        block = max(1, min(8 * block, int(BLOCK_SECONDS / max(each, 1e-9)), BLOCK_LIMIT))
        if progress is not None:
            progress(done, len(points))
    return {name: flat[:, k].reshape(shape).copy() for k, name in enumerate(evaluator.fields)}, done
