"""Activation functions by name, as modules."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models.validation import require_choice, require_positive

__all__ = ["ACTIVATIONS", "ActivationName", "Erf", "Maxout", "activation"]

ActivationName = Literal[
    "relu", "tanh", "erf", "gelu", "hardtanh", "leaky_relu", "sigmoid", "linear", "maxout"
]

#: Every activation that a family accepts.
ACTIVATIONS: tuple[str, ...] = get_args(ActivationName)


class Erf(nn.Module):
    """The error function, erf(u) itself and not erf(u/√2): the activation of the erf kernels."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Apply erf to every entry."""
        return torch.erf(x)


class Maxout(nn.Module):
    """The largest of several linear pieces per unit.

    Unit j of M is max over i < pieces of channel j·pieces + i, so the layer below must have
    pieces · M outputs. Source: Goodfellow et al. 2013, "Maxout Networks", equation for h_i(x).

    Args:
        pieces: Linear pieces per unit, 2 or more.

    Raises:
        ValueError: If there are fewer than two pieces.
    """

    def __init__(self, pieces: int = 2) -> None:
        super().__init__()
        if pieces < 2:
            raise ValueError(f"maxout takes the largest of at least 2 pieces, got pieces={pieces}")
        self.pieces = pieces

    def forward(self, x: Float[Tensor, "N channels *rest"]) -> Float[Tensor, "N units *rest"]:
        """Reduce pieces · M channels on axis 1 to M."""
        return x.unflatten(1, (-1, self.pieces)).amax(2)

    def extra_repr(self) -> str:
        """The number of pieces, for printing."""
        return f"pieces={self.pieces}"


def activation(name: str, *, pieces: int = 2) -> nn.Module:
    """Make an activation by name.

    Args:
        name: One of `ACTIVATIONS`. gelu is the exact one (with erf), leaky_relu has slope 0.01,
            hardtanh clips to [-1, 1], linear is the identity.
        pieces: Linear pieces per unit; only maxout reads it.

    Returns:
        A module without parameters; nothing works in place.

    Raises:
        ValueError: If the name is unknown.
    """
    require_choice("activation", name, ACTIVATIONS)
    require_positive("pieces", pieces)
    match name:
        case "relu":
            return nn.ReLU()
        case "tanh":
            return nn.Tanh()
        case "erf":
            return Erf()
        case "gelu":
            return nn.GELU()
        case "hardtanh":
            return nn.Hardtanh()
        case "leaky_relu":
            return nn.LeakyReLU()
        case "sigmoid":
            return nn.Sigmoid()
        case "maxout":
            return Maxout(pieces)
        case _:
            return nn.Identity()
