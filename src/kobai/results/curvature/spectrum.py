"""Curvature at one point: some eigenvalues and the trace."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.look import Look
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """Eigenvalues and trace of a curvature matrix of dimension P at one point.

    Attributes:
        label: Name of the run or point.
        matrix: Which matrix: ``hessian``, ``ggn``, ….
        dimension: P, the number of parameters.
        eigenvalues: (k,) some of its eigenvalues, ascending.
        residuals: (k,) norms of A v − λ v of unit eigenvectors: |error of λ| is at most this.
        trace: Estimate of the trace.
        trace_error: Its standard error; 0 for an exact trace, NaN when unknown.
        gradient_norm: Euclidean norm of the gradient at the point.
        loss: Value of the objective at the point.
        num_products: Matrix-vector products spent.
        status: ``converged`` or what went wrong.
        note: Anything worth saying.
        optimizer: Optimizer that led to the point; empty when none did.
        seed: Seed of that run, or None.
        look: Look of the optimizer in figures, or None.
    """

    label: str
    matrix: str
    dimension: int
    eigenvalues: Float[np.ndarray, "k"]
    residuals: Float[np.ndarray, "k"]
    trace: float
    trace_error: float
    gradient_norm: float
    loss: float
    num_products: int
    status: str
    note: str = ""
    optimizer: str = ""
    seed: int | None = None
    look: Look | None = None

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"eigenvalues": "f k", "residuals": "f k"},
            floats=("trace", "trace_error", "gradient_norm", "loss"),
            integers=("dimension", "num_products", *(("seed",) if self.seed is not None else ())),
        )
        finite = self.eigenvalues[np.isfinite(self.eigenvalues)]
        if np.any(np.diff(finite) < 0):
            raise ValueError("Spectrum.eigenvalues must be ascending; sort them with residuals")
        if len(self.eigenvalues) > self.dimension:
            raise ValueError(
                f"Spectrum has {len(self.eigenvalues)} eigenvalues of a matrix of dimension "
                f"{self.dimension}"
            )
