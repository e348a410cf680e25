"""Matrix-free linear algebra on torch vectors: operators, solves, spectra, traces. Knows no networks."""

from kobai.linalg.eigen import Eigen, eigenvalues
from kobai.linalg.estimate import Estimate, VectorEstimate
from kobai.linalg.operator import (
    Counted,
    Damped,
    LinearOperator,
    Product,
    Scaled,
    Sub,
    Sum,
)
from kobai.linalg.probes import gaussian, rademacher, sphere
from kobai.linalg.trace import squared_frobenius_norm, trace

__all__ = [
    "Counted",
    "Damped",
    "Eigen",
    "Estimate",
    "LinearOperator",
    "Product",
    "Scaled",
    "Sub",
    "Sum",
    "VectorEstimate",
    "eigenvalues",
    "gaussian",
    "rademacher",
    "sphere",
    "squared_frobenius_norm",
    "trace",
]
