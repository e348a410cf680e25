"""The proof of a surface: which self-checks hold for it, and against what."""

from collections.abc import Sequence

import numpy as np

from kobai.landscape.backends.batchnorm import (
    Interpolated,
    Recalibrated,
    plain_loss,
    recalibrated_statistics,
)
from kobai.landscape.backends.evaluator import Evaluator, ObjectiveEvaluator, RiskEvaluator
from kobai.landscape.backends.loop import LoopBackend
from kobai.landscape.backends.passes import Point
from kobai.landscape.checks import shape, values
from kobai.landscape.checks.values import ModuleState
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.blocks import GridValues, grid_points
from kobai.landscape.grid.fields import FieldEvaluator
from kobai.landscape.options import COARSE_PRECISION, Settings
from kobai.problem import EmpiricalRisk, Objective
from kobai.results import Check


def require_overview(
    objective: Objective, directions: Directions, evaluator: Evaluator, grid: Sequence[np.ndarray]
) -> None:
    """Refuse bfloat16 where its error would show: zooms and true minima."""
    if isinstance(objective, EmpiricalRisk) and objective.likelihood.class_axis is not None:
        targets = next(iter(objective.batches)).targets
        if targets.is_floating_point():
            raise ValueError(
                "bfloat16 is for overviews, not for losses with soft targets, whose floor it "
                "would blur; use precision='given'"
            )
    ends = grid_points([np.array([axis[0], axis[-1]]) for axis in grid])
    places = [(0.0,) * directions.count, *ends]
    plain = np.array([float(objective.value(directions.at(point))) for point in places])
    found = evaluator.measure(places)[:, 0].numpy()
    good = np.isfinite(plain) & np.isfinite(found)
    gap = float(np.abs(plain - found)[good].max(initial=0.0))
    span = float(np.ptp(plain[good])) if good.any() else 0.0
    if not gap <= COARSE_PRECISION * span:
        raise ValueError(
            f"bfloat16 is off by {gap:.2g} where losses span {span:.2g} (more than "
            f"{COARSE_PRECISION:.0%}): the range is a zoom; use precision='given'"
        )


def prove(
    fields: FieldEvaluator, found: GridValues, settings: Settings, before: ModuleState
) -> tuple[Check, ...]:
    """Run all self-checks that hold for a surface made in this way.

    Args:
        fields: What measured the surface.
        found: The surface.
        settings: How it was measured.
        before: The module as it was before.
    """
    proof: list[Check] = []
    complete = found.reason != "stopped" and bool(np.isfinite(found.fields["loss"]).any())
    if settings.checks and complete and not np.isnan(found.values[~found.evaluated]).any():
        proof = _prove_values(fields, found)
        if found.errors and settings.tol is not None:
            proof.append(_interpolation(found, settings.tol))
    objective = fields.evaluator.objective
    return (*proof, values.untouched(before, objective.space.module))


def _prove_values(fields: FieldEvaluator, found: GridValues) -> list[Check]:
    evaluator, directions, smooth = fields.evaluator, fields.directions, fields.smooth
    grid, losses = found.axes, found.fields["loss"]
    corner = tuple(float(axis[0]) for axis in grid)
    deterministic = values.determinism(evaluator, corner, losses)
    geometry = [values.orientation(directions, grid), values.direction_norms(directions)]
    if isinstance(evaluator, RiskEvaluator) and evaluator.precision != "given":
        return [_overview(evaluator.objective, directions, found), deterministic, *geometry]
    plain = _plain(evaluator, directions)
    centre = values.centre(evaluator.objective, directions, evaluator, plain=plain)
    nodes = values.nodes(
        evaluator.objective, directions, grid, losses, evaluated=found.mask, plain=plain
    )
    proof = [centre, nodes, deterministic]
    if _treatment(evaluator) is None:
        # With statistics that follow θ, slopes of the surface are not those of the objective.
        half = [float(axis[-1] - axis[0]) / 2 for axis in grid]
        proof.append(shape.slope(smooth, directions, evaluator, half))
        proof.append(shape.curvature(smooth, directions, evaluator, half))
    return [*proof, *geometry]


def _treatment(evaluator: Evaluator) -> Recalibrated | Interpolated | None:
    """Give what makes the running statistics follow θ, if anything does."""
    backend = evaluator.backend if isinstance(evaluator, RiskEvaluator) else None
    treatment = backend.treatment if isinstance(backend, LoopBackend) else None
    return treatment if isinstance(treatment, Recalibrated | Interpolated) else None


def _plain(evaluator: ObjectiveEvaluator, directions: Directions) -> values.Plain:
    """Make torch's own way to compute the loss at a point, for each treatment of statistics."""
    objective, treatment = evaluator.objective, _treatment(evaluator)
    if treatment is None:
        return values.plain_value(objective, directions)
    assert isinstance(evaluator, RiskEvaluator)
    risk, chunks = evaluator.risk, evaluator.chunks

    def loss(point: Point) -> float:
        theta = directions.at(point)
        if isinstance(treatment, Interpolated):
            return plain_loss(risk, theta, treatment.buffers_at(point))
        return plain_loss(risk, theta, recalibrated_statistics(risk, theta, chunks))

    return loss


def _overview(objective: Objective, directions: Directions, found: GridValues) -> Check:
    """Check losses in bfloat16 against full precision at some nodes, in shares of the range."""
    losses = found.fields["loss"]
    there = np.argwhere(found.mask & np.isfinite(losses))
    picks = there[np.linspace(0, len(there) - 1, min(6, len(there))).round().astype(int)]
    gaps = []
    for pick in picks:
        point = [float(axis[i]) for axis, i in zip(found.axes, pick, strict=True)]
        gaps.append(abs(float(objective.value(directions.at(point))) - losses[tuple(pick)]))
    share = float(max(gaps) / max(np.ptp(losses[np.isfinite(losses)]), 1e-300))
    return Check(
        name="bfloat16",
        passed=share <= COARSE_PRECISION,
        value=share,
        tolerance=COARSE_PRECISION,
        detail=f"{len(gaps)} nodes against full precision, in shares of the range",
    )


def _interpolation(found: GridValues, tol: float) -> Check:
    """Check the spline against nodes held out."""
    worst = max(error for name, error in found.errors.items() if "loss" in name)
    return Check(
        name="interpolation",
        passed=worst <= tol or found.reason == "exact",
        value=worst,
        tolerance=tol,
        detail=found.note,
    )
