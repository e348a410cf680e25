"""Order parameters: squared lengths and inner products of signals in a wide random network.

Forward, for the same input and for two different ones, l = 1…L:
q^l = σ_w² q̂^{l−1} + σ_b², q̂^l = E[φ(u)²]; backward from q̃^L = 1: q̃^l = σ_w² q̃^{l+1} E[φ'(u)²].
Source: Karakida, Akaho and Amari, Universal Statistics of Fisher Information in Deep Neural
Networks (1806.01316); biases and actual widths kept.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results import register
from kobai.results.fields import coerce_fields
from kobai.theory.activations.activation import Activation, gaussian_average
from kobai.theory.network import WideNetwork


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class OrderParameters:
    """Mean-field signals of a network of L layers; entry l − 1 of an array belongs to layer l.

    "Pair" means two different inputs. For h the features, u pre-activations and δ_k = ∂f_k/∂u:

    Attributes:
        feature: (L,) q̂^{l−1} = ‖h^{l−1}‖²/M_{l−1}, what enters layer l.
        feature_pair: (L,) q̂_st^{l−1} = h(n)·h(m)/M_{l−1}.
        variance: (L,) q^l, the variance of u^l; before normalisation where there is one.
        covariance: (L,) q_st^l.
        backward: (L,) q̃^l = ‖δ_k^l‖².
        backward_pair: (L,) q̃_st^l = δ_k(n)·δ_k(m); between different outputs it is O(1/√M).
        sum_same: (L,) q̃^l (M_{l−1} q̂^{l−1} + 1), the layer's share of S₁; without the 1 if the
            network has no biases.
        sum_pair: (L,) the same for a pair: share of S₂.
        kappa1: Σ (α_{l−1}/α) q̃ q̂: the papers' form, without biases, S₁ ≈ α M κ₁.
        kappa2: The same for a pair.
        alpha: Σ_{l=1}^{L−1} α_l α_{l−1} with M_l = α_l M and M = M_1.
        scale: M.
        outputs: C.
        parameters: P.
        status: ``ok``; ``batch normalization`` where backward quantities do not exist; ``zero
            variance`` where a normalisation divides by 0.
        notes: Domain of validity and what was refused.
    """

    feature: Float[np.ndarray, " L"]
    feature_pair: Float[np.ndarray, " L"]
    variance: Float[np.ndarray, " L"]
    covariance: Float[np.ndarray, " L"]
    backward: Float[np.ndarray, " L"]
    backward_pair: Float[np.ndarray, " L"]
    sum_same: Float[np.ndarray, " L"]
    sum_pair: Float[np.ndarray, " L"]
    kappa1: float
    kappa2: float
    alpha: float
    scale: int
    outputs: int
    parameters: int
    status: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = "feature feature_pair variance covariance backward backward_pair sum_same sum_pair"
        coerce_fields(
            self,
            arrays=dict.fromkeys(names.split(), "f L"),
            floats=("kappa1", "kappa2", "alpha"),
            integers=("scale", "outputs", "parameters"),
        )

    @property
    def s1(self) -> float:
        """S₁ = Σ_l q̃^l (M_{l−1} q̂^{l−1} + 1): diagonal of the dual Fisher matrix J Jᵀ."""
        return float(self.sum_same.sum())

    @property
    def s2(self) -> float:
        """S₂, the same for two inputs: off-diagonal entries within one output."""
        return float(self.sum_pair.sum())


def order_parameters(
    network: WideNetwork,
    *,
    input_square: float | int = 1.0,
    input_product: float | int = 0.0,
) -> OrderParameters:
    """Order parameters of a wide network at random initialisation (standard parameterisation).

    Valid for hidden widths much larger than the depth, relative error O(1/√M) in a single network;
    inputs with nearly equal lengths and nearly equal angles. For unequal ones use
    `infinite_width_kernels` on the inputs themselves.

    Args:
        network: Widths, variances, activation.
        input_square: q̂⁰ = ‖x‖²/M_0, the mean square of a coordinate.
        input_product: q̂_st⁰ = x(n)·x(m)/M_0, between −input_square and input_square.

    Returns:
        Signals, sums and κ's. Cost: L one-dimensional averages.

    Raises:
        ValueError: If the inputs' moments are impossible.
    """
    if not (np.isfinite(input_square) and input_square >= 0):
        raise ValueError(f"input_square is a mean square, got {input_square}")
    if not abs(input_product) <= input_square:
        raise ValueError(
            f"input_product lies within ±input_square = {input_square}, got {input_product}"
        )
    phi, depth = network.phi, network.depth
    w, b = float(network.weight_variance), float(network.bias_variance)
    feature, feature_pair = np.empty(depth), np.empty(depth)
    variance, covariance = np.empty(depth), np.empty(depth)
    slope, slope_pair = np.ones(depth), np.ones(depth)  # E φ'φ' of layer l, for l < L
    feature[0], feature_pair[0] = input_square, input_product
    for i in range(depth):
        variance[i] = w * feature[i] + b
        covariance[i] = w * feature_pair[i] + b
        if i < depth - 1:
            seen = _activate(phi, variance[i], covariance[i], network.hidden_normalization)
            feature[i + 1], feature_pair[i + 1], slope[i], slope_pair[i] = seen
    backward, backward_pair = np.ones(depth), np.ones(depth)
    for i in range(depth - 2, -1, -1):
        backward[i] = w * backward[i + 1] * slope[i]
        backward_pair[i] = w * backward_pair[i + 1] * slope_pair[i]
    fan_in = np.array(network.widths[:-1], dtype=np.float64)
    bias = 1.0 if network.bias else 0.0
    alpha, scale = _scale(network.widths)
    weight = fan_in / scale / alpha
    notes = ["random initialisation, hidden widths large against the depth"]
    status = "ok"
    if network.hidden_normalization == "batch":
        status = "batch normalization"
        notes.append(
            "batch normalisation couples examples in the Jacobian: backward signals below the "
            "output layer are not defined (NaN); forward ones are"
        )
    if not (np.isfinite(feature).all() and np.isfinite(variance).all()):
        status = "zero variance"
        notes.append("a layer with variance 0 cannot be normalised: everything behind it is NaN")
    if depth == 1:
        notes.append("one layer: α is M_0/M with M = M_0, since there is no hidden layer")
    return OrderParameters(
        feature=feature, feature_pair=feature_pair, variance=variance, covariance=covariance,
        backward=backward, backward_pair=backward_pair,
        sum_same=backward * (fan_in * feature + bias),
        sum_pair=backward_pair * (fan_in * feature_pair + bias),
        kappa1=float(np.sum(weight * backward * feature)),
        kappa2=float(np.sum(weight * backward_pair * feature_pair)),
        alpha=alpha, scale=scale, outputs=network.outputs, parameters=network.parameters,
        status=status, notes=tuple(notes),
    )  # fmt: skip


def _activate(
    phi: Activation, q: float, pair: float, normalization: str
) -> tuple[float, float, float, float]:
    """q̂, q̂_st and the two backward factors of one hidden layer."""
    if normalization == "batch":
        # After batch normalisation two examples are uncorrelated standard normal variables.
        square = float(phi.diagonal(np.array(1.0))[0])
        mean = gaussian_average(phi, 1.0, phi.kinks)
        return square, mean**2, np.nan, np.nan
    scale = 1.0
    if normalization == "layer":
        if q <= 0:
            return np.nan, np.nan, np.nan, np.nan
        q, pair, scale = 1.0, pair / q, q
    same, slope = phi.diagonal(np.array(q))
    value, slope_pair = phi.duals(np.array(q), np.array(pair), np.array(q))
    return float(same), float(value), float(slope) / scale, float(slope_pair) / scale


def _scale(widths: tuple[int, ...]) -> tuple[float, int]:
    """α and M; M is the first hidden width."""
    if len(widths) == 2:
        return 1.0, widths[0]
    scale = widths[1]
    pairs = itertools.pairwise(widths[:-1])
    return sum(first * second for first, second in pairs) / scale**2, scale
