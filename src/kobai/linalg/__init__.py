"""Matrix-free linear algebra on torch vectors: operators, solves, spectra, traces.

It has never heard of networks: every function takes a `LinearOperator` and torch vectors.
"""

from kobai.linalg.blocks import BlockDiagonal
from kobai.linalg.density import density
from kobai.linalg.eigen import Lanczos, Lobpcg, eigenvalues
from kobai.linalg.estimate import Estimate, VectorEstimate
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
from kobai.linalg.iterative import IterativeInverse, iterative_inverse
from kobai.linalg.leaves import Counted, Dense, Diagonal, Function, Identity
from kobai.linalg.minres import minres
from kobai.linalg.operator import Damped, LinearOperator, Product, Scaled, Sub, Sum
from kobai.linalg.probes import gaussian, rademacher, sphere
from kobai.linalg.quadrature import Curve, Density, Fraction
from kobai.linalg.solution import Solution
from kobai.linalg.solvable import MatrixFunction, SolvableOperator
from kobai.linalg.solve import conjugate_gradient
from kobai.linalg.spectrum import Eigen
from kobai.linalg.structured import Kronecker, KroneckerEigen, inverses, kronecker_product
from kobai.linalg.trace import diagonal, squared_frobenius_norm, trace

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
