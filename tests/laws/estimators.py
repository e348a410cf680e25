"""Laws of randomised estimators: the truth is where the standard error says it is.

All are statements at a fixed number of repetitions with fixed seeds; none repeats until it passes.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from kobai.linalg import Counted, Estimate, LinearOperator, VectorEstimate


def runs(
    estimate: Callable[[torch.Generator], Estimate], repetitions: int, *, seed: int = 0
) -> list[Estimate]:
    """The same estimate with generators of successive seeds."""
    return [
        estimate(torch.Generator().manual_seed(seed + repetition))
        for repetition in range(repetitions)
    ]


def check_coverage(
    estimates: list[Estimate], truth: float, *, level: float = 0.9, at_most: float = 1.0
) -> float:
    """The interval covers the truth in a share of runs not below its level, by a binomial test.

    Fails where a share this low (or above ``at_most``) has a probability below one in a thousand
    (3.3 standard deviations). Returns the share.
    """
    count = len(estimates)
    covered = [low <= truth <= high for low, high in (e.interval(level) for e in estimates)]
    share = float(np.mean(covered))
    slack = 3.3 * math.sqrt(level * (1 - level) / count)
    assert share >= level - slack, f"covers {share:.2f} of {count} runs, stated {level}"
    assert share <= at_most + slack
    return share


def check_unbiased(estimates: list[Estimate], truth: float) -> None:
    """The mean over runs is the truth, to within 3.3 of its own standard errors."""
    values = np.array([estimate.value for estimate in estimates])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - truth) <= 3.3 * error + 1e-12 * abs(truth)


def check_stated_error(
    estimates: list[Estimate], truth: float, *, low: float = 0.7, high: float = 1.4
) -> None:
    """The stated standard error is the root mean square error of the runs, to within a factor.

    ``low`` bounds understatement, ``high`` overstatement.
    """
    actual = math.sqrt(np.mean([(estimate.value - truth) ** 2 for estimate in estimates]))
    stated = math.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert low * actual <= stated <= high * actual, f"stated {stated:.2e}, actual {actual:.2e}"


def check_stops_by_tolerance(
    estimate: Callable[[float, torch.Generator], Estimate],
    truth: float,
    *,
    tolerances: tuple[float, ...] = (0.2, 0.05),
) -> None:
    """A run that converges has the error asked for; a smaller tolerance costs no less."""
    spent = 0
    for tolerance in tolerances:
        found = estimate(tolerance, torch.Generator().manual_seed(0))
        assert found.status == "converged"
        assert found.standard_error <= tolerance * abs(found.value)
        assert abs(found.value - truth) <= 4 * tolerance * abs(truth)
        assert found.num_products >= spent
        spent = found.num_products


def check_budget(
    operator: LinearOperator,
    estimate: Callable[[LinearOperator, int], Estimate | VectorEstimate],
    budgets: tuple[int, ...] = (20, 33),
) -> None:
    """No estimate spends more than its budget, and the products it reports are those it made."""
    for budget in budgets:
        counted = Counted(operator)
        found = estimate(counted, budget)
        assert counted.count == found.num_products <= budget
        assert found.status == "max-products"
