"""The values of all fields at the nodes of a grid: all of them, or as few as are needed."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.backends.passes import Point
from kobai.landscape.grid.blocks import Collector, GridValues, sweep
from kobai.landscape.grid.fields import FieldEvaluator
from kobai.landscape.grid.refinement import Refinement
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
    store = None
    if settings.folder:
        store = open_store(Path(settings.folder), fields, grid, settings, processes, each)
    collector = Collector(fields, count, settings, store, processes)
    everything = settings.tol is None and settings.budget is None
    if settings.tol is None and settings.budget is not None:
        left = settings.budget - (time.perf_counter() - started)
        everything = processes.agree(seconds <= left)
    if not everything:
        return Refinement(grid, collector, each, started).run()
    return sweep(grid, collector)


def _seconds_each(evaluator: Evaluator, grid: Sequence[np.ndarray]) -> float:
    """Time a node, after the first, which may be slow for reasons of its own."""
    point: Point = tuple(float(axis[len(axis) // 2]) for axis in grid)
    evaluator.measure([point])
    start = time.perf_counter()
    evaluator.measure([point])
    return time.perf_counter() - start
