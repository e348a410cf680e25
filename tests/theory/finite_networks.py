"""Small finite networks in plain NumPy, written against the definitions and not against kobai.

Everything the theory predicts is measured here: forward, backward for all outputs, layer Grams.
Rows of dual matrices are ordered (output, example).
"""

import itertools

import numpy as np
from scipy.special import erf

PHI = {
    "linear": (lambda u: u, lambda u: np.ones_like(u)),
    "relu": (lambda u: np.maximum(u, 0.0), lambda u: (u > 0).astype(float)),
    "erf": (erf, lambda u: 2 / np.sqrt(np.pi) * np.exp(-u * u)),
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "hard-tanh": (lambda u: np.clip(u, -1, 1), lambda u: (np.abs(u) < 1).astype(float)),
}


class Net:
    """u^l = W^l h^{l−1} + b^l in the standard parameterisation, output u^L."""

    def __init__(self, rng, widths, phi, s_w, s_b):
        self.phi, self.slope = PHI[phi]
        self.s_w, self.s_b = s_w, s_b
        self.weights = [
            rng.standard_normal((m, k)) * np.sqrt(s_w / k) for k, m in itertools.pairwise(widths)
        ]
        self.biases = [rng.standard_normal(m) * np.sqrt(s_b) for m in widths[1:]]

    def forward(self, x):
        """Features h^0 … h^{L−1} and pre-activations u^1 … u^L, examples first."""
        features, before = [x], []
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            before.append(features[-1] @ w.T + b)
            if i < len(self.weights) - 1:
                features.append(self.phi(before[-1]))
        return features, before

    def deltas(self, before):
        """∂f_k(n)/∂u^l, a (C, N, M_l) array for every l."""
        n, c = before[-1].shape
        found = [np.broadcast_to(np.eye(c)[:, None, :], (c, n, c))]
        for w, u in zip(self.weights[:0:-1], before[-2::-1], strict=True):
            found.insert(0, (found[0] @ w) * self.slope(u))
        return found

    def grams(self, x, parameterization="standard", bias=True):
        """Layer Grams K_l = J_l J_lᵀ, each (C N, C N)."""
        features, before = self.forward(x)
        return [
            layer_gram(delta, self.inputs(h, parameterization, bias))
            for h, delta in zip(features, self.deltas(before), strict=True)
        ]

    def inputs(self, h, parameterization="standard", bias=True):
        """h̄, features with the bias' column."""
        ones = np.ones((len(h), 1))
        if parameterization == "ntk":
            return np.hstack([np.sqrt(self.s_w / h.shape[1]) * h, np.sqrt(self.s_b) * ones])
        return np.hstack([h, ones]) if bias else h

    def gradients(self, x, residual):
        """Gradients of (1/N) Σ residual·f in weights and biases."""
        features, before = self.forward(x)
        signal, found = residual / len(x), []
        for i in range(len(self.weights) - 1, -1, -1):
            found.insert(0, (signal.T @ features[i], signal.sum(0)))
            if i:
                signal = (signal @ self.weights[i]) * self.slope(before[i - 1])
        return found


def layer_gram(delta, inputs):
    """⟨δ_k(n), δ_k'(m)⟩ ⟨h̄(n), h̄(m)⟩ with rows (k, n)."""
    c, n, m = delta.shape
    flat = delta.reshape(c * n, m)
    return (flat @ flat.T) * np.tile(inputs @ inputs.T, (c, c))


def top_mean(values, count):
    """Mean of the largest eigenvalues: one alone is biased upward."""
    return float(np.sort(values)[-count:].mean())


def orthogonal(rng, size):
    """A Haar orthogonal matrix."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))
