"""Plain convolutional networks given by a list of channels."""

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
from kobai.models.init import PLAIN_INITS, Init, PlainInitName, initialize, materialize
from kobai.models.normalization import BatchNorm
from kobai.models.validation import (
    require_choice,
    require_image,
    require_outputs,
    require_positive,
)

__all__ = ["CNN", "CNNConfig"]

PoolName = Literal["max", "mean", "none"]
HeadName = Literal["flatten", "mean", "conv"]


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """A convolutional network of 3×3 layers."""

    channels: tuple[int, ...] = (32, 64)
    """channels of each 3×3 convolution"""
    pool: PoolName = "max"
    """how to halve height and width after every convolution; none keeps them"""
    head: HeadName = "flatten"
    """dense layer on all positions or on their mean; conv: mean of one more 3×3 layer"""
    activation: ActivationName = "relu"
    """what every hidden unit applies"""
    pieces: int = 2
    """linear pieces of a maxout channel; read by maxout alone"""
    normalization: Literal["none", "batch"] = "none"
    """of every convolution's output"""
    init: PlainInitName = "he"
    """law of the initial weights"""
    weight_variance: float | None = None
    """σ_w² of standard (default 2), orthogonal (default 1) and sparse (default unit normal)"""
    bias_variance: float = 0.0
    """σ_b² of standard and orthogonal"""
    hidden_bias: float = 0.0
    """initial shift of every hidden pre-activation, such as 0.1 to keep rectified units active"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require_positive("channels", *self.channels)
        require_choice("pool", self.pool, get_args(PoolName))
        require_choice("head", self.head, get_args(HeadName))
        require_choice("activation", self.activation, ACTIVATIONS)
        require_choice("normalization", self.normalization, ("none", "batch"))
        require_choice("init", self.init, PLAIN_INITS)
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


class CNN(nn.Module):
    """3×3 convolutions with padding 1, each followed by activation and 2×2 pooling, then a head.

    Args:
        config: Channels, pooling, head, activation and initialisation.
        input_shape: (channels, height, width).
        num_outputs: C.
        generator: Source of the parameters.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Raises:
        ValueError: If the inputs are no images or are pooled away.
    """

    def __init__(
        self,
        config: CNNConfig,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_outputs(input_shape, num_outputs)
        halvings = 0 if config.pool == "none" else len(config.channels)
        last, height, width = require_image(
            "cnn", input_shape, 2**halvings, "use fewer channels or pool 'none'"
        )
        pieces = config.pieces if config.activation == "maxout" else 1
        batch = config.normalization == "batch"
        with torch.device("meta"):
            self.hidden = nn.Sequential()
            feeding: list[nn.Module] = []
            for count in config.channels:
                parts: OrderedDict[str, nn.Module] = OrderedDict(
                    conv=nn.Conv2d(last, pieces * count, 3, padding=1, bias=not batch)
                )
                if batch:
                    parts["norm"] = BatchNorm(pieces * count)
                feeding.append(parts["norm" if batch else "conv"])
                parts["activation"] = activation(config.activation, pieces=config.pieces)
                if config.pool != "none":
                    parts["pool"] = nn.MaxPool2d(2) if config.pool == "max" else nn.AvgPool2d(2)
                self.hidden.append(nn.Sequential(parts))
                last = count
            positions = math.prod(size // 2**halvings for size in (height, width))
            if config.head == "conv":
                self.output = nn.Conv2d(last, num_outputs, 3, padding=1)
            else:
                inputs = last * positions if config.head == "flatten" else last
                self.output = nn.Linear(inputs, num_outputs)
        self.head = config.head
        materialize(self, dtype=dtype, device=device)
        initialize(self, config.law, generator=generator)
        if config.hidden_bias:
            set_hidden_bias(feeding, config.hidden_bias)

    def forward(self, x: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Map a batch of images to outputs."""
        h = self.hidden(x)
        if self.head == "flatten":
            return self.output(h.flatten(1))
        if self.head == "mean":
            return self.output(h.mean((2, 3)))
        return self.output(h).mean((2, 3))
