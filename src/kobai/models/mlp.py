"""Multilayer perceptrons of any widths, activation and normalisation."""

import math
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models.activations import ACTIVATIONS, ActivationName, activation
from kobai.models.biases import set_hidden_bias
from kobai.models.init import Init, InitName, dense, initialize, materialize
from kobai.models.normalization import BatchNorm, LayerNorm, MeanSubtraction
from kobai.models.validation import require_choice, require_outputs, require_positive

__all__ = ["MLP", "MLPConfig", "NormalizationName"]

NormalizationName = Literal["none", "batch", "layer", "last-batch", "last-mean"]


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A multilayer perceptron."""

    widths: tuple[int, ...] = (256, 128)
    """units of each hidden layer; none gives a linear model"""
    activation: ActivationName = "relu"
    """what every hidden unit applies"""
    pieces: int = 2
    """linear pieces of a maxout unit; read by maxout alone"""
    normalization: NormalizationName = "none"
    """batch, layer: of hidden pre-activations; last-batch, last-mean: of outputs over a batch"""
    affine: bool = True
    """learn scale and shift in batch, layer and last-batch normalisation"""
    bias: bool = True
    """learn biases (a hidden layer under batch normalisation has none: the mean would remove it)"""
    init: InitName = "he"
    """law of the initial weights"""
    weight_variance: float | None = None
    """σ_w² of standard and ntk (default 2), orthogonal (default 1), sparse (default unit normal)"""
    bias_variance: float = 0.0
    """σ_b² of standard, ntk and orthogonal; an ntk layer with 0 has no bias"""
    skips: bool = False
    """add its input to the output of every hidden layer that keeps the width"""
    hidden_bias: float = 0.0
    """initial shift of every hidden pre-activation, such as 0.1 to keep rectified units active"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require_positive("widths", *self.widths)
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("normalization", self.normalization, get_args(NormalizationName))
        activation(self.activation, pieces=self.pieces)
        _ = self.law
        if self.hidden_bias and self.bias_variance:
            raise ValueError(
                f"got hidden_bias={self.hidden_bias} and bias_variance={self.bias_variance}; "
                "hidden biases start at one value or at random, set one of the two to 0"
            )
        if self.hidden_bias and self.init == "random-walk":
            warnings.warn("random-walk initialisation assumes hidden biases of 0", stacklevel=3)

    @property
    def law(self) -> Init:
        """The initialisation these fields describe."""
        return Init(
            name=self.init,
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
            activation=self.activation,
        )


class MLP(nn.Module):
    """h^l = φ(norm(W_l h^{l−1} + b_l)) for every width, then a dense output layer.

    With `skips`, h^{l−1} is added to h^l wherever both have the same width.

    Args:
        config: Widths, activation, normalisation and initialisation.
        input_shape: Shape of one input; inputs of several axes are flattened.
        num_outputs: C.
        generator: Source of the parameters.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Raises:
        ValueError: If sizes do not fit, or `hidden_bias` is wanted of layers without biases.
    """

    def __init__(
        self,
        config: MLPConfig,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_outputs(input_shape, num_outputs)
        self.skips = config.skips
        law, last = config.law, math.prod(input_shape)
        pieces = config.pieces if config.activation == "maxout" else 1
        biased = config.bias and config.normalization != "batch"
        with torch.device("meta"):
            self.hidden = nn.Sequential()
            feeding: list[nn.Module] = []
            for width in config.widths:
                units = pieces * width
                layer = dense(last, units, bias=biased, init=law, generator=generator)
                parts: OrderedDict[str, nn.Module] = OrderedDict(linear=layer)
                if config.normalization == "batch":
                    parts["norm"] = BatchNorm(units, affine=config.affine)
                elif config.normalization == "layer":
                    parts["norm"] = LayerNorm(units, affine=config.affine)
                # Whatever the activation follows: a bias under a normalisation would be inert.
                feeding.append(parts.get("norm", layer))
                parts["activation"] = activation(config.activation, pieces=config.pieces)
                self.hidden.append(nn.Sequential(parts))
                last = width
            self.output = dense(last, num_outputs, bias=config.bias, init=law, generator=generator)
            # The output layer keeps its bias under a normalised output, so that θ is the parameter
            # vector of the same network without it.
            self.output_norm: nn.Module | None = None
            if config.normalization == "last-batch":
                self.output_norm = BatchNorm(num_outputs, affine=config.affine)
            elif config.normalization == "last-mean":
                self.output_norm = MeanSubtraction(num_outputs)
        materialize(self, dtype=dtype, device=device)
        initialize(self, law, generator=generator)
        if config.hidden_bias:
            set_hidden_bias(feeding, config.hidden_bias)

    def forward(self, x: Float[Tensor, "N *features"]) -> Float[Tensor, "N C"]:
        """Map a batch of inputs to outputs."""
        h = x.flatten(1)
        for layer in self.hidden:
            u = layer(h)
            h = u + h if self.skips and u.shape == h.shape else u
        f = self.output(h)
        return f if self.output_norm is None else self.output_norm(f)
