"""Directions by curvature: extreme eigenvectors of the Hessian, and random ones beside them."""

from typing import Literal

import torch
from jaxtyping import Float

from kobai.curvature import Hessian, eigenvalues
from kobai.landscape.directions.gaussian import random_directions
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective

OUTLIERS = 10
"""Eigenvectors of largest magnitude that directions in the bulk are orthogonal to."""


def eigen_directions(
    objective: Objective,
    theta: Float[torch.Tensor, " P"] | None = None,
    *,
    which: Literal["largest", "smallest", "both", "magnitude", "bulk"] = "largest",
    count: int = 2,
    tol: float = 1e-3,
    generator: torch.Generator,
    origin_label: str = "origin",
) -> Directions:
    """Unit eigenvectors of the Hessian at θ: the plane in which the loss bends most.

    Along them the surface near the centre is L₀ + slope + ½ λ₁ a² + ½ λ₂ b², without a mixed term.

    Args:
        objective: Whose Hessian.
        theta: The origin; default: the module's parameters now.
        which: "largest" eigenvalues, "smallest" (most negative first), "both" (the largest, then
            the smallest), "magnitude", or "bulk": random unit directions, Gaussian in all
            parameters, orthogonal to each other and to the `OUTLIERS` eigenvectors of largest
            magnitude (fewer for fewer parameters).
        count: How many, 1 to 3.
        tol: Relative accuracy of the eigenvalues.
        generator: Draws the starting vectors of the iteration.
        origin_label: What lies at the origin.

    Returns:
        The directions, largest eigenvalue first (smallest first for "smallest"). Names and note
        carry the eigenvalues (dᵀHd for "bulk"), with the status of the iteration. Cost: tens of
        Hessian-vector products a direction, or an outlier.

    Raises:
        ValueError: If the iteration found fewer than `count` eigenvectors.
    """
    if not 1 <= count <= 3:
        raise ValueError(f"count must be 1, 2 or 3, got {count}")
    theta = objective.theta() if theta is None else theta
    if which == "bulk":
        return _bulk(objective, theta, count, tol, generator, origin_label)
    found = eigenvalues(
        Hessian(objective, theta),
        count,
        which=which,
        tol=tol,
        vectors=True,
        generator=generator,
    )
    if found.vectors is None or found.vectors.shape[1] < count:
        raise ValueError(
            f"the Hessian gave fewer than {count} eigenvectors ({found.status}); is the loss "
            "finite at theta? Otherwise raise tol"
        )
    order = list(range(count)) if which == "smallest" else list(range(count))[::-1]
    columns, names = [], []
    for place, k in enumerate(order, start=1):
        vector = found.vectors[:, k]
        # Eigenvectors have no sign of their own: the largest entry is made positive.
        columns.append(vector * torch.sign(vector[vector.abs().argmax()]) / vector.norm())
        names.append(f"eigenvector {place}, λ = {float(found.values[k]):.4g}")
    pairs = ", ".join(
        f"{float(found.values[k]):.6g} ± {float(found.residuals[k]):.1g}" for k in order
    )
    return Directions(
        origin=theta,
        vectors=torch.stack(columns, dim=1),
        names=tuple(names),
        kind="hessian",
        origin_label=origin_label,
        note=f"eigenvectors of the Hessian, {which}: {pairs} ({found.status})",
    )


def _bulk(
    objective: Objective,
    theta: Float[torch.Tensor, " P"],
    count: int,
    tol: float,
    generator: torch.Generator,
    origin_label: str,
) -> Directions:
    outliers = min(OUTLIERS, len(theta) - count)
    if outliers < 1:
        raise ValueError(
            f"{len(theta)} parameters leave no bulk beside {count} direction(s); take 'both'"
        )
    hessian = Hessian(objective, theta)
    found = eigenvalues(
        hessian, outliers, which="magnitude", tol=tol, vectors=True, generator=generator
    )
    drawn = random_directions(
        objective, theta, norm="none", count=count, exclude=(), generator=generator
    ).vectors.double()
    if found.vectors is not None:
        basis = torch.linalg.qr(found.vectors.double())[0]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            drawn -= basis @ (basis.T @ drawn)
    vectors = torch.linalg.qr(drawn)[0].to(theta.dtype)
    bends = [float(torch.dot(v.double(), (hessian @ v).double())) for v in vectors.T]
    least = float(found.values.abs().min()) if len(found.values) else float("nan")
    return Directions(
        origin=theta,
        vectors=vectors,
        names=tuple(f"bulk {k}, dᵀHd = {bend:.4g}" for k, bend in enumerate(bends, start=1)),
        kind="hessian",
        origin_label=origin_label,
        note=f"random unit directions orthogonal to {len(found.values)} eigenvectors of the "
        f"Hessian with |λ| ≥ {least:.4g} ({found.status})",
    )
