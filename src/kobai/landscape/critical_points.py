"""Stationary points seen on a plane, and whether they are any in the whole of parameter space."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import RectBivariateSpline
from torch import Tensor, nn

from kobai.curvature import Hessian, eigenvalues
from kobai.landscape.derivatives import plane_eigenvalues, projected_hessian, slopes
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective
from kobai.results import CriticalPoint, CriticalPoints, Plane

FINE = 4
"""Pieces a grid cell is cut into where the search for stationary points starts."""

ZERO_CURVATURE = 1e-6
"""An eigenvalue below this share of the largest counts as zero."""

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def critical_points(
    plane: Plane,
    objective: Objective,
    directions: Directions,
    *,
    tolerance: float = 0.01,
    max_points: int = 12,
    refine_steps: int = 8,
    curvature: bool = True,
    tol: float = 1e-2,
    max_products: int | None = None,
    polish: MakeOptimizer | None = None,
    polish_steps: int = 50,
    generator: torch.Generator | None = None,
) -> CriticalPoints:
    """Locate the stationary points of a slice and verify each of them in full space.

    Minima, saddles and maxima of a slice need not be stationary in the space around it. Points are
    found on a bicubic spline through the loss (through a logarithm of it where a few large values
    would drown the rest), refined by Newton's method on the true loss within the plane, and then
    judged by ‖∇L‖ and the extreme eigenvalues of the Hessian in all of parameter space.

    Args:
        plane: With the field "loss", over these directions.
        objective: Whose loss it is.
        directions: The plane's two directions.
        tolerance: ‖∇L‖ up to this share of its median over nodes of the plane is genuine.
        max_points: How many to verify, lowest loss first; the note counts the rest.
        refine_steps: Newton steps in the plane; 0 takes the spline's points.
        curvature: Find the eigenvalues of the whole Hessian as well.
        tol: Their relative accuracy.
        max_products: Budget of Hessian products per point.
        polish: From a model to an optimizer over it; it is stepped on the objective from each
            point (`optimizer.step(objective)`), and where it ends is projected on the plane. The
            model has its parameters back afterwards.
        polish_steps: How many steps.
        generator: Draws starting vectors; default: one of seed 0.

    Returns:
        The points, none where the slice has none inside the grid. Cost per point: a few gradients
        and Hessian products in the plane, with `curvature` about a hundred products more.

    Raises:
        ValueError: If there are not two directions, they are not the plane's, or the grid has fewer
            than four nodes a side.
    """
    if directions.count != 2:
        raise ValueError(f"critical points lie on two directions, got {directions.count}")
    if not np.allclose(plane.direction_norms, directions.norms, rtol=1e-5):
        raise ValueError("these directions are not those of the plane: their norms differ")
    if min(len(plane.a), len(plane.b)) < 4:
        raise ValueError("critical points need four nodes a side for a cubic spline")
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    found, left_out = locate(plane)
    scale = _scale(plane, objective, directions)
    spacing = np.array([float(np.diff(plane.a).max()), float(np.diff(plane.b).max())])
    points = []
    for c in found[:max_points]:
        coordinates, status = _refine(objective, directions, c, spacing, refine_steps)
        theta = directions.at(coordinates)
        low = high = float("nan")
        if curvature:
            extremes = eigenvalues(
                Hessian(objective, theta), min(2, len(theta)), which="both", tol=tol,
                max_products=max_products, generator=draw,
            )  # fmt: skip
            if extremes.values.numel():
                low, high = float(extremes.values[0]), float(extremes.values[-1])
        points.append(
            CriticalPoint(
                coordinates=coordinates,
                kind=kind_of(low, high),
                eigenvalue_min=low,
                eigenvalue_max=high,
                status=status,
                **_slopes(objective, directions, theta, tolerance * scale),
                **_polished(objective, directions, theta, polish, polish_steps),
            )
        )
    notes = []
    if len(found) > max_points:
        notes.append(f"{len(found) - max_points} more were located and not verified")
    if left_out:
        notes.append(f"{left_out} of {plane.fields['loss'].size} nodes are not finite")
    return CriticalPoints(
        label=plane.label,
        points=tuple(sorted(points, key=lambda point: point.loss)),
        scale=scale,
        tolerance=tolerance,
        plane=plane,
        note="; ".join(notes),
    )


def locate(plane: Plane, field: str = "loss") -> tuple[list[Float[np.ndarray, " 2"]], int]:
    """Locate stationary points of a spline through a field, lowest first; count bad nodes.

    The slope is followed on a grid four times as fine; Newton's method starts at every local
    minimum of its norm, and what it reaches within two cells counts once.

    Args:
        plane: At least four nodes a side.
        field: Which field.
    """
    values = plane.fields[field]
    good = np.isfinite(values)
    if not good.any():
        return [], int(values.size)
    filled = np.where(good, values, values[good].max())
    height = _levelled(filled)
    surface = RectBivariateSpline(plane.a, plane.b, height, s=0)
    fine = [_refined(axis) for axis in (plane.a, plane.b)]
    unit = np.array([np.diff(plane.a).max(), np.diff(plane.b).max()])
    # Slopes per cell, so that neither axis weighs more for its unit.
    x, y = fine
    slope = np.hypot(surface(x, y, dx=1) * unit[0], surface(x, y, dy=1) * unit[1])
    span = float(np.ptp(height))
    found: list[np.ndarray] = []
    for start in _local_minima(slope):
        c = np.array([fine[0][start[0]], fine[1][start[1]]])
        point = _newton(surface, c, unit, plane, 1e-9 * max(span, 1e-300))
        if point is None:
            continue
        cell = tuple(
            int(np.clip(np.searchsorted(axis, x) - 1, 0, len(axis) - 2))
            for axis, x in zip((plane.a, plane.b), point, strict=True)
        )
        if not good[cell[0] : cell[0] + 2, cell[1] : cell[1] + 2].all():
            continue
        if all(np.abs((point - other) / unit).max() > 0.25 for other in found):
            found.append(point)
    found.sort(key=lambda point: float(surface.ev(*point)))
    return found, int((~good).sum())


def _levelled(values: np.ndarray) -> np.ndarray:
    """Give the values, or a logarithm of them where a few large ones would drown the rest.

    A growing function has the same stationary points. The logarithm is of the height above the
    lowest node, softened below a hundredth of the median height: at a true minimum it would be −∞.
    """
    height = values - values.min()
    middle = float(np.median(height))
    if middle <= 0 or height.max() <= 5 * middle:
        return values
    return np.log(height + 0.01 * middle)


def _refined(axis: np.ndarray) -> np.ndarray:
    where = np.arange((len(axis) - 1) * FINE + 1) / FINE
    return np.interp(where, np.arange(len(axis)), axis)


def _local_minima(values: np.ndarray) -> list[tuple[int, int]]:
    """List the nodes no larger than their eight neighbours, the border left out, lowest first."""
    middle = values[1:-1, 1:-1]
    least = np.ones(middle.shape, dtype=bool)
    for i, j in itertools.product((0, 1, 2), repeat=2):
        if (i, j) != (1, 1):
            rows, columns = values.shape[0] - 2 + i, values.shape[1] - 2 + j
            least &= middle <= values[i:rows, j:columns]
    places = np.argwhere(least) + 1
    order = np.argsort(values[tuple(places.T)], kind="stable")
    return [(int(i), int(j)) for i, j in places[order]]


def _newton(
    surface: RectBivariateSpline, c: np.ndarray, unit: np.ndarray, plane: Plane, tolerance: float
) -> np.ndarray | None:
    """Find a zero of the slope within two cells of the start and inside the grid, or None."""
    start = c.copy()
    for _ in range(40):
        slope = np.array([surface.ev(*c, dx=1), surface.ev(*c, dy=1)]) * unit
        if np.abs(slope).max() <= tolerance:
            return c
        mixed = float(surface.ev(*c, dx=1, dy=1))
        second = np.array(
            [[surface.ev(*c, dx=2), mixed], [mixed, surface.ev(*c, dy=2)]]
        ) * np.outer(unit, unit)
        try:
            step = -np.linalg.solve(second, slope)
        except np.linalg.LinAlgError:
            return None
        step *= min(1.0, 0.5 / max(float(np.abs(step).max()), 1e-300))
        c = c + step * unit
        if np.abs((c - start) / unit).max() > 2:
            return None
        if not (plane.a[0] <= c[0] <= plane.a[-1] and plane.b[0] <= c[1] <= plane.b[-1]):
            return None
    return None


def _scale(plane: Plane, objective: Objective, directions: Directions) -> float:
    """Find the median ‖∇L‖ over nodes spread over the plane."""
    if "gradient_norm" in plane.fields:
        norms = plane.fields["gradient_norm"]
        return float(np.median(norms[np.isfinite(norms)]))
    picks = [
        (axis[0] + (axis[-1] - axis[0]) * np.array([1, 3, 5]) / 6) for axis in (plane.a, plane.b)
    ]
    norms = [
        float(objective.grad(directions.at((float(a), float(b)))).double().norm())
        for a, b in itertools.product(*picks)
    ]
    finite = [norm for norm in norms if np.isfinite(norm)]
    return float(np.median(finite)) if finite else float("nan")


def _refine(
    objective: Objective, directions: Directions, c: np.ndarray, spacing: np.ndarray, steps: int
) -> tuple[np.ndarray, str]:
    """Run Newton's method on the true loss in the plane; keep the start where it wanders off."""
    place = c.copy()
    if steps == 0:
        return place, "interpolated"
    for _ in range(steps):
        theta = directions.at(place)
        _, slope, _ = slopes(objective, theta, directions.vectors)
        matrix = projected_hessian(objective, theta, directions.vectors).numpy()
        if not (np.isfinite(matrix).all() and np.isfinite(slope.numpy()).all()):
            return c, "interpolated"
        try:
            step = -np.linalg.solve(matrix, slope.numpy())
        except np.linalg.LinAlgError:
            return c, "interpolated"
        place = place + step
        if np.abs((place - c) / spacing).max() > 1:
            return c, "interpolated"
        if np.abs(step / spacing).max() < 1e-8:
            break
    return place, "refined"


def kind_of(low: float, high: float) -> str:
    """Name a stationary point by the extreme eigenvalues of the Hessian there."""
    size = max(abs(low), abs(high))
    if not np.isfinite(size) or size == 0:
        return "unknown"
    if low < -ZERO_CURVATURE * size:
        return "maximum" if high < -ZERO_CURVATURE * size else "saddle"
    return "minimum"


def _slopes(
    objective: Objective, directions: Directions, theta: Tensor, zero: float
) -> dict[str, Any]:
    """Measure value, gradient and curvatures in the plane, as fields of the result."""
    value, gradient = objective.value_and_grad(theta)
    norm = float(gradient.double().norm())
    along = torch.stack([torch.dot(gradient.double(), v.double()) for v in directions.vectors.T])
    # Of the gradient's part in the plane the norm is √(sᵀ G⁻¹ s), s the slopes along directions.
    inside = float((along @ torch.linalg.solve(directions.gram(), along)).clamp(min=0).sqrt())
    matrix = projected_hessian(objective, theta, directions.vectors)
    in_plane = plane_eigenvalues(matrix, directions.gram()).numpy()
    return {
        "loss": float(value),
        "plane_kind": kind_of(float(in_plane[0]), float(in_plane[-1])),
        "plane_eigenvalues": in_plane,
        "plane_gradient_norm": inside,
        "gradient_norm": norm,
        "genuine": norm <= zero,
    }


def _polished(
    objective: Objective,
    directions: Directions,
    theta: Tensor,
    polish: MakeOptimizer | None,
    steps: int,
) -> dict[str, Any]:
    """Follow an optimizer from a point to where it goes, as fields of the result."""
    if polish is None:
        return {"polished_coordinates": np.full(2, np.nan)}
    before = objective.theta()
    try:
        objective.space.assign(theta)
        optimizer = polish(objective.space.module)
        advance: Callable[[Objective], object] = optimizer.step  # type: ignore[assignment]
        for _ in range(steps):
            advance(objective)
        end = objective.theta()
    finally:
        objective.space.assign(before)
        objective.space.module.zero_grad(set_to_none=True)
    value, gradient = objective.value_and_grad(end)
    places, off_plane = directions.project([end])
    return {
        "polished_coordinates": places[0].numpy(),
        "polished_off_plane": float(off_plane[0]),
        "polished_loss": float(value),
        "polished_gradient_norm": float(gradient.double().norm()),
    }
