"""Extreme eigenpairs in 6 k vectors: block conjugate gradients on the Rayleigh quotient."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.estimators.probes import gaussian
from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.spectra.lanczos import error_bounds
from kobai.linalg.spectra.spectrum import Eigen, Which, thresholds, wanted_indices


def lobpcg(
    operator: LinearOperator,
    k: int,
    *,
    which: Which,
    tol: float,
    max_products: int,
    vectors: bool,
    start: Float[Tensor, "n j"] | None,
    preconditioner: LinearOperator | None,
    generator: torch.Generator,
) -> Eigen:
    """LOBPCG [Knyazev 2001] on an orthonormal basis [Hetmaniuk & Lehoucq 2006].

    Each step extends the space of the k Ritz vectors X and the previous directions P by the
    (preconditioned) residuals W of the pairs not yet accurate, one product each, and takes the best
    k Ritz pairs of all. X and P are orthonormalised through their small coefficients and W before
    it is multiplied, so no product is ever recombined through an ill-conditioned matrix.

    Args:
        operator: the symmetric matrix.
        k: number of eigenpairs.
        which: "largest" or "smallest".
        tol: as in `eigenvalues`.
        max_products: the budget.
        vectors: also return the eigenvectors.
        start: (n, j) vectors to start from.
        preconditioner: approximate inverse, symmetric positive definite.
        generator: source of the random starting vectors.

    Raises:
        ValueError: ``which`` is "both" or "magnitude", 3 k > n, or a preconditioner of another
            shape.
    """
    size = operator.shape[0]
    if which not in ("largest", "smallest"):
        raise ValueError(f"LOBPCG finds the largest or the smallest; got which={which!r}")
    if 3 * k > size:
        raise ValueError(f"LOBPCG needs n >= 3 k; got n={size}, k={k}: use method='dense'")
    if preconditioner is not None and preconditioner.shape != operator.shape:
        raise ValueError(
            f"the preconditioner has shape {preconditioner.shape}, the operator {operator.shape}"
        )
    epsilon = torch.finfo(operator.dtype).eps
    fresh = gaussian(operator, k, generator=generator)
    if start is not None:
        fresh = torch.cat([start, fresh], dim=1)
    space = _orthonormal(fresh, None, limit=k)
    image = (operator @ space).detach()
    basis = images = directions = moved = space[:, :0]
    spent = k
    values = residuals = errors = torch.full((k,), math.nan, dtype=torch.float64)
    while True:
        small = (space.T @ image).to(device="cpu", dtype=torch.float64)
        if not bool(torch.isfinite(small).all()):
            status = "non-finite"
            break
        if float((small - small.T).abs().max()) > math.sqrt(epsilon) * float(small.norm()):
            status = "not-symmetric"
            break
        ritz, columns = torch.linalg.eigh((small + small.T) / 2)
        wanted = wanted_indices(ritz, k, which)
        values, columns = ritz[wanted], columns[:, wanted]
        # Directions first: they combine the old basis, which the next line replaces.
        steps = _new_directions(columns, basis.shape[1])
        directions, moved = space @ steps.to(space), image @ steps.to(space)
        basis, images = space @ columns.to(space), image @ columns.to(space)
        residual = images - basis * values.to(basis)
        residuals = residual.norm(dim=0).to(device="cpu", dtype=torch.float64)
        errors = error_bounds(values, residuals)
        # The innermost pair borders on eigenvalues this space says nothing about.
        border = 0 if which == "largest" else k - 1
        errors[border] = residuals[border]
        late = errors > thresholds(values, list(range(k)), tol, epsilon)
        if not bool(late.any()):
            status = "converged"
            break
        active = residual[:, late.to(residual.device)]
        if preconditioner is not None:
            active = (preconditioner @ active).detach()
        known = torch.cat([basis, directions], dim=1)
        extra = _orthonormal(active, known, limit=max_products - spent)
        if extra.shape[1] == 0:
            status = "max-products" if spent >= max_products else "stagnated"
            break
        space = torch.cat([known, extra], dim=1)
        image = torch.cat([images, moved, (operator @ extra).detach()], dim=1)
        spent += extra.shape[1]
    return Eigen(
        values=values,
        residuals=residuals,
        errors=errors,
        chance_missed=math.nan,
        vectors=basis if vectors and basis.shape[1] else None,
        status=status,
        method="lobpcg",
        num_products=spent,
    )


def _new_directions(columns: Tensor, old: int) -> Tensor:
    """The way of the Ritz vectors off the ``old`` first basis vectors, orthonormal to the new."""
    if old == 0:
        return columns[:, :0]
    steps = columns.clone()
    steps[:old] = 0.0
    steps = steps - columns @ (columns.T @ steps)
    steps = steps - columns @ (columns.T @ steps)
    left, sizes, _ = torch.linalg.svd(steps, full_matrices=False)
    return left[:, sizes > 1e-10]


def _orthonormal(columns: Tensor, known: Tensor | None, limit: int) -> Tensor:
    """Columns made orthonormal to ``known`` and among themselves; dependent ones dropped."""
    epsilon = torch.finfo(columns.dtype).eps
    columns = columns / columns.norm(dim=0).clamp(min=torch.finfo(columns.dtype).tiny)
    for _ in range(3):
        if known is not None:
            columns = columns - known @ (known.T @ columns)
            columns = columns - known @ (known.T @ columns)
        columns, triangle = torch.linalg.qr(columns)
        kept = triangle.diagonal().abs() > 64 * epsilon
        columns = columns[:, kept]
    return columns[:, : max(limit, 0)]
