"""Matrix-free linear algebra on torch vectors: operators, solves, spectra, traces.

It has never heard of networks: every function takes a `LinearOperator` and torch vectors.
"""

from kobai.linalg.estimators.estimate import Estimate, VectorEstimate
from kobai.linalg.estimators.probes import gaussian, rademacher, sphere
from kobai.linalg.estimators.trace import diagonal, squared_frobenius_norm, trace
from kobai.linalg.factor import (
    JITTERS,
    LU,
    Factor,
    Spectral,
    cholesky,
    cholesky_many,
    eigh,
    eigh_many,
    lu,
)
from kobai.linalg.operators.blocks import BlockDiagonal
from kobai.linalg.operators.kronecker import Kronecker, KroneckerEigen, inverses, kronecker_product
from kobai.linalg.operators.leaves import Counted, Dense, Diagonal, Function, Identity
from kobai.linalg.operators.operator import Damped, LinearOperator, Product, Scaled, Sub, Sum
from kobai.linalg.operators.solvable import MatrixFunction, SolvableOperator
from kobai.linalg.solvers.conjugate_gradient import conjugate_gradient
from kobai.linalg.solvers.iterative import IterativeInverse, iterative_inverse
from kobai.linalg.solvers.minres import minres
from kobai.linalg.solvers.solution import Solution
from kobai.linalg.spectra.density import density
from kobai.linalg.spectra.eigen import Lanczos, Lobpcg, eigenvalues
from kobai.linalg.spectra.quadrature import Curve, Density, Fraction
from kobai.linalg.spectra.spectrum import Eigen

__all__ = [
    "JITTERS",
    "LU",
    "BlockDiagonal",
    "Counted",
    "Curve",
    "Damped",
    "Dense",
    "Density",
    "Diagonal",
    "Eigen",
    "Estimate",
    "Factor",
    "Fraction",
    "Function",
    "Identity",
    "IterativeInverse",
    "Kronecker",
    "KroneckerEigen",
    "Lanczos",
    "LinearOperator",
    "Lobpcg",
    "MatrixFunction",
    "Product",
    "Scaled",
    "Solution",
    "SolvableOperator",
    "Spectral",
    "Sub",
    "Sum",
    "VectorEstimate",
    "cholesky",
    "cholesky_many",
    "conjugate_gradient",
    "density",
    "diagonal",
    "eigenvalues",
    "eigh",
    "eigh_many",
    "gaussian",
    "inverses",
    "iterative_inverse",
    "kronecker_product",
    "lu",
    "minres",
    "rademacher",
    "sphere",
    "squared_frobenius_norm",
    "trace",
]
