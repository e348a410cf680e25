"""A small transformer classifier of image patches, vector sequences or tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from kobai.models.init import PLAIN_INITS, Init, PlainInitName, initialize, materialize
from kobai.models.normalization import LayerNorm
from kobai.models.validation import require_choice, require_outputs, require_positive

__all__ = ["Transformer", "TransformerConfig"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A transformer encoder with learned positions."""

    width: int = 64
    """size of a token's vector"""
    blocks: int = 2
    """attention blocks"""
    heads: int = 4
    """attention heads; they divide the width"""
    feedforward: int = 128
    """hidden units of the two-layer network in each block"""
    patch: int = 4
    """pixels along a side of an image patch; divides height and width"""
    vocabulary: int = 0
    """number of distinct tokens, for inputs that are token indices"""
    init: PlainInitName = "glorot-uniform"
    """law of the initial weights"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for field in ("width", "blocks", "heads", "feedforward", "patch"):
            require_positive(field, getattr(self, field))
        require_choice("init", self.init, PLAIN_INITS)
        _ = self.law
        if self.vocabulary < 0:
            raise ValueError(f"vocabulary must be 0 (no tokens) or more, got {self.vocabulary}")
        if self.width % self.heads:
            raise ValueError(
                f"heads must divide the width, got heads={self.heads} and width={self.width}; "
                f"use a width that is a multiple of {self.heads}"
            )

    @property
    def law(self) -> Init:
        """The initialisation these fields describe."""
        return Init(name=self.init, activation="gelu")


class Attention(nn.Module):
    """Multi-head self-attention: softmax(QKᵀ/√d) V for each head, then a dense layer.

    Args:
        width: Size of a token's vector.
        heads: How many heads share it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "N T width"]) -> Float[Tensor, "N T width"]:
        """Let every token attend to every token."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """Normalise, attend, add; normalise, two-layer network, add (pre-norm).

    Args:
        width: Size of a token's vector.
        heads: Attention heads.
        feedforward: Hidden units of the two-layer network.
    """

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(LayerNorm(width), Attention(width, heads))
        self.feed = nn.Sequential(
            LayerNorm(width),
            nn.Linear(width, feedforward),
            nn.GELU(),
            nn.Linear(feedforward, width),
        )

    def forward(self, x: Float[Tensor, "N T width"]) -> Float[Tensor, "N T width"]:
        """Map a batch of token sequences."""
        x = x + self.attend(x)
        return x + self.feed(x)


class Transformer(nn.Module):
    """Tokens with learned positions, attention blocks, average over tokens, dense output layer.

    Args:
        config: Sizes and initialisation.
        input_shape: (channels, height, width) for images, cut into patches; (steps, features) for
            sequences of vectors; (steps,) for token indices.
        num_outputs: C.
        generator: Source of the parameters.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Raises:
        ValueError: If patches do not tile the image, or token indices come without a vocabulary.

    Source: Vaswani et al. 2017 in the pre-norm form; Dosovitskiy et al. 2021 for patches.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_outputs(input_shape, num_outputs)
        shape, width, patch = tuple(input_shape), config.width, config.patch
        with torch.device("meta"):
            if len(shape) == 3:
                if shape[1] % patch or shape[2] % patch:
                    raise ValueError(
                        f"patches of {patch} x {patch} pixels do not tile an image of "
                        f"{shape[1]} x {shape[2]}; choose a patch that divides both"
                    )
                steps = (shape[1] // patch) * (shape[2] // patch)
                self.embed = nn.Conv2d(shape[0], width, patch, stride=patch)
            elif len(shape) == 2:
                steps, self.embed = shape[0], nn.Linear(shape[1], width)
            elif len(shape) == 1 and config.vocabulary > 0:
                steps, self.embed = shape[0], nn.Embedding(config.vocabulary, width)
            else:
                raise ValueError(
                    "transformer reads images (channels, height, width), sequences (steps, "
                    "features) or token indices (steps,) with a vocabulary, got input_shape "
                    f"{shape} and vocabulary={config.vocabulary}; reshape the inputs or set it"
                )
            self.positions = nn.Embedding(steps, width)
            self.blocks = nn.Sequential(
                *(
                    AttentionBlock(width, config.heads, config.feedforward)
                    for _ in range(config.blocks)
                )
            )
            self.norm = LayerNorm(width)
            self.output = nn.Linear(width, num_outputs)
        materialize(self, dtype=dtype, device=device)
        stacked = {name: 3 for name, _ in self.named_parameters() if name.endswith("qkv.weight")}
        initialize(self, config.law, generator=generator, blocks=stacked)

    def forward(self, x: Shaped[Tensor, "N *shape"]) -> Float[Tensor, "N C"]:
        """Map a batch of images, sequences or token indices to outputs."""
        tokens = self.embed(x)
        if x.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        return self.output(self.norm(self.blocks(tokens + self.positions.weight)).mean(1))
