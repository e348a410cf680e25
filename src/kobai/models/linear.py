"""Deep linear networks, with and without residual skips."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models.init import Init, InitName, dense, initialize, materialize
from kobai.models.validation import require_outputs, require_positive

__all__ = ["LinearConfig", "LinearNet"]


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A deep linear network; the default has six layers of inner width 100."""

    widths: tuple[int, ...] = (100, 100, 100, 100, 100)
    """units of each inner layer; the output layer comes on top"""
    skips: bool = False
    """add its input to the output of every square layer: h + W h in place of W h"""
    bias: bool = False
    """learn a bias in every layer"""
    init: InitName = "lecun"
    """law of the initial weights"""
    weight_variance: float | None = None
    """σ_w² of standard and ntk (default 2), orthogonal (default 1), sparse (default unit normal)"""
    bias_variance: float = 0.0
    """σ_b² of standard, ntk and orthogonal"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require_positive("widths", *self.widths)
        _ = self.law

    @property
    def law(self) -> Init:
        """The initialisation these fields describe."""
        return Init(
            name=self.init,
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
            activation="linear",
        )


class LinearNet(nn.Module):
    """h^l = W_l h^{l−1} + b_l, with h^{l−1} added wherever W_l is square if `skips` is set.

    With two layers of widths n → m → m and no biases this is f_s(x) = W₂W₁x + W₁x: the first layer,
    which changes the width, has no skip. A first layer with as many units as inputs is square and
    has one.

    Args:
        config: Widths, skips, biases and initialisation.
        input_shape: Shape of one input; inputs of several axes are flattened.
        num_outputs: C.
        generator: Source of the parameters.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Source: Nagase & Naganuma, "Effects of skip connections on training by the natural gradient"
    (in Japanese), eqs. 3 and 4 and section 4.
    """

    def __init__(
        self,
        config: LinearConfig,
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
        sizes = [math.prod(input_shape), *config.widths, num_outputs]
        with torch.device("meta"):
            self.layers = nn.ModuleList(
                dense(m, n, bias=config.bias, init=config.law, generator=generator)
                for m, n in pairwise(sizes)
            )
        materialize(self, dtype=dtype, device=device)
        initialize(self, config.law, generator=generator)

    def forward(self, x: Float[Tensor, "N *features"]) -> Float[Tensor, "N C"]:
        """Map a batch of inputs to outputs."""
        h = x.flatten(1)
        for layer in self.layers:
            u = layer(h)
            h = u + h if self.skips and u.shape[1] == h.shape[1] else u
        return h
