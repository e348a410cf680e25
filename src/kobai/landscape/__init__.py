"""The loss seen from above: directions through parameter space and surfaces that prove themselves.

Directions first (`random_directions`, `between_directions`, `pca_directions`, `eigen_directions`,
`vector_directions`), then `evaluate_line`, `evaluate_plane` or `evaluate_volume`.
"""

from kobai.landscape.checks.values import raise_if_failed
from kobai.landscape.critical_points import critical_points
from kobai.landscape.curves import Curve, barrier, connect
from kobai.landscape.directions.between import between_directions
from kobai.landscape.directions.gaussian import random_directions
from kobai.landscape.directions.gradient import gradient_directions
from kobai.landscape.directions.hessian import eigen_directions
from kobai.landscape.directions.pca import pca_directions
from kobai.landscape.directions.subspace import Directions, DirectionsReport, vector_directions
from kobai.landscape.ensembles import evaluate_ensemble, median_smoothness
from kobai.landscape.moving_frame import frame_directions, moving_frame
from kobai.landscape.options import Estimate, GridOptions
from kobai.landscape.relabel import relabelled
from kobai.landscape.smoothness import smoothness
from kobai.landscape.solutions import classify
from kobai.landscape.surfaces import evaluate_line, evaluate_plane, evaluate_volume
from kobai.landscape.trajectories import joint_directions, project_trajectory
from kobai.landscape.true_minimum import TrueMinimum, true_minimum

__all__ = [
    "Curve",
    "Directions",
    "DirectionsReport",
    "Estimate",
    "GridOptions",
    "TrueMinimum",
    "barrier",
    "between_directions",
    "classify",
    "connect",
    "critical_points",
    "eigen_directions",
    "evaluate_ensemble",
    "evaluate_line",
    "evaluate_plane",
    "evaluate_volume",
    "frame_directions",
    "gradient_directions",
    "joint_directions",
    "median_smoothness",
    "moving_frame",
    "pca_directions",
    "project_trajectory",
    "raise_if_failed",
    "random_directions",
    "relabelled",
    "smoothness",
    "true_minimum",
    "vector_directions",
]
