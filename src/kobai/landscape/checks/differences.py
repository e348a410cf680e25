"""Derivatives of a function of one number by differences, each with its error."""

import itertools
import math
from collections.abc import Callable

STEPS = 5
"""Step sizes that are tried, each a third of the one before."""


def first_derivative(
    function: Callable[[float], float], step: float, *, noise: float
) -> tuple[float, float]:
    """Find f'(0) by central differences, extrapolated to step zero.

    Args:
        function: f.
        step: The largest step.
        noise: Rounding error of one value of f.

    Returns:
        The extrapolation with the smallest error, and that error, which is how the extrapolation
        changes from step to step and what rounding does to it. Cost: two values of f per step size.
    """

    def difference(h: float) -> float:
        return (function(h) - function(-h)) / (2 * h)

    return _extrapolate(difference, step, lambda h: noise / h)


def second_derivative(
    function: Callable[[float], float], step: float, *, noise: float
) -> tuple[float, float]:
    """Find f''(0) by central second differences; see `first_derivative`."""
    middle = function(0.0)

    def difference(h: float) -> float:
        return (function(h) - 2 * middle + function(-h)) / h**2

    return _extrapolate(difference, step, lambda h: 4 * noise / h**2)


def _extrapolate(
    difference: Callable[[float], float], step: float, rounding: Callable[[float], float]
) -> tuple[float, float]:
    # Central differences err by even powers of the step: one Richardson step removes the square.
    # Steps shrink by thirds; the smallest change between successive extrapolations tells where
    # truncation and rounding balance.
    steps = [step / 3**k for k in range(STEPS)]
    plain = [difference(h) for h in steps]
    better = [fine + (fine - coarse) / 8 for coarse, fine in itertools.pairwise(plain)]
    best = (plain[-1], math.inf)
    for k in range(1, len(better)):
        error = abs(better[k] - better[k - 1]) + 2 * rounding(steps[k + 1])
        if error < best[1]:
            best = (better[k], error)
    return best
