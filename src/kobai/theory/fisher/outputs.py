"""Outputs of a wide network over examples: realised ones, or draws from theory's own law."""

import numpy as np

from kobai.theory.kernels import InfiniteWidthKernels
from kobai.theory.mean_field import OrderParameters

DRAWS = 64
MOST_ROWS = 4000
_WORK = 64 * 400**3  # rows cubed, over all draws that are decomposed


def output_draws(
    p: OrderParameters,
    examples: int,
    kernel: InfiniteWidthKernels | None,
    outputs: np.ndarray | None,
    generator: np.random.Generator | None,
    draws: int = DRAWS,
) -> list[np.ndarray]:
    """Outputs (N, C): the realised ones, or draws; empty where neither is to be had.

    Draws are f_k(n) = √q_st z_k + √(q − q_st) ξ_kn, z shared by all examples; on given inputs
    Gaussian with the infinite-width covariance.
    """
    if outputs is not None:
        found = np.asarray(outputs, dtype=np.float64)
        if not np.isfinite(found).all():
            raise ValueError("outputs hold NaN or infinity")
        return [found]
    if generator is None:
        return []
    if kernel is not None:
        values, vectors = np.linalg.eigh(kernel.nngp)
        root = vectors * np.sqrt(np.maximum(values, 0))
        return [root @ generator.standard_normal((examples, p.outputs)) for _ in range(draws)]
    q, pair = p.variance[-1], p.covariance[-1]
    if pair < 0:
        raise ValueError("outputs of different examples are anti-correlated; pass the inputs")
    own = np.sqrt(max(q - pair, 0.0))
    return [
        np.sqrt(pair) * generator.standard_normal(p.outputs)
        + own * generator.standard_normal((examples, p.outputs))
        for _ in range(draws)
    ]


def decomposed(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """The draws whose CN × CN matrices are decomposed: all, or as many as the work allows."""
    rows = outputs[0].size
    return outputs[: max(1, _WORK // rows**3)]


def dual_kernel(
    p: OrderParameters, examples: int, kernel: InfiniteWidthKernels | None
) -> np.ndarray:
    """The (N, N) block of J Jᵀ that every output has: the kernel, or (S₁ − S₂) I + S₂ 11ᵀ."""
    if kernel is not None:
        return np.asarray(kernel.ntk)
    return (p.s1 - p.s2) * np.eye(examples) + p.s2
