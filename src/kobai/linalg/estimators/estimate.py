"""A number with its error: what every randomised estimator returns."""

from dataclasses import dataclass

import scipy.special
from jaxtyping import Float
from torch import Tensor

# Fewer samples say too little about their own spread to stop by it.
MIN_SAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A randomised estimate of one number, with its standard error.

    Attributes:
        value: the estimate.
        standard_error: estimated standard deviation of ``value`` over repetitions with fresh
            probes.
        num_products: products spent.
        num_samples: independent (or exchangeable) samples behind the standard error; 0 when exact.
        status: "converged" (the error asked for is reached), "max-products" (the budget ended
            first), "exact" (no randomness is left) or "non-finite" (a product was not finite).
    """

    value: float
    standard_error: float
    num_products: int
    num_samples: int
    status: str

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval by Student's t with ``num_samples - 1`` degrees of freedom.

        Args:
            level: probability of covering the truth, between 0 and 1.
        """
        half = student_quantile(level, self.num_samples) * self.standard_error
        return (self.value - half, self.value + half)


@dataclass(frozen=True, kw_only=True)
class VectorEstimate:
    """A randomised estimate of a vector (such as a diagonal), with a standard error for each entry.

    Attributes:
        value: (n,) the estimate, in the operator's dtype and on its device.
        standard_error: (n,) of each entry.
        num_products: products spent.
        num_samples: samples behind the standard errors; 0 when exact.
        status: as in `Estimate`; "converged" means that the norm of the standard errors is below
            the tolerance times the norm of the value.
    """

    value: Float[Tensor, "n"]
    standard_error: Float[Tensor, "n"]
    num_products: int
    num_samples: int
    status: str


def student_quantile(level: float, num_samples: int) -> float:
    """Half-width of a two-sided interval in standard errors, from Student's t distribution.

    Infinite with a single sample, 0 for an exact value (``num_samples`` 0).

    Args:
        level: probability of covering the truth.
        num_samples: the degrees of freedom and one.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1; got {level}")
    if num_samples == 0:
        return 0.0
    if num_samples == 1:
        return float("inf")
    return float(scipy.special.stdtrit(num_samples - 1, 0.5 + level / 2))
