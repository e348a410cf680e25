"""Results of an eigenvalue search, and the eigenvalues and accuracies it wants."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Which = Literal["largest", "smallest", "both", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class Eigen:
    """Some eigenpairs of a symmetric operator.

    Attributes:
        values: (k,) ascending, float64, CPU.
        residuals: (k,) norms of A y - value y of the unit Ritz vectors y: each interval
            value ± residual holds an eigenvalue of A.
        errors: (k,) the bounds on the values that the stopping rule used, min(residual,
            residual² / gap).
        chance_missed: probability, over the last random probe, of overlooking one more eigenvalue
            beyond the innermost value returned: a further copy of a repeated one, for example.
                Near 1
            where the innermost values border on many others; 0 for "dense"; NaN where nothing
            probed.
        vectors: (n, k) columns in the operator's dtype, on its device; None unless asked for.
        status: "converged"; "max-products" (the budget ended first: values and residuals are those
            reached, perhaps fewer than k); "non-finite" (a product was not finite);
            "not-symmetric" (the products contradict symmetry: the operator is not symmetric, or
            not deterministic); "stagnated" (LOBPCG: no new direction is left in this precision).
        method: "lanczos", "lobpcg" or "dense": what computed them.
        num_products: products spent.
    """

    values: Float[Tensor, "k"]
    residuals: Float[Tensor, "k"]
    errors: Float[Tensor, "k"]
    chance_missed: float
    vectors: Float[Tensor, "n k"] | None
    status: str
    method: str
    num_products: int


def wanted_indices(values: Float[Tensor, "j"], k: int, which: Which) -> list[int]:
    """Positions of the wanted ones among ascending values; all where there are fewer than k."""
    count = values.numel()
    k = min(k, count)
    if which == "largest":
        return list(range(count - k, count))
    if which == "smallest":
        return list(range(k))
    if which == "both":
        low = k // 2
        return [*range(low), *range(count - (k - low), count)]
    return sorted(values.abs().argsort(descending=True)[:k].tolist())


def thresholds(
    values: Float[Tensor, "j"], wanted: list[int], tol: float, epsilon: float
) -> Float[Tensor, "k"]:
    """The error allowed to each wanted value: tol * |value|, with two floors.

    A value below tol * ‖A‖ is asked for to tol² * ‖A‖ (a zero has no relative accuracy), and
    nothing is asked for below 64 roundings of ‖A‖.
    """
    if not wanted:
        return values.new_zeros(0)
    norm = float(values.abs().max())
    size = values[wanted].abs().clamp(min=tol * norm)
    return (tol * size).clamp(min=64 * epsilon * norm)
