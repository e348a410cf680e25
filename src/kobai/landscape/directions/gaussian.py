"""Random directions, scaled so that pictures of different networks can be compared."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.selection import excluded_parameters
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective, ParameterSpace

Norm = Literal["filter", "layer", "global", "none"]


def random_directions(
    space: ParameterSpace | Objective,
    theta: Float[Tensor, " P"] | None = None,
    *,
    norm: Norm = "filter",
    count: int = 2,
    generator: torch.Generator,
    exclude: Sequence[str] = ("bias", "norm"),
    only: Sequence[str] = (),
    origin_label: str = "origin",
) -> Directions:
    """Gaussian directions through θ, scaled filter by filter, layer by layer, or as a whole.

    Every coordinate is a standard normal draw in float64, whatever the dtype and whatever is
    excluded, so that a generator's state names one direction. Directions are not orthogonalised:
    independent draws in many dimensions nearly are, and `Directions.orthogonal` does it on request.

    Args:
        space: The parameters, or an objective that has them.
        theta: The origin; default: the module's parameters now.
        norm: "filter": every row of every weight (the weights into one unit or channel, and every
            parameter of fewer than two axes as one) gets the norm of the same row of θ (Li et al.
            2018, Visualizing the loss landscape of neural nets, §4); "layer": the same for all
            moved parameters of a layer together; "global": unit norm as a whole, δ/‖δ‖₂; "none":
            as drawn, norm about √P.
        count: How many, 1 to 3.
        generator: Draws them; a CPU generator gives the same directions on every device.
        exclude: Filters of parameters that stay where they are: "bias", "norm" (normalisation
            layers), "vectors" (all with fewer than two axes), "embedding", or shell patterns on
            parameter names. Default: biases and normalisation layers; moved by their own norm,
            which is often near zero, they say little and can overflow.
        only: Shell patterns on parameter names, such as "layers.0.*": all others stay where they
            are too. Default: no further limit. The landscape of one layer is that of its
            parameters, and the cheaper the later the layer comes.
        origin_label: What lies at the origin.

    Returns:
        The directions. Cost: a few passes over vectors of length P.

    Raises:
        ValueError: If everything is excluded, or every filter of θ is zero under "filter" or
            "layer".
    """
    space = space.space if isinstance(space, Objective) else space
    theta = space.theta() if theta is None else theta
    if norm not in ("filter", "layer", "global", "none"):
        raise ValueError(f"norm must be 'filter', 'layer', 'global' or 'none', got {norm!r}")
    if not 1 <= count <= 3:
        raise ValueError(f"count must be 1, 2 or 3, got {count}")
    still = excluded_parameters(space, exclude, only=only)
    vectors = []
    for _ in range(count):
        draws = {
            name: torch.randn(
                shape, generator=generator, device=generator.device, dtype=torch.float64
            ).to(theta.device)
            for name, shape in zip(space.names, space.shapes, strict=True)
        }
        for name in still:
            draws[name].zero_()
        scale_like(draws, space.unflatten(theta), norm)
        vectors.append(space.flatten(draws).to(theta.dtype))
    block = torch.stack(vectors, dim=1)
    if norm in ("filter", "layer") and not bool(block.any()):
        raise ValueError(
            f"every {norm} of theta has norm zero, so norm={norm!r} leaves no direction; "
            "use norm='global'"
        )
    note = f"Gaussian, norm={norm}" + (f", without {', '.join(exclude)}" if exclude else "")
    if only:
        note += f", only {', '.join(only)}"
    return Directions(
        origin=theta,
        vectors=block,
        names=tuple(f"random {i + 1}" for i in range(count)),
        kind="random",
        origin_label=origin_label,
        note=note,
    )


def scale_like(draws: dict[str, Tensor], theta: dict[str, Tensor], norm: Norm) -> None:
    """Scale float64 tensors in place to the norms of the same parts of θ.

    A part whose norm in θ is zero becomes zero: the direction cannot leave it.
    """
    if norm == "none":
        return
    if norm == "global":
        total = torch.sqrt(sum((d.square().sum() for d in draws.values()), torch.zeros(())))
        for draw in draws.values():
            draw /= total
        return
    if norm == "filter":
        for name, draw in draws.items():
            # A view of one row a filter; parameters with fewer than two axes are one filter.
            rows = draw.view(draw.shape[0] if draw.ndim > 1 else 1, -1)
            like = theta[name].double().reshape(rows.shape)
            rows *= _ratio(like.norm(dim=1), rows.norm(dim=1)).unsqueeze(1)
        return
    layers: dict[str, list[str]] = {}
    for name, draw in draws.items():
        if bool(draw.any()):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    for names in layers.values():
        like = torch.stack([theta[n].double().norm() for n in names]).norm()
        have = torch.stack([draws[n].norm() for n in names]).norm()
        for n in names:
            draws[n] *= _ratio(like, have)


def _ratio(wanted: Tensor, have: Tensor) -> Tensor:
    """wanted / have, and 0 where there is nothing to scale (an excluded part)."""
    return torch.where(have > 0, wanted / torch.where(have > 0, have, 1.0), 0.0)
