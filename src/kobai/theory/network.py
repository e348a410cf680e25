"""The description of a fully connected network: widths, variances, activation."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kobai.theory.activations.activation import Activation
from kobai.theory.activations.lookup import activation


@dataclass(frozen=True, kw_only=True)
class WideNetwork:
    """A fully connected network with random weights, u^l = W^l h^{l−1} + b^l, h^l = φ(u^l).

    The output is u^L. Weights of layer l have variance `weight_variance` / M_{l−1}, biases
    `bias_variance`; both are drawn, and both are trained unless `bias` is False.

    Attributes:
        widths: (M_0, …, M_L): inputs, hidden layers, outputs.
        activation: A name of `kobai.theory.ACTIVATIONS` or an `Activation`.
        weight_variance: σ_w², not negative; 2 for He initialisation with ReLU. ``nn.Linear``
            draws 1/3.
        bias_variance: σ_b², not negative.
        bias: Whether biases are parameters. False needs bias variance 0.
        hidden_normalization: What is done to pre-activations of hidden layers, without trained
            scale and shift: ``none``, ``layer`` (over units, an example at a time) or ``batch``
            (over examples, a unit at a time).
    """

    widths: tuple[int, ...]
    activation: str | Activation = "relu"
    weight_variance: float | int = 2.0
    bias_variance: float | int = 0.0
    bias: bool = True
    hidden_normalization: Literal["none", "layer", "batch"] = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(
                f"widths are (M_0, …, M_L), two or more positive integers, got {self.widths}"
            )
        for name in ("weight_variance", "bias_variance"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is a variance, finite and not negative, got {value}")
        if not self.bias and self.bias_variance:
            raise ValueError(
                f"bias=False has no biases to draw with variance {self.bias_variance}; set it to 0"
            )
        if self.hidden_normalization not in ("none", "layer", "batch"):
            raise ValueError(
                "hidden_normalization is 'none', 'layer' or 'batch', got "
                f"{self.hidden_normalization!r}"
            )
        activation(self.activation)

    @property
    def phi(self) -> Activation:
        """The activation itself."""
        return activation(self.activation)

    @property
    def depth(self) -> int:
        """L, the number of weight layers."""
        return len(self.widths) - 1

    @property
    def outputs(self) -> int:
        """C = M_L."""
        return self.widths[-1]

    @property
    def parameters(self) -> int:
        """P: weights, and biases if there are any."""
        pairs = zip(self.widths[:-1], self.widths[1:], strict=True)
        return sum(fan_out * (fan_in + self.bias) for fan_in, fan_out in pairs)
