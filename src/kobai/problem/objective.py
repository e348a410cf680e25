"""Objectives: scalar functions of a flat parameter vector θ, and nothing else.

`WeightedSum` adds objectives of one module up; `Analytic` is a formula; the loss of a network over
data is `kobai.problem.risk.EmpiricalRisk`. Every one is also a torch closure: called without
arguments it zeroes the gradients, runs forward and backward on the module as it stands, and returns
the loss.
"""

import abc
from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem.parameters import ParameterSpace


class Objective(abc.ABC):
    """A scalar function L(θ) of the trainable parameters of one module.

    `value`, `grad` and `value_and_grad` are pure: they neither read nor write the module's
    parameters, buffers, gradients, mode or random state, and refuse a module that is not a function
    of θ. The call without arguments is the torch closure, native and possibly noisy.

    Attributes:
        space: The map between the module and θ.
    """

    space: ParameterSpace

    def theta(self) -> Float[Tensor, " P"]:
        """A copy of the module's parameters now."""
        return self.space.theta()

    @abc.abstractmethod
    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """L(θ), without a graph. Cost: one forward pass over the data."""

    def grad(self, theta: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """∇L(θ). Cost: one forward and one backward pass over the data."""
        return self.value_and_grad(theta)[1]

    @abc.abstractmethod
    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """L(θ) and ∇L(θ) at the cost of the gradient."""

    @abc.abstractmethod
    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """Shares of L(θ) with autograd graphs to θ, one at a time; they add up to L(θ)."""

    @abc.abstractmethod
    def __call__(self) -> Float[Tensor, ""]:
        """Zero gradients, forward, backward on the module; the loss. The torch closure."""


def sum_of_shares(
    objective: Objective, theta: Tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
    """Value and gradient from the shares, freeing each share's graph before the next is built."""
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        value, gradient = theta.new_zeros(()), torch.zeros_like(theta)
        for share in objective.differentiable(theta):
            value += share.detach()
            gradient += torch.autograd.grad(share, theta)[0]
    return value, gradient


@final
class WeightedSum(Objective):
    """Σ aᵢ Lᵢ(θ) over objectives of one and the same module: regularisers, mixtures, homotopies.

    Args:
        terms: Pairs (weight, objective).

    Raises:
        ValueError: If there are no terms, or they belong to different modules or parameters.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not terms:
            raise ValueError("a weighted sum needs at least one (weight, objective) pair, got none")
        if len({id(objective.space.module) for _, objective in terms}) != 1:
            raise ValueError(
                "all objectives of a weighted sum must belong to one module; "
                "a formula on a network's parameters is Analytic(function, model)"
            )
        if len({objective.space.names for _, objective in terms}) != 1:
            raise ValueError(
                "all objectives of a weighted sum must have the same trainable parameters; "
                "make them again after freezing or unfreezing some"
            )
        self.terms = tuple(terms)
        self.space = terms[0][1].space

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """Σ aᵢ Lᵢ(θ)."""
        return torch.stack([a * objective.value(theta) for a, objective in self.terms]).sum()

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """Σ aᵢ Lᵢ(θ) and its gradient."""
        return sum_of_shares(self, theta)

    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """The weighted shares of all terms."""
        for a, objective in self.terms:
            for share in objective.differentiable(theta):
                yield a * share

    def __call__(self) -> Float[Tensor, ""]:
        """Closures of the terms one after the other; gradients are weighted and added."""
        parameters = [p for p in self.space.module.parameters() if p.requires_grad]
        total: list[Tensor | None] = [None] * len(parameters)
        loss = torch.zeros((), device=self.space.device, dtype=self.space.dtype)
        for a, objective in self.terms:
            loss += a * objective()
            for i, p in enumerate(parameters):
                if p.grad is not None:
                    scaled = a * p.grad
                    known = total[i]
                    total[i] = scaled if known is None else known + scaled
        for p, gradient in zip(parameters, total, strict=True):
            p.grad = gradient
        return loss


class _Point(nn.Module):
    """A module that is one vector, for objectives that are formulas."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.detach().clone())


@final
class Analytic(Objective):
    """A formula in θ: test surfaces, or a penalty on a network's parameters.

    Args:
        function: From θ (P,) to a scalar, written in torch.
        theta: The starting point, which becomes a module with one parameter; or a module, whose
            parameters the formula then is about.

    Raises:
        ValueError: If the function does not return a scalar, or the starting point is no vector.
        TypeError: If the function does not return a tensor.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], theta: Tensor | nn.Module) -> None:
        self.function = function
        if isinstance(theta, Tensor) and theta.ndim != 1:
            raise ValueError(
                f"the starting point must be a vector (P,), got shape {tuple(theta.shape)}; "
                "flatten it and reshape inside the formula"
            )
        self.space = ParameterSpace(theta if isinstance(theta, nn.Module) else _Point(theta))
        with torch.no_grad():
            value = function(self.theta())
        if not isinstance(value, Tensor):
            raise TypeError(
                f"the formula must return a scalar tensor, got {type(value).__name__}; "
                "write it in torch"
            )
        if value.shape != ():
            raise ValueError(f"the formula must return a scalar, got shape {tuple(value.shape)}")

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """The formula's value."""
        with torch.no_grad():
            return self.function(theta)

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """The formula's value and gradient."""
        return sum_of_shares(self, theta)

    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """The value, in one share."""
        yield self._attached(theta)

    def _attached(self, theta: Tensor) -> Tensor:
        """The value, with a graph to θ even where the formula is constant."""
        value = self.function(theta)
        return value if value.requires_grad else value + theta[:0].sum()

    def __call__(self) -> Float[Tensor, ""]:
        """Zero gradients and backpropagate the formula to the module's parameters."""
        self.space.module.zero_grad(set_to_none=True)
        named = dict(self.space.module.named_parameters())
        with torch.enable_grad():
            theta = torch.cat([named[name].reshape(-1) for name in self.space.names])
            loss = self._attached(theta)
            loss.backward()
        return loss.detach()
