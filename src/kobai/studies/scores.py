"""Numbers out of many trials, as plain functions of arrays: no study, no storage, no model.

Everything that a report says about a search is one of these, so that it can be checked against a
closed form.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.special import gammaln


def ranking(value: Float[np.ndarray, "T"], *, maximise: bool) -> Int[np.ndarray, "T"]:
    """Positions of the trials, the best first; equal ones in their order, NaN last.

    Args:
        value: (T,) scores.
        maximise: Whether more is better.
    """
    key = np.where(np.isnan(value), np.inf, -value if maximise else value)
    return np.argsort(key, kind="stable")


def top_k(
    value: Float[np.ndarray, "T"],
    measure: Float[np.ndarray, "T"],
    *,
    k: int,
    maximise: bool,
) -> tuple[float, float, float]:
    """Mean of a measure over the k best trials by score.

    Args:
        value: (T,) scores that rank the trials.
        measure: (T,) what is averaged; the scores themselves or another measure.
        k: How many trials count; all, if there are fewer.
        maximise: Whether a higher score is better.

    Returns:
        Mean, sample standard deviation (n − 1) and standard error sd/√k of the mean. The error
        treats the k trials as independent draws, which tuned trials are not: it says how far the
        settings scatter, not how far another search would be off.

    Raises:
        ValueError: If k < 1 or there are no trials.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if not len(value):
        raise ValueError("there are no trials to score")
    best = measure[ranking(value, maximise=maximise)[:k]]
    sd = float(best.std(ddof=1)) if len(best) > 1 else float("nan")
    return float(best.mean()), sd, sd / float(np.sqrt(len(best)))


def expected_best(value: Float[np.ndarray, "T"], *, maximise: bool) -> Float[np.ndarray, "T"]:
    """Expected best score among k of the trials, drawn without replacement, for k = 1 … T.

    The average of the best over all C(T, k) subsets: Σ_i v₍ᵢ₎ C(i−1, k−1)/C(T, k) with v₍₁₎ ≤ … ≤
    v₍T₎ the scores from worst to best. It is the unbiased estimate of what k trials would have
    given if trials were independent (random search; for a sampler that learns it is a description).

    Args:
        value: (T,) finite scores; infinite ones stay infinite wherever they count.
        maximise: Whether more is better.

    Returns:
        (T,) expected best of 1, 2, …, T trials.

    Source: the estimator is the U-statistic for the expected maximum; its use for reporting search
    results follows Dodge et al. 2019, Show your work (§3).
    """
    total = len(value)
    ordered = value[ranking(value, maximise=maximise)[::-1]]
    rank = np.arange(1, total + 1)
    result = np.empty(total)
    for k in rank:
        usable = rank >= k
        i = rank[usable]
        log_weight = _log_choose(i - 1, k - 1) - _log_choose(total, k)
        # A weight of zero times an infinite score would be no number.
        weight = np.exp(log_weight)
        result[k - 1] = float(np.sum(weight * ordered[usable]))
    return result


def _log_choose(n, k):
    return gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)


def performance_profile(
    cost: Float[np.ndarray, "methods problems"], ratios: Float[np.ndarray, "R"]
) -> Float[np.ndarray, "methods R"]:
    """Share of problems that a method solves within a factor of the best method's cost.

    Args:
        cost: (M, Q) cost of each method on each problem; infinite or NaN where it failed.
        ratios: (R,) factors, at least 1.

    Returns:
        (M, R) shares; problems that no method solved count for none.

    Source: Dolan and Moré 2002, Benchmarking optimization software with performance profiles.
    """
    cost = np.where(np.isnan(cost), np.inf, cost)
    best = cost.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isfinite(cost), cost / best, np.inf)
    return (ratio[:, :, None] <= np.asarray(ratios)).mean(axis=1)


def time_to(
    epoch: Float[np.ndarray, "R"],
    curve: Float[np.ndarray, "*batch R"],
    target: float,
    *,
    maximise: bool,
) -> Float[np.ndarray, "*batch"]:
    """First recorded epoch at which a measure is at least as good as a target; infinite if never.

    Args:
        epoch: (R,) epochs of the records.
        curve: (…, R) the measure there; NaN where there is no record.
        target: The value to reach.
        maximise: Whether more is better.
    """
    reached = curve >= target if maximise else curve <= target
    first = np.argmax(reached, axis=-1)
    return np.where(reached.any(axis=-1), epoch[first], np.inf)
