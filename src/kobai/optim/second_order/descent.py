"""Propose steps from a quadratic model of the objective at a point, and judge how it foretold them.

A method of second order is a model of the objective, m(δ) = gᵀδ + ½ δᵀBδ, and a globalisation,
which decides how far the model is trusted. The model is one class per method; this is the interface
between the two.
"""

import abc
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg import LinearOperator
from kobai.optim.damping import ReductionRatio, reduction_ratio
from kobai.optim.line_search import LineSearch
from kobai.optim.second_order.evaluator import StartingPoint, inner
from kobai.optim.second_order.examples import ExampleModel, example_losses, example_model


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """A direction for one damping.

    Attributes:
        direction: p; the step is lr · scale · p.
        status: How the direction was found.
        usable: Whether it may be tried; False asks for more damping.
        scale: Factor on the step that the model itself asks for.
        first: First trial of a line search; None for the learning rate.
        value: Loss at θ + lr p, where it is known.
        search: The only line search that suits the direction, whatever the optimizer's; None for
            the optimizer's.
        examples: The model of every example along lr p, where it is known.
    """

    direction: Float[Tensor, " P"]
    status: str = "ok"
    usable: bool = True
    scale: float = 1.0
    first: float | None = None
    value: float | None = None
    search: LineSearch | None = None
    examples: ExampleModel | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """The change by a step, held against what the model said.

    Attributes:
        ratio: Measured over predicted change by the whole step.
        predicted: Change by the model of the part of it that is made.
    """

    ratio: ReductionRatio
    predicted: float


class Descent(abc.ABC):
    """A model of the objective at the start of an iteration.

    Attributes:
        start: The point.
    """

    start: StartingPoint

    @abc.abstractmethod
    def propose(self, damping: float) -> Proposal | None:
        """Find a direction under a damping; None where there is nothing to gain."""

    @abc.abstractmethod
    def operator(self) -> LinearOperator:
        """Give B, for trust regions."""

    @abc.abstractmethod
    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀBp; NaN where it cannot be had."""

    @abc.abstractmethod
    def judge(self, made: Proposal, lr: float, scale: float, share: float) -> Judgement:
        """Compare the change by the step lr · scale · p with the model's.

        Args:
            made: The proposal.
            lr: Learning rate.
            scale: Factor on it.
            share: Part of the step that is made.
        """


class LossModel(Descent):
    """A model whose predictions are held against the loss, one number."""

    def predict(self, made: Proposal, factor: float) -> float:
        """Compute the model's change of the loss by factor · p."""
        step = factor * made.direction
        return inner(self.start.gradient, step) + 0.5 * self.curvature(step)

    def judge(self, made: Proposal, lr: float, scale: float, share: float) -> Judgement:
        """Ask for one value."""
        start = self.start
        moved = torch.add(start.theta, lr * made.direction, alpha=scale)
        predicted = self.predict(made, lr * scale)
        ratio = reduction_ratio(
            start.loss.reshape(1),
            start.function.value(moved).reshape(1),
            torch.tensor([predicted], dtype=torch.float64, device=moved.device),
            1.0,
            precision=moved.dtype,
        )
        return Judgement(ratio=ratio, predicted=predicted)


class RiskModel(Descent):
    """A model that predicts the loss of every example, so that its ratio has a standard error."""

    def judge(self, made: Proposal, lr: float, scale: float, share: float) -> Judgement:
        """Ask for the losses of the examples."""
        start, step = self.start, lr * made.direction
        model = made.examples or example_model(start.risk, start.theta, step)
        ratio = reduction_ratio(
            model.losses,
            example_losses(start.risk, torch.add(start.theta, step, alpha=scale)),
            model.change(scale),
            model.weight,
            precision=step.dtype,
        )
        if share == 1.0:
            return Judgement(ratio=ratio, predicted=ratio.predicted)
        predicted = float(model.change(scale * share).sum()) / model.weight
        return Judgement(ratio=ratio, predicted=predicted)


class LineModel(LossModel):
    """A direction alone, without a quadratic model."""

    def operator(self) -> LinearOperator:
        """Refuse: optimizers of directions alone take no trust region."""
        raise TypeError("a direction alone has no quadratic model; take a line search")

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Ask the objective's Hessian for pᵀHp."""
        start = self.start
        return start.function.curvature(start.theta, direction)
