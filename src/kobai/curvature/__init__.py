"""Matrices of an objective at a point: Hessian, Gauss-Newton, Fisher, Jacobian; spectra, traces."""

from kobai.curvature.coverage import Cost, Coverage, Covered
from kobai.curvature.fisher import STRUCTURES, Fisher
from kobai.curvature.ggn import GGN, Jacobian
from kobai.curvature.hessian import Hessian
from kobai.curvature.scores import Scores
from kobai.curvature.spectrum import measure
from kobai.curvature.structures import EKFACStructure, KroneckerStructure, Structure
from kobai.linalg import eigenvalues, trace

__all__ = [
    "GGN",
    "STRUCTURES",
    "Cost",
    "Coverage",
    "Covered",
    "EKFACStructure",
    "Fisher",
    "Hessian",
    "Jacobian",
    "KroneckerStructure",
    "Scores",
    "Structure",
    "eigenvalues",
    "measure",
    "trace",
]
