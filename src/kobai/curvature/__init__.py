"""Matrices of an objective at a point: Hessian, Gauss-Newton, Fisher, Jacobian; spectra, traces."""

from kobai.curvature.coverage import Cost, Coverage, Covered
from kobai.curvature.exactness import Exactness, Rung, exactness
from kobai.curvature.fisher import STRUCTURES, Fisher
from kobai.curvature.ggn import GGN, Jacobian
from kobai.curvature.grams import dual_eigenvalues, layer_grams
from kobai.curvature.hessian import Hessian
from kobai.curvature.learning_rate import (
    CriticalLearningRate,
    adam_diagonal,
    critical_learning_rate,
)
from kobai.curvature.scores import Scores
from kobai.curvature.sharded import Sharded
from kobai.curvature.spectrum import measure
from kobai.curvature.structures import EKFACStructure, KroneckerStructure, Structure
from kobai.linalg import density, eigenvalues, trace

__all__ = [
    "GGN",
    "STRUCTURES",
    "Cost",
    "Coverage",
    "Covered",
    "CriticalLearningRate",
    "EKFACStructure",
    "Exactness",
    "Fisher",
    "Hessian",
    "Jacobian",
    "KroneckerStructure",
    "Rung",
    "Scores",
    "Sharded",
    "Structure",
    "adam_diagonal",
    "critical_learning_rate",
    "density",
    "dual_eigenvalues",
    "eigenvalues",
    "exactness",
    "layer_grams",
    "measure",
    "trace",
]
