"""Activations by name."""

from collections.abc import Callable

from kobai.theory.activations.activation import GELU, Activation, Erf, LeakyReLU, Linear
from kobai.theory.activations.hard_tanh import HardTanh
from kobai.theory.activations.hermite import tanh

ACTIVATIONS: dict[str, Callable[[], Activation]] = {
    "linear": Linear,
    "relu": lambda: LeakyReLU(0.0),
    "leaky-relu": LeakyReLU,
    "erf": Erf,
    "tanh": tanh,
    "gelu": GELU,
    "hard-tanh": HardTanh,
}
"""The activations that `activation` knows by name; ``leaky-relu`` has slope 0.01."""


def activation(name: str | Activation) -> Activation:
    """The activation of a name; an activation is returned as it is.

    Args:
        name: One of `ACTIVATIONS`, with - or _; or an `Activation`, such as ``LeakyReLU(0.2)`` or
            ``Smooth(function, derivative, name="softplus")``.

    Returns:
        The activation.

    Raises:
        ValueError: If the name is not known.
    """
    if isinstance(name, Activation):
        return name
    key = name.lower().replace("_", "-")
    key = {"leakyrelu": "leaky-relu", "hardtanh": "hard-tanh", "identity": "linear"}.get(key, key)
    if key not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}; or pass an Activation"
        )
    return ACTIVATIONS[key]()
