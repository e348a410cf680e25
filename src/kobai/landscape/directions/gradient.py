"""Directions that training itself takes: against the gradient, along an update."""

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.gaussian import random_directions
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective


def gradient_directions(
    objective: Objective,
    theta: Float[Tensor, " P"] | None = None,
    *,
    update: Float[Tensor, " P"] | None = None,
    count: int = 2,
    generator: torch.Generator,
    origin_label: str = "origin",
) -> Directions:
    """Unit directions: steepest descent, then an optimizer's update, then random ones.

    The first is −∇L/‖∇L‖: the slope of the loss along it at the origin is −‖∇L‖. Random ones are
    Gaussian in all parameters and made orthogonal to those before; an update is taken as it points,
    so that its cosine with steepest descent can be read off `Directions.report`.

    Args:
        objective: Whose gradient.
        theta: The origin; default: the module's parameters now.
        update: What an optimizer added to θ, such as the difference of two snapshots.
        count: How many, 1 to 3.
        generator: Draws the random ones.
        origin_label: What lies at the origin.

    Returns:
        The directions. Cost: one gradient.

    Raises:
        ValueError: If the gradient or the update is zero or not finite, or the update is parallel
            to the gradient.
    """
    if not 1 <= count <= 3:
        raise ValueError(f"count must be 1, 2 or 3, got {count}")
    theta = objective.theta() if theta is None else theta
    gradient = objective.grad(theta).double()
    norm = float(gradient.norm())
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"the gradient has norm {norm}, which gives no direction; use random_directions"
        )
    columns, names = [-gradient / norm], ["steepest descent"]
    if update is not None and count > 1:
        length = float(update.double().norm())
        if not 0 < length < float("inf"):
            raise ValueError(f"the update has norm {length}, which gives no direction")
        columns.append(update.to(theta.device).double() / length)
        names.append("update")
    while len(columns) < count:
        drawn = random_directions(
            objective, theta, norm="none", count=1, exclude=(), generator=generator
        )
        vector = drawn.vectors[:, 0].double()
        basis = torch.linalg.qr(torch.stack(columns, dim=1))[0]
        for _ in range(2):  # twice is enough for orthogonality to rounding
            vector = vector - basis @ (basis.T @ vector)
        columns.append(vector / vector.norm())
        names.append("random")
    return Directions(
        origin=theta,
        vectors=torch.stack(columns, dim=1).to(theta.dtype),
        names=tuple(names),
        kind="gradient",
        origin_label=origin_label,
        note=f"unit directions; the gradient's norm at the origin is {norm:.4g}",
    )
