"""Many networks of one shape as one stack of tensors, trained in one computation.

A cell is a network with its own initialisation and learning rate; gradients of the sum of all
losses are every cell's own gradient. One batched matrix product takes the place of a loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.theory import WideNetwork

OutputNormalization = Literal["none", "mean", "batch", "layer"]
"""Of the last layer's outputs: nothing, minus the mean over examples, BatchNorm, LayerNorm."""

_PHI = {
    "linear": lambda u: u,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "hard-tanh": lambda u: u.clamp(-1, 1),
}
_LOST = 1e4
_COMPACT = 1 / 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Stack:
    """Parameters of B fully connected networks of one shape.

    Attributes:
        weights: One (B, M_l, M_{l−1}) tensor a layer.
        biases: One (B, M_l) tensor a layer; empty without biases.
        activation: Name of φ.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Weights, then biases."""
        return (*self.weights, *self.biases)

    def select(self, cells: Tensor) -> "Stack":
        """The cells at these indices, copied."""
        return Stack(
            weights=tuple(w[cells] for w in self.weights),
            biases=tuple(b[cells] for b in self.biases),
            activation=self.activation,
        )

    def __call__(self, x: Float[Tensor, "B N d"]) -> Float[Tensor, "B N C"]:
        """Outputs of every cell on its own inputs."""
        phi, h = _PHI[self.activation], x
        for i, w in enumerate(self.weights):
            u = (
                torch.baddbmm(self.biases[i].unsqueeze(1), h, w.mT)
                if self.biases
                else torch.bmm(h, w.mT)
            )
            h = phi(u) if i < len(self.weights) - 1 else u
        return h


def draw(
    network: WideNetwork, *, generators: Sequence[torch.Generator], dtype: torch.dtype
) -> Stack:
    """One random network a generator, drawn in float64: weights of all layers, then biases.

    Args:
        network: Widths, variances, activation.
        generators: B of them.
        dtype: Of the parameters.

    Returns:
        The stack of B cells.
    """
    pairs = list(zip(network.widths[:-1], network.widths[1:], strict=True))
    weights: list[list[Tensor]] = [[] for _ in pairs]
    biases: list[list[Tensor]] = [[] for _ in pairs]
    for g in generators:
        for i, (fan_in, units) in enumerate(pairs):
            scale = (network.weight_variance / fan_in) ** 0.5
            weights[i].append(
                torch.randn(units, fan_in, generator=g, dtype=torch.float64).mul_(scale).to(dtype)
            )
        for i, (_, units) in enumerate(pairs):
            scale = network.bias_variance**0.5
            biases[i].append(
                torch.randn(units, generator=g, dtype=torch.float64).mul_(scale).to(dtype)
            )
    return Stack(
        weights=tuple(torch.stack(w) for w in weights),
        biases=tuple(torch.stack(b) for b in biases) if network.bias else (),
        activation=network.phi.name,
    )


def normalize(
    f: Float[Tensor, "*B N C"], normalization: OutputNormalization
) -> Float[Tensor, "*B N C"]:
    """The outputs after the last layer's normalisation, without trained scale and shift.

    Args:
        f: Outputs, examples and outputs last.
        normalization: Which.

    Returns:
        The same shape.
    """
    if normalization == "none":
        return f
    axis = -1 if normalization == "layer" else -2
    centred = f - f.mean(axis, keepdim=True)
    if normalization == "mean":
        return centred
    return centred / centred.square().mean(axis, keepdim=True).sqrt()


@dataclass(frozen=True, kw_only=True, eq=False)
class Descent:
    """Losses of B cells trained by full-batch gradient descent.

    Attributes:
        losses: (B, T + 1) before each step and at the end; infinite from where a cell was lost.
        stack: The trained networks; what is in lost cells means nothing.
    """

    losses: Float[Tensor, "B T"]
    stack: Stack


def descend(
    stack: Stack,
    x: Float[Tensor, "B N d"],
    y: Float[Tensor, "B N C"],
    rates: Float[Tensor, " B"],
    *,
    steps: int,
    normalization: OutputNormalization = "none",
) -> Descent:
    """Train every cell by gradient descent on the mean over its examples of ½‖f − y‖².

    A cell is lost when its loss is not finite or 10⁴ times what it was; lost cells are taken out of
    the computation.

    Args:
        stack: Initial networks, left as they are.
        x: Inputs of each cell.
        y: Targets of each cell.
        rates: Learning rate of each cell.
        steps: T.
        normalization: Of the outputs, with its gradient.

    Returns:
        All losses and the networks at the end. Cost: T batched forward and backward passes.
    """
    count = len(rates)
    losses = torch.full((count, steps + 1), torch.inf, dtype=x.dtype)
    alive = torch.arange(count)
    final = stack.select(alive)
    now = final.select(alive)
    rate = rates.to(x.dtype)
    for step in range(steps + 1):
        parameters = [t.detach().requires_grad_(step < steps) for t in now.tensors]
        now = _restack(now, parameters)
        residual = normalize(now(x), normalization) - y
        each = residual.square().sum((-1, -2)) / (2 * x.shape[1])
        values = each.detach()
        first = values if step == 0 else losses[alive, 0]
        fine = values.isfinite() & (values <= _LOST * first)
        losses[alive, step] = torch.where(fine, values, torch.inf)
        if step == steps:
            break
        if float((~fine).double().mean()) > _COMPACT:
            # Redone on what is left: rarer than the steps it saves.
            keep = fine.nonzero().squeeze(1)
            if not len(keep):
                return Descent(losses=_settled(losses), stack=final)
            alive, x, y, rate = alive[keep], x[keep], y[keep], rate[keep]
            now = _restack(now, [t.detach()[keep].requires_grad_() for t in now.tensors])
            residual = normalize(now(x), normalization) - y
            each = residual.square().sum((-1, -2)) / (2 * x.shape[1])
        gradients = torch.autograd.grad(each.sum(), now.tensors)
        with torch.no_grad():
            moved = [
                g.mul_(-rate.view(-1, *[1] * (t.ndim - 1))).add_(t.detach())
                for t, g in zip(now.tensors, gradients, strict=True)
            ]
        now = _restack(now, moved)
    for target, source in zip(final.tensors, now.tensors, strict=True):
        target[alive] = source.detach()
    return Descent(losses=_settled(losses), stack=final)


def _settled(losses: Tensor) -> Tensor:
    """Once lost, lost: a cell that overflowed and came back did not train."""
    lost = losses.isinf().cummax(1).values
    return torch.where(lost, torch.inf, losses)


def _restack(stack: Stack, tensors: Sequence[Tensor]) -> Stack:
    layers = len(stack.weights)
    return Stack(
        weights=tuple(tensors[:layers]),
        biases=tuple(tensors[layers:]),
        activation=stack.activation,
    )
