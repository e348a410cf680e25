"""Curricula: easy examples first, then a growing share of hard ones.

A curriculum is a sequence of stages, each an ordinary training set of the same problem, so that any
optimizer and all of `kobai.training.train` can be used.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kobai.problem import Problem
from kobai.problem.examples import TensorExamples
from kobai.results import History
from kobai.training.loop import train

Strategy = Literal["easiest", "stochastic", "mixed"]


def curriculum_indices(
    difficulty: Float[Tensor, " N"],
    share: float,
    *,
    strategy: Strategy = "easiest",
    generator: torch.Generator,
) -> Int[Tensor, " K"]:
    """The training examples of one stage.

    Args:
        difficulty: Score of each example, more is harder: a length, a loss, a judgement.
        share: Progress of the curriculum in [0, 1]; 1 is all examples, none favoured.
        strategy: "easiest": the `share` of the examples that are easiest (at least one).
            "stochastic": as many draws as there are examples, each with probability `share` from
            all of them and else from the easier half, so that hard ones come in gradually.
            "mixed": half of the draws of "stochastic", half from all examples.
        generator: Draws the examples.

    Returns:
        Indices, repeated where an example is drawn more than once.

    Raises:
        ValueError: If the share is outside [0, 1] or the strategy unknown.

    Source: Bengio et al. 2009, Curriculum learning; Zaremba and Sutskever 2014, Learning to
    execute, §4.2 (the mixed strategy).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is progress in [0, 1], got {share}")
    count = len(difficulty)
    order = torch.argsort(difficulty, stable=True)
    if share == 1:
        return torch.arange(count)
    if strategy == "easiest":
        return order[: max(1, round(share * count))]
    if strategy not in ("stochastic", "mixed"):
        raise ValueError(f"strategy is easiest, stochastic or mixed, got {strategy!r}")
    whole = torch.randint(count, (count,), generator=generator)
    easy = order[torch.randint(max(1, count // 2), (count,), generator=generator)]
    hard = share if strategy == "stochastic" else 0.5 * (1 + share)
    return torch.where(torch.rand(count, generator=generator) < hard, whole, easy)


def train_by_curriculum(
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    difficulty: Float[Tensor, " N"],
    shares: Sequence[float],
    *,
    strategy: Strategy = "easiest",
    epochs: float = 1.0,
    batch_size: int = 128,
    generator: torch.Generator,
) -> list[History]:
    """Train on one stage of a curriculum after the other, with the same optimizer.

    Args:
        problem: Model and all its data, held in memory.
        optimizer: Of the model's parameters; its state lasts over the stages.
        difficulty: See `curriculum_indices`.
        shares: Progress of the stages, such as (0.25, 0.5, 0.75, 1).
        strategy: See `curriculum_indices`.
        epochs: Of each stage, counted in passes over *all* training examples, so that stages with
            fewer examples take as many steps.
        batch_size: Examples a minibatch.
        generator: Draws examples and their order.

    Returns:
        The record of each stage; training losses are those of the stage's examples.

    Raises:
        ValueError: If there is not one score an example, or a share is out of range.
        TypeError: If the training data are not held in memory.
    """
    examples = problem.train
    if not isinstance(examples, TensorExamples):
        raise TypeError("a curriculum chooses examples, so the training data must be tensors")
    if len(difficulty) != examples.size:
        raise ValueError(
            f"difficulty needs one score for each of the {examples.size} training examples, got "
            f"{len(difficulty)}"
        )
    steps = max(1, round(epochs * examples.size / batch_size))
    records = []
    for share in shares:
        chosen = curriculum_indices(difficulty, share, strategy=strategy, generator=generator)
        batch = examples.all.take(chosen.to(examples.all.targets.device))
        stage = Problem(
            problem.model,
            problem.likelihood,
            train=batch,
            test=None if problem.test is None else problem.test,
        )
        size = min(batch_size, batch.size)
        records.append(
            train(stage, optimizer, steps=steps, batch_size=size, generator=generator,
                  label=f"share {share:g}")
        )  # fmt: skip
    return records
