"""The small networks of the gallery, and how a few steps of theirs are watched."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kobai import data, models, seeds
from kobai.data import DataSplits
from kobai.problem import Batch, EmpiricalRisk, Problem
from kobai.reproductions.chapter8.config import Config


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
    flat: bool = True,
    **settings: Any,
) -> Problem:
    """A perceptron on a data set.

    Args:
        splits: The data.
        widths: Units of each hidden layer.
        seed: Of the initial parameters.
        dtype: Of parameters and inputs.
        flat: Whether inputs lose their picture's axes.
        settings: Fields of `kobai.models.MLPConfig`.
    """
    model = models.build(
        models.MLPConfig(widths=widths, **settings),
        input_shape=splits.input_shape,
        num_outputs=splits.num_classes or 1,
        generator=seeds.generator(seed, "init"),
        dtype=dtype,
    )

    def prepared(part: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        if part is None:
            return None
        return (part[0].flatten(1) if flat else part[0]).to(dtype), part[1]

    return Problem(model, splits.likelihood, train=prepared(splits.train),
                   test=prepared(splits.test))  # fmt: skip


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
