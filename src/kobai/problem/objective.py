"""Objectives: scalar functions of a flat parameter vector θ, and nothing else.

`EmpiricalRisk` is the loss of a network over data; `WeightedSum` adds objectives of one module up;
`Analytic` is a formula. Every one is also a torch closure: called without arguments it zeroes the
gradients, runs forward and backward on the module as it stands, and returns the loss.
"""

import abc
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from kobai.problem.batch import Batch
from kobai.problem.likelihood import Likelihood
from kobai.problem.parameters import ParameterSpace
from kobai.problem.purity import pure


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


def _sum_of_shares(
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
class EmpiricalRisk(Objective):
    """Mean negative log-likelihood of a model over batches.

    L(θ) = Σ nll / Σ weight over all examples (see `kobai.problem.likelihood`). The batches are
    chunks of memory, not of meaning: their shares add up to the whole to rounding.

    Args:
        model: A module from inputs to outputs, examples first.
        likelihood: What the outputs mean.
        batches: The data, as batches; anything that can be iterated again and again.
        coupled: Let kobai's own normalisation layers use the statistics of all examples at once,
            as a pure function with the gradient through them. Examples then depend on each other,
            so there must be exactly one batch.
        space: The model's parameter space, where it is at hand; else it is made.

    Raises:
        ValueError: If there are no batches, or several with `coupled`.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        batches: Collection[Batch],
        *,
        coupled: bool = False,
        space: ParameterSpace | None = None,
    ) -> None:
        if len(batches) == 0:
            raise ValueError("an empirical risk needs at least one batch, got none")
        if coupled and len(batches) != 1:
            raise ValueError(
                f"coupled=True needs all examples in one batch, got {len(batches)}; "
                "raise the chunk size, chunks would change the function"
            )
        self.model = model
        self.likelihood = likelihood
        self.batches = batches
        self.coupled = coupled
        self.space = ParameterSpace(model) if space is None else space
        self._totals: tuple[int, float] | None = None

    def _count(self) -> tuple[int, float]:
        """Number of examples and the normaliser, from one pass over the targets."""
        if self._totals is None:
            size, weight = 0, 0.0
            for batch in self.batches:
                size += batch.size
                weight += self.likelihood.weight(batch.targets)
            if weight <= 0:
                raise ValueError("every term of the data is ignored: nothing is left to learn")
            self._totals = (size, weight)
        return self._totals

    @property
    def size(self) -> int:
        """Number of examples N."""
        return self._count()[0]

    @property
    def weight(self) -> float:
        """The normaliser: N, or the number of terms, as the likelihood says."""
        return self._count()[1]

    def forward(self, theta: Float[Tensor, " P"], batch: Batch) -> Tensor:
        """Outputs at θ for one batch, differentiable; call it inside `kobai.problem.pure`."""
        return self.forward_parameters(self.space.unflatten(theta), batch)

    def forward_parameters(self, parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        """Outputs at parameters given by name, differentiable; call it inside `pure`.

        Buffers enter as copies, so that a module which writes to them cannot change itself.
        """
        batch = batch.to(self.space.device)
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        args, kwargs = call_arguments(batch)
        state = {**self.space.places(parameters), **buffers}
        return output_tensor(functional_call(self.model, state, args, kwargs, tie_weights=False))

    def risk(self, theta: Float[Tensor, " P"], batch: Batch) -> Float[Tensor, ""]:
        """One batch's share of L(θ), differentiable; call it inside `pure`."""
        outputs = self.forward(theta, batch)
        return self.likelihood.nll(outputs, batch.targets.to(outputs.device)).sum() / self.weight

    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """Shares of L(θ), one a batch, each with its graph to θ."""
        for batch in self.batches:
            with pure(self.model, coupled=self.coupled):
                share = self.risk(theta, batch)
            yield share

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """L(θ); see `Objective.value`."""
        with torch.no_grad():
            return torch.stack(list(self.differentiable(theta))).sum()

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """L(θ) and ∇L(θ); see `Objective.value_and_grad`."""
        return _sum_of_shares(self, theta)

    def outputs(self, theta: Float[Tensor, " P"]) -> Float[Tensor, "N *outputs"]:
        """Outputs of all examples in the order of the batches, without a graph."""
        pieces = []
        with torch.no_grad(), pure(self.model, coupled=self.coupled):
            for batch in self.batches:
                pieces.append(self.forward(theta, batch))
        return torch.cat(pieces)

    def metrics(self, theta: Float[Tensor, " P"] | None = None) -> dict[str, float]:
        """Loss and accuracy at θ (default: the module's own), in one forward pass.

        Returns:
            ``{"loss": L(θ), "accuracy": share of the terms predicted right}``; the accuracy is NaN
            for regression.
        """
        theta = self.theta() if theta is None else theta
        loss, correct, terms = 0.0, 0.0, 0.0
        with torch.no_grad(), pure(self.model, coupled=self.coupled):
            for batch in self.batches:
                outputs = self.forward(theta, batch)
                targets = batch.targets.to(outputs.device)
                loss += float(self.likelihood.nll(outputs, targets).sum())
                right = self.likelihood.correct(outputs, targets)
                if right is not None:
                    correct += float(right.sum())
                    terms += float(self.likelihood.terms(targets).sum())
        return {
            "loss": loss / self.weight,
            "accuracy": correct / terms if terms else float("nan"),
        }

    def __call__(self) -> Float[Tensor, ""]:
        """The torch closure: zero gradients, forward and backward on the module in its own mode."""
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.space.device, dtype=self.space.dtype)
        with torch.enable_grad():
            for batch in self.batches:
                batch = batch.to(self.space.device)
                args, kwargs = call_arguments(batch)
                outputs = output_tensor(self.model(*args, **kwargs))
                share = self.likelihood.nll(outputs, batch.targets).sum() / self.weight
                share.backward()
                total += share.detach()
        return total


@final
class WeightedSum(Objective):
    """Σ aᵢ Lᵢ(θ) over objectives of one and the same module: regularisers, mixtures, homotopies.

    Args:
        terms: Pairs (weight, objective).

    Raises:
        ValueError: If there are no terms or they belong to different modules.
    """

    def __init__(self, terms: Sequence[tuple[float, Objective]]) -> None:
        if not terms:
            raise ValueError("a weighted sum needs at least one (weight, objective) pair, got none")
        if len({id(objective.space.module) for _, objective in terms}) != 1:
            raise ValueError("all objectives of a weighted sum must belong to one module")
        self.terms = tuple(terms)
        self.space = terms[0][1].space

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """Σ aᵢ Lᵢ(θ)."""
        return torch.stack([a * objective.value(theta) for a, objective in self.terms]).sum()

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """Σ aᵢ Lᵢ(θ) and its gradient."""
        return _sum_of_shares(self, theta)

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
        ValueError: If the function does not return a scalar.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], theta: Tensor | nn.Module) -> None:
        self.function = function
        self.space = ParameterSpace(theta if isinstance(theta, nn.Module) else _Point(theta))
        with torch.no_grad():
            value = function(self.theta())
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
        return _sum_of_shares(self, theta)

    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """The value, in one share."""
        yield self.function(theta)

    def __call__(self) -> Float[Tensor, ""]:
        """Zero gradients and backpropagate the formula to the module's parameters."""
        self.space.module.zero_grad(set_to_none=True)
        named = dict(self.space.module.named_parameters())
        with torch.enable_grad():
            theta = torch.cat([named[name].reshape(-1) for name in self.space.names])
            loss = self.function(theta)
            loss.backward()
        return loss.detach()


def call_arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments a model is called with: tensor, tuple or mapping."""
    if isinstance(batch.inputs, Tensor):
        return (batch.inputs,), {}
    if isinstance(batch.inputs, tuple):
        return batch.inputs, {}
    return (), dict(batch.inputs)


def output_tensor(outputs: Any) -> Tensor:
    """The one tensor of outputs: itself, the entry "logits", or the only floating tensor.

    Raises:
        TypeError: If there is no such tensor or no telling which.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = (
        outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    )
    if isinstance(logits, Tensor):
        return logits
    values = list(outputs.values()) if isinstance(outputs, dict) else outputs
    if isinstance(values, list | tuple):
        floating = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
        if len(floating) == 1:
            return floating[0]
    raise TypeError(
        "the model must return one tensor (or a mapping or object with 'logits'), got "
        f"{type(outputs).__name__}; wrap the model so that it returns its outputs"
    )
