"""Matrices of an objective at a point: Hessian, Gauss-Newton, Jacobian; spectra and traces."""

from kobai.curvature.ggn import GGN, Jacobian
from kobai.curvature.hessian import Hessian
from kobai.curvature.spectrum import measure
from kobai.linalg import eigenvalues, trace

__all__ = ["GGN", "Hessian", "Jacobian", "eigenvalues", "measure", "trace"]
