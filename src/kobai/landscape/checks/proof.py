"""The proof of a surface: which self-checks hold for it, and against what."""

from collections.abc import Sequence

import numpy as np

from kobai.landscape.backends.batchnorm import (
    InterpolatedBackend,
    plain_loss,
    recalibrated_statistics,
)
from kobai.landscape.backends.choice import Choice
from kobai.landscape.backends.evaluator import Evaluator, RiskEvaluator
from kobai.landscape.backends.loop import Point
from kobai.landscape.checks import shape as shape_checks
from kobai.landscape.checks import values as proofs
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.nodes import grid_points
from kobai.landscape.grid.refinement import Refined
from kobai.landscape.options import COARSE_PRECISION
from kobai.problem import Categorical, EmpiricalRisk, Objective
from kobai.results import Check


def require_overview(
    objective: Objective, directions: Directions, evaluator: Evaluator, grid: Sequence[np.ndarray]
) -> None:
    """Refuse bfloat16 where its error would show: zooms and true minima."""
    if isinstance(objective, EmpiricalRisk) and isinstance(objective.likelihood, Categorical):
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


def _plain(choice: Choice, objective: Objective, directions: Directions) -> proofs.Plain:
    """The loss at a point by torch's own way, for each way of treating statistics."""
    evaluator = choice.evaluator
    mode = None if choice.candidate is None else choice.candidate.backend
    if mode == "recalibrated":
        assert isinstance(evaluator, RiskEvaluator)
        assert isinstance(objective, EmpiricalRisk)
        chunks = evaluator.chunks

        def recalibrated(point: Point) -> float:
            theta = directions.at(point)
            return plain_loss(objective, theta, recalibrated_statistics(objective, theta, chunks))

        return recalibrated
    if mode == "interpolated":
        assert isinstance(evaluator, RiskEvaluator)
        assert isinstance(objective, EmpiricalRisk)
        backend = evaluator.backend
        assert isinstance(backend, InterpolatedBackend)
        return lambda p: plain_loss(objective, directions.at(p), backend.buffers_at(p))
    return proofs.plain_value(objective, directions)


def prove(
    objective: Objective,
    directions: Directions,
    evaluator: Evaluator,
    smooth: Objective,
    grid: Sequence[np.ndarray],
    losses: np.ndarray,
    mask: np.ndarray,
    choice: Choice,
) -> list[Check]:
    """All self-checks that hold for a surface made in this way.

    Args:
        objective: The objective as given.
        directions: The subspace.
        evaluator: What measured the surface.
        smooth: The objective in chunks that are fast to differentiate.
        grid: Coordinates of every axis.
        losses: The surface.
        mask: Which nodes were evaluated.
        choice: How, and with which statistics of batch normalisation.
    """
    half = [float(axis[-1] - axis[0]) / 2 for axis in grid]
    corner = tuple(float(axis[0]) for axis in grid)
    common = [
        proofs.determinism(evaluator, corner, losses),
        proofs.orientation(directions, grid),
        proofs.direction_norms(directions),
    ]
    if isinstance(evaluator, RiskEvaluator) and evaluator.precision != "given":
        return [_overview(objective, directions, grid, losses, mask), *common]
    plain = _plain(choice, objective, directions)
    values = [
        proofs.centre(objective, directions, evaluator, plain=plain),
        proofs.nodes(objective, directions, grid, losses, evaluated=mask, plain=plain),
        common[0],
    ]
    if choice.candidate is None or choice.candidate.backend not in ("recalibrated", "interpolated"):
        # With statistics that follow θ, slopes of the surface are not those of the objective.
        values.append(shape_checks.slope(smooth, directions, evaluator, half))
        values.append(shape_checks.curvature(smooth, directions, evaluator, half))
    return [*values, *common[1:]]


def _overview(
    objective: Objective,
    directions: Directions,
    grid: Sequence[np.ndarray],
    losses: np.ndarray,
    mask: np.ndarray,
) -> Check:
    """Losses in bfloat16 against full precision at scattered nodes, in shares of the range."""
    there = np.argwhere(mask & np.isfinite(losses))
    picks = there[np.linspace(0, len(there) - 1, min(6, len(there))).round().astype(int)]
    gaps = []
    for pick in picks:
        point = [float(axis[i]) for axis, i in zip(grid, pick, strict=True)]
        gaps.append(abs(float(objective.value(directions.at(point))) - losses[tuple(pick)]))
    share = float(max(gaps) / max(np.ptp(losses[np.isfinite(losses)]), 1e-300))
    return Check(
        name="bfloat16",
        passed=share <= COARSE_PRECISION,
        value=share,
        tolerance=COARSE_PRECISION,
        detail=f"{len(gaps)} nodes against full precision, in shares of the range",
    )


def interpolation(found: Refined, tol: float) -> Check:
    """The spline against nodes held out."""
    worst = max(error for name, error in found.errors.items() if "loss" in name)
    return Check(
        name="interpolation",
        passed=worst <= tol or found.reason == "exact",
        value=worst,
        tolerance=tol,
        detail=found.note,
    )
