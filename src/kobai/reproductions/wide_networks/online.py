"""Online learning of many deep orthogonal networks at once: one example a step, weights only."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kobai.reproductions.wide_networks.stacked import Stack

_LOST = 1e6


def draw_orthogonal(
    depth: int,
    width: int,
    *,
    weight_variance: float,
    bias_variance: float,
    activation: str,
    generators: list[torch.Generator],
    dtype: torch.dtype,
) -> Stack:
    """Square networks with W = σ_w O, O Haar orthogonal, and Gaussian biases.

    Args:
        depth: L.
        width: M, of inputs, hidden layers and outputs.
        weight_variance: σ_w².
        bias_variance: σ_b².
        activation: ``linear`` or ``hard-tanh``.
        generators: One a cell.
        dtype: Of the parameters.

    Returns:
        The stack.
    """
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for _ in range(depth):
        drawn = [torch.randn(width, width, generator=g, dtype=torch.float64) for g in generators]
        q, r = torch.linalg.qr(torch.stack(drawn))
        sign = torch.diagonal(r, dim1=1, dim2=2).sign().unsqueeze(1)
        weights.append((q * sign * weight_variance**0.5).to(dtype))
        noise = [torch.randn(width, generator=g, dtype=torch.float64) for g in generators]
        biases.append((torch.stack(noise) * bias_variance**0.5).to(dtype))
    return Stack(weights=tuple(weights), biases=tuple(biases), activation=activation)


@dataclass(frozen=True, kw_only=True, eq=False)
class OnlineRun:
    """Losses of B cells along online learning.

    Attributes:
        losses: (B, T) ½‖f − y‖² of each step's example before the step; infinite once lost.
        ratios: (B, E) loss of the step's example after the step over before, of the first E steps.
        stack: The networks after the last step, the same tensors that were passed in.
    """

    losses: Float[Tensor, "B T"]
    ratios: Float[Tensor, "B E"]
    stack: Stack


def learn_online(
    stack: Stack,
    x: Float[Tensor, "K N d"],
    y: Float[Tensor, "K N C"],
    group: Int[Tensor, " B"],
    rates: Float[Tensor, " B"],
    *,
    early: int = 0,
) -> OnlineRun:
    """One step W ← W − η ∂(½‖f − y‖²) for each example in turn; the weights are changed in place.

    Backpropagation is written out, since a step has no batch to hide the cost of a graph behind.

    Args:
        stack: B networks; biases are kept as they are.
        x: Streams of inputs, N steps long.
        y: Their targets.
        group: Which stream a cell learns.
        rates: Learning rate of each cell.
        early: E, steps after which the example's loss is looked at again.

    Returns:
        The losses. Cost: N steps of 3 L batched matrix-vector products.
    """
    steps, cells = x.shape[1], len(rates)
    losses = torch.full((cells, steps), torch.inf, dtype=x.dtype)
    ratios = torch.full((cells, early), torch.inf, dtype=x.dtype)
    alive = torch.ones(cells, dtype=torch.bool)
    start = None
    for step in range(steps):
        target = y[group, step].unsqueeze(2)
        features, slopes = _forward(stack, x[group, step].unsqueeze(2))
        delta = features.pop() - target
        loss = delta.square().sum((1, 2)) / 2
        start = loss if start is None else start
        alive = alive & loss.isfinite() & (loss <= _LOST * start)
        losses[:, step] = torch.where(alive, loss, torch.inf)
        if not alive.any():
            break
        # Lost cells stand still: infinities would only slow the arithmetic down.
        delta = torch.where(alive.view(-1, 1, 1), delta, 0.0)
        scale = torch.where(alive, rates.to(x.dtype), 0.0).view(-1, 1, 1)
        for i in range(len(stack.weights) - 1, -1, -1):
            w = stack.weights[i]
            below = torch.bmm(w.mT, delta) * slopes[i - 1] if i else delta
            w.baddbmm_(delta * scale, features[i].mT, alpha=-1)
            delta = below
        if step < early:
            after = _forward(stack, x[group, step].unsqueeze(2))[0][-1] - target
            ratio = after.square().sum((1, 2)) / 2 / loss
            ratios[:, step] = torch.where(alive & ratio.isfinite(), ratio, torch.inf)
    return OnlineRun(losses=losses, ratios=ratios, stack=stack)


def _forward(stack: Stack, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Features h⁰ … h^{L−1}, f; and φ' at every hidden layer."""
    features, slopes = [h], []
    last = len(stack.weights) - 1
    for i, (w, b) in enumerate(zip(stack.weights, stack.biases, strict=True)):
        u = torch.baddbmm(b.unsqueeze(2), w, features[-1])
        if i < last and stack.activation == "hard-tanh":
            slopes.append((u.abs() < 1).to(u.dtype))
            u = u.clamp(-1, 1)
        elif i < last:
            slopes.append(torch.ones_like(u))
        features.append(u)
    return features, slopes


def conditional_spectra(
    stack: Stack, x: Float[Tensor, "B d"]
) -> tuple[Float[Tensor, "B M"], Float[Tensor, "L B"]]:
    """Eigenvalues of H_L, where J Jᵀ = M H_L for one example, weights only.

    Args:
        stack: Square networks.
        x: One example a network.

    Returns:
        (B, M) eigenvalues, ascending, and (L, B) q̂_l = ‖h^l‖²/M of the network itself.
    """
    features, slopes = _forward(stack, x.unsqueeze(2))
    width = x.shape[1]
    levels = torch.stack([h.square().sum((1, 2)) / width for h in features[:-1]])
    eye = torch.eye(width, dtype=x.dtype)
    h = levels[0].view(-1, 1, 1) * eye
    for i in range(1, len(stack.weights)):
        w = stack.weights[i] * slopes[i - 1].mT
        h = levels[i].view(-1, 1, 1) * eye + w @ h @ w.mT
    return torch.linalg.eigvalsh(h.double()), levels.double()
