"""Descriptions of networks as layers, for infinite-width kernels: written down, or read off torch.

A description is a tuple of `Dense`, `Nonlinearity`, `Normalize` and `Residual`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kobai.theory.activations.activation import GELU, Activation, Erf, LeakyReLU
from kobai.theory.activations.hard_tanh import HardTanh
from kobai.theory.activations.hermite import tanh
from kobai.theory.activations.lookup import activation
from kobai.theory.network import WideNetwork


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A linear layer, W h + b with W_ij ~ N(0, weight_variance/fan_in), b ~ N(0, bias_variance).

    Attributes:
        fan_in: Number of inputs; matters to the standard parameterisation only.
        weight_variance: σ_w².
        bias_variance: σ_b².
        bias: Whether the bias is trained.
    """

    fan_in: int
    weight_variance: float | int
    bias_variance: float | int = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        if self.fan_in < 1:
            raise ValueError(f"fan_in is a positive number, got {self.fan_in}")
        if not (0 <= self.weight_variance < float("inf")):
            raise ValueError(f"weight_variance is not negative, got {self.weight_variance}")
        if not (0 <= self.bias_variance < float("inf")):
            raise ValueError(f"bias_variance is not negative, got {self.bias_variance}")
        if not self.bias and self.bias_variance:
            raise ValueError("a layer without bias has bias_variance 0")


@dataclass(frozen=True, kw_only=True)
class Nonlinearity:
    """An activation applied entry by entry to Gaussian pre-activations.

    Attributes:
        activation: A name or an `Activation`.
    """

    activation: str | Activation

    @property
    def phi(self) -> Activation:
        """The activation itself."""
        return activation(self.activation)


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Layer normalisation over the units of an example, without trained scale and shift."""


@dataclass(frozen=True, kw_only=True)
class Residual:
    """The sum h + branch(h).

    Its kernels are the sums of both parts' kernels where the branch ends in a `Dense` layer with
    weights of its own, whose zero mean removes the cross terms; that is required.

    Attributes:
        branch: The layers of the branch.
    """

    branch: tuple["Layer", ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "branch", tuple(self.branch))
        if not self.branch or not isinstance(self.branch[-1], Dense):
            raise ValueError(
                "a residual branch ends in Dense: with a nonlinearity last the cross terms do not "
                "vanish, and theory has no sum"
            )


Layer: TypeAlias = Dense | Nonlinearity | Normalize | Residual


def layers_of_network(network: WideNetwork) -> tuple[Layer, ...]:
    """The layers of a `WideNetwork`.

    Raises:
        ValueError: With hidden batch normalisation, which has no kernel of a pair of inputs.
    """
    if network.hidden_normalization == "batch" and network.depth > 1:
        raise ValueError(
            "batch normalisation makes a kernel depend on the whole batch: no infinite-width kernel"
        )
    layers: list[Layer] = []
    for i, fan_in in enumerate(network.widths[:-1]):
        layers.append(
            Dense(
                fan_in=fan_in,
                weight_variance=network.weight_variance,
                bias_variance=network.bias_variance,
                bias=network.bias,
            )
        )
        if i < network.depth - 1:
            if network.hidden_normalization == "layer":
                layers.append(Normalize())
            layers.append(Nonlinearity(activation=network.phi))
    return tuple(layers)


def layers_of_module(
    module: Any,
    *,
    weight_variance: float | int | None = None,
    bias_variance: float | int | None = None,
) -> tuple[Layer, ...]:
    """Read a description off a module, by the names of its types; the weights' values are not read.

    Knows ``Sequential`` (nested), ``Linear``, ``Flatten``, ``Identity``, ``ReLU``, ``LeakyReLU``,
    ``Tanh``, ``GELU()``, ``Hardtanh()``, a module named ``Erf``, and ``LayerNorm`` without affine
    parameters.

    Args:
        module: The module.
        weight_variance: σ_w² of every layer; default 1/3, what ``nn.Linear`` draws.
        bias_variance: σ_b²; default 1/(3 fan_in), what ``nn.Linear`` draws.

    Returns:
        The layers.

    Raises:
        TypeError: If a submodule is of another type; the message names it.
        ValueError: If there is no linear layer.
    """
    layers = _read(module, weight_variance, bias_variance, "")
    if not any(isinstance(layer, Dense) for layer in layers):
        raise ValueError("the module has no Linear layer")
    return tuple(layers)


def _read(module: Any, weight: Any, bias: Any, path: str) -> list[Layer]:
    kind = type(module).__name__
    if kind == "Sequential":
        return [
            layer
            for name, child in module.named_children()
            for layer in _read(child, weight, bias, f"{path}.{name}" if path else name)
        ]
    if kind == "Linear":
        fan_in, has_bias = int(module.in_features), module.bias is not None
        drawn = 1 / (3 * fan_in) if bias is None else bias
        return [
            Dense(
                fan_in=fan_in,
                weight_variance=1 / 3 if weight is None else weight,
                bias_variance=drawn if has_bias else 0.0,
                bias=has_bias,
            )
        ]
    if kind in ("Flatten", "Identity"):
        return []
    if kind == "LayerNorm" and not getattr(module, "elementwise_affine", True):
        return [Normalize()]
    phi = _activation(kind, module)
    if phi is None:
        raise TypeError(
            f"no infinite-width rule for {kind} at {path or 'the top'}; known: Sequential of "
            "Linear, ReLU, LeakyReLU, Tanh, GELU, Hardtanh, Identity, Flatten, LayerNorm without "
            "affine parameters; or describe the network by kobai.theory.Dense, Nonlinearity, …"
        )
    return [Nonlinearity(activation=phi)]


def _activation(kind: str, module: Any) -> Activation | None:
    """The activation of a torch module, or None."""
    if kind == "GELU":
        return GELU() if getattr(module, "approximate", "none") == "none" else None
    if kind == "Hardtanh":
        return HardTanh() if (module.min_val, module.max_val) == (-1.0, 1.0) else None
    if kind == "LeakyReLU":
        return LeakyReLU(module.negative_slope)
    simple = {"ReLU": lambda: LeakyReLU(0.0), "Tanh": tanh, "Erf": Erf}
    return simple[kind]() if kind in simple else None


def describe(
    model: Any,
    weight_variance: float | int | None,
    bias_variance: float | int | None,
) -> tuple[Layer, ...]:
    """The layers of whatever describes a network."""
    kinds = (Dense, Nonlinearity, Normalize, Residual)
    given = weight_variance is not None or bias_variance is not None
    if isinstance(model, WideNetwork):
        layers = layers_of_network(model)
    elif isinstance(model, Sequence) and all(isinstance(layer, kinds) for layer in model):
        layers = tuple(model)
    else:
        return layers_of_module(model, weight_variance=weight_variance, bias_variance=bias_variance)
    if given:
        raise ValueError("the description has its variances; they are arguments for modules only")
    return layers
