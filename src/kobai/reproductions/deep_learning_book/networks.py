"""The small networks of the gallery, and how a few steps of theirs are watched."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobai import data, models, seeds
from kobai.data import DataSplits
from kobai.problem import Batch, EmpiricalRisk, Problem
from kobai.reproductions.deep_learning_book.config import Config


def pictures(config: Config, *, limit: int | None = None) -> DataSplits:
    """The data of the configuration, standardised.

    Raises:
        kobai.data.DataError: If they are not here, or no classification.
    """
    splits = data.load(
        config.data,
        generator=seeds.generator(config.seed, "data"),
        standardize=True,
        limit=limit if limit is not None else (4000, 4000) if config.data == "mnist" else None,
    )
    if splits.num_classes is None:
        raise data.DataError(f"{config.data}: the gallery classifies; give data with classes")
    return splits


def classifier(
    splits: DataSplits,
    widths: tuple[int, ...],
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    model: str = "",
    **settings: Any,
) -> Problem:
    """A perceptron on a data set, or the user's network in its place.

    Args:
        splits: The data.
        widths: Units of each hidden layer.
        seed: Of the initial parameters.
        dtype: Of parameters and inputs.
        model: The user's network, which then takes pictures as they are; empty for the perceptron.
        settings: Fields of `kobai.models.MLPConfig`.

    Raises:
        ValueError: If the user's network is unknown or does not fit the data.
    """
    network = models.build(
        model or models.MLPConfig(widths=widths, **settings),
        input_shape=splits.input_shape,
        num_outputs=splits.num_classes or 1,
        generator=seeds.generator(seed, "init"),
        dtype=dtype,
    )

    def prepared(part: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        if part is None:
            return None
        return (part[0] if model else part[0].flatten(1)).to(dtype), part[1]

    return Problem(network, splits.likelihood, train=prepared(splits.train),
                   test=prepared(splits.test))  # fmt: skip


def level(curves: Sequence[np.ndarray]) -> np.ndarray:
    """Curves of several runs as rows; those of runs that diverged end in NaN."""
    longest = max(map(len, curves))
    return np.array([np.pad(c, (0, longest - len(c)), constant_values=np.nan) for c in curves])


def endless(problem: Problem, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
    """Minibatches, epoch after epoch."""
    return itertools.chain.from_iterable(
        problem.minibatches(size, generator=generator) for _ in itertools.count()
    )


def per_step(
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batch_size: int,
    watch: Callable[[int, EmpiricalRisk], None],
    *,
    generator: torch.Generator,
) -> None:
    """Take steps on minibatches and look at each of them before it is made.

    Args:
        problem: Model and data.
        optimizer: Its optimizer.
        steps: How many.
        batch_size: Examples a step.
        watch: Called with the number of steps done and the minibatch objective.
        generator: Draws the order of the examples.
    """
    batches = endless(problem, batch_size, generator=generator)
    for step in range(steps):
        objective = problem.objective(next(batches))
        watch(step, objective)
        optimizer.step(objective)  # pyright: ignore
