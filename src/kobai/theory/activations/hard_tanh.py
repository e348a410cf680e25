"""Hard-tanh, u clamped to [−1, 1]: Gaussian averages in closed form through Owen's T."""

import numpy as np
from scipy import special

from kobai.theory.activations.activation import Activation, Array, Values

# Below this variance the clamp acts with a probability under 1e-22: the function is linear.
_LINEAR_BELOW = 0.01


class HardTanh(Activation):
    """φ(u) = min(max(u, −1), 1).

    D = P(|u| < 1, |v| < 1) is a rectangle probability of the bivariate normal law, V a combination
    of four second moments over quadrants, E[(u − s)₊ (v − t)₊] with s, t = ±1.
    """

    name = "hard-tanh"
    kinks = (-1.0, 1.0)
    odd = True

    def __call__(self, u: Values) -> Array:
        """U clamped to [−1, 1]."""
        return np.asarray(np.clip(u, -1.0, 1.0))

    def derivative(self, u: Values) -> Array:
        """1 inside (−1, 1), else 0."""
        return np.asarray(np.abs(u) < 1, dtype=np.float64)

    def duals(self, a: Values, c: Values, b: Values) -> tuple[Array, Array]:
        """Closed form by Owen's T, 8 values a pair; see `Activation.duals`."""
        shape = np.broadcast_shapes(np.shape(a), np.shape(c), np.shape(b))
        a, c, b = (np.broadcast_to(x, shape).astype(np.float64).ravel() for x in (a, c, b))
        scale = np.sqrt(a * b)
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.where(scale > 0, np.clip(c / scale, -1, 1), 0.0)
        small = np.minimum(a, b) < _LINEAR_BELOW
        # With one of the two linear, E[u φ(v)] = c E φ'(v) by Stein's identity.
        inside = self.diagonal(a)[1] * self.diagonal(b)[1]
        value, slope = rho * scale * inside, inside
        if not small.all():
            usual = ~small
            value[usual], slope[usual] = _clamped(a[usual], rho[usual], b[usual])
        return value.reshape(shape), slope.reshape(shape)

    def diagonal(self, q: Values) -> tuple[Array, Array]:
        """With p = erf(1/√2q): q (p − √(2/πq) exp(−1/2q)) + 1 − p, and p."""
        q = np.asarray(q, dtype=np.float64)
        safe = np.maximum(q, 1e-4)
        inside = special.erf(1 / np.sqrt(2 * safe))
        density = np.sqrt(2 / (np.pi * safe)) * np.exp(-0.5 / safe)
        value = q * (inside - density) + special.erfc(1 / np.sqrt(2 * safe))
        return np.asarray(value), np.asarray(inside)

    def accuracy(self, q: Values) -> float:
        """Rounding, with the cancellation between four moments."""
        return 1e-12


def _clamped(a: Array, rho: Array, b: Array) -> tuple[Array, Array]:
    """V and D of variances above the linear range, one-dimensional arrays."""
    h, k = 1 / np.sqrt(a), 1 / np.sqrt(b)
    rest = np.sqrt(np.maximum((1 - rho) * (1 + rho), 1e-300))
    same, opposite = _below(h, k, rho, rest), _below(h, -k, rho, rest)
    # P(|u|<1, |v|<1) from the two corners; the others follow by symmetry u, v → −u, −v.
    slope = 2 * (same - opposite) - (special.ndtr(k) - special.ndtr(-k))
    total = 0.0
    for s, t, sign in ((1, 1, 1.0), (-1, -1, 1.0), (1, -1, -1.0), (-1, 1, -1.0)):
        total = total + sign * _corner(s * h, t * k, rho, rest)
    return total / (h * k) - 1.0, np.clip(slope, 0.0, 1.0)


def _below(h: Array, k: Array, rho: Array, rest: Array) -> Array:
    """P(X < h, Y < k) of a standard pair with correlation rho, by Owen (1956)."""
    tail = special.owens_t(h, _gap(k, h, rho, rest) / h)
    tail = tail + special.owens_t(k, _gap(h, k, rho, rest) / k)
    return (special.ndtr(h) + special.ndtr(k)) / 2 - tail - np.where(h * k > 0, 0.0, 0.5)


def _gap(h: Array, k: Array, rho: Array, rest: Array) -> Array:
    """(h − ρ k)/√(1 − ρ²), without cancellation where h ≈ ±k and ρ ≈ ±1: V loses digits there."""
    sign = np.where(rho < 0, -1.0, 1.0)
    size = np.abs(rho)
    return (h - sign * k) / rest + sign * k * np.sqrt((1 - size) / (1 + size))


def _corner(h: Array, k: Array, rho: Array, rest: Array) -> Array:
    """E[(X − h)₊ (Y − k)₊] of a standard pair with correlation rho."""
    above = _below(-h, -k, rho, rest)
    gap_h, gap_k = _gap(h, k, rho, rest), _gap(k, h, rho, rest)
    # The exponent (h² − 2ρhk + k²)/2(1 − ρ²), written so that ρ → ±1 does not cancel.
    density = rest / (2 * np.pi) * np.exp(-(gap_h**2 + k**2) / 2)
    normal = np.sqrt(2 * np.pi)
    return (
        (rho + h * k) * above
        + density
        - h * np.exp(-(k**2) / 2) / normal * special.ndtr(-gap_h)
        - k * np.exp(-(h**2) / 2) / normal * special.ndtr(-gap_k)
    )
