"""Directions through parameter space: random, between runs, along paths, by curvature or slope."""

from kobai.landscape.directions.between import between_directions
from kobai.landscape.directions.gaussian import random_directions
from kobai.landscape.directions.gradient import gradient_directions
from kobai.landscape.directions.hessian import eigen_directions
from kobai.landscape.directions.pca import pca_directions
from kobai.landscape.directions.subspace import Directions, DirectionsReport, vector_directions

__all__ = [
    "Directions",
    "DirectionsReport",
    "between_directions",
    "eigen_directions",
    "gradient_directions",
    "pca_directions",
    "random_directions",
    "vector_directions",
]
