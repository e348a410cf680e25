"""An objective on an axis-aligned grid along one, two or three directions, with its proof."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.backends.choice import choose_for_grid
from kobai.landscape.backends.evaluator import RiskEvaluator
from kobai.landscape.checks.proof import prove, require_overview
from kobai.landscape.checks.values import ModuleState
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.axes import Axis, spread_axes, wanted_axes
from kobai.landscape.grid.blocks import GridValues
from kobai.landscape.grid.evaluation import fill
from kobai.landscape.grid.fields import FieldEvaluator
from kobai.landscape.grid.resumption import kept_record
from kobai.landscape.options import GridOptions, Settings
from kobai.landscape.processes import Processes
from kobai.landscape.trajectories import project_trajectory
from kobai.problem import Objective
from kobai.results import Line, Plane, Trajectory, Volume

Paths = Mapping[str, Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]]]

NOISE = 0.02
"""Standard errors above this share of the range are warned of."""


def evaluate_line(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 101,
    **options: Unpack[GridOptions],
) -> Line:
    """Evaluate an objective on θ₀ + a d; everything as in `evaluate_plane`.

    Args:
        objective: Any objective.
        directions: One direction.
        a: Increasing coordinates, or how many nodes.
        **options: See `GridOptions`.

    Raises:
        ValueError: As for a plane.
    """
    _require(directions, 1)
    shared, _ = _evaluate(objective, directions, (a,), options)
    return Line(
        **shared,
        axis_name=directions.names[0],
        direction_norm=directions.norms[0],
        points={name: point[0] for name, point in directions.points.items()},
    )


def evaluate_plane(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 51,
    b: Axis = 51,
    trajectories: Paths | None = None,
    **options: Unpack[GridOptions],
) -> Plane:
    """Evaluate an objective on θ₀ + a d₁ + b d₂.

    Every node is evaluated on all data, unless `tol` or `budget` is given; then the field
    "evaluated" is 1 at the nodes that were, and the others are a spline. The data are kept on the
    device (they must fit there), and the fastest way to go over the grid is found by measurement
    (`kobai.landscape.backends.choice`) and noted. Where torch.distributed is initialised
    (torchrun), every process calls this with the same arguments, the blocks of nodes are shared
    out, and every process returns the whole plane.

    Args:
        objective: Any objective. Accuracy, standard error and classes need an `EmpiricalRisk`.
        directions: Two directions.
        a: Nodes along d₁: increasing coordinates (they may start at zero), or how many; then the
            range is that of marked points and trajectories with a margin, or else found by
            `find_range`.
        b: Nodes along d₂, given in the same way; the grid need not be square.
        trajectories: Label to points of a path, projected on the plane.
        **options: Fields, splits, back-end, tolerance and so on; see `GridOptions`.

    Returns:
        The plane. Values that are not finite are kept as they are and counted in the note. Cost: a
        forward pass over the data per node (less by exact reuse), two if recalibrated, a backward
        pass for slopes, three for curvatures, tens of Hessian products for Hessian eigenvalues,
        and about a hundred evaluations for the checks.

    Raises:
        ValueError: If there are not two directions, a field is unknown or has no meaning for the
            objective, the module is not a function of θ (dropout or batch statistics active), or
            the folder holds another landscape.
    """
    _require(directions, 2)
    shared, paths = _evaluate(objective, directions, (a, b), options, trajectories)
    return Plane(
        **shared,
        axis_names=(directions.names[0], directions.names[1]),
        direction_norms=np.array(directions.norms),
        cosine=float(directions.cosine_matrix()[0, 1]),
        trajectories=paths,
        points={name: np.array(point) for name, point in directions.points.items()},
    )


def evaluate_volume(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 17,
    b: Axis = 17,
    c: Axis = 17,
    **options: Unpack[GridOptions],
) -> Volume:
    """Evaluate an objective on θ₀ + a d₁ + b d₂ + c d₃; everything as in `evaluate_plane`.

    Args:
        objective: Any objective.
        directions: Three directions.
        a: Nodes along d₁: increasing coordinates, or how many.
        b: Nodes along d₂, given in the same way.
        c: Nodes along d₃, given in the same way; sides may differ.
        **options: See `GridOptions`.

    Returns:
        The volume; `Volume.slice` cuts planes out of it.

    Raises:
        ValueError: As for a plane.
    """
    _require(directions, 3)
    shared, _ = _evaluate(objective, directions, (a, b, c), options)
    return Volume(
        **shared,
        axis_names=(directions.names[0], directions.names[1], directions.names[2]),
        direction_norms=np.array(directions.norms),
        cosines=directions.cosine_matrix().cpu().numpy(),
        points={name: np.array(point) for name, point in directions.points.items()},
    )


def _evaluate(
    objective: Objective,
    directions: Directions,
    axes: Sequence[Axis],
    options: GridOptions,
    trajectories: Paths | None = None,
) -> tuple[dict[str, Any], tuple[Trajectory, ...]]:
    """Choose a back-end, find the range, measure the fields and prove them, for any number of axes.

    Returns:
        What results of any number of directions hold, and the projected trajectories.
    """
    started = time.perf_counter()
    settings, processes = Settings(**options), Processes()
    before = ModuleState.of(objective.space.module)
    wanted = wanted_axes(axes, settings.grid)
    count = int(np.prod([n if isinstance(n, int) else len(n) for n in wanted]))

    # The back-end: the data on the device, and the fastest way to compute losses there.
    kept = processes.agree(kept_record(settings.folder)) if settings.folder else None
    choice = choose_for_grid(
        objective, directions, settings, points=count, processes=processes, kept=kept
    )
    fields = FieldEvaluator(choice, directions, settings)

    # The range: of marked points and paths, or else where the loss has risen.
    paths = tuple(
        project_trajectory(fields.smooth, directions, thetas, label=name)
        for name, thetas in (trajectories or {}).items()
    )
    marked = [*directions.points.values(), *(c for path in paths for c in path.coordinates)]
    grid = spread_axes(wanted, fields.evaluator, directions, marked, settings.ratio)
    if settings.precision == "bfloat16":
        require_overview(objective, directions, fields.evaluator, grid)

    # The values, at all nodes or at as few as are needed, and their proof.
    found = fill(grid, fields, settings, processes, started)
    checks = prove(fields, found, settings, before)

    shared = {
        **dict(zip("abc", grid, strict=False)),
        "label": settings.label or directions.kind,
        "kind": directions.kind,
        "fields": found.fields,
        "origin": directions.origin_label,
        "checks": checks,
        "note": _note(fields, found, settings, processes),
        "seconds": time.perf_counter() - started,
    }
    return shared, paths


def _require(directions: Directions, count: int) -> None:
    """Refuse another number of directions, naming the function for it."""
    if directions.count != count:
        other = {1: "evaluate_line", 2: "evaluate_plane", 3: "evaluate_volume"}[directions.count]
        raise ValueError(
            f"{count} direction(s) are needed, got {directions.count}; use {other}, or "
            "directions.take(0, 1) for some of them"
        )


def _note(
    fields: FieldEvaluator, found: GridValues, settings: Settings, processes: Processes
) -> str:
    directions, mask, measured = fields.directions, found.evaluated, int(found.evaluated.sum())
    parts = [directions.note] if directions.note else []
    parts.append(fields.choice.note)
    if settings.batchnorm != "frozen":
        parts.append(
            f"batch normalisation {settings.batchnorm}: no check of slope and curvature, which are "
            "those of frozen statistics"
        )
    if processes.size > 1:
        parts.append(f"shared by {processes.size} processes")
    if found.note:
        parts.append(found.note)
    elif not mask.all():
        parts.append(f"stopped after {measured} of {mask.size} nodes")
    broken = int((~np.isfinite(found.fields["loss"][found.mask])).sum())
    if broken:
        parts.append(f"{broken} of {measured} nodes are not finite")
    noise = _noise(fields, found)
    if noise > NOISE:
        parts.append(
            f"warning: the standard error of the mean over examples is {100 * noise:.2g} % of the "
            "range of the losses"
        )
    return "; ".join(parts)


def _noise(fields: FieldEvaluator, found: GridValues) -> float:
    """Compare standard errors of the losses, the median or that at the centre, to their range."""
    losses = found.fields["loss"][np.isfinite(found.fields["loss"])]
    span = float(np.ptp(losses)) if losses.size else 0.0
    if not isinstance(fields.evaluator, RiskEvaluator) or not span > 0:
        return 0.0
    if "stderr" in found.fields:
        errors = found.fields["stderr"][np.isfinite(found.fields["stderr"])]
        error = float(np.median(errors)) if errors.size else 0.0
    else:
        error = float(fields.evaluator.measure([(0.0,) * fields.directions.count])[0, 1])
    return error / span if np.isfinite(error) else 0.0
