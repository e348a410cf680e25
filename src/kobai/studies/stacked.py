"""Fully connected networks of one shape as one stack of tensors: outputs, gradients, scores.

One batched product takes the place of a loop over networks; the first layer, whose inputs all
networks share, is one product for all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models import MLP, LinearNet

_SLOPES: dict[type, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    nn.Identity: (lambda u: u, torch.ones_like),
    nn.ReLU: (torch.relu, lambda u: (u > 0).to(u.dtype)),
    nn.Tanh: (torch.tanh, lambda u: 1 - torch.tanh(u).square()),
    nn.Sigmoid: (torch.sigmoid, lambda u: torch.sigmoid(u) * (1 - torch.sigmoid(u))),
}
"""Activation module → function and derivative."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The computation that all networks of a stack share.

    Attributes:
        activation: Class of the hidden activation.
        skips: Whether layers that keep the width add their input.
        bias: Whether layers have biases, kept as a last column of the weights.
    """

    activation: type
    skips: bool
    bias: bool


def design_of(model: nn.Module) -> Design | str:
    """How to compute a network of the families "linear" and "mlp"; a reason where that fails."""
    if type(model) is LinearNet:
        layers = _layers(model)
        activation: type = nn.Identity
    elif type(model) is MLP:
        if model.output_norm is not None:
            return "its outputs are normalised over the batch"
        layers = _layers(model)
        parts = [part for block in model.hidden for part in list(block.children())[1:]]
        kinds = {type(part) for part in parts} or {nn.Identity}
        if len(kinds) > 1 or next(iter(kinds)) not in _SLOPES:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            return f"its hidden layers hold {names}"
        activation = kinds.pop()
    else:
        return f"{type(model).__name__} is neither of the family linear nor mlp"
    if any(type(layer) is not nn.Linear for layer in layers):
        return "its layers are not plain linear ones"
    if any(not p.requires_grad for p in model.parameters()):
        return "some of its parameters are frozen"
    biases = {layer.bias is not None for layer in layers}
    if len(biases) > 1:
        return "some of its layers have biases and others none"
    return Design(activation=activation, skips=model.skips, bias=biases.pop())


def _layers(model: nn.Module) -> list[Any]:
    """The linear layers in order."""
    if isinstance(model, MLP):
        return [*(next(block.children()) for block in model.hidden), model.output]
    assert isinstance(model, LinearNet)
    return list(model.layers)


def matrices_of(model: nn.Module) -> list[Tensor]:
    """Copies of a network's layers as (M, K) matrices, a bias as the last column."""
    found = []
    for layer in _layers(model):
        columns = [layer.weight.detach()]
        if layer.bias is not None:
            columns.append(layer.bias.detach().unsqueeze(1))
        found.append(torch.cat(columns, dim=1))
    return found


@dataclasses.dataclass(eq=False)
class Pass:
    """A forward pass of T networks: what the backward passes need.

    Attributes:
        inputs: Input of each layer, the constant one for biases included: (B, K) for the first,
            (T, B, K) for the others.
        before: Pre-activation of each hidden layer, (T, B, M).
        outputs: (T, B, C).
    """

    inputs: list[Tensor]
    before: list[Tensor]
    outputs: Float[Tensor, "T B C"]


@dataclasses.dataclass(eq=False)
class Stack:
    """T networks of one design.

    Attributes:
        design: The computation.
        weights: One (T, M, K) tensor a layer.
    """

    design: Design
    weights: list[Tensor]

    def forward(self, x: Float[Tensor, "B d"]) -> Pass:
        """Run all networks on the same inputs."""
        phi = _SLOPES[self.design.activation][0]
        last = len(self.weights) - 1
        h: Tensor = x
        inputs, before = [], []
        for index, weight in enumerate(self.weights):
            a = _with_one(h) if self.design.bias else h
            inputs.append(a)
            if a.ndim == 2:
                # (B, K) times all rows of all networks at once.
                flat = a @ weight.flatten(0, 1).T
                u = flat.view(len(a), *weight.shape[:2]).transpose(0, 1)
            else:
                u = torch.bmm(a, weight.mT)
            if index < last:
                before.append(u)
                v = phi(u)
            else:
                v = u
            if self._adds(index):
                v = v + (h if h.ndim == 3 else h.unsqueeze(0))
            h = v
        return Pass(inputs, before, h)

    def _adds(self, index: int) -> bool:
        """Whether a layer adds its input to its output."""
        weight = self.weights[index]
        square = weight.shape[1] == weight.shape[2] - self.design.bias
        # An MLP's output layer has no activation and no skip.
        hidden = index < len(self.weights) - 1 or self.design.activation is nn.Identity
        return self.design.skips and square and hidden

    def backward(self, run: Pass, cotangent: Float[Tensor, "T B C"]) -> list[Tensor]:
        """Gradients of ⟨cotangent, outputs⟩ in the output u of every layer's matrix, (T, B, M)."""
        slope = _SLOPES[self.design.activation][1]
        found: list[Tensor] = []
        g = cotangent
        for index in range(len(self.weights) - 1, -1, -1):
            through = g
            if index < len(run.before):
                g = g * slope(run.before[index])
            found.append(g)
            if index == 0:
                break
            weight = self.weights[index]
            back = torch.bmm(g, weight[:, :, : weight.shape[2] - self.design.bias])
            g = back + through if self._adds(index) else back
        return found[::-1]

    @staticmethod
    def gradients(run: Pass, layers: Sequence[Tensor]) -> list[Tensor]:
        """Σ over the batch of g aᵀ for every layer, (T, M, K)."""
        found = []
        for a, g in zip(run.inputs, layers, strict=True):
            if a.ndim == 2:
                count, batch, units = g.shape
                flat = g.transpose(0, 1).reshape(batch, count * units)
                found.append((flat.T @ a).view(count, units, a.shape[1]))
            else:
                found.append(torch.bmm(g.mT, a))
        return found


def _with_one(h: Tensor) -> Tensor:
    return torch.cat([h, h.new_ones(*h.shape[:-1], 1)], dim=-1)
