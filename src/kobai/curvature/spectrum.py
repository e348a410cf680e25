"""The ends of a spectrum and its trace at one point, as a result to keep."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.ggn import GGN
from kobai.curvature.hessian import Hessian
from kobai.linalg import LinearOperator, eigenvalues, trace
from kobai.problem import EmpiricalRisk
from kobai.results import Spectrum

MatrixName = Literal["hessian", "ggn"]

MATRICES: dict[str, type[Hessian] | type[GGN]] = {"hessian": Hessian, "ggn": GGN}


def measure(
    objective: EmpiricalRisk,
    theta: Float[Tensor, " P"] | None = None,
    *,
    matrix: MatrixName = "hessian",
    k: int = 5,
    tol: float | int = 1e-3,
    trace_tolerance: float | int = 0.02,
    max_products: int = 500,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
    generator: torch.Generator,
) -> Spectrum:
    """Measure loss, gradient norm, the largest eigenvalues and the trace of a curvature matrix.

    Args:
        objective: The loss; its normalisation is that of all values.
        theta: Where; default: the module's parameters now.
        matrix: "hessian" or "ggn".
        k: How many of the largest eigenvalues; at most P.
        tol: Relative accuracy of the eigenvalues.
        trace_tolerance: The trace is estimated until its standard error is this share of it.
        max_products: Budget of products for the eigenvalues, and again for the trace.
        label: Name of the point.
        optimizer: Optimizer that led there.
        seed: Seed of that run.
        generator: Draws starting vectors and probes.

    Returns:
        The spectrum's ends, with the residual of every eigenvalue, the trace with its standard
        error, and what fell short in `status`. Cost: one gradient and the products it reports.

    Raises:
        ValueError: If the matrix is unknown or the module is not a function of θ.
    """
    if matrix not in MATRICES:
        raise ValueError(f"matrix must be one of {sorted(MATRICES)}, got {matrix!r}")
    theta = objective.theta() if theta is None else theta
    loss, gradient = objective.value_and_grad(theta)
    size = objective.space.dimension
    if not (bool(torch.isfinite(gradient).all()) and math.isfinite(float(loss))):
        return Spectrum(
            label=label, matrix=matrix, dimension=size, eigenvalues=[], residuals=[],
            trace=math.nan, trace_error=math.nan, gradient_norm=math.nan, loss=float(loss),
            num_products=0, status="non-finite", note="the loss or its gradient is not finite",
            optimizer=optimizer, seed=seed,
        )  # fmt: skip
    operator: LinearOperator = MATRICES[matrix](objective, theta)
    ends = eigenvalues(
        operator, min(k, size), tol=float(tol), max_products=max_products, generator=generator
    )
    estimate = trace(
        operator, tolerance=float(trace_tolerance), max_products=max_products, generator=generator
    )
    short = [
        f"{what}: {status}"
        for what, status in (("eigenvalues", ends.status), ("trace", estimate.status))
        if status not in ("converged", "exact")
    ]
    return Spectrum(
        label=label,
        matrix=matrix,
        dimension=size,
        eigenvalues=ends.values.double().cpu().numpy(),
        residuals=ends.residuals.double().cpu().numpy(),
        trace=estimate.value,
        trace_error=estimate.standard_error,
        gradient_norm=float(torch.linalg.vector_norm(gradient)),
        loss=float(loss),
        num_products=ends.num_products + estimate.num_products,
        status="; ".join(short) or "converged",
        note=f"{objective.size} examples",
        optimizer=optimizer,
        seed=seed,
    )
