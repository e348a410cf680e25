"""Numbers for "smoother", "sharper" and "less symmetric", from the values on a plane.

All lengths are distances in parameter space (the directions' norms and angle are divided out), and
a bicubic spline through the nodes, exact for quadratics, gives values and curvatures between them.
Curvature of a piecewise smooth loss is thereby seen at the resolution of the grid: what jumps of
slope add up to between nodes.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.interpolate import RectBivariateSpline

from kobai.results import Plane, Smoothness

FINE = 12
"""Pieces a grid cell is cut into where areas are measured."""

RINGS = 8
"""Circles on which the field is followed around the centre."""

FLAT = 1e-9
"""Curvature below this share of the largest is zero."""


def smoothness(plane: Plane, field: str = "loss", *, epsilon: float = 0.1) -> Smoothness:
    """Smoothness, sharpness and symmetry of a field about the centre of a plane.

    With L the field, L₀ its value at the centre (0, 0), κ₁ ≤ κ₂ the eigenvalues of its Hessian in
    the plane per squared distance, R² the mean squared half-width of the grid:

    - curvature_low, curvature_high: least κ₁ and largest κ₂ over the nodes;
    - roughness: (curvature_high − curvature_low) R² / (2 (max L − min L)). No unit: 0 for the plane
      itself and for a paraboloid with equal curvatures, larger the more curvature changes;
    - nonconvex: share of the nodes with κ₁ < 0;
    - radius: √(A/π), A the area of the part of {L ≤ L₀ + ε} that is connected with the centre;
    - steepness: ε / radius, the mean slope out of the basin;
    - asymmetry: Σ |f(c) − f(−c)| / Σ (|f(c)| + |f(−c)|) with f = L − L₀, over nodes c whose mirror
      image lies in the grid: 0 for an even function, 1 for an odd one;
    - anisotropy: on circles about the centre, standard deviation of f around the circle over its
      mean absolute value there, averaged over circles: 0 where L depends on distance alone.

    Args:
        plane: A plane with at least four nodes a side, the centre inside.
        field: Which of its fields.
        epsilon: ε, in the field's units.

    Returns:
        The measures. Nodes that are not finite are left out of every one and counted; the spline
        runs over them at the largest finite value.

    Raises:
        ValueError: If there is no such field, too few nodes, or the centre is outside or not
            finite.
    """
    if field not in plane.fields:
        raise ValueError(f"the plane has no field {field!r}; it has {', '.join(plane.fields)}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    if min(len(plane.a), len(plane.b)) < 4:
        raise ValueError("smoothness needs four nodes a side for its second derivatives")
    if not (plane.a[0] <= 0 <= plane.a[-1] and plane.b[0] <= 0 <= plane.b[-1]):
        raise ValueError("the centre (0, 0) must lie inside the grid")
    values = plane.fields[field]
    good = np.isfinite(values)
    if not good.any():
        raise ValueError(f"no value of {field} is finite")
    filled = np.where(good, values, values[good].max())
    surface = RectBivariateSpline(plane.a, plane.b, filled, kx=3, ky=3, s=0)
    centre = _centre(plane, values, surface)
    gram = _gram(plane)
    low, high = _curvatures(plane, surface, gram)
    least, largest = float(low[good].min()), float(high[good].max())
    spread = float(values[good].max() - values[good].min())
    half = np.array([np.ptp(plane.a), np.ptp(plane.b)]) / 2 * plane.direction_norms
    size = max(abs(least), abs(largest))
    radius, cut = _sublevel(plane, surface, centre + epsilon, gram)
    return Smoothness(
        label=plane.label,
        field=field,
        epsilon=epsilon,
        curvature_low=least,
        curvature_high=largest,
        roughness=(largest - least) * float((half**2).mean()) / (2 * spread) if spread else 0.0,
        nonconvex=float((low[good] < -FLAT * size).mean()),
        radius=radius,
        steepness=epsilon / radius if radius else math.inf,
        asymmetry=_asymmetry(plane, surface, centre, good),
        anisotropy=_anisotropy(plane, surface, centre, gram),
        unit=float(np.sqrt((plane.direction_norms**2).mean())),
        cut_off=cut,
        missing=int((~good).sum()),
    )


def _centre(plane: Plane, values: np.ndarray, surface: RectBivariateSpline) -> float:
    i, j = np.flatnonzero(plane.a == 0), np.flatnonzero(plane.b == 0)
    at = float(values[i[0], j[0]]) if len(i) and len(j) else float(surface.ev(0.0, 0.0))
    if not math.isfinite(at):
        raise ValueError("the value at the centre is not finite")
    return at


def _gram(plane: Plane) -> Float[np.ndarray, "2 2"]:
    n1, n2 = plane.direction_norms
    return np.array([[n1 * n1, n1 * n2 * plane.cosine], [n1 * n2 * plane.cosine, n2 * n2]])


def _curvatures(
    plane: Plane, surface: RectBivariateSpline, gram: np.ndarray
) -> tuple[Float[np.ndarray, "A B"], Float[np.ndarray, "A B"]]:
    """Eigenvalues of the Hessian at every node, per squared distance: those of G⁻¹ H."""
    aa, ab, bb = (surface(plane.a, plane.b, dx=2 - k, dy=k) for k in range(3))
    matrices = np.stack([np.stack([aa, ab], axis=-1), np.stack([ab, bb], axis=-1)], axis=-1)
    half = np.linalg.inv(np.linalg.cholesky(gram))
    eigenvalues = np.linalg.eigvalsh(half @ matrices @ half.T)
    return eigenvalues[..., 0], eigenvalues[..., 1]


def _sublevel(
    plane: Plane, surface: RectBivariateSpline, level: float, gram: np.ndarray
) -> tuple[float, bool]:
    """Radius of the disc as large as the sublevel set about the centre; whether it is cut off."""
    fine = [
        np.linspace(axis[0], axis[-1], (len(axis) - 1) * FINE + 1) for axis in (plane.a, plane.b)
    ]
    inside = surface(*fine) <= level
    parts: Any = ndimage.label(inside, structure=np.ones((3, 3)))
    labels = parts[0]
    middle = tuple(int(np.abs(axis).argmin()) for axis in fine)
    own = (labels == labels[middle]) & inside
    if not own[middle]:
        return 0.0, False
    # Each point stands for a cell about it, half of one on an edge.
    weights = []
    for axis in fine:
        weight = np.full(len(axis), axis[1] - axis[0])
        weight[[0, -1]] /= 2
        weights.append(weight)
    area = float((own * np.outer(*weights)).sum()) * math.sqrt(float(np.linalg.det(gram)))
    edge = bool(own[0].any() or own[-1].any() or own[:, 0].any() or own[:, -1].any())
    return math.sqrt(area / math.pi), edge


def _asymmetry(
    plane: Plane, surface: RectBivariateSpline, centre: float, good: np.ndarray
) -> float:
    a, b = np.meshgrid(plane.a, plane.b, indexing="ij")
    mirrored = (
        (-a >= plane.a[0]) & (-a <= plane.a[-1]) & (-b >= plane.b[0]) & (-b <= plane.b[-1]) & good
    )
    here = surface.ev(a[mirrored], b[mirrored]) - centre
    there = surface.ev(-a[mirrored], -b[mirrored]) - centre
    whole = float((np.abs(here) + np.abs(there)).sum())
    return float(np.abs(here - there).sum()) / whole if whole > 0 else 0.0


def _anisotropy(
    plane: Plane, surface: RectBivariateSpline, centre: float, gram: np.ndarray
) -> float:
    """Spread around circles, true circles in parameter space that fit into the grid."""
    angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    # Coordinates of unit vectors: with G = C Cᵀ, c = C⁻ᵀ e has length 1.
    unit = np.linalg.inv(np.linalg.cholesky(gram)).T @ np.stack([np.cos(angles), np.sin(angles)])
    room = [min(-axis[0], axis[-1]) for axis in (plane.a, plane.b)]
    largest = min(r / float(np.abs(row).max()) for r, row in zip(room, unit, strict=True))
    if not largest > 0:
        return math.nan
    spreads = []
    for k in range(1, RINGS + 1):
        f = surface.ev(unit[0] * largest * k / RINGS, unit[1] * largest * k / RINGS) - centre
        mean = float(np.abs(f).mean())
        spreads.append(float(f.std()) / mean if mean > 0 else 0.0)
    return float(np.mean(spreads))
