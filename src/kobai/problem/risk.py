"""The loss of a network over data, as a function of θ."""

import contextlib
from collections.abc import Collection, Iterable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem.batch import Batch
from kobai.problem.calling import call_arguments, call_with_copies, output_tensor
from kobai.problem.likelihoods import Likelihood
from kobai.problem.objective import Objective, sum_of_shares
from kobai.problem.parameters import ParameterSpace
from kobai.problem.purity import coupled_statistics, pure


@final
class EmpiricalRisk(Objective):
    """Mean negative log-likelihood of a model over batches.

    L(θ) = Σ nll / Σ weight over all examples (see `kobai.problem.likelihoods.likelihood`). The
    batches are chunks of memory, not of meaning: their shares add up to the whole to rounding.

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
        outputs = output_tensor(call_with_copies(self.model, self.space.places(parameters), batch))
        if outputs.ndim == 0 or outputs.shape[0] != batch.size:
            raise ValueError(
                f"the model must return one row of outputs an example, got shape "
                f"{tuple(outputs.shape)} for {batch.size} example(s)"
            )
        return outputs

    def risk(self, theta: Float[Tensor, " P"], batch: Batch) -> Float[Tensor, ""]:
        """One batch's share of L(θ), differentiable; call it inside `pure`."""
        outputs = self.forward(theta, batch)
        return self.likelihood.nll(outputs, batch.targets.to(outputs.device)).sum() / self.weight

    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """Shares of L(θ), one per batch, each with its graph to θ."""
        for batch in self.batches:
            with pure(self.model, coupled=self.coupled):
                share = self.risk(theta, batch)
            if torch.is_grad_enabled() and theta.requires_grad and not share.requires_grad:
                raise ValueError(
                    "no gradient flows from the model's outputs to its trainable parameters "
                    "(torch.no_grad or detach in its forward pass?)"
                )
            yield share

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """L(θ); see `Objective.value`."""
        with torch.no_grad():
            return torch.stack(list(self.differentiable(theta))).sum()

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """L(θ) and ∇L(θ); see `Objective.value_and_grad`."""
        return sum_of_shares(self, theta)

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
                    terms += float(self.likelihood.terms(targets).sum(dtype=torch.float64))
        return {
            "loss": loss / self.weight,
            "accuracy": correct / terms if terms else float("nan"),
        }

    def __call__(self) -> Float[Tensor, ""]:
        """The torch closure: zero gradients, forward and backward on the module in its own mode.

        If coupled, normalisation layers in evaluation mode use the statistics of the batch, as
        those in training mode do by themselves, so that this is the same function as `value`.
        """
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.space.device, dtype=self.space.dtype)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if self.coupled:
                stack.enter_context(coupled_statistics(self.model, training=False))
            for batch in self.batches:
                batch = batch.to(self.space.device)
                args, kwargs = call_arguments(batch)
                outputs = output_tensor(self.model(*args, **kwargs))
                share = self.likelihood.nll(outputs, batch.targets).sum() / self.weight
                share.backward()
                total += share.detach()
        return total
