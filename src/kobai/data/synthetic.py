"""Data made from random numbers: two spirals, Gaussian blobs, a teacher network."""

import math

import torch
from torch import Generator, Tensor

from kobai.data.named import NamedData
from kobai.data.splits import DataError, DataSplits

__all__ = ["BLOBS", "SPIRALS", "TEACHER", "blobs", "spirals", "teacher"]


def spirals(
    *,
    train: int = 1000,
    test: int = 1000,
    turns: float = 1.5,
    noise: float = 0.02,
    generator: Generator,
) -> DataSplits:
    """Two interleaved spirals in the plane, a classification that no linear model can do.

    Class k has the points r (cos(φ + kπ), sin(φ + kπ)) with φ = 2π · turns · r and r² uniform in
    [0, 1], so that points are spread evenly along the arms, plus Gaussian noise.

    Args:
        train: Number of training examples, alternating between the classes.
        test: Number of test examples, drawn anew from the same distribution.
        turns: Windings of each arm.
        noise: Standard deviation of the noise on each coordinate; the outermost radius is 1.
        generator: Source of all random numbers.
    """
    _positive(train=train, test=test, turns=turns)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % 2
        radius = torch.rand(count, generator=generator).sqrt()
        angle = 2 * math.pi * turns * radius + math.pi * y
        x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return x + noise * torch.randn(count, 2, generator=generator), y

    return DataSplits(
        name="spirals",
        train=draw(train),
        test=draw(test),
        num_classes=2,
        likelihood="categorical",
        source="two spirals (synthetic)",
    )


def blobs(
    *,
    train: int = 1000,
    test: int = 1000,
    classes: int = 5,
    dimension: int = 2,
    separation: float = 4.0,
    generator: Generator,
) -> DataSplits:
    """Isotropic Gaussian blobs of unit variance, one per class.

    Args:
        train: Number of training examples, going round the classes.
        test: Number of test examples, drawn anew from the same distribution.
        classes: Number of blobs.
        dimension: Number of inputs.
        separation: Standard deviation of each coordinate of the centres, which are Gaussian too.
        generator: Source of all random numbers.
    """
    _positive(train=train, test=test, classes=classes, dimension=dimension)
    centres = separation * torch.randn(classes, dimension, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(count) % classes
        return centres[y] + torch.randn(count, dimension, generator=generator), y

    return DataSplits(
        name="blobs",
        train=draw(train),
        test=draw(test),
        num_classes=classes,
        likelihood="categorical",
        source="Gaussian blobs (synthetic)",
    )


def teacher(
    *,
    train: int = 1000,
    test: int = 1000,
    inputs: int = 20,
    hidden: int = 10,
    outputs: int = 1,
    noise: float = 0.0,
    generator: Generator,
) -> DataSplits:
    """Regression on a random network of one hidden layer, y = A tanh(W x) + noise.

    Inputs are standard normal; the entries of W have variance 1/inputs and those of A 1/hidden, so
    that the targets are of order one. A student of the same shape can fit them exactly if there is
    no noise.

    Args:
        train: Number of training examples.
        test: Number of test examples, drawn anew from the same distribution.
        inputs: Number of inputs.
        hidden: Number of the teacher's hidden units.
        outputs: Number of targets.
        noise: Standard deviation of Gaussian noise on each target.
        generator: Source of all random numbers.
    """
    _positive(train=train, test=test, inputs=inputs, hidden=hidden, outputs=outputs)
    first = torch.randn(inputs, hidden, generator=generator) / inputs**0.5
    second = torch.randn(hidden, outputs, generator=generator) / hidden**0.5

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, inputs, generator=generator)
        y = (x @ first).tanh() @ second
        return x, y + noise * torch.randn(count, outputs, generator=generator)

    return DataSplits(
        name="teacher",
        train=draw(train),
        test=draw(test),
        likelihood="gaussian",
        source="teacher network (synthetic)",
    )


def _positive(**arguments: int | float) -> None:
    for name, value in arguments.items():
        if value <= 0:
            raise DataError(f"{name} is {value}; expected a positive number")


SPIRALS = NamedData(
    description="two interleaved spirals in the plane, 2 classes (synthetic)", make=spirals
)
BLOBS = NamedData(description="Gaussian blobs in the plane, 5 classes (synthetic)", make=blobs)
TEACHER = NamedData(
    description="regression on a random network of 20 inputs (synthetic)", make=teacher
)
