"""Activations as theory sees them: what a Gaussian becomes when it passes through.

Everything about wide networks follows from two averages of an activation φ over a pair
(u, v) ~ N(0, [[a, c], [c, b]]): V = E[φ(u) φ(v)] and D = E[φ'(u) φ'(v)] = ∂V/∂c. Closed forms here;
hard-tanh in `hard_tanh`, smooth functions without a closed form in `hermite`.
"""

import abc
import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy import special

Array: TypeAlias = np.ndarray
Values: TypeAlias = np.ndarray | np.number | float | int


class Activation(abc.ABC):
    """An activation function with its Gaussian averages.

    Attributes:
        name: What it is called.
        kinks: Points where the derivative jumps; quadratures split there.
        odd: Whether φ(−u) = −φ(u). Such networks without biases map uncorrelated inputs to
            uncorrelated features.
        shares_tables: Whether `duals` spends most of its time on tables of `a` and `b` alone, so
            that it should be given whole Gram matrices, which it cuts itself, and not blocks.
    """

    name: str
    kinks: tuple[float, ...] = ()
    odd: bool = False
    shares_tables: bool = False

    @abc.abstractmethod
    def __call__(self, u: Values) -> Array:
        """φ(u), entry by entry."""

    @abc.abstractmethod
    def derivative(self, u: Values) -> Array:
        """φ'(u), entry by entry; at a kink either one-sided value."""

    @abc.abstractmethod
    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """Averages over pairs with variances a, b and covariance c.

        Args:
            a: Variances of u, not negative.
            c: Covariances; values beyond ±√(ab), as rounding makes them, count as ±√(ab).
            b: Variances of v; the three broadcast, float64.

        Returns:
            V = E[φ(u) φ(v)] and D = E[φ'(u) φ'(v)], of the broadcast shape. Where a variance is 0,
            D takes φ'(0).
        """

    @abc.abstractmethod
    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """E[φ(u)²] and E[φ'(u)²] for u ~ N(0, q), entry by entry."""

    @abc.abstractmethod
    def accuracy(self, q: Values) -> float:
        """A bound on the absolute error of `duals` at variances up to those in q, for V of size 1.

        Rounding only for closed forms; truncation of the series for others.
        """

    def __repr__(self) -> str:
        return f"<activation {self.name}>"


class Linear(Activation):
    """φ(u) = u: V = c, D = 1."""

    name = "linear"
    odd = True

    def __call__(self, u: Values) -> Array:
        """Return u itself."""
        return np.asarray(u, dtype=np.float64)

    def derivative(self, u: Values) -> Array:
        """Return ones."""
        return np.ones_like(u, dtype=np.float64)

    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """V = c, D = 1; see `Activation.duals`."""
        a, c, b = np.broadcast_arrays(a, c, b)
        return c.astype(np.float64), np.ones(c.shape)

    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """Return q and 1."""
        q = np.asarray(q, dtype=np.float64)
        return q.copy(), np.ones_like(q)

    def accuracy(self, q: Values) -> float:
        """Return 0: the averages are exact."""
        return 0.0


class LeakyReLU(Activation):
    """φ(u) = u for u > 0 and slope·u below; slope 0 is ReLU (arc-cosine kernels).

    Args:
        slope: What negative inputs are multiplied by.
    """

    kinks = (0.0,)

    def __init__(self, slope: float | int = 0.01) -> None:
        if not np.isfinite(slope):
            raise ValueError(f"slope must be a finite number, got {slope}")
        self.slope = float(slope)
        self.name = "relu" if slope == 0 else f"leaky-relu({self.slope:g})"

    def __call__(self, u: Values) -> Array:
        """max(u, 0) + slope·min(u, 0)."""
        return np.where(np.asarray(u) > 0, u, self.slope * np.asarray(u))

    def derivative(self, u: Values) -> Array:
        """1 above 0, slope below and at 0."""
        return np.where(np.asarray(u) > 0, 1.0, self.slope)

    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """ReLU: D = ½ − θ/2π with θ the angle, V = c D + √(ab − c²)/2π; see `Activation.duals`.

        D has an infinite slope in c at c = √(ab): an error ε in the correlation moves it by √ε.
        """
        a, c, b = (np.asarray(x, dtype=np.float64) for x in (a, c, b))
        # θ = atan2(√(ab − c²), c) needs no division, hence no care where a variance is 0; every
        # step writes over the last one, which halves the time on blocks that fit the cache.
        root = np.asarray(np.multiply(a, b))
        if root.shape != np.broadcast_shapes(root.shape, c.shape):
            root = np.broadcast_to(root, np.broadcast_shapes(root.shape, c.shape)).copy()
        root = np.atleast_1d(root) if root.ndim == 0 else root
        slope = np.empty_like(root)
        np.multiply(c, c, out=slope)
        np.subtract(root, slope, out=root)
        np.maximum(root, 0.0, out=root)
        np.sqrt(root, out=root)
        np.arctan2(root, c, out=slope)
        np.multiply(slope, -1 / (2 * np.pi), out=slope)
        np.add(slope, 0.5, out=slope)
        np.multiply(root, 1 / (2 * np.pi), out=root)
        root += c * slope
        if self.slope:
            root *= (1 - self.slope) ** 2
            root += self.slope * c
            slope *= (1 - self.slope) ** 2
            slope += self.slope
        shape = np.broadcast_shapes(a.shape, c.shape, b.shape)
        return root.reshape(shape), slope.reshape(shape)

    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """q (1 + slope²)/2 and (1 + slope²)/2."""
        q = np.asarray(q, dtype=np.float64)
        half = (1 + self.slope**2) / 2
        return np.asarray(half * q), np.full_like(q, half)

    def accuracy(self, q: Values) -> float:
        """Bound the rounding; D next to equal inputs has the square root of it."""
        return 1e-14


class Erf(Activation):
    """φ(u) = erf(u), without 1/√2 inside: arc-sine kernels."""

    name = "erf"
    odd = True

    def __call__(self, u: Values) -> Array:
        """erf(u)."""
        return np.asarray(special.erf(u))

    def derivative(self, u: Values) -> Array:
        """(2/√π) exp(−u²)."""
        return np.asarray(2 / np.sqrt(np.pi) * np.exp(-np.square(u)))

    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """V = (2/π) asin(2c/√S), D = (4/π)/√(S − 4c²) with S = (1 + 2a)(1 + 2b)."""
        a, c, b = np.asarray(a), np.asarray(c), np.asarray(b)
        product = (1 + 2 * a) * (1 + 2 * b)
        value = 2 / np.pi * np.arcsin(np.clip(2 * c / np.sqrt(product), -1, 1))
        # S − 4c² is at least 1 + 2a + 2b for any covariance.
        rest = np.maximum(product - 4 * np.square(c), 1.0)
        return np.asarray(value), np.asarray(4 / np.pi / np.sqrt(rest))

    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """The same at c = a = b = q."""
        q = np.asarray(q, dtype=np.float64)
        return self.duals(q, q, q)

    def accuracy(self, q: Values) -> float:
        """Bound the rounding."""
        return 1e-14


class GELU(Activation):
    """φ(u) = u Φ(u), the exact form, not the tanh approximation.

    With A = 1 + a, B = 1 + b, S = AB, Δ = S − c² and the orthant probability
    p = ¼ + asin(c/√S)/2π: V = c p + (ab √Δ + c²/√Δ)/(2πS), D = ∂V/∂c. Own derivation: Φ(u) is the
    probability that a standard normal variable lies below u, which makes V a moment of a
    four-dimensional Gaussian over an orthant.
    """

    name = "gelu"

    def __call__(self, u: Values) -> Array:
        """u Φ(u)."""
        return np.asarray(np.asarray(u) * special.ndtr(u))

    def derivative(self, u: Values) -> Array:
        """Φ(u) + u exp(−u²/2)/√(2π)."""
        u = np.asarray(u)
        return np.asarray(special.ndtr(u) + u * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi))

    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """The closed form of the class; see `Activation.duals`."""
        a, c, b = np.asarray(a), np.asarray(c), np.asarray(b)
        both = (1 + a) * (1 + b)
        rest = np.maximum(both - c**2, 1.0)
        root = np.sqrt(rest)
        orthant = 0.25 + np.arcsin(np.clip(c / np.sqrt(both), -1, 1)) / (2 * np.pi)
        value = c * orthant + (a * b * root + c**2 / root) / (2 * np.pi * both)
        slope = c / root + (2 * c / root + c**3 / rest**1.5 - a * b * c / root) / both
        return np.asarray(value), np.asarray(orthant + slope / (2 * np.pi))

    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """The same at c = a = b = q."""
        q = np.asarray(q, dtype=np.float64)
        return self.duals(q, q, q)

    def accuracy(self, q: Values) -> float:
        """Bound the rounding."""
        return 1e-14


def gaussian_average(
    function: Callable[[Array], Array], q: float | int, kinks: tuple[float, ...] = ()
) -> float:
    """E[f(u)] for u ~ N(0, q) by composite Gauss–Legendre quadrature.

    Args:
        function: f, entry by entry, smooth except at the kinks and of moderate growth.
        q: Variance, not negative.
        kinks: Where f jumps or bends.

    Returns:
        The average; error near 1e-14 for the activations here.

    Raises:
        ValueError: If the variance is negative or not finite.
    """
    if not (np.isfinite(q) and q >= 0):
        raise ValueError(f"a variance is finite and not negative, got {q}")
    if q == 0:
        return float(np.asarray(function(np.zeros(1)))[0])
    nodes, weights = _panels(float(np.sqrt(q)), tuple(kinks))
    return float(weights @ np.asarray(function(nodes)))


@functools.lru_cache(maxsize=64)
def _panels(sd: float, kinks: tuple[float, ...]) -> tuple[Array, Array]:
    """Nodes and Gaussian weights on ±13 standard deviations, panels split at the kinks."""
    reach = 13 * sd
    # Panels resolve both the Gaussian (scale sd) and the activation (scale 1), at most 4000.
    count = int(np.clip(np.ceil(2 * reach / min(sd, 1.0)), 26, 4000))
    edges = np.linspace(-reach, reach, count + 1)
    inside = [kink for kink in kinks if -reach < kink < reach]
    edges = np.unique(np.concatenate([edges, inside]))
    x, w = leggauss(16)
    half = np.diff(edges) / 2
    nodes = ((edges[:-1] + edges[1:]) / 2)[:, None] + half[:, None] * x
    density = np.exp(-((nodes / sd) ** 2) / 2) / (sd * np.sqrt(2 * np.pi))
    weights = half[:, None] * w * density
    return nodes.ravel(), weights.ravel()
