"""Data augmentation that draws from a generator, and self-paced augmentation.

An `Augmentation` maps a minibatch of pictures and targets to another; `SelfPacedAugmentation`
applies one to the examples whose loss is still above a threshold. All fit any loop:
``x, y = augment(x, y, generator=g)`` before the step.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from kobai.problem import Likelihood, as_likelihood, evaluation_mode

Pictures = Float[Tensor, "N channels height width"]


class Augmentation(abc.ABC):
    """A random change of a minibatch."""

    @abc.abstractmethod
    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """Change pictures, and targets where the change asks for it.

        Args:
            x: Pictures, left as they are.
            y: Targets, left as they are.
            generator: A CPU generator, whatever the pictures' device.
            partners: Examples to mix with; default: the minibatch itself. Read by `Mixup` alone.

        Returns:
            New pictures of the same shape, and targets.
        """

    def targets(self, y: Tensor) -> Tensor:
        """Targets in the form that this augmentation returns, of unchanged examples."""
        return y


def _uniform(count: int, low: float, high: float, generator: Generator, like: Tensor) -> Tensor:
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return (low + (high - low) * drawn).to(like.device, like.dtype)


def _integers(count: int, low: int, high: int, generator: Generator, like: Tensor) -> Tensor:
    return torch.randint(low, high + 1, (count,), generator=generator).to(like.device)


def _at(x: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Windows (N, channels, height, width) of pictures that begin at (rows, columns)."""
    n = torch.arange(len(x), device=x.device)[:, None, None]
    i = rows[:, None, None] + torch.arange(height, device=x.device)[None, :, None]
    j = columns[:, None, None] + torch.arange(width, device=x.device)[None, None, :]
    return x[n, :, i, j].permute(0, 3, 1, 2)


@final
@dataclass(frozen=True, kw_only=True)
class Shift(Augmentation):
    """Moves each picture by whole pixels, zeros coming in: a crop of the padded picture.

    Attributes:
        pixels: Largest shift in either direction, by rows and by columns; 4 is usual for CIFAR.
    """

    pixels: int = 2

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ValueError(f"pixels is at least 1, got {self.pixels}")

    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """See `Augmentation`."""
        p = self.pixels
        rows = _integers(len(x), 0, 2 * p, generator, x)
        columns = _integers(len(x), 0, 2 * p, generator, x)
        return _at(F.pad(x, (p, p, p, p)), rows, columns, *x.shape[-2:]), y


@final
@dataclass(frozen=True, kw_only=True)
class Rotate(Augmentation):
    """Turns each picture about its centre, bilinear, zeros coming in.

    Attributes:
        degrees: Largest angle to either side.
    """

    degrees: float = 15.0

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180:
            raise ValueError(f"degrees lies in (0, 180], got {self.degrees}")

    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """See `Augmentation`."""
        largest = math.radians(self.degrees)
        angle = _uniform(len(x), -largest, largest, generator, x)
        # Coordinates run from −1 to 1 along both sides: of unequal sides they must be rescaled.
        ratio = x.shape[-2] / x.shape[-1]
        cos, sin = angle.cos(), angle.sin()
        zero = torch.zeros_like(cos)
        turn = torch.stack(
            [torch.stack([cos, -sin * ratio, zero], 1), torch.stack([sin / ratio, cos, zero], 1)], 1
        )
        grid = F.affine_grid(turn, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False), y


@final
@dataclass(frozen=True, kw_only=True)
class Flip(Augmentation):
    """Mirrors each picture left to right.

    Attributes:
        probability: With which.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability lies in [0, 1], got {self.probability}")

    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """See `Augmentation`."""
        mirrored = _uniform(len(x), 0, 1, generator, x) < self.probability
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x), y


@final
@dataclass(frozen=True, kw_only=True)
class Cutout(Augmentation):
    """Sets a square to zero, its centre anywhere in the picture (DeVries and Taylor 2017).

    Attributes:
        size: Side of the square in pixels; parts outside the picture are lost.
    """

    size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is at least 1, got {self.size}")

    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """See `Augmentation`."""
        height, width = x.shape[-2:]
        rows = _integers(len(x), 0, height - 1, generator, x) - self.size // 2
        columns = _integers(len(x), 0, width - 1, generator, x) - self.size // 2
        i = torch.arange(height, device=x.device) - rows[:, None]
        j = torch.arange(width, device=x.device) - columns[:, None]
        inside = ((i >= 0) & (i < self.size))[:, :, None] & ((j >= 0) & (j < self.size))[:, None]
        return x.masked_fill(inside[:, None], 0.0), y


@final
@dataclass(frozen=True, kw_only=True)
class Mixup(Augmentation):
    """Mixes each picture and its target with a partner's (Zhang et al. 2018, 1710.09412).

    Attributes:
        classes: Number of classes; targets come back as their probabilities.
        alpha: Shares are Beta(α, α).
    """

    classes: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2 or not self.alpha > 0:
            raise ValueError(
                f"classes is at least 2 and alpha positive, got {self.classes}, {self.alpha}"
            )

    def targets(self, y: Tensor) -> Tensor:
        """Class probabilities of class indices; probabilities pass through."""
        if y.is_floating_point():
            return y
        return F.one_hot(y, self.classes).to(torch.get_default_dtype())

    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """See `Augmentation`."""
        others, labels = (x, y) if partners is None else partners
        choice = torch.randint(len(others), (len(x),), generator=generator).to(x.device)
        concentration = torch.full((len(x), 2), self.alpha, dtype=torch.float64)
        # A Beta variable as a share of two Gamma variables, which take a generator.
        gamma = torch._standard_gamma(concentration, generator=generator)  # pyright: ignore
        share = (gamma[:, 0] / gamma.sum(1)).to(x.device, x.dtype)
        mixed = share.view(-1, *[1] * (x.ndim - 1))
        one, two = self.targets(y), self.targets(labels)[choice]
        weight = share.to(one.dtype).unsqueeze(1)
        return mixed * x + (1 - mixed) * others[choice], weight * one + (1 - weight) * two


@final
@dataclass(frozen=True)
class Compose(Augmentation):
    """Several augmentations one after the other.

    Attributes:
        parts: In their order.
    """

    parts: Sequence[Augmentation]

    def targets(self, y: Tensor) -> Tensor:
        """Targets in the form that the parts together return."""
        for part in self.parts:
            y = part.targets(y)
        return y

    def __call__(
        self,
        x: Pictures,
        y: Tensor,
        *,
        generator: Generator,
        partners: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Pictures, Tensor]:
        """See `Augmentation`."""
        for part in self.parts:
            x, y = part(x, y, generator=generator, partners=partners)
        return x, y


@final
class SelfPacedAugmentation:
    """Augments the examples of a minibatch whose loss exceeds a threshold, and leaves the others.

    Each call makes a forward pass without gradient on the original examples, in evaluation mode, so
    that neither running statistics nor dropout masks nor the augmentation's random numbers depend
    on it. As training fits the data the selected share falls from 1 towards 0. With
    ``threshold=inf`` training is, to the bit, that without augmentation; with a negative threshold
    that with augmentation always.

    Args:
        augmentation: What is done to the selected ones. Partners of `Mixup` come from the whole
            minibatch, as it was.
        model: The network in training.
        likelihood: Its loss, by name or object; the loss of an example is its negative
            log-likelihood.
        threshold: τ, in nats.

    Attributes:
        selected: Share of the examples that was augmented, one number a call.

    Raises:
        ValueError: If the threshold is not a number, or the likelihood unknown.

    Source: Takase, Karakida and Asoh 2021, Self-paced data augmentation for training neural
    networks (Neurocomputing 442), as its abstract describes it; which side of the threshold is
    augmented is taken from a secondary summary.

    Example:
        >>> import torch
        >>> from kobai.training import SelfPacedAugmentation, Shift
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Flatten(), torch.nn.utils.skip_init(torch.nn.Linear, 16, 2)
        ... )
        >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
        >>> augment = SelfPacedAugmentation(Shift(pixels=1), model, threshold=1.0)
        >>> x, y = torch.ones(3, 1, 4, 4), torch.tensor([0, 1, 0])
        >>> bool((augment(x, y, generator=torch.Generator())[0] == x).all())  # log 2 < 1
        True
    """

    def __init__(
        self,
        augmentation: Augmentation,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        threshold: float | int,
    ) -> None:
        if math.isnan(threshold):
            raise ValueError("threshold is a loss in nats, got NaN")
        self.augmentation = augmentation
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.threshold = float(threshold)
        self.selected: list[float] = []

    @torch.no_grad()
    def mask(self, x: Pictures, y: Tensor) -> Bool[Tensor, " N"]:
        """Which examples have a loss above the threshold; losses that are not finite have.

        Args:
            x: Pictures.
            y: Targets.

        Returns:
            One truth value an example.
        """
        with evaluation_mode(self.model):
            losses = self.likelihood.nll(self.model(x), y)
        return ~(losses <= self.threshold)

    def __call__(self, x: Pictures, y: Tensor, *, generator: Generator) -> tuple[Pictures, Tensor]:
        """The minibatch with its hard examples augmented.

        Args:
            x: Pictures.
            y: Targets.
            generator: Draws the augmentation, of the selected examples only.

        Returns:
            Pictures and targets, in the minibatch's order. Targets have the augmentation's form
            (probabilities with `Mixup`) also of the examples left as they were.
        """
        chosen = self.mask(x, y)
        count = int(chosen.sum())
        self.selected.append(count / len(x))
        plain = self.augmentation.targets(y)
        if not count:
            return x, plain
        # All of them: as if augmentation were always on, where parts mix what others have moved.
        partners = None if count == len(x) else (x, y)
        pictures, targets = self.augmentation(
            x[chosen], y[chosen], generator=generator, partners=partners
        )
        x, plain = x.clone(), plain.clone()
        x[chosen], plain[chosen] = pictures.to(x.dtype), targets.to(plain.dtype)
        return x, plain
