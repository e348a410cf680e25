"""The Fisher matrix of one example in deep orthogonal networks: dynamical isometry.

Square layers of width M, C = M outputs, W = σ_w O with O Haar orthogonal: J Jᵀ = M H_L with
H_1 = q̂_0 I, H_{l+1} = q̂_l I + W D H_l D Wᵀ, D = diag φ'(u^l). Even where the Jacobian's spectrum
does not depend on depth, λ_max grows as L, so the online learning rate falls as 1/L.
Source: Hayase and Karakida, The Spectrum of Fisher Information of Deep Networks Achieving Dynamical
Isometry (2006.07814).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Float
from scipy import special

from kobai.results import register
from kobai.results.fields import coerce_fields
from kobai.theory.activations.activation import Activation, Linear, gaussian_average
from kobai.theory.activations.hard_tanh import HardTanh
from kobai.theory.activations.lookup import activation as named_activation


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class IsometrySpectrum:
    """Predicted spectrum of H_L; the Fisher matrix of one example has M eigenvalues, M times these.

    Attributes:
        activation: Name of φ.
        depth: L.
        width: M.
        features: (L,) q̂_0 … q̂_{L−1} used.
        moments: (k,) normalised traces of H, H², …: as many as theory gives, at least two.
        largest: λ_max(H_L); NaN where not predicted.
        lower: A lower bound, the mean eigenvalue.
        upper: An upper bound, Σ_j σ_w^{2(L−1−j)} q̂_j for |φ'| ≤ 1; infinite otherwise.
        atom: Share of eigenvalues at the largest one; NaN where there is no theory.
        learning_rate: 2/(M λ_max): the largest for one example per step and loss ½‖f − y‖².
        status: ``ok`` or ``top eigenvalue not predicted``.
        notes: Domain of validity.
    """

    activation: str
    depth: int
    width: int
    features: Float[np.ndarray, " L"]
    moments: Float[np.ndarray, " k"]
    largest: float
    lower: float
    upper: float
    atom: float
    learning_rate: float
    status: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"features": "f L", "moments": "f k"},
            floats=("largest", "lower", "upper", "atom", "learning_rate"),
            integers=("depth", "width"),
        )


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class CriticalLine:
    """A point of hard-tanh's critical line, where σ_w² E φ'² = 1.

    Attributes:
        variance: q, the variance of pre-activations at the fixed point.
        inside: p = P(|u| < 1).
        weight_variance: σ_w² = 1/p.
        bias_variance: σ_b² = q − σ_w² q̂.
        feature: q̂ = E φ(u)².
    """

    variance: float
    inside: float
    weight_variance: float
    bias_variance: float
    feature: float


def hard_tanh_critical_line(q: float | int) -> CriticalLine:
    """Variances that keep hard-tanh networks at pre-activation variance q and critical.

    Args:
        q: Positive; isometry is reached as q → 0.

    Returns:
        The point.

    Raises:
        ValueError: If q is not positive.
    """
    if not (np.isfinite(q) and q > 0):
        raise ValueError(f"q is a positive variance, got {q}")
    value, inside = (float(x) for x in HardTanh().diagonal(np.array(float(q))))
    weight = 1 / float(special.erf(1 / np.sqrt(2 * q)))
    return CriticalLine(
        variance=float(q),
        inside=inside,
        weight_variance=weight,
        # Rounding would leave −1e-18 as q → 0, where the bias vanishes.
        bias_variance=max(float(q - weight * value), 0.0),
        feature=value,
    )


def isometry_spectrum(
    activation: str | Activation,
    *,
    depth: int,
    width: int,
    weight_variance: float | int,
    bias_variance: float | int = 0.0,
    features: Sequence[float] | Float[np.ndarray, " L"] | float | int = 1.0,
    bias: bool = False,
    orders: int = 4,
) -> IsometrySpectrum:
    """Predict moments, top eigenvalue and online learning rate of a deep orthogonal network.

    Linear networks: exact at any width. Hard-tanh: moments by free probability, top eigenvalue and
    atom exact given the network's own q̂ while the atom survives, (L − 1)(1 − p) < 1. Other
    activations: the first two moments only (checked for tanh, erf and, on averages over 20
    networks, relu); top eigenvalue refused with bounds. Square layers, C = M, weights only.

    Args:
        activation: A name or an `Activation`.
        depth: L.
        width: M.
        weight_variance: σ_w².
        bias_variance: σ_b² of the drawn biases.
        features: q̂_0 = ‖x‖²/M, from which the others follow; or all of q̂_0 … q̂_{L−1}, such as a
            network's own.
        bias: Biases are trained too: q̂ + 1/M in place of q̂.
        orders: How many moments where all are known.

    Returns:
        The spectrum's numbers. Cost: L averages.

    Raises:
        ValueError: If a number is out of range.
    """
    if depth < 1 or width < 1 or orders < 2:
        raise ValueError(
            f"depth and width are at least 1, orders at least 2, got {depth}, {width}, {orders}"
        )
    if not weight_variance > 0 or bias_variance < 0:
        raise ValueError(
            f"variances are positive (weights) and not negative (biases), got {weight_variance}, "
            f"{bias_variance}"
        )
    phi, w = named_activation(activation), float(weight_variance)
    feature, variance = _forward(phi, depth, w, float(bias_variance), features)
    level = feature + (1.0 / width if bias else 0.0)
    upper = float(np.sum(w ** np.arange(depth - 1, -1, -1) * level))
    notes = ["one example, square layers, C = M, orthogonal weights, weights drawn once"]
    if isinstance(phi, Linear | HardTanh):
        inside = np.array([float(phi.diagonal(np.array(q))[1]) for q in variance])
        moments = free_projection_moments(level, inside, w, orders)
        atom = float(max(0.0, 1.0 - np.sum(1.0 - inside)))
        largest = upper if atom > 0 else float("nan")
    else:
        second = [float(phi.diagonal(np.array(q))[1]) for q in variance]
        fourth = [
            gaussian_average(lambda u: phi.derivative(u) ** 4, q, phi.kinks) for q in variance
        ]
        moments, atom, largest = _two_moments(level, second, fourth, w), np.nan, float("nan")
        steepest = float(np.max(np.abs(phi.derivative(np.linspace(-20, 20, 4001)))))
        upper = upper if steepest <= 1 + 1e-12 else float("inf")
        notes.append("general activation: two moments; off isometry λ_max is well above the mean")
        if phi.kinks:
            notes.append("a single network scatters (12 % of the mean at M = 500 for relu)")
    predicted = bool(np.isfinite(largest))
    if not predicted and atom == 0:
        notes.append("(L − 1)(1 − p) ≥ 1: the atom at the top has dissolved; λ_max only bounded")
    return IsometrySpectrum(
        activation=phi.name, depth=depth, width=width, features=feature, moments=moments,
        largest=largest, lower=float(moments[0]), upper=upper, atom=atom,
        learning_rate=2 / (width * largest),
        status="ok" if predicted else "top eigenvalue not predicted", notes=tuple(notes),
    )  # fmt: skip


def free_projection_moments(
    levels: Float[np.ndarray, " L"],
    inside: Float[np.ndarray, " K"],
    weight_variance: float,
    orders: int,
) -> Float[np.ndarray, " k"]:
    """Moments of H_L when every D is a free projection, K = L − 1 of them.

    One layer compresses the law by a projection of trace p, which turns its free cumulants κ_n into
    pⁿ⁻¹ κ_n on the compressed space; then scales by σ_w² and shifts by q̂.

    Args:
        levels: (L,) q̂_l, plus 1/M with trained biases.
        inside: (L − 1,) traces p of the projections.
        weight_variance: σ_w².
        orders: Number of moments.

    Returns:
        (orders,) normalised traces of H_L, H_L², ….
    """
    moments = float(levels[0]) ** np.arange(1, orders + 1)
    for level, p in zip(levels[1:], inside, strict=True):
        cumulants = _free_cumulants(moments) * p ** np.arange(orders)
        compressed = p * _from_free_cumulants(cumulants)
        scaled = np.concatenate([[1.0], compressed * weight_variance ** np.arange(1, orders + 1)])
        moments = np.array(
            [
                sum(comb(n, k) * level ** (n - k) * scaled[k] for k in range(n + 1))
                for n in range(1, orders + 1)
            ]
        )
    return moments


def _power_coefficients(moments: np.ndarray) -> list[np.ndarray]:
    """Coefficients of M(z)^s for s = 0 … n, M(z) = 1 + Σ m_k zᵏ, up to zⁿ."""
    n = len(moments)
    series = np.concatenate([[1.0], moments])
    powers = [np.eye(1, n + 1)[0]]
    for _ in range(n):
        powers.append(np.convolve(powers[-1], series)[: n + 1])
    return powers


def _free_cumulants(moments: np.ndarray) -> np.ndarray:
    """From m_n = Σ_s κ_s [z^{n−s}] M(z)^s."""
    powers = _power_coefficients(moments)
    cumulants = np.zeros(len(moments))
    for n in range(1, len(moments) + 1):
        known = sum(cumulants[s - 1] * powers[s][n - s] for s in range(1, n))
        cumulants[n - 1] = moments[n - 1] - known
    return cumulants


def _from_free_cumulants(cumulants: np.ndarray) -> np.ndarray:
    moments = np.zeros(len(cumulants))
    for n in range(1, len(cumulants) + 1):
        # Only moments below n enter: the coefficient of z^{n−s} with s ≥ 1.
        powers = _power_coefficients(moments)
        moments[n - 1] = sum(cumulants[s - 1] * powers[s][n - s] for s in range(1, n + 1))
    return moments


def _two_moments(
    levels: np.ndarray, second: Sequence[float], fourth: Sequence[float], w: float
) -> np.ndarray:
    m1, m2 = float(levels[0]), float(levels[0]) ** 2
    for level, d2, d4 in zip(levels[1:], second, fourth, strict=True):
        inner = d2**2 * m2 + (d4 - d2**2) * m1**2
        m1, m2 = level + w * d2 * m1, level**2 + 2 * level * w * d2 * m1 + w**2 * inner
    return np.array([m1, m2])


def _forward(
    phi: Activation, depth: int, w: float, b: float, features: Sequence[float] | np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """q̂_0 … q̂_{L−1}, and the variances q of u^1 … u^{L−1}."""
    given = np.atleast_1d(np.asarray(features, dtype=np.float64))
    if given.ndim != 1 or len(given) not in (1, depth) or not (given >= 0).all():
        raise ValueError(
            f"features are q̂_0 or all {depth} values q̂_0 … q̂_{{L−1}}, not negative, got {features}"
        )
    feature = np.empty(depth)
    variance = np.empty(depth - 1)
    feature[0] = given[0]
    for i in range(depth - 1):
        variance[i] = w * feature[i] + b
        feature[i + 1] = given[i + 1] if len(given) > 1 else phi.diagonal(variance[i : i + 1])[0][0]
    return feature, variance
