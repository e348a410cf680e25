"""Statistics of the eigenvalues of a Fisher matrix, and when its outliers separate."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results import register
from kobai.results.fields import coerce_fields


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class FisherStatistics:
    """Predicted eigenvalue statistics of F = (1/N) Σ_n J_nᵀ H_n J_n, a P × P matrix.

    A number that theory refuses is NaN; `status` names why, `notes` say what to do.

    Attributes:
        loss: ``gaussian`` (H = I: loss ½‖f − y‖²) or ``categorical`` (H = diag g − g gᵀ).
        normalization: What is done to the outputs.
        examples: N.
        outputs: C.
        parameters: P.
        trace: tr F.
        sum_of_squares: tr F².
        mean: Mean eigenvalue m = tr F / P.
        second_moment: Mean square s = tr F² / P.
        largest: λ_max, of the C outliers' common value where there are such.
        lower: Lower bound of λ_max, to leading order; equals `largest` where that is predicted.
        upper: Upper bound of λ_max, to leading order.
        outliers: How many eigenvalues stand apart from the bulk.
        bulk_mean: Mean of the other non-zero eigenvalues; their top edge is about twice that at
            N/M = 1/6.
        rank: Largest possible rank, min(P, what the structure allows); the rest are zeros.
        learning_rate: η_c = 2/λ_max of full-batch gradient descent.
        eigenvalues: (k,) ascending prediction of all non-zero ones, where theory gives one; else
            empty.
        layer_trace: (L,) traces of the layers' diagonal blocks; empty where not predicted.
        layer_largest: (L,) their λ_max; NaN for layers without separated outliers.
        status: ``ok``; ``bounds only``; ``no separated outliers``; ``lower bound only``;
            ``outputs needed``; ``not defined``.
        notes: Domain of validity, and what was refused.
    """

    loss: str
    normalization: str
    examples: int
    outputs: int
    parameters: int
    trace: float
    sum_of_squares: float
    largest: float
    lower: float
    upper: float
    outliers: int
    bulk_mean: float
    rank: int
    eigenvalues: Float[np.ndarray, " k"]
    layer_trace: Float[np.ndarray, " L"]
    layer_largest: Float[np.ndarray, " L"]
    status: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"eigenvalues": "f k", "layer_trace": "f L", "layer_largest": "f L"},
            floats=("trace", "sum_of_squares", "largest", "lower", "upper", "bulk_mean"),
            integers=("examples", "outputs", "parameters", "outliers", "rank"),
        )

    @property
    def mean(self) -> float:
        """Mean eigenvalue, tr F / P."""
        return self.trace / self.parameters

    @property
    def second_moment(self) -> float:
        """Mean of the squared eigenvalues, tr F² / P."""
        return self.sum_of_squares / self.parameters

    @property
    def learning_rate(self) -> float:
        """η_c = 2/λ_max; NaN where λ_max is not predicted."""
        return 2.0 / self.largest if self.largest else np.inf


def separated(same: float, pair: float, examples: int) -> bool:
    """Tell whether N S₂ ≥ 3 (S₁ − S₂): the outliers then stand apart from the bulk's top edge."""
    return bool(pair > 0 and pair * examples >= 3 * (same - pair))
