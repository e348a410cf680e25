"""The nodes of a grid, measured block by block: kept on disk, shared among processes, stopped."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.backends.passes import Point
from kobai.landscape.grid.resumption import Store
from kobai.landscape.options import Settings
from kobai.landscape.processes import Processes

BLOCK_SECONDS = 0.25
"""About how long a block takes: between two blocks progress is told and stopping is asked."""

BLOCK_LIMIT = 1024
"""Most nodes in a block."""


def grid_points(axes: Sequence[np.ndarray]) -> list[Point]:
    """List the coordinates of all nodes, the last axis running fastest."""
    return [tuple(map(float, point)) for point in itertools.product(*axes)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GridValues:
    """Values of fields on a grid of which all nodes or some were measured.

    Attributes:
        axes: Coordinates along each direction.
        names: The fields.
        values: Node (in the order of the grid) and field to value; NaN where the sweep stopped
            before a spline could be made.
        evaluated: Nodes that were measured; all others are splines through those.
        reason: The reason to end: "tolerance", "budget", "exact" or "stopped".
        errors: Field to the largest error of the spline at the nodes that verified it, relative
            for losses and in shares of the range for others; empty if there were none.
        note: The same as a sentence.
    """

    axes: Sequence[np.ndarray]
    names: Sequence[str]
    values: Float[np.ndarray, "K F"]
    evaluated: Bool[np.ndarray, "K"]
    reason: str
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """Shape `evaluated` like the grid."""
        return self.evaluated.reshape([len(axis) for axis in self.axes])

    @functools.cached_property
    def fields(self) -> dict[str, np.ndarray]:
        """Shape the values of each field like the grid; "evaluated" is there if some are not."""
        shape = self.mask.shape
        found = {n: self.values[:, k].reshape(shape).copy() for k, n in enumerate(self.names)}
        if not self.evaluated.all():
            found["evaluated"] = self.mask.astype(float)
        return found


def scattered_node(shape: Sequence[int], k: int) -> tuple[int, ...]:
    """Give the k-th of nodes scattered evenly over a grid, by the golden-ratio sequence."""
    # Generalised golden ratio of d dimensions: the real root of x^(d+1) = x + 1.
    root = 2.0
    for _ in range(40):
        root = (1 + root) ** (1 / (len(shape) + 1))
    return tuple(int(n * ((0.5 + k * root ** -(axis + 1)) % 1.0)) for axis, n in enumerate(shape))


@final
@dataclasses.dataclass(eq=False)
class Collector:
    """Measures nodes in blocks.

    With a store, blocks have a fixed size and are kept; those that are there are not measured
    again. With several processes, block i is measured by process i modulo their number, and all
    processes end with all values.

    Attributes:
        evaluator: What measures.
        total: Nodes there will be at most, for progress.
        settings: Who is told of progress, and who is asked between blocks whether to stop.
        store: Where blocks are kept, or None.
        processes: The processes.
        done: Nodes so far.
        stopped: Whether any process was asked to stop.
    """

    evaluator: Evaluator
    total: int = 0
    settings: Settings = Settings()
    store: Store | None = None
    processes: Processes = dataclasses.field(default_factory=Processes)
    done: int = 0
    stopped: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """Name the columns of values."""
        return self.evaluator.fields

    def measure(
        self, points: Sequence[Point]
    ) -> tuple[Float[np.ndarray, "K F"], Bool[np.ndarray, "K"]]:
        """Measure points; values are NaN where this was stopped before they were reached.

        Returns:
            Values (K, F), and which of the points were reached (K,).
        """
        width, stop, progress = len(self.fields), self.settings.stop, self.settings.progress
        values = np.full((len(points), width), np.nan)
        reached = np.zeros(len(points), dtype=bool)
        size, position, turn = 1, 0, 0
        # Processes must cut blocks alike, so sizes that follow the clock are for one alone.
        adaptive = self.store is None and self.processes.size == 1
        if self.store is not None:
            size = self.store.block
        elif not adaptive:
            size = max(1, min(64, len(points) // (4 * self.processes.size)))
        while position < len(points):
            some = slice(position, min(position + size, len(points)))
            position, mine = some.stop, turn % self.processes.size == self.processes.rank
            turn += 1
            if not mine:
                continue
            if stop is not None and stop():
                self.stopped = True
                break
            block = points[some]
            found = None if self.store is None else self.store.find(block, width)
            if found is None:
                began = time.perf_counter()
                found = self.evaluator.measure(block).numpy()
                seconds = time.perf_counter() - began
                if self.store is not None:
                    self.store.keep(block, found)
                if adaptive:
                    each = seconds / len(block)
                    # Small steps up, because the first node may be slow for reasons of its own.
                    size = max(1, min(8 * size, int(BLOCK_SECONDS / max(each, 1e-9)), BLOCK_LIMIT))
            values[some], reached[some] = found, True
            if progress is not None:
                # Of what the others have done by now, a process only knows that it is as much.
                here = self.done + int(reached.sum()) * self.processes.size
                progress(min(here, self.total), self.total)
        if self.processes.size > 1:
            parts = self.processes.gather((values, reached, self.stopped))
            for theirs, there, _ in parts:
                values[there] = theirs[there]
                reached |= there
            self.stopped = any(stopped for _, _, stopped in parts)
        self.done += int(reached.sum())
        return values, reached


def sweep(axes: Sequence[np.ndarray], collector: Collector) -> GridValues:
    """Measure all fields at all nodes of a grid.

    Args:
        axes: Coordinates along each direction; values at node (i, j, …) belong to
            (axes[0][i], axes[1][j], …).
        collector: Measures nodes.
    """
    values, reached = collector.measure(grid_points(axes))
    return GridValues(
        axes=axes,
        names=collector.fields,
        values=values,
        evaluated=reached,
        reason="exact" if reached.all() else "stopped",
    )
