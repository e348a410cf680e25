"""The loss along a line through parameter space."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kobai.landscape.axes import Axis
from kobai.landscape.batchnorm import BatchNormMode, Statistics
from kobai.landscape.collect import Progress, Stop
from kobai.landscape.directions import Directions
from kobai.landscape.evaluation import Estimate, Grid, Settings, evaluate
from kobai.landscape.evaluator import Precision
from kobai.landscape.extent import RATIO
from kobai.landscape.planes import require
from kobai.landscape.tune import BackendName
from kobai.problem import Objective
from kobai.results import Line


def evaluate_line(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 101,
    fields: Sequence[str] | None = None,
    splits: Mapping[str, Objective] | None = None,
    label: str = "",
    grid: Grid = "centred",
    ratio: float = RATIO,
    backend: BackendName = "auto",
    batchnorm: BatchNormMode = "frozen",
    statistics: Statistics | None = None,
    precision: Precision = "given",
    tol: float | None = None,
    budget: float | None = None,
    folder: Path | str | None = None,
    checks: bool = True,
    progress: Progress | None = None,
    stop: Stop | None = None,
    announce: Callable[[Estimate], None] | None = None,
) -> Line:
    """Evaluate an objective on θ₀ + a d; everything as in `evaluate_plane`.

    Args:
        objective: Any objective.
        directions: One direction.
        a: Increasing coordinates, or how many nodes.
        fields: As for a plane; of slopes "slope_a", of curvatures "curvature_aa".
        splits: As for a plane.
        label: Name of the result.
        grid: "centred", or "source": unit steps i = 0 … K - 1 from the origin, which lies in the
            corner, as in Algorithm 2 of Wang & Thawonmas 2022 (axes are then numbers of nodes).
        ratio: Where a range is looked for, it ends where the loss along a direction first reaches
            this multiple of its centre's.
        backend: "auto", "loop", "prefix" or "vmap".
        batchnorm: "frozen" (default), "recalibrated" or "interpolated"; what each means, and why
            frozen is the default, is told in `kobai.landscape.batchnorm`.
        statistics: For "interpolated", label of marked points to the model's buffers there.
        precision: "given", or "bfloat16" for overviews: refused where its error would show.
        tol: Evaluate only as many nodes as a spline needs to be right within this share of the loss
            at nodes held out to verify it, an estimate and no bound (`kobai.landscape.refine`); the
            field "evaluated" tells which nodes are values and which are spline. None: all nodes.
        budget: Seconds for the grid: all nodes if they fit, else as with `tol` for as long.
        folder: Keep blocks of values here as they come; the same call again goes on where it was
            interrupted and gives the same result to the bit.
        checks: Prove the result; failed checks do not raise, see `raise_if_failed`.
        progress: Called with (nodes done, nodes in all).
        stop: Asked between blocks of nodes; True ends early, with NaN at the nodes left out and a
            note that says so, and without checks.
        announce: Told before the start how long it will take.

    Raises:
        ValueError: As for a plane.
    """
    require(directions, 1)
    started = time.perf_counter()
    found = evaluate(
        objective,
        directions,
        (a,),
        Settings(
            fields=fields,
            splits=splits or {},
            grid=grid,
            ratio=ratio,
            label=label,
            backend=backend,
            batchnorm=batchnorm,
            statistics=statistics or {},
            precision=precision,
            tol=tol,
            budget=budget,
            folder=folder,
            checks=checks,
            progress=progress,
            stop=stop,
            announce=announce,
        ),
    )
    return Line(
        label=label or directions.kind,
        kind=directions.kind,
        a=found.axes[0],
        axis_name=directions.names[0],
        fields=found.fields,
        direction_norm=directions.norms[0],
        origin=directions.origin_label,
        points={name: point[0] for name, point in directions.points.items()},
        checks=found.checks,
        seconds=time.perf_counter() - started,
        note=found.note,
    )
