"""An objective on an axis-aligned grid along one, two or three directions, with its proof."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.axes import Axis
from kobai.landscape.grid.evaluation import Evaluated, evaluate
from kobai.landscape.options import GridOptions, Settings
from kobai.landscape.trajectories import project_trajectory
from kobai.problem import Objective
from kobai.results import Line, Plane, Trajectory, Volume

Paths = Mapping[str, Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]]]


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
    started = time.perf_counter()
    settings = Settings(**options)
    found = evaluate(objective, directions, (a,), settings)
    return Line(
        **_shared(found, directions, settings, started),
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
        b: Nodes along d₂, likewise; the grid need not be square.
        trajectories: Label to points of a path, projected on the plane.
        **options: Fields, splits, back-end, tolerance and so on; see `GridOptions`.

    Returns:
        The plane. Values that are not finite are kept as they are and counted in the note. Cost: a
        forward pass over the data a node (less by exact reuse), two if recalibrated, a backward
        pass for slopes, three for curvatures, tens of Hessian products for Hessian eigenvalues,
        and about a hundred evaluations for the checks.

    Raises:
        ValueError: If there are not two directions, a field is unknown or has no meaning for the
            objective, the module is not a function of θ (dropout or batch statistics active), or
            the folder holds another landscape.
    """
    _require(directions, 2)
    started = time.perf_counter()
    settings = Settings(**options)
    paths: list[Trajectory] = []

    def marked(smooth: Objective) -> list[np.ndarray]:
        paths.extend(
            project_trajectory(smooth, directions, thetas, label=name)
            for name, thetas in (trajectories or {}).items()
        )
        return [c for path in paths for c in path.coordinates]

    found = evaluate(objective, directions, (a, b), settings, marked=marked)
    return Plane(
        **_shared(found, directions, settings, started),
        axis_names=(directions.names[0], directions.names[1]),
        direction_norms=np.array(directions.norms),
        cosine=float(directions.cosine_matrix()[0, 1]),
        trajectories=tuple(paths),
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
        b: Nodes along d₂, likewise.
        c: Nodes along d₃, likewise; sides may differ.
        **options: See `GridOptions`.

    Returns:
        The volume; `Volume.slice` cuts planes out of it.

    Raises:
        ValueError: As for a plane.
    """
    _require(directions, 3)
    started = time.perf_counter()
    settings = Settings(**options)
    found = evaluate(objective, directions, (a, b, c), settings)
    return Volume(
        **_shared(found, directions, settings, started),
        axis_names=(directions.names[0], directions.names[1], directions.names[2]),
        direction_norms=np.array(directions.norms),
        cosines=directions.cosine_matrix().cpu().numpy(),
        points={name: np.array(point) for name, point in directions.points.items()},
    )


def _shared(
    found: Evaluated, directions: Directions, settings: Settings, started: float
) -> dict[str, Any]:
    """What results of any number of directions hold."""
    return {
        **dict(zip("abc", found.axes, strict=False)),
        "label": settings.label or directions.kind,
        "kind": directions.kind,
        "fields": found.fields,
        "origin": directions.origin_label,
        "checks": found.checks,
        "seconds": time.perf_counter() - started,
        "note": found.note,
    }


def _require(directions: Directions, count: int) -> None:
    """Refuse another number of directions, naming the function for it."""
    if directions.count != count:
        other = {1: "evaluate_line", 2: "evaluate_plane", 3: "evaluate_volume"}[directions.count]
        raise ValueError(
            f"{count} direction(s) are needed, got {directions.count}; use {other}, or "
            "directions.take(0, 1) for some of them"
        )
