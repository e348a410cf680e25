"""The metric that the outputs pull back to the inputs, or to a hidden layer's features.

A = (1/N) Σ_n Σ_k ∇f_k(n) ∇f_k(n)ᵀ with the gradient in x or h^l: how much outputs move when
features do. It has C outliers of order 1, above its mean eigenvalue by O(M/C). Source: 1910.05992.
"""

from dataclasses import dataclass

import numpy as np

from kobai.results import register
from kobai.theory.fisher.statistics import separated
from kobai.theory.mean_field import order_parameters
from kobai.theory.network import WideNetwork


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMetric:
    """Predicted eigenvalue statistics of a feature metric.

    Attributes:
        level: l: 0 for the inputs, else the hidden layer.
        dimension: M_l.
        examples: N.
        outputs: C, and how many outliers there are.
        same: a₁ = σ_w² q̃^{l+1}, squared gradient of one output.
        pair: a₂, inner product of the gradients at two inputs.
        trace: C a₁.
        sum_of_squares: tr A².
        largest: The outliers' common value ((N − 1) a₂ + a₁)/N; NaN if not separated.
        status: ``ok``, ``no separated outliers`` or ``not defined``.
        notes: Domain of validity.
    """

    level: int
    dimension: int
    examples: int
    outputs: int
    same: float
    pair: float
    trace: float
    sum_of_squares: float
    largest: float
    status: str
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean eigenvalue, C a₁/M_l."""
        return self.trace / self.dimension


def feature_metric(
    network: WideNetwork,
    examples: int,
    *,
    level: int = 0,
    input_square: float | int = 1.0,
    input_product: float | int = 0.0,
) -> FeatureMetric:
    """Predict the metric on the inputs (level 0) or on the features h^l (level l < L).

    Valid as `order_parameters` is; also for odd activations without biases, whose Fisher matrix has
    no outliers: backward signals of two inputs stay correlated.

    Args:
        network: Widths, variances, activation.
        examples: N.
        level: l, from 0 to L − 1.
        input_square: See `order_parameters`.
        input_product: See `order_parameters`.

    Returns:
        The statistics.

    Raises:
        ValueError: If the level does not exist or N < 2.
    """
    if not 0 <= level < network.depth:
        raise ValueError(f"level is 0 (inputs) to {network.depth - 1}, got {level}")
    if examples < 2:
        raise ValueError(f"theory compares different examples: at least 2, got {examples}")
    p = order_parameters(network, input_square=input_square, input_product=input_product)
    n, c = examples, network.outputs
    same = float(network.weight_variance * p.backward[level])
    pair = float(network.weight_variance * p.backward_pair[level])
    defined = np.isfinite(same) and np.isfinite(pair)
    apart = defined and separated(same, pair, n)
    status = "not defined"
    if defined:
        status = "ok" if apart else "no separated outliers"
    return FeatureMetric(
        level=level, dimension=network.widths[level], examples=n, outputs=c, same=same, pair=pair,
        trace=c * same, sum_of_squares=c * (same**2 / n + (n - 1) / n * pair**2),
        largest=((n - 1) * pair + same) / n if apart else float("nan"), status=status,
        notes=(*p.notes, "outliers are O(1), not O(M); in one network they scatter by O(1/√M)"),
    )  # fmt: skip
