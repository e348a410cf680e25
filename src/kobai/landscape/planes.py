"""The loss over a plane of parameter space, with the proof that it is right."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.axes import Axis
from kobai.landscape.batchnorm import BatchNormMode, Statistics
from kobai.landscape.collect import Progress, Stop
from kobai.landscape.directions import Directions
from kobai.landscape.evaluation import Estimate, Grid, Settings, evaluate
from kobai.landscape.evaluator import Precision
from kobai.landscape.extent import RATIO
from kobai.landscape.fields import all_fields
from kobai.landscape.trajectories import project_trajectory
from kobai.landscape.tune import BackendName
from kobai.problem import Objective
from kobai.results import Plane, Trajectory

Paths = Mapping[str, Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]]]

FIELDS = all_fields(2)
"""Fields a plane can have; see `evaluate_plane`."""


def evaluate_plane(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 51,
    b: Axis = 51,
    fields: Sequence[str] | None = None,
    splits: Mapping[str, Objective] | None = None,
    trajectories: Paths | None = None,
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
) -> Plane:
    """Evaluate an objective on θ₀ + a d₁ + b d₂.

    Every node is evaluated on all data, unless `tol` or `budget` is given; then the field
    "evaluated" is 1 at the nodes that were, and the others are a spline. The data are kept on the
    device (they must fit there), and the fastest way to go over the grid is found by measurement
    (`kobai.landscape.tune`) and noted. Where torch.distributed is initialised (torchrun), every
    process calls this with the same arguments, the blocks of nodes are shared out, and every
    process returns the whole plane.

    Args:
        objective: Any objective. Accuracy, standard error and classes need an `EmpiricalRisk`.
        directions: Two directions.
        a: Nodes along d₁: increasing coordinates (they may start at zero), or how many; then the
            range is that of marked points and trajectories with a margin, or else found by
            `find_range`.
        b: Nodes along d₂, likewise; the grid need not be square.
        fields: Some of "loss" (always there), "stderr" (of the mean over examples), "accuracy",
            "class_loss" (mean over the examples of each class k, as class_loss_k),
            "gradient_norm" (of ∇L in all of parameter space), "slope_a" and "slope_b" (∇L·d),
            "curvature_aa", "curvature_ab" and "curvature_bb" (dᵢᵀHdⱼ), "curvature_min" and
            "curvature_max" (eigenvalues of the Hessian restricted to the plane, per unit distance),
            "hessian_min" and "hessian_max" (extreme eigenvalues of the Hessian in all of parameter
            space, by Lanczos). Default: loss, and accuracy where there is one.
        splits: Name to a further objective of the same model, such as ``{"test": …}``: loss,
            standard error, accuracy and class losses asked for come as "test_loss" and so on.
        trajectories: Label to points of a path, projected on the plane.
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
    require(directions, 2)
    started = time.perf_counter()
    paths: list[Trajectory] = []

    def marked(smooth: Objective) -> list[np.ndarray]:
        paths.extend(
            project_trajectory(smooth, directions, thetas, label=name)
            for name, thetas in (trajectories or {}).items()
        )
        return [c for path in paths for c in path.coordinates]

    found = evaluate(
        objective,
        directions,
        (a, b),
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
        marked=marked,
    )
    return Plane(
        label=label or directions.kind,
        kind=directions.kind,
        a=found.axes[0],
        b=found.axes[1],
        axis_names=(directions.names[0], directions.names[1]),
        fields=found.fields,
        direction_norms=np.array(directions.norms),
        cosine=float(directions.cosine_matrix()[0, 1]),
        origin=directions.origin_label,
        trajectories=tuple(paths),
        points={name: np.array(point) for name, point in directions.points.items()},
        checks=found.checks,
        seconds=time.perf_counter() - started,
        note=found.note,
    )


def require(directions: Directions, count: int) -> None:
    """Refuse another number of directions, naming the function for it."""
    if directions.count != count:
        other = {1: "evaluate_line", 2: "evaluate_plane", 3: "evaluate_volume"}[directions.count]
        raise ValueError(
            f"{count} direction(s) are needed, got {directions.count}; use {other}, or "
            "directions.take(0, 1) for some of them"
        )
