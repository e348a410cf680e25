"""The loss seen from above: directions through parameter space and surfaces that prove themselves.

Directions first (`random_directions`, `between_directions`, `pca_directions`, `eigen_directions`,
`vector_directions`), then `evaluate_plane` or `evaluate_line`.
"""

from kobai.landscape.between import between_directions
from kobai.landscape.checks import raise_if_failed
from kobai.landscape.directions import Directions, DirectionsReport, vector_directions
from kobai.landscape.pca import pca_directions
from kobai.landscape.planes import evaluate_line, evaluate_plane
from kobai.landscape.sampled import random_directions
from kobai.landscape.spectral import eigen_directions
from kobai.landscape.trajectories import project_trajectory
from kobai.landscape.true_minimum import TrueMinimum, true_minimum

__all__ = [
    "Directions",
    "DirectionsReport",
    "TrueMinimum",
    "between_directions",
    "eigen_directions",
    "evaluate_line",
    "evaluate_plane",
    "pca_directions",
    "project_trajectory",
    "raise_if_failed",
    "random_directions",
    "true_minimum",
    "vector_directions",
]
