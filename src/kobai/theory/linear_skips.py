"""Deep linear networks with and without skips: exact Fisher blocks, and what a skip does to them.

h^l = T_l h^{l−1} with T = W (plain) or I + W (skips), squared loss, S = (1/N) Σ x xᵀ: the Fisher
block of layers l, m is (B_lᵀ B_m) ⊗ (A_l S A_mᵀ), A_l = T_{l−1}…T_1, B_l = T_L…T_{l+1}, row-major.
Every formula here follows from these definitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearFactors:
    """Kronecker factors of a linear network; K-FAC is exact here.

    Attributes:
        before: A_1 … A_L, maps from the inputs to the input of each layer.
        after: B_1 … B_L, maps from the output of each layer to the outputs.
        covariance: S.
    """

    before: tuple[np.ndarray, ...]
    after: tuple[np.ndarray, ...]
    covariance: np.ndarray

    def inputs(self, layer: int, other: int | None = None) -> Float[np.ndarray, "i j"]:
        """A_l S A_mᵀ, the input factor of layers l and m (default the same), counted from 1."""
        other = layer if other is None else other
        return self.before[layer - 1] @ self.covariance @ self.before[other - 1].T

    def outputs(self, layer: int, other: int | None = None) -> Float[np.ndarray, "i j"]:
        """B_lᵀ B_m, the output factor of layers l and m (default the same), counted from 1."""
        other = layer if other is None else other
        return self.after[layer - 1].T @ self.after[other - 1]

    def block(self, layer: int, other: int | None = None) -> Float[np.ndarray, "p q"]:
        """The Fisher block of row-major vec W_l and vec W_m: output factor ⊗ input factor."""
        return np.kron(self.outputs(layer, other), self.inputs(layer, other))

    @property
    def rank(self) -> int:
        """Rank of the whole Fisher matrix if all maps have full rank: C rank S."""
        return self.after[0].shape[0] * int(np.linalg.matrix_rank(self.covariance))


def linear_factors(
    weights: Sequence[Float[np.ndarray, "_ _"]],
    covariance: Float[np.ndarray, "d d"],
    *,
    skips: bool,
) -> LinearFactors:
    """Exact factors of a deep linear network.

    Args:
        weights: W_1 … W_L, each (out, in).
        covariance: S, (d, d).
        skips: Layers are I + W, for which all must be square.

    Returns:
        The factors. Cost: 2L matrix products.

    Raises:
        ValueError: If shapes do not fit.
    """
    maps = [np.asarray(weight, dtype=np.float64) for weight in weights]
    if not maps:
        raise ValueError("at least one weight matrix")
    width = len(covariance)
    if np.shape(covariance) != (width, width):
        raise ValueError(f"covariance is square, got {np.shape(covariance)}")
    for i, weight in enumerate(maps):
        if weight.ndim != 2 or weight.shape[1] != width:
            raise ValueError(f"W_{i + 1} takes {width} inputs, got shape {weight.shape}")
        width = weight.shape[0]
        if skips and weight.shape[0] != weight.shape[1]:
            raise ValueError(f"a skip needs a square matrix, W_{i + 1} is {weight.shape}")
    if skips:
        maps = [np.eye(len(weight)) + weight for weight in maps]
    before = [np.eye(len(covariance))]
    for layer in maps[:-1]:
        before.append(layer @ before[-1])
    after = [np.eye(len(maps[-1]))]
    for layer in reversed(maps[1:]):
        after.insert(0, after[0] @ layer)
    return LinearFactors(
        before=tuple(before),
        after=tuple(after),
        covariance=np.asarray(covariance, dtype=np.float64),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpectedFactors:
    """Expected factors of layer l over W_ij ~ N(0, s/d); see `expected_factors`.

    Attributes:
        inputs: E[A_l S A_lᵀ].
        outputs: E[B_lᵀ B_l] is this number times I.
        damping: With skips, inputs = S + damping · I: the multiple of the identity that depth adds.
        cross: Relative Frobenius size √(2s/((1 + s)² + s²)) of the terms W M + M Wᵀ that vanish in
            the mean only (for M = I): how far a single network is from the damping reading.
        notes: What to read into it.
    """

    inputs: np.ndarray
    outputs: float
    damping: float
    cross: float
    notes: tuple[str, ...] = ()


def expected_factors(
    layer: int,
    depth: int,
    variance: float | int,
    covariance: Float[np.ndarray, "d d"],
    *,
    skips: bool,
) -> ExpectedFactors:
    """Expected Kronecker factors over random square weights W_ij ~ N(0, variance/d).

    Skips: S + (tr S/d)((1 + s)^{l−1} − 1) I and (1 + s)^{L−l} I; plain: s^{l−1} (tr S/d) I (for
    l = 1 S itself) and s^{L−l} I. A skip acts on a layer's factors as a data-shaped damping, but it
    does not bias the update and its cross terms are not small.

    Args:
        layer: l, from 1 to depth.
        depth: L.
        variance: s.
        covariance: S.
        skips: Layers are I + W.

    Returns:
        The expectations.

    Raises:
        ValueError: If the layer does not exist or the variance is negative.
    """
    if not 1 <= layer <= depth:
        raise ValueError(f"layer is 1 to depth = {depth}, got {layer}")
    if variance < 0:
        raise ValueError(f"variance is not negative, got {variance}")
    s, d = float(variance), len(covariance)
    mean = float(np.trace(covariance)) / d
    if skips:
        damping = mean * ((1 + s) ** (layer - 1) - 1)
        inputs, outputs = covariance + damping * np.eye(d), (1 + s) ** (depth - layer)
        note = "damping-like in the mean only; it leaves the minimum where it is"
    else:
        damping = float("nan")
        inputs = covariance * 1.0 if layer == 1 else s ** (layer - 1) * mean * np.eye(d)
        outputs = s ** (depth - layer)
        note = "means hide that plain Gaussian products degrade exponentially with depth"
    return ExpectedFactors(
        inputs=np.asarray(inputs),
        outputs=float(outputs),
        damping=damping,
        cross=float(np.sqrt(2 * s / ((1 + s) ** 2 + s**2))),
        notes=(note,),
    )


def smallest_eigenvalue_bound(
    weights: Sequence[Float[np.ndarray, "d d"]], covariance: Float[np.ndarray, "d d"], layer: int
) -> float:
    """λ_min(A_l S A_lᵀ) ≥ λ_min(S) Π_{j<l} (1 − ‖W_j‖)² with skips.

    Args:
        weights: W_1 … W_L, square.
        covariance: S.
        layer: l, from 1 to L.

    Returns:
        The bound; 0 where a spectral norm is 1 or more, which it does not cover.

    Raises:
        ValueError: If the layer does not exist.
    """
    if not 1 <= layer <= len(weights):
        raise ValueError(f"layer is 1 to {len(weights)}, got {layer}")
    norms = [float(np.linalg.norm(weight, 2)) for weight in weights[: layer - 1]]
    lowest = float(np.linalg.eigvalsh(covariance)[0])
    return lowest * float(np.prod([max(0.0, 1 - norm) ** 2 for norm in norms]))


@dataclass(frozen=True, kw_only=True, eq=False)
class SkipTerms:
    """(I + W) M (I + W)ᵀ term by term; see `skip_terms`.

    Attributes:
        plain: W M Wᵀ, all that a network without skips has.
        skip: M, what reads as damping.
        cross: W M + M Wᵀ, zero in the mean over W only.
        relative_cross: ‖cross‖_F/‖plain + skip‖_F.
        damping: tr M/d, the multiple of the identity of the same trace as `skip`.
    """

    plain: np.ndarray
    skip: np.ndarray
    cross: np.ndarray
    relative_cross: float
    damping: float


def skip_terms(weight: Float[np.ndarray, "d d"], factor: Float[np.ndarray, "d d"]) -> SkipTerms:
    """One step of the input factor's recursion through a residual layer, term by term.

    Args:
        weight: W.
        factor: M = A_l S A_lᵀ.

    Returns:
        The three terms, which add up to the next factor, and how large the cross terms are.
    """
    plain, cross = weight @ factor @ weight.T, weight @ factor + factor @ weight.T
    total = float(np.linalg.norm(plain + factor))
    return SkipTerms(
        plain=plain,
        skip=np.array(factor, dtype=np.float64),
        cross=cross,
        relative_cross=float(np.linalg.norm(cross)) / total if total else 0.0,
        damping=float(np.trace(factor)) / len(factor),
    )
