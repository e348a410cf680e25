"""Smooth activations without a closed form: Gaussian averages by Hermite (Mehler) series.

With the orthonormal Hermite polynomials he_k and α_k(σ) = E[φ(σz) he_k(z)],
V(a, c, b) = Σ_k α_k(√a) α_k(√b) ρᵏ, and the same for D with φ'. Coefficients need one-dimensional
quadrature for each variance; a pair costs a few multiplications per term, where two-dimensional
quadrature costs thousands of values of φ. Parseval's identity bounds what truncation leaves out.
"""

import functools
from collections.abc import Callable

import numpy as np

from kobai.theory.activations.activation import Activation, Array, Values

_MOST_TERMS = 1024
_TOLERANCE = 1e-14
_CHUNK = 1 << 16  # entries of a Gram matrix at a time: its temporaries stay in the cache


class Smooth(Activation):
    """An activation given by a function and its derivative, both analytic near the real line.

    Accuracy about 1e-12 for variances up to 10 if the nearest singularity is no closer to the
    real line than that of tanh (π/2); `accuracy` states it, and grows beyond: at most 1024 terms.
    For functions with kinks the series converges slowly and the quadrature is not split; use the
    closed forms.

    Args:
        function: φ, entry by entry on float64 arrays.
        derivative: φ'.
        name: What to call it.
        odd: Whether φ is odd; then half the terms vanish.
    """

    shares_tables = True

    def __init__(
        self,
        function: Callable[[Array], Array],
        derivative: Callable[[Array], Array],
        *,
        name: str,
        odd: bool = False,
    ) -> None:
        self.name = name
        self.odd = odd
        self._function = function
        self._derivative = derivative

    def __call__(self, u: Values) -> Array:
        """φ(u)."""
        return np.asarray(self._function(np.asarray(u, dtype=np.float64)))

    def derivative(self, u: Values) -> Array:
        """φ'(u)."""
        return np.asarray(self._derivative(np.asarray(u, dtype=np.float64)))

    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """The two series; see `Activation.duals`. Cost: K multiply-adds a pair, K about 70 q."""
        a, c, b = (np.asarray(x, dtype=np.float64) for x in (a, c, b))
        shape = np.broadcast_shapes(a.shape, c.shape, b.shape)
        dimension = max(len(shape), 1)
        a, c, b = (x.reshape((1,) * (dimension - x.ndim) + x.shape) for x in (a, c, b))
        values, index = np.unique(np.concatenate([a.ravel(), b.ravel()]), return_inverse=True)
        first, second = index[: a.size].reshape(a.shape), index[a.size :].reshape(b.shape)
        alpha, beta = self._series(values)
        scale = np.sqrt(values)
        full = list(shape) or [1]
        value, slope = np.empty(full), np.empty(full)
        step = max(1, _CHUNK // max(1, int(np.prod(full[1:]))))
        for start in range(0, full[0], step):
            rows = slice(start, start + step)
            i = first if len(first) == 1 else first[rows]
            j = second if len(second) == 1 else second[rows]
            product = scale[i] * scale[j]
            rho = np.divide(
                c if len(c) == 1 else c[rows],
                product,
                out=np.zeros((min(step, full[0] - start), *full[1:])),
                where=product > 0,
            )
            np.clip(rho, -1.0, 1.0, out=rho)
            value[rows] = _sum(alpha, i, j, rho, 1 if self.odd else None)
            slope[rows] = _sum(beta, i, j, rho, 0 if self.odd else None)
        return value.reshape(shape), slope.reshape(shape)

    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """Both by trapezoidal quadrature, exact to rounding for strips as wide as that of tanh."""
        q = np.asarray(q, dtype=np.float64)
        values, index = np.unique(q, return_inverse=True)
        z, weight = _grid(float(np.max(values, initial=0.0)))
        u = np.sqrt(values)[:, None] * z
        density = weight**2
        density /= density.sum()
        squares = self(u) ** 2 @ density, self.derivative(u) ** 2 @ density
        first, second = (np.asarray(x[index].reshape(q.shape)) for x in squares)
        return first, second

    def accuracy(self, q: Values) -> float:
        """Bound the part of V or D that the series leaves out, by Parseval; at least 1e-13."""
        values = np.unique(np.asarray(q, dtype=np.float64))
        alpha, beta = self._series(values)
        value, slope = self.diagonal(values)
        left = np.maximum(value - (alpha**2).sum(0), slope - (beta**2).sum(0))
        return float(max(1e-13, np.max(left, initial=0.0)))

    def _series(self, q: Array) -> tuple[Array, Array]:
        """Coefficients of φ and φ' at each variance, (K, len(q)) each, K as the accuracy asks."""
        largest = float(np.max(q, initial=0.0))
        z, weight = _grid(largest)
        u = np.sqrt(q)[:, None] * z
        spacing = z[1] - z[0]
        function, derivative = self(u) * (weight * spacing), self.derivative(u) * (weight * spacing)
        value, slope = self.diagonal(q)
        terms = 64
        while True:
            basis = _hermite_functions(terms, largest)
            alpha, beta = basis @ function.T, basis @ derivative.T
            left = np.maximum(value - (alpha**2).sum(0), slope - (beta**2).sum(0))
            done = np.all(left <= _TOLERANCE * np.maximum(slope, 1.0))
            if done or terms >= _MOST_TERMS:
                return alpha, beta
            terms *= 2


def tanh() -> Smooth:
    """The hyperbolic tangent."""
    return Smooth(np.tanh, lambda u: 1 - np.tanh(u) ** 2, name="tanh", odd=True)


def _sum(coefficients: Array, i: Array, j: Array, rho: Array, parity: int | None) -> Array:
    """Σ_k α_k[i] α_k[j] ρᵏ by Horner's rule; parity keeps only odd or even k."""
    orders = range(len(coefficients)) if parity is None else range(parity, len(coefficients), 2)
    # Terms below rounding for every variance at hand are not worth a pass over the matrix.
    size = np.abs(coefficients).max(axis=1, initial=0.0) ** 2
    kept = [k for k in orders if size[k:].sum() > 1e-17 * size.sum()]
    factor = rho if parity is None else rho * rho
    total, product = np.zeros_like(rho), np.empty_like(rho)
    for k in reversed(kept):
        total *= factor
        total += np.multiply(coefficients[k][i], coefficients[k][j], out=product)
    return total * rho if parity == 1 else total


def _spacing(largest: float) -> int:
    """Points of the grid at this variance, in steps, so that few grids are ever made."""
    return 2 ** int(np.ceil(np.log2(max(1.0, np.sqrt(largest)))))


def _grid(largest: float) -> tuple[Array, Array]:
    """Nodes z and the square root of the standard normal density on them."""
    return _grid_of(_spacing(largest))


@functools.lru_cache(maxsize=8)
def _grid_of(density: int) -> tuple[Array, Array]:
    z = np.linspace(-12.5, 12.5, 320 * min(density, 64) + 1)
    return z, np.exp(-(z**2) / 4) / (2 * np.pi) ** 0.25


def _hermite_functions(terms: int, largest: float) -> Array:
    """he_k(z) times the square root of the density, (K, nodes)."""
    return _hermite_of(terms, _spacing(largest))


@functools.lru_cache(maxsize=8)
def _hermite_of(terms: int, density: int) -> Array:
    z, weight = _grid_of(density)
    rows = np.empty((terms, z.size))
    rows[0] = weight
    rows[1] = z * weight
    for k in range(1, terms - 1):
        rows[k + 1] = (z * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1)
    return rows
