"""The first learning rate from the first iterations.

Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.3.1: watch the first iterations and
use a rate higher than the one that performs best then, but not so high that it causes severe
instability.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from kobai.problem import Problem
from kobai.training.loop import train


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FirstRate:
    """What the first iterations said.

    Attributes:
        rates: (R,) learning rates tried, ascending.
        loss: (R,) mean minibatch loss over the last quarter of the iterations; infinite where a run
            diverged.
        stable: (R,) whether the loss of no iteration rose above `choose_first_rate`'s bound.
        best: The rate with the lowest loss.
        chosen: The next rate above it if that is stable, else the best one.
    """

    rates: Float[np.ndarray, " R"]
    loss: Float[np.ndarray, " R"]
    stable: tuple[bool, ...]
    best: float
    chosen: float


def choose_first_rate(
    problem: Problem,
    make: Callable[[nn.Module, float], torch.optim.Optimizer],
    rates: Iterable[float],
    *,
    steps: int = 50,
    batch_size: int = 64,
    bound: float = 1.5,
    generator: torch.Generator,
) -> FirstRate:
    """Watch the first iterations at several learning rates.

    Every rate starts from the model as it is and sees the same minibatches; afterwards the model is
    as it was.

    Args:
        problem: Any model and data.
        make: From the model and a learning rate to an optimizer.
        rates: Learning rates, in any order, such as ``numpy.geomspace(1e-3, 1, 7)``.
        steps: Iterations of each.
        batch_size: Examples a minibatch.
        bound: A rate is unstable if a minibatch loss exceeds this many times the first one, or is
            not finite.
        generator: Draws the order of the examples.

    Returns:
        Losses, and the rate to begin with.

    Raises:
        ValueError: If there are no rates, one is not positive, or every run diverged.

    Cost: `steps` optimizer steps a rate.
    """
    ascending = sorted(set(rates))
    if not ascending or not ascending[0] > 0:
        raise ValueError(f"rates must be positive numbers, got {list(rates)}")
    order = int(torch.randint(2**31, (), generator=generator))
    start = {n: v.detach().clone() for n, v in problem.model.state_dict().items()}
    loss, stable = [], []
    for rate in ascending:
        problem.model.load_state_dict(start)
        record = train(
            problem, make(problem.model, rate), steps=steps, batch_size=batch_size,
            evaluate_every=1e9, generator=torch.Generator().manual_seed(order),
        ).step_loss  # fmt: skip
        whole = len(record) == steps and bool(np.isfinite(record).all())
        loss.append(float(record[-max(1, steps // 4) :].mean()) if whole else float("inf"))
        stable.append(whole and bool(record.max() <= bound * record[0]))
    problem.model.load_state_dict(start)
    if not np.isfinite(loss).any():
        raise ValueError(f"every run diverged; try rates below {ascending[0]:g}")
    at = int(np.argmin(loss))
    higher = at + 1 < len(ascending) and stable[at + 1]
    return FirstRate(
        rates=np.array(ascending),
        loss=np.array(loss),
        stable=tuple(stable),
        best=ascending[at],
        chosen=ascending[at + 1] if higher else ascending[at],
    )
