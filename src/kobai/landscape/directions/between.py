"""The plane through the end points of several runs."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.gaussian import random_directions
from kobai.landscape.directions.pca import principal_directions
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective, ParameterSpace


def between_directions(
    thetas: Mapping[str, Float[Tensor, " P"]],
    *,
    count: int = 2,
    space: ParameterSpace | Objective | None = None,
    generator: torch.Generator | None = None,
) -> Directions:
    """Directions that hold the end points of runs, which become marked points.

    The first run lies at (0, 0) and the second at (1, 0). The second direction is orthogonal to the
    first and as long, so that the picture is to scale:

    - three runs: the plane through all of them, exactly;
    - two runs: the second direction is random, filter-normalised with `space`, else Gaussian;
    - more runs: the best plane in the least-squares sense (PCA of the end points about their mean),
      with the mean at (0, 0) and unit directions; the runs lie near it, not in it.

    Args:
        thetas: Label to end point, at least two.
        count: 2 for a plane, 1 for the line through two runs.
        space: Whose filters the random direction of two runs follows.
        generator: Draws it; needed for a plane through two runs only.

    Raises:
        ValueError: If there are too few runs, end points coincide or lie on a line.
    """
    labels, points = list(thetas), list(thetas.values())
    if len(points) < 2:
        raise ValueError(f"at least two runs are needed, got {labels}; use random_directions")
    if len({tuple(point.shape) for point in points}) != 1:
        raise ValueError("the runs' parameter vectors differ in length; they need one model")
    if count not in (1, 2):
        raise ValueError(f"count must be 1 or 2, got {count}")
    if count == 1 and len(points) != 2:
        raise ValueError(f"a line goes through two runs, got {len(points)}")
    if len(points) > 3:
        return principal_directions(
            points, 2, None, kind="between", label="mean of the runs", marked=thetas
        )
    origin = points[0]
    first = points[1].double() - origin.double()
    length = first.norm()
    if not bool(length > 0):
        raise ValueError(
            f"the runs {labels[0]!r} and {labels[1]!r} end at the same point; nothing lies between"
        )
    marked = {labels[0]: (0.0,) * count, labels[1]: (1.0, 0.0)[:count]}
    names = [f"{labels[1]} - {labels[0]}"]
    vectors = [first]
    note = ""
    if count == 2:
        if len(points) == 3:
            second = points[2].double() - origin.double()
            names.append(f"towards {labels[2]}")
            note = "exact plane through three runs; second direction orthogonal, to scale"
        else:
            second = _random_second(origin, space, generator).double()
            names.append("random, orthogonal")
            note = "line through two runs and a random orthogonal direction of the same length"
        away = second - torch.dot(second, first) / length**2 * first
        away -= torch.dot(away, first) / length**2 * first  # rounding, when nearly parallel
        if not bool(away.norm() > 1e-5 * second.norm()):
            raise ValueError(
                f"the end points of {labels} lie on a line; leave one out and use a random second "
                "direction"
            )
        if len(points) == 3:
            height = float(away.norm() / length)
            along = float(torch.dot(second, first) / length**2)
            marked[labels[2]] = (along, height)
        vectors.append(away * (length / away.norm()))
    return Directions(
        origin=origin,
        vectors=torch.stack(vectors, dim=1).to(origin.dtype),
        names=tuple(names),
        kind="between",
        origin_label=labels[0],
        points=marked,
        note=note,
    )


def _random_second(
    origin: Tensor, space: ParameterSpace | Objective | None, generator: torch.Generator | None
) -> Tensor:
    if generator is None:
        raise ValueError(
            "a plane through two runs takes a random second direction; pass generator=, give a "
            "third run, or ask for the line by count=1"
        )
    if space is not None:
        return random_directions(space, origin, count=1, generator=generator).vectors[:, 0]
    return torch.randn(
        origin.shape, generator=generator, device=generator.device, dtype=torch.float64
    ).to(origin.device)
