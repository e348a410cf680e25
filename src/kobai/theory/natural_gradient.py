"""Isotropy of natural-gradient methods in function space: f moves by −η α (f − y).

With G an approximate Fisher matrix, outputs move by K̄ = J G⁻¹ Jᵀ/N times the residual. Where
K̄ = α I the training error falls as (1 − η α)ᵗ and η = 1/α is one step. Source: Karakida and Osawa,
Understanding Approximate Fisher Information for Fast Convergence of Natural Gradient Descent in
Wide Neural Networks (2010.00879); the K-FAC constant by the algebra of its last layer.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from kobai.results import register
from kobai.theory.activations.activation import LeakyReLU
from kobai.theory.mean_field import order_parameters
from kobai.theory.network import WideNetwork

_COEFFICIENTS = {
    "full": "Θ(x', X) Θ(X, X)⁻¹: ridge-less NTK regression, the limit of gradient descent",
    "layer": "(1/L) Σ_l Θ_l(x', X) Θ_l(X, X)⁻¹",
    "tridiagonal": "Σ_l c_l Θ_l(x', X) Θ_l(X, X)⁻¹ / α",
    "kronecker": "(N/α) Σ_l [Â' Â⁻¹] ∘ [B̂' B̂⁻¹] + output layer's Â' Â⁻¹/α",
    "unit": "sum over units of Θ_u(x', X) Θ_u(X, X)⁺ / α",
    "diagonal": "none",
}


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class NaturalGradientAlpha:
    """The effect of a Fisher structure on the outputs as damping goes to 0.

    Attributes:
        structure: Name.
        alpha: Mean diagonal of K̄; NaN for the entry-wise diagonal.
        isotropic: Whether K̄ = α I holds, exactly or (unit-wise) as the width grows.
        coefficient: What outputs at other inputs follow: f' moves by this times y − f.
        status: ``isotropic``; ``isotropic as width grows``; ``rank deficient`` (α holds in the
            mean, isotropy is lost); ``not isotropic``.
        notes: Conditions that fail, and what damping must be small against.
    """

    structure: str
    alpha: float
    isotropic: bool
    coefficient: str
    status: str
    notes: tuple[str, ...] = ()

    @property
    def learning_rate(self) -> float:
        """η = 1/α, one step of the linearised network; stable up to twice that."""
        return 1 / self.alpha

    def residual(self, learning_rate: float, steps: int) -> float:
        """The factor (1 − η α)ᵗ on the training residual after t steps of the linearised network.

        Args:
            learning_rate: η.
            steps: t.

        Returns:
            The factor; its size exceeds 1 beyond η = 2/α.
        """
        return float((1 - learning_rate * self.alpha) ** steps)


def natural_gradient_alpha(
    structure: Literal["full", "layer", "tridiagonal", "kronecker", "unit", "diagonal"],
    network: WideNetwork,
    examples: int,
    *,
    last_layer_scaled: bool = False,
) -> NaturalGradientAlpha:
    """α of a Fisher structure on N examples in general position, squared loss, damping → 0.

    Lazy regime: after one step a network of width M is off by M^{−1/2} to M^{−1}, K-FAC most.
    Different structures reach the same training error but different functions elsewhere.

    Args:
        structure: ``full``, ``layer``, ``tridiagonal``, ``kronecker`` (K-FAC), ``unit``,
            ``diagonal``.
        network: Widths and activation.
        examples: N.
        last_layer_scaled: K-FAC only: the output layer's step is multiplied by N, which turns
            N(L − 1) + 1 into N L.

    Returns:
        α, the reasons why it fails where it does, and notes on damping.

    Raises:
        ValueError: If the structure is not known or N < 1.
    """
    rules = {
        "full": _full,
        "layer": _layer,
        "tridiagonal": _tridiagonal,
        "kronecker": lambda network, n: _kronecker(network, n, last_layer_scaled),
        "unit": _unit,
        "diagonal": _diagonal,
    }
    if structure not in rules:
        raise ValueError(f"structure is one of {', '.join(rules)}, got {structure!r}")
    if examples < 1:
        raise ValueError(f"examples is a positive number, got {examples}")
    if last_layer_scaled and structure != "kronecker":
        raise ValueError("last_layer_scaled belongs to structure='kronecker'")
    alpha, status, notes = rules[structure](network, examples)
    return NaturalGradientAlpha(
        structure=structure,
        alpha=float(alpha),
        isotropic=status.startswith("isotropic"),
        coefficient=_COEFFICIENTS[structure],
        status=status,
        notes=tuple(notes),
    )


def tridiagonal_weights(depth: int) -> Float[np.ndarray, " L"]:
    """The share of each layer in a step under the layer-tridiagonal Fisher matrix as damping → 0.

    c solves Σ c = 1 with Σ_ij = 1 for |i − j| ≤ 1, and α = Σ c_l = ⌈L/3⌉. Layers with weight 0 are
    not updated at all. Σ is singular where L = 3s + 2; c is then one of many, the shortest.

    Args:
        depth: L.

    Returns:
        (L,) weights.

    Raises:
        ValueError: If the depth is not positive.
    """
    if depth < 1:
        raise ValueError(f"depth is a positive number of layers, got {depth}")
    gap = np.abs(np.subtract.outer(np.arange(depth), np.arange(depth)))
    weights = np.linalg.lstsq((gap <= 1).astype(float), np.ones(depth), rcond=1e-10)[0]
    # The solution is rational with small denominators; rounding leaves zeros at 1e-16.
    return np.where(np.abs(weights) < 1e-12, 0.0, weights)


def _fan_in(network: WideNetwork) -> np.ndarray:
    return np.array(network.widths[:-1]) + int(network.bias)


def _layer_ranks(network: WideNetwork, n: int) -> np.ndarray:
    """Generic rank of every K_l; the output layer's is I_C ⊗ (Gram matrix of features)."""
    c, fan_in = network.outputs, _fan_in(network)
    hidden = np.minimum(c * n, np.array(network.widths[1:-1], dtype=int) * fan_in[:-1])
    return np.append(hidden, c * min(n, int(fan_in[-1])))


def _full(network: WideNetwork, n: int) -> tuple[float, str, list[str]]:
    rows = network.outputs * n
    notes = ["damping ρ ≪ λ_min(K/N); the error is ρ/(λ_min + ρ)"]
    if rows <= network.parameters:
        return 1.0, "isotropic", notes
    notes.insert(0, f"C N = {rows} exceeds P = {network.parameters}: K̄ is a projection")
    return network.parameters / rows, "rank deficient", notes


def _layer(network: WideNetwork, n: int) -> tuple[float, str, list[str]]:
    rows = network.outputs * n
    ranks = _layer_ranks(network, n)
    notes = ["damping ρ ≪ λ_min(K_l/N) of every layer"]
    if (ranks == rows).all():
        return float(network.depth), "isotropic", notes
    notes.insert(0, f"layers {_which(ranks < rows)} have kernels of rank below C N = {rows}")
    return float(np.sum(ranks / rows)), "rank deficient", notes


def _tridiagonal(network: WideNetwork, n: int) -> tuple[float, str, list[str]]:
    depth, rows = network.depth, network.outputs * n
    notes = [
        f"weights of the layers: {tridiagonal_weights(depth).round(3).tolist()}",
        "for L ≥ 3 the matrix is indefinite: no Cholesky or CG; K̄ blows up where ρ meets a "
        "negative eigenvalue, so damping must be tiny and the solve an LU",
    ]
    if depth % 3 == 2:
        notes.append("L = 3s + 2: singular, the limit ρ → 0 exists, weights are not unique")
    ranks = _layer_ranks(network, n)
    if (ranks == rows).all():
        return float(-(-depth // 3)), "isotropic", notes
    notes.insert(0, f"layers {_which(ranks < rows)} have kernels of rank below C N = {rows}: no α")
    return float("nan"), "not isotropic", notes


def _kronecker(network: WideNetwork, n: int, scaled: bool) -> tuple[float, str, list[str]]:
    c, fan_in = network.outputs, _fan_in(network)
    inputs = np.minimum(1.0, fan_in / n)
    back = np.minimum(1.0, np.array(network.widths[1:-1]) / (c * n))
    last = float(inputs[-1]) * (n if scaled else 1)
    alpha = float(np.sum(n * inputs[:-1] * back)) + last
    notes = [
        "damping ρ ≪ λ_min of both factors' Gram matrices; α shrinks quickly with ρ (by half at "
        "ρ = λ_min): take η from the measured mean diagonal of K̄",
    ]
    low_in, low_back = inputs < 1, back < 1
    if not low_in.any() and not low_back.any():
        return alpha, "isotropic", notes
    if low_in.any():
        notes.insert(0, f"layers {_which(low_in)}: N = {n} exceeds fan-in + 1")
    if low_back.any():
        notes.insert(0, f"layers {_which(low_back)}: C N = {c * n} exceeds the width")
    notes.append(
        "α holds in the mean; isotropy returns where one factor has full rank and the other a "
        "constant diagonal (layer 1 with inputs in radial-isotropic position)"
    )
    return alpha, "rank deficient", notes


def _unit(network: WideNetwork, n: int) -> tuple[float, str, list[str]]:
    c, hidden = network.outputs, np.array(network.widths[1:-1], dtype=float)
    notes = ["pseudo-inverse at ρ = 0: inactive units have no rows"]
    share = np.ones(len(hidden))
    if isinstance(network.phi, LeakyReLU) and network.phi.slope == 0:
        share /= 2
        notes.append("relu: half of the units are inactive at an input; error O(1/√M)")
    elif network.phi.name == "hard-tanh":
        p = order_parameters(network)
        share = np.array([network.phi.diagonal(np.array(q))[1] for q in p.variance[:-1]])
        notes.append("hard-tanh: share of units inside ±1 for unit inputs; follows the relu rule")
    alpha = float(np.sum(share * hidden) / c) + 1
    fan_in = _fan_in(network)
    if (fan_in < n).any():
        notes.insert(0, f"layers {_which(fan_in < n)}: N = {n} exceeds fan-in + 1; α is too large")
        return alpha, "rank deficient", notes
    exact = c == 1 and bool((share == 1).all())
    return alpha, "isotropic" if exact else "isotropic as width grows", notes


def _diagonal(network: WideNetwork, n: int) -> tuple[float, str, list[str]]:
    return float("nan"), "not isotropic", ["the entry-wise diagonal is isotropic at no width"]


def _which(mask: np.ndarray) -> str:
    return ", ".join(str(i + 1) for i in np.flatnonzero(mask))
