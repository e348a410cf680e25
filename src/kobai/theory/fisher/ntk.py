"""Eigenvalues of the tangent kernel's Gram matrix in the mean-field form (NTK parameterisation)."""

from dataclasses import dataclass

import numpy as np

from kobai.results import register
from kobai.theory.fisher.statistics import separated
from kobai.theory.mean_field import order_parameters
from kobai.theory.network import WideNetwork


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class NTKStatistics:
    """Eigenvalues of J Jᵀ, CN × CN and not divided by N, NTK parameterisation.

    Attributes:
        examples: N.
        outputs: C.
        same: n₁ = Σ q̃ q, diagonal entries and mean eigenvalue.
        pair: n₂ = Σ q̃_st q_st, entries of two inputs.
        largest: (N − 1) n₂ + n₁, C-fold; NaN if not separated.
        bulk_mean: n₁ − n₂; the top edge of the bulk is about 1.8 times that at N/M = 1/6.
        learning_rate: 2 N/λ_max, for the mean over examples of ½‖f − y‖².
        status: ``ok``, ``no separated outliers`` or ``not defined``.
        notes: Domain of validity.
    """

    examples: int
    outputs: int
    same: float
    pair: float
    largest: float
    bulk_mean: float
    learning_rate: float
    status: str
    notes: tuple[str, ...] = ()


def ntk_statistics(
    network: WideNetwork,
    examples: int,
    *,
    input_square: float | int = 1.0,
    input_product: float | int = 0.0,
) -> NTKStatistics:
    """Predict the spectrum of the tangent kernel in the NTK parameterisation, mean-field form.

    Valid as `order_parameters` is. On inputs of unequal lengths and angles take the eigenvalues of
    `infinite_width_kernels`.

    Args:
        network: Widths (only C and the depth matter), variances, activation.
        examples: N.
        input_square: See `order_parameters`.
        input_product: See `order_parameters`.

    Returns:
        The statistics.

    Raises:
        ValueError: If N < 2.
    """
    if examples < 2:
        raise ValueError(f"theory compares different examples: at least 2, got {examples}")
    p = order_parameters(network, input_square=input_square, input_product=input_product)
    share = p.variance if network.bias else p.variance - network.bias_variance
    pair_share = p.covariance if network.bias else p.covariance - network.bias_variance
    same, pair = float(p.backward @ share), float(p.backward_pair @ pair_share)
    if not (np.isfinite(same) and np.isfinite(pair)):
        status = "not defined"
    else:
        status = "ok" if separated(same, pair, examples) else "no separated outliers"
    largest = (examples - 1) * pair + same if status == "ok" else float("nan")
    return NTKStatistics(
        examples=examples, outputs=network.outputs, same=same, pair=pair, largest=largest,
        bulk_mean=same - pair, learning_rate=2 * examples / largest, status=status, notes=p.notes,
    )  # fmt: skip
