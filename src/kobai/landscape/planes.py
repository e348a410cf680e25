"""The loss over a plane or along a line of parameter space, with the proof that it is right."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape import checks as proofs
from kobai.landscape import shape_checks
from kobai.landscape.axes import Axis, coordinates, spread
from kobai.landscape.derivatives import plane_eigenvalues, projected_hessian, slopes
from kobai.landscape.directions import Directions
from kobai.landscape.evaluator import Evaluator, RiskEvaluator
from kobai.landscape.extent import box_range, find_range
from kobai.landscape.sweep import Progress, Stop, sweep
from kobai.landscape.trajectories import project_trajectory
from kobai.landscape.tune import BackendName, choose_evaluator
from kobai.problem import Objective
from kobai.results import Check, Line, Plane, Trajectory

Paths = Mapping[str, Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]]]

VALUE_FIELDS = ("loss", "stderr", "accuracy")
SLOPE_FIELDS = ("gradient_norm", "slope_a", "slope_b")
HESSIAN_FIELDS = ("curvature_aa", "curvature_ab", "curvature_bb", "curvature_min", "curvature_max")
FIELDS = (*VALUE_FIELDS, *SLOPE_FIELDS, *HESSIAN_FIELDS)
"""Fields a plane can have; see `evaluate_plane`."""


def evaluate_plane(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 51,
    b: Axis = 51,
    fields: Sequence[str] | None = None,
    trajectories: Paths | None = None,
    label: str = "",
    backend: BackendName = "auto",
    checks: bool = True,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Plane:
    """Evaluate an objective on θ₀ + a d₁ + b d₂.

    Every node is evaluated on all data; nothing is interpolated. The data are kept on the device
    (they must fit there), and the fastest way to go over the grid is found by measurement
    (`choose_evaluator`) and noted.
    Batch normalisation is frozen: the model is evaluated as a function of θ, in eval mode, with its
    running statistics as they are.

    Args:
        objective: Any objective. Accuracy and standard error need an `EmpiricalRisk`.
        directions: Two directions.
        a: Nodes along d₁: increasing coordinates (they may start at zero), or how many; then the
            range is that of marked points and trajectories with a margin, or else found by
            `find_range`.
        b: Nodes along d₂, likewise; the grid need not be square.
        fields: Some of "loss" (always there), "stderr" (of the mean over examples), "accuracy",
            "gradient_norm" (of ∇L in all of parameter space), "slope_a" and "slope_b" (∇L·d),
            "curvature_aa", "curvature_ab" and "curvature_bb" (dᵢᵀHdⱼ), "curvature_min" and
            "curvature_max" (eigenvalues of the Hessian restricted to the plane, per unit distance).
            Default: loss, and accuracy where there is one.
        trajectories: Label to points of a path, projected on the plane.
        label: Name of the result.
        backend: "auto", "loop", "prefix" or "vmap".
        checks: Prove the result; failed checks do not raise, see `raise_if_failed`.
        progress: Called with (nodes done, nodes in all).
        stop: Asked between blocks of nodes; True ends early, with NaN at the nodes left out and a
            note that says so, and without checks.

    Returns:
        The plane. Values that are not finite are kept as they are and counted in the note. Cost: a
        forward pass over the data a node (less by exact reuse), a backward pass for slopes, three
        for curvatures, and about a hundred evaluations for the checks.

    Raises:
        ValueError: If there are not two directions, a field is unknown or has no meaning for the
            objective, or the module is not a function of θ (dropout or batch statistics active).
    """
    _require(directions, 2)
    started = time.perf_counter()
    before = proofs.ModuleState.of(objective.space.module)
    wanted = [coordinates(a, "a"), coordinates(b, "b")]
    count = int(np.prod([axis if isinstance(axis, int) else len(axis) for axis in wanted]))
    evaluator, how = choose_evaluator(objective, directions, backend=backend, points=count)
    names = _fields(fields, evaluator)
    paths = _project(_for_derivatives(evaluator, objective), directions, trajectories or {})
    marked = [*directions.points.values(), *(c for p in paths for c in p.coordinates)]
    axes = _axes(wanted, evaluator, directions, marked)
    combined = _WithDerivatives(evaluator, objective, directions, names)
    values, done = sweep(axes, combined, progress=progress, stop=stop)
    proof = []
    if checks and done == values["loss"].size:
        proof = _prove(objective, directions, evaluator, axes, values["loss"])
    proof.append(proofs.untouched(before, objective.space.module))
    return Plane(
        label=label or directions.kind,
        kind=directions.kind,
        a=axes[0],
        b=axes[1],
        axis_names=(directions.names[0], directions.names[1]),
        fields={name: values[name] for name in names},
        direction_norms=np.array(directions.norms),
        cosine=float(directions.cosine_matrix()[0, 1]),
        origin=directions.origin_label,
        trajectories=tuple(paths),
        points={name: np.array(point) for name, point in directions.points.items()},
        checks=tuple(proof),
        seconds=time.perf_counter() - started,
        note=_note(directions, how, values["loss"], done),
    )


def evaluate_line(
    objective: Objective,
    directions: Directions,
    *,
    a: Axis = 101,
    fields: Sequence[str] | None = None,
    label: str = "",
    backend: BackendName = "auto",
    checks: bool = True,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Line:
    """Evaluate an objective on θ₀ + a d; arguments and guarantees as in `evaluate_plane`.

    Args:
        objective: Any objective.
        directions: One direction.
        a: Increasing coordinates, or how many nodes.
        fields: As for a plane; of slopes "slope_a", of curvatures "curvature_aa".
        label: Name of the result.
        backend: "auto", "loop", "prefix" or "vmap".
        checks: Prove the result.
        progress: Called with (nodes done, nodes in all).
        stop: Asked between blocks of nodes.

    Raises:
        ValueError: As for a plane.
    """
    _require(directions, 1)
    started = time.perf_counter()
    before = proofs.ModuleState.of(objective.space.module)
    wanted = [coordinates(a, "a")]
    count = wanted[0] if isinstance(wanted[0], int) else len(wanted[0])
    evaluator, how = choose_evaluator(objective, directions, backend=backend, points=count)
    names = _fields(fields, evaluator)
    if any(name.rpartition("_")[2] in ("b", "ab", "bb") for name in names):
        raise ValueError(f"a line has no second direction, got fields={names}")
    axes = _axes(wanted, evaluator, directions, list(directions.points.values()))
    combined = _WithDerivatives(evaluator, objective, directions, names)
    values, done = sweep(axes, combined, progress=progress, stop=stop)
    proof = []
    if checks and done == values["loss"].size:
        proof = _prove(objective, directions, evaluator, axes, values["loss"])
    proof.append(proofs.untouched(before, objective.space.module))
    return Line(
        label=label or directions.kind,
        kind=directions.kind,
        a=axes[0],
        axis_name=directions.names[0],
        fields={name: values[name] for name in names},
        direction_norm=directions.norms[0],
        origin=directions.origin_label,
        points={name: point[0] for name, point in directions.points.items()},
        checks=tuple(proof),
        seconds=time.perf_counter() - started,
        note=_note(directions, how, values["loss"], done),
    )


class _WithDerivatives(Evaluator):
    """An evaluator and, where fields ask for them, slopes and curvatures at the same nodes."""

    def __init__(
        self,
        evaluator: Evaluator,
        objective: Objective,
        directions: Directions,
        names: Sequence[str],
    ) -> None:
        self.name = evaluator.name
        self.evaluator, self.directions = evaluator, directions
        self.objective = _for_derivatives(evaluator, objective)
        self.with_slopes = any(name in SLOPE_FIELDS for name in names)
        self.with_hessian = any(name in HESSIAN_FIELDS for name in names)
        self.gram = directions.gram()
        first = directions.count == 1
        self.fields = (
            *evaluator.fields,
            *((SLOPE_FIELDS[:2] if first else SLOPE_FIELDS) if self.with_slopes else ()),
            *(
                ((HESSIAN_FIELDS[0], *HESSIAN_FIELDS[3:]) if first else HESSIAN_FIELDS)
                if self.with_hessian
                else ()
            ),
        )

    def measure(self, points: Sequence[tuple[float, ...]]) -> Tensor:
        """See `Evaluator.measure`."""
        columns = [self.evaluator.measure(points)]
        if self.with_slopes:
            columns.append(torch.stack([self._slopes(point) for point in points]))
        if self.with_hessian:
            columns.append(torch.stack([self._hessian(point) for point in points]))
        return torch.cat(columns, dim=1)

    def _slopes(self, point: tuple[float, ...]) -> Tensor:
        theta = self.directions.at(point)
        _, along, norm = slopes(self.objective, theta, self.directions.vectors)
        return torch.cat((along.new_tensor([norm]), along))

    def _hessian(self, point: tuple[float, ...]) -> Tensor:
        theta = self.directions.at(point)
        matrix = projected_hessian(self.objective, theta, self.directions.vectors)
        eigenvalues = plane_eigenvalues(matrix, self.gram)
        row, column = torch.triu_indices(len(matrix), len(matrix))
        return torch.cat((matrix[row, column], eigenvalues[[0, -1]]))


def _for_derivatives(evaluator: Evaluator, objective: Objective) -> Objective:
    """The objective in the chunks that the evaluator found fast."""
    return evaluator.in_chunks() if isinstance(evaluator, RiskEvaluator) else objective


def _require(directions: Directions, count: int) -> None:
    if directions.count != count:
        other = "evaluate_line" if directions.count == 1 else "directions.take(0, 1)"
        raise ValueError(f"{count} direction(s) are needed, got {directions.count}; use {other}")


def _fields(fields: Sequence[str] | None, evaluator: Evaluator) -> tuple[str, ...]:
    """The fields to keep, in the order asked for, with the loss first if it was not named."""
    of_data = isinstance(evaluator, RiskEvaluator)
    if fields is None:
        return ("loss", "accuracy") if of_data and evaluator.has_accuracy() else ("loss",)
    if isinstance(fields, str):
        raise TypeError(f"fields must be a sequence of names, such as ({fields!r},)")
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        raise ValueError(f"unknown fields {unknown}; a landscape can have {', '.join(FIELDS)}")
    if not of_data and {"accuracy", "stderr"} & set(fields):
        raise ValueError("accuracy and stderr need an EmpiricalRisk; leave them out of fields")
    if of_data and "accuracy" in fields and not evaluator.has_accuracy():
        raise ValueError("this likelihood has no accuracy; leave it out of fields")
    return tuple(dict.fromkeys(("loss", *fields)))


def _project(objective: Objective, directions: Directions, trajectories: Paths) -> list[Trajectory]:
    return [
        project_trajectory(objective, directions, thetas, label=name)
        for name, thetas in trajectories.items()
    ]


def _axes(
    wanted: Sequence[np.ndarray | int],
    evaluator: Evaluator,
    directions: Directions,
    marked: Sequence[Sequence[float] | np.ndarray],
) -> list[np.ndarray]:
    """Coordinates of every axis; ranges are looked for only where a number of nodes is given."""
    if all(isinstance(axis, np.ndarray) for axis in wanted):
        return [np.asarray(axis) for axis in wanted]
    ranges = box_range(marked, directions.count) if len(marked) else None
    if ranges is None:
        ranges = find_range(evaluator, directions)
    return [
        spread(axis, *limits) if isinstance(axis, int) else axis
        for axis, limits in zip(wanted, ranges, strict=True)
    ]


def _prove(
    objective: Objective,
    directions: Directions,
    evaluator: Evaluator,
    axes: Sequence[np.ndarray],
    losses: np.ndarray,
) -> list[Check]:
    half = [float(axis[-1] - axis[0]) / 2 for axis in axes]
    smooth = _for_derivatives(evaluator, objective)
    return [
        proofs.centre(objective, directions, evaluator),
        proofs.nodes(objective, directions, axes, losses),
        proofs.determinism(evaluator, tuple(float(axis[0]) for axis in axes)),
        shape_checks.slope(smooth, directions, evaluator, half),
        shape_checks.curvature(smooth, directions, evaluator, half),
        proofs.orientation(directions, axes),
        proofs.direction_norms(directions),
    ]


def _note(directions: Directions, how: str, losses: np.ndarray, done: int) -> str:
    parts = [directions.note] if directions.note else []
    parts.append(how)
    if done < losses.size:
        parts.append(f"stopped after {done} of {losses.size} nodes")
    broken = int((~np.isfinite(losses.reshape(-1)[:done])).sum())
    if broken:
        parts.append(f"{broken} of {done} nodes are not finite")
    return "; ".join(parts)
