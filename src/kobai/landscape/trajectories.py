"""Paths of training runs seen from a plane: where they pass, how far off, and their true loss."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.pca import pca_directions
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective
from kobai.results import Trajectory


def project_trajectory(
    objective: Objective,
    directions: Directions,
    thetas: Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]],
    *,
    label: str,
    optimizer: str = "",
) -> Trajectory:
    """Project a path on the plane by least squares.

    Coordinates are right for directions of any length and angle. What the projection leaves out is
    not hidden: the distance to the plane and the loss at the path's own points (not at their
    projections) come with it.

    Args:
        objective: Whose loss.
        directions: Two directions.
        thetas: Points of the path in order.
        label: Name of the run.
        optimizer: Its optimizer.

    Returns:
        The trajectory. Cost: one evaluation per point.

    Raises:
        ValueError: If there are not two directions, no points, or points of another length.
    """
    if directions.count != 2:
        raise ValueError(f"a trajectory is drawn on two directions, got {directions.count}")
    if len(thetas) == 0:
        raise ValueError(f"trajectory {label!r} has no points")
    coordinates, off_plane = directions.project(thetas)
    origin = directions.origin
    losses = [float(objective.value(theta.to(origin.device, origin.dtype))) for theta in thetas]
    return Trajectory(
        label=label,
        coordinates=coordinates.numpy(),
        off_plane=off_plane.numpy(),
        loss=np.array(losses),
        optimizer=optimizer,
    )


def joint_directions(
    point: Float[Tensor, " P"],
    paths: Mapping[str, Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]]],
    *,
    label: str = "true minimum",
    count: int = 2,
) -> Directions:
    """Find a plane for several runs that holds a given point: PCA of their points about it.

    Args:
        point: What the plane shall hold, such as a true minimum; it lies at (0, 0).
        paths: Label to points of a run, in order.
        label: Name of the point.
        count: How many directions.

    Returns:
        Unit directions; the ends of the runs are marked. `explained` is the share of the squared
        distances from the point that the plane shows.

    Raises:
        ValueError: If the points span fewer directions.
    """
    if label in paths:
        raise ValueError(f"a run is called {label!r} like the point; rename one of them")
    return pca_directions({label: [point], **paths}, count=count, origin="last")
