"""The values of all fields at the nodes of a grid: all of them, or as few as are needed."""

import time
from collections.abc import Sequence

import numpy as np

from kobai.landscape.backends.interface import Evaluator
from kobai.landscape.backends.passes import Point
from kobai.landscape.grid.blocks import Collector, grid_points
from kobai.landscape.grid.fields import FieldEvaluator
from kobai.landscape.grid.refinement import GridValues, Refinement
from kobai.landscape.grid.resumption import open_store
from kobai.landscape.options import Estimate, Settings
from kobai.landscape.processes import Processes


def fill(
    grid: Sequence[np.ndarray],
    fields: FieldEvaluator,
    settings: Settings,
    processes: Processes,
    started: float,
) -> GridValues:
    """Measure the fields at all nodes, or at as few as the tolerance and the budget ask for.

    Args:
        grid: The coordinates along each direction.
        fields: What measures.
        settings: Tolerance, budget, folder and who is told of the progress.
        processes: They share the nodes, and all end with all values.
        started: `time.perf_counter` when the budget began to run.
    """
    count = int(np.prod([len(axis) for axis in grid]))
    each = processes.agree(_seconds_each(fields, grid))
    seconds = each * count / processes.size
    if settings.announce is not None:
        settings.announce(Estimate(nodes=count, each=each, seconds=seconds, how=fields.name))
    collector = Collector(
        fields,
        count,
        progress=settings.progress,
        stop=settings.stop,
        store=open_store(fields, grid, settings, processes, each),
        processes=processes,
    )
    everything = settings.tol is None and settings.budget is None
    if settings.tol is None and settings.budget is not None:
        left = settings.budget - (time.perf_counter() - started)
        everything = processes.agree(seconds <= left)
    if not everything:
        return Refinement(grid, collector, settings.tol, settings.budget, each, started).run()
    values, reached = collector.measure(grid_points(grid))
    return GridValues(
        axes=grid,
        names=fields.fields,
        values=values,
        evaluated=reached,
        reason="exact" if reached.all() else "stopped",
    )


def _seconds_each(evaluator: Evaluator, grid: Sequence[np.ndarray]) -> float:
    """Time a node, after the first, which may be slow for reasons of its own."""
    point: Point = tuple(float(axis[len(axis) // 2]) for axis in grid)
    evaluator.measure([point])
    start = time.perf_counter()
    evaluator.measure([point])
    return time.perf_counter() - start
