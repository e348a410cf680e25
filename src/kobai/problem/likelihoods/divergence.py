"""The Kullback-Leibler divergence of one term, without cancellation where it is nearly zero."""

import torch
from torch import Tensor

_NEAR = 0.01
"""Below this distance of log-probabilities the series is more exact than the difference."""


def divergence(target: Tensor, mass: Tensor, log_prediction: Tensor) -> Tensor:
    """Terms of Σ q log(q / (m p)), each made non-negative by adding m p − q, which sums to zero.

    With d = log(q / m) − log p a term is q (d + exp(−d) − 1) ≥ 0. Cross-entropy minus entropy would
    lose all digits near agreement, where the divergence is quadratic in d; this loses none that the
    log-probabilities have.

    Args:
        target: q, non-negative, the terms of one distribution along some axis.
        mass: m, what the terms of q sum to; broadcast against q.
        log_prediction: log p, shaped like q.

    Returns:
        The terms; 0 where q and m are 0, m p where q alone is 0.
    """
    there = target > 0
    safe = torch.where(there, target, 1.0)
    scale = torch.where(mass > 0, mass, 1.0)
    d = torch.where(there, safe.log() - scale.log() - log_prediction, 0.0)
    predicted = mass * log_prediction.exp()
    close = d.abs() < _NEAR
    e = torch.where(close, d, 0.0)
    series = e * e * (1 / 2 - e * (1 / 6 - e * (1 / 24 - e * (1 / 120 - e / 720))))
    apart = target * d + predicted - target
    return torch.where(there, torch.where(close, target * series, apart), predicted)
