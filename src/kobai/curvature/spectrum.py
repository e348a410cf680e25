"""The ends of a spectrum and its trace at one point, as a result to keep."""

import math
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.fisher import Fisher, StructureName
from kobai.curvature.ggn import GGN
from kobai.curvature.hessian import Hessian
from kobai.linalg import LinearOperator, eigenvalues, trace
from kobai.problem import EmpiricalRisk
from kobai.results import Spectrum

MatrixName = Literal[
    "hessian",
    "ggn",
    "fisher-full",
    "fisher-layer",
    "fisher-tridiagonal",
    "fisher-chain",
    "fisher-unit",
    "fisher-kronecker",
    "fisher-ekfac",
    "fisher-diagonal",
    "fisher-observed",
]
"""Curvature matrices by name; "fisher-observed" is the empirical Fisher matrix, the others have
exact labels."""

Which = Literal["largest", "smallest", "both", "magnitude"]


def matrix_of(
    objective: EmpiricalRisk, name: MatrixName, theta: Float[Tensor, " P"] | None = None
) -> LinearOperator:
    """The curvature matrix of a name, as an operator.

    Args:
        objective: The loss.
        name: One of `MatrixName`.
        theta: Where; default: the module's parameters now.

    Raises:
        ValueError: If the name is unknown or the module is not a function of θ.
    """
    if name not in get_args(MatrixName):
        raise ValueError(f"matrix must be one of {list(get_args(MatrixName))}, got {name!r}")
    if name == "hessian":
        return Hessian(objective, theta)
    if name == "ggn":
        return GGN(objective, theta)
    if name == "fisher-observed":
        return Fisher(objective, labels="observed", theta=theta)
    return Fisher(objective, cast(StructureName, name.removeprefix("fisher-")), theta=theta)


def measure(
    objective: EmpiricalRisk,
    theta: Float[Tensor, " P"] | None = None,
    *,
    matrix: MatrixName = "hessian",
    k: int = 5,
    which: Which = "largest",
    tol: float | int = 1e-3,
    trace_tolerance: float | int = 0.02,
    max_products: int = 500,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
    operator: LinearOperator | None = None,
    generator: torch.Generator,
) -> Spectrum:
    """Measure loss, gradient norm, extreme eigenvalues and the trace of a curvature matrix.

    Args:
        objective: The loss; its normalisation is that of all values.
        theta: Where; default: the module's parameters now.
        matrix: Which one.
        k: How many eigenvalues; at most P.
        which: "largest", "smallest", "both" ends (half of k each) or "magnitude".
        tol: Relative accuracy of the eigenvalues.
        trace_tolerance: The trace is estimated until its standard error is this share of it.
        max_products: Budget of products for the eigenvalues, and again for the trace.
        label: Name of the point.
        optimizer: Optimizer that led there.
        seed: Seed of that run.
        operator: That matrix at θ, where it is at hand; else it is made.
        generator: Draws starting vectors and probes.

    Returns:
        The spectrum's ends, with the residual of every eigenvalue, the trace with its standard
        error, and what fell short in `status`. Cost: one gradient and the products it reports.

    Raises:
        ValueError: If the matrix is unknown or the module is not a function of θ.
    """
    if matrix not in get_args(MatrixName):
        raise ValueError(f"matrix must be one of {list(get_args(MatrixName))}, got {matrix!r}")
    theta = objective.theta() if theta is None else theta
    loss, gradient = objective.value_and_grad(theta)
    size = objective.space.dimension
    if not (bool(torch.isfinite(gradient).all()) and math.isfinite(float(loss))):
        return Spectrum(
            label=label, matrix=matrix, dimension=size, eigenvalues=np.empty(0),
            residuals=np.empty(0), trace=math.nan, trace_error=math.nan,
            gradient_norm=math.nan, loss=float(loss),
            num_products=0, status="non-finite", note="the loss or its gradient is not finite",
            optimizer=optimizer, seed=seed,
        )  # fmt: skip
    operator = matrix_of(objective, matrix, theta) if operator is None else operator
    ends = eigenvalues(
        operator, min(k, size), which=which, tol=float(tol), max_products=max_products,
        generator=generator,
    )  # fmt: skip
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
