"""Fully connected networks of one shape as one stack of tensors: outputs, gradients, moments.

One batched product takes the place of a loop over networks; the first layer, whose inputs all
networks share, is one product for all of them. Linear networks have a quicker stack of their own
(`kobai.studies.linear_stack`).
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Gradient:
    """Gradients of one layer of T networks as sums of R outer products.

    Attributes:
        left: (T, R, M).
        right: (T, R, K), or (R, K) where all networks share it.
    """

    left: Float[Tensor, "T R M"]
    right: Tensor

    def dense(self) -> Float[Tensor, "T M K"]:
        """Σ_r left_r right_rᵀ."""
        if self.right.ndim == 3:
            return torch.bmm(self.left.mT, self.right)
        count, rank, units = self.left.shape
        flat = self.left.transpose(0, 1).reshape(rank, count * units)
        return (flat.T @ self.right).view(count, units, self.right.shape[1])

    def add_to(self, matrices: Float[Tensor, "T M K"]) -> None:
        """Add the gradients to matrices in place."""
        if self.right.ndim == 3:
            matrices.baddbmm_(self.left.mT, self.right)
        else:
            matrices.add_(self.dense())

    def is_thin(self) -> bool:
        """Whether to precondition the factors takes fewer multiplications than to do so dense."""
        rank, m, k = self.left.shape[1], self.left.shape[2], self.right.shape[-1]
        return rank * (m * m + k * k + m * k) < m * k * (m + k)


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
            a = with_one(h) if self.design.bias else h
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
            if adds(self.design, self.weights, index):
                v = v + (h if h.ndim == 3 else h.unsqueeze(0))
            h = v
        return Pass(inputs, before, h)

    def gradients(self, run: Pass, cotangent: Float[Tensor, "T B C"]) -> list[Gradient]:
        """Gradients of ⟨cotangent, outputs⟩ in every layer's matrix."""
        layers = self._backward(run, cotangent)
        return [Gradient(left=g, right=a) for g, a in zip(layers, run.inputs, strict=True)]

    def moments(
        self, run: Pass, cotangent: Float[Tensor, "T B C"], weight: float
    ) -> list[tuple[Tensor, Tensor]]:
        """Second moments of every layer's inputs, (T, K, K) or (K, K), and output gradients.

        Args:
            run: The forward pass; means over its B examples for inputs.
            cotangent: Gradients at the outputs, one an example.
            weight: What sums of gradients' products are divided by.
        """
        return [
            (a.mT @ a / a.shape[-2], torch.bmm(g.mT, g) / weight)
            for g, a in zip(self._backward(run, cotangent), run.inputs, strict=True)
        ]

    def _backward(self, run: Pass, cotangent: Tensor) -> list[Tensor]:
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
            g = back + through if adds(self.design, self.weights, index) else back
        return found[::-1]


def adds(design: Design, weights: Sequence[Tensor], index: int) -> bool:
    """Whether a layer adds its input to its output."""
    weight = weights[index]
    square = weight.shape[1] == weight.shape[2] - design.bias
    # An MLP's output layer has no activation and no skip.
    hidden = index < len(weights) - 1 or design.activation is nn.Identity
    return design.skips and square and hidden


def with_one(h: Tensor) -> Tensor:
    """Rows with a constant one behind them, the input of a bias."""
    return torch.cat([h, h.new_ones(*h.shape[:-1], 1)], dim=-1)
