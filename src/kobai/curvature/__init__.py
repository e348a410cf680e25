"""Matrices of an objective at a point: Hessian, Gauss-Newton, Fisher, Jacobian; spectra, traces."""

from kobai.curvature.coverage import Cost, Coverage, Covered
from kobai.curvature.critical_rates import AdamPoint, critical_rates, measure_ladder
from kobai.curvature.exactness import Exactness, Rung, exactness
from kobai.curvature.fisher import STRUCTURES, Fisher
from kobai.curvature.ggn import GGN, Jacobian
from kobai.curvature.hessian import Hessian
from kobai.curvature.layer_grams import dual_eigenvalues, layer_grams
from kobai.curvature.learning_rate import (
    CriticalLearningRate,
    adam_diagonal,
    critical_learning_rate,
)
from kobai.curvature.scores import Scores
from kobai.curvature.sharded import Sharded
from kobai.curvature.spectral_density import layer_densities, measure_density
from kobai.curvature.spectrum import matrix_of, measure
from kobai.curvature.structures import EKFACStructure, KroneckerStructure, Structure
from kobai.layers import register_layer
from kobai.linalg import density, eigenvalues, trace

__all__ = [
    "GGN",
    "STRUCTURES",
    "AdamPoint",
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
    "critical_rates",
    "density",
    "dual_eigenvalues",
    "eigenvalues",
    "exactness",
    "layer_densities",
    "layer_grams",
    "matrix_of",
    "measure",
    "measure_density",
    "measure_ladder",
    "register_layer",
    "trace",
]
