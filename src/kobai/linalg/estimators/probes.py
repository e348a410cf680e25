"""Random probes, drawn on the generator's own device: a seed means the same everywhere."""

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.operators.operator import LinearOperator


def rademacher(
    operator: LinearOperator, count: int, *, generator: torch.Generator
) -> Float[Tensor, "n count"]:
    """Columns of independent signs, each -1 or +1 with probability one half.

    Args:
        operator: gives length, dtype and device of the columns.
        count: number of columns.
        generator: source of randomness; its device need not be the operator's.
    """
    signs = torch.randint(
        0,
        2,
        (count, operator.shape[1]),
        generator=generator,
        device=generator.device,
        dtype=torch.int8,
    )
    return (2 * signs - 1).to(device=operator.device, dtype=operator.dtype).T


def gaussian(
    operator: LinearOperator, count: int, *, generator: torch.Generator
) -> Float[Tensor, "n count"]:
    """Columns of independent standard normal entries.

    Args:
        operator: gives length, dtype and device of the columns.
        count: number of columns.
        generator: source of randomness; its device need not be the operator's.
    """
    # Drawn in float64 row by row: the first columns of a larger draw equal a smaller draw,
    # and a float32 operator meets the float64 one's vectors, rounded.
    values = torch.randn(
        count, operator.shape[1], generator=generator, device=generator.device, dtype=torch.float64
    )
    return values.to(device=operator.device, dtype=operator.dtype).T


def sphere(
    operator: LinearOperator, count: int, *, generator: torch.Generator
) -> Float[Tensor, "n count"]:
    """Columns of unit length, uniform over all directions.

    Args:
        operator: gives length, dtype and device of the columns.
        count: number of columns.
        generator: source of randomness; its device need not be the operator's.
    """
    columns = gaussian(operator, count, generator=generator)
    return columns / columns.norm(dim=0)
