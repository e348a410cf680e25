"""Residual networks: the CIFAR form and the 50-layer bottleneck form, with and without skips."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models.init import PLAIN_INITS, Init, PlainInitName, initialize, materialize
from kobai.models.normalization import BatchNorm
from kobai.models.validation import (
    require_choice,
    require_image,
    require_outputs,
    require_positive,
)

__all__ = ["ResNet", "ResNet50Config", "ResNet56Config", "ResNetConfig"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The CIFAR form: a 3×3 stem and three stages of two-layer blocks with 16, 32, 64 channels."""

    depth: int = 20
    """weight layers, 6n + 2 for n blocks a stage: 20, 32, 44, 56, 110, …"""
    width_multiplier: float = 1.0
    """factor on all channel counts"""
    skips: bool = True
    """add shortcuts; without them the same layers in a row"""
    init: PlainInitName = "he"
    """law of the initial weights"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require_positive("width_multiplier", self.width_multiplier)
        require_choice("init", self.init, PLAIN_INITS)
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(
                f"a residual network of the CIFAR form has 6n + 2 layers, got depth={self.depth}; "
                "use 8, 14, 20, 32, 44, 56 or 110 (the bottleneck form is 'resnet50')"
            )


@dataclass(frozen=True, kw_only=True)
class ResNet56Config(ResNetConfig):
    """The CIFAR form with nine blocks a stage."""

    depth: int = 56
    """weight layers, 6n + 2 for n blocks a stage"""


@dataclass(frozen=True, kw_only=True)
class ResNet50Config:
    """The bottleneck form: four stages of 3, 4, 6, 3 three-layer blocks."""

    stem: Literal["large", "small"] = "large"
    """large: 7×7 of stride 2 and max-pooling, images ≥ 32×32; small: 3×3 of stride 1, ≥ 8×8"""
    width_multiplier: float = 1.0
    """factor on all channel counts (64, 128, 256, 512, four times that between blocks)"""
    skips: bool = True
    """add shortcuts; without them the same layers in a row"""
    init: PlainInitName = "he"
    """law of the initial weights"""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        require_positive("width_multiplier", self.width_multiplier)
        require_choice("stem", self.stem, ("large", "small"))
        require_choice("init", self.init, PLAIN_INITS)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size up to its stride, and batch normalisation, which shifts."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [conv, BatchNorm(outputs)]


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)), or relu(branch(x)) without skips.

    The shortcut is the identity where shapes agree and a 1×1 convolution with batch normalisation
    where they do not (option B of He et al. 2016, so its parameters are counted).

    Args:
        inputs: Channels of the input.
        width: Channels inside.
        stride: Stride of the 3×3 convolution that shrinks the image (in a bottleneck
            the middle one).
        bottleneck: 1×1, 3×3, 1×1 with 4·width outputs in place of two 3×3 layers.
        skips: Have a shortcut.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, *, bottleneck: bool, skips: bool
    ) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [
                *_conv(inputs, width, 1),
                nn.ReLU(),
                *_conv(width, width, 3, stride),
                nn.ReLU(),
                *_conv(width, outputs, 1),
            ]
        else:
            layers = [*_conv(inputs, width, 3, stride), nn.ReLU(), *_conv(width, outputs, 3)]
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module | None = None
        if skips:
            same = stride == 1 and inputs == outputs
            self.shortcut = (
                nn.Identity() if same else nn.Sequential(*_conv(inputs, outputs, 1, stride))
            )
        self.outputs = outputs

    def forward(self, x: Float[Tensor, "N inputs H W"]) -> Float[Tensor, "N outputs h w"]:
        """Map a batch of feature maps."""
        u = self.branch(x)
        return torch.relu(u if self.shortcut is None else u + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, average over positions, dense output layer.

    Every stage but the first halves height and width. Normalisation is the package's `BatchNorm`;
    convolutions have no biases.

    Args:
        config: The CIFAR form or the bottleneck form.
        input_shape: (channels, height, width).
        num_outputs: C.
        generator: Source of the parameters.
        dtype: Type of the parameters; None is PyTorch's default.
        device: Device of the parameters; None is PyTorch's default.

    Raises:
        ValueError: If the inputs are no images or too small for the number of halvings.

    Source: He, Zhang, Ren & Sun 2016, "Deep residual learning for image recognition", sections 3.3,
    4.1 and 4.2 (with projections in place of zero-padding in the CIFAR form).
    """

    def __init__(
        self,
        config: ResNetConfig | ResNet50Config,
        *,
        input_shape: Sequence[int],
        num_outputs: int,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_outputs(input_shape, num_outputs)
        bottleneck = isinstance(config, ResNet50Config)
        if isinstance(config, ResNet50Config):
            blocks, base, large = (3, 4, 6, 3), 64, config.stem == "large"
            smallest, advice = (32, "use stem 'small'") if large else (8, "use another model")
        else:
            blocks, base, large = ((config.depth - 2) // 6,) * 3, 16, False
            smallest, advice = 4, "use the mlp family"
        channels, _, _ = require_image("resnet", input_shape, smallest, advice)
        width = max(1, round(base * config.width_multiplier))
        with torch.device("meta"):
            stem = [*(_conv(channels, width, 7, 2) if large else _conv(channels, width, 3))]
            stem.append(nn.ReLU())
            if large:
                stem.append(nn.MaxPool2d(3, stride=2, padding=1))
            self.stem = nn.Sequential(*stem)
            self.stages, last = nn.Sequential(), width
            for stage, count in enumerate(blocks):
                parts: list[nn.Module] = []
                for index in range(count):
                    block = ResidualBlock(
                        last,
                        width * 2**stage,
                        2 if stage > 0 and index == 0 else 1,
                        bottleneck=bottleneck,
                        skips=config.skips,
                    )
                    parts.append(block)
                    last = block.outputs
                self.stages.append(nn.Sequential(*parts))
            self.output = nn.Linear(last, num_outputs)
        materialize(self, dtype=dtype, device=device)
        initialize(self, Init(name=config.init, activation="relu"), generator=generator)

    def forward(self, x: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Map a batch of images to outputs."""
        return self.output(self.stages(self.stem(x)).mean((2, 3)))
