"""Model a loss along one step, example by example, and judge steps by examples.

ℓₙ(θ + δ) ≈ ℓₙ(θ) + rₙ·uₙ + ½ uₙᵀHₙuₙ with u = Jδ the linearised change of the outputs, r the
residual and H the output Hessian: one product with the Jacobian gives the Gauss-Newton model of the
objective, its split over the examples, and twice the Kullback-Leibler divergence of the step.

On minibatches a step is judged by its own examples as soon as it is made; where the next objective
has other ones, which had no part in the step, they are asked too and the verdict is revised. Where
it has the same ones, as on all data, there is nothing to ask.
"""

import dataclasses
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.linearization import Linearization
from kobai.optim.damping import ReductionRatio, reduction_ratio, same_examples
from kobai.optim.second_order.evaluator import StartingPoint
from kobai.problem import EmpiricalRisk, pure
from kobai.problem.batch import input_tensors

if TYPE_CHECKING:
    from kobai.optim.second_order.base import SecondOrder

_STEP = "last_step"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExampleModel:
    """Losses of single examples and their model along a step δ, float64.

    Attributes:
        losses: ℓₙ(θ), not divided by anything.
        linear: rₙ·uₙ.
        curvature: uₙᵀHₙuₙ.
        weight: The objective's normaliser.
    """

    losses: Float[Tensor, " N"]
    linear: Float[Tensor, " N"]
    curvature: Float[Tensor, " N"]
    weight: float

    @property
    def slope(self) -> float:
        """Derivative gᵀδ of the objective along the step."""
        return float(self.linear.sum()) / self.weight

    @property
    def length(self) -> float:
        """Squared length δᵀGδ, G the Gauss-Newton matrix: about twice the KL divergence."""
        return float(self.curvature.sum()) / self.weight

    def change(self, scale: float = 1.0) -> Float[Tensor, " N"]:
        """Compute the model's change of each loss by the step times `scale`."""
        return scale * self.linear + 0.5 * scale**2 * self.curvature


def example_model(
    risk: EmpiricalRisk, theta: Float[Tensor, " P"], step: Float[Tensor, " P"]
) -> ExampleModel:
    """Make the model of every example along `step`: about two forward and two backward passes."""
    losses, linear, curvature = [], [], []
    for batch in Linearization(risk, theta, keep=False):
        outputs, targets = batch.outputs, batch.targets
        u = batch.jvp(step.unsqueeze(1))[0]
        likelihood = risk.likelihood
        losses.append(likelihood.nll(outputs, targets).double())
        linear.append((likelihood.residual(outputs, targets) * u).flatten(1).double().sum(1))
        curvature.append((likelihood.hvp(outputs, targets, u) * u).flatten(1).double().sum(1))
    return ExampleModel(
        losses=torch.cat(losses),
        linear=torch.cat(linear),
        curvature=torch.cat(curvature),
        weight=risk.weight,
    )


def example_losses(risk: EmpiricalRisk, theta: Float[Tensor, " P"]) -> Float[Tensor, " N"]:
    """Compute ℓₙ(θ) of all examples, float64. Cost: one forward pass."""
    losses = []
    with torch.no_grad(), pure(risk.model, coupled=risk.coupled):
        for batch in risk.batches:
            outputs = risk.forward(theta, batch)
            losses.append(risk.likelihood.nll(outputs, batch.targets.to(outputs.device)).double())
    return torch.cat(losses)


def await_fresh(
    optimizer: "SecondOrder",
    start: StartingPoint,
    step: Float[Tensor, " P"],
    predicted: float,
    own: ReductionRatio,
) -> None:
    """Keep a step that was made, and whose damping was decided on last, for `judge_last_step`.

    Args:
        optimizer: An optimizer under automatic damping.
        start: The point where the step began.
        step: δ, as it was made.
        predicted: Change of the objective by the model of δ.
        own: The ratio on which the damping was decided.
    """
    if abs(predicted) <= own.resolution:
        return  # nothing left to judge
    optimizer.remember(start, _STEP, step)
    optimizer.record["pending"] = {"predicted": predicted, "own": dataclasses.asdict(own)}


def judge_last_step(optimizer: "SecondOrder", start: StartingPoint) -> None:
    """Revise the damping by what the last step did to the examples of this one, if others.

    Cost: two forward passes, and a pass over the data to tell them from the last ones. Nothing is
    done unless the damping is automatic.
    """
    rule, record = optimizer.rule, optimizer.record
    if rule is None:
        return
    seen = fingerprint(start.risk)
    others = not same_examples(record.get("examples", ()), seen)
    record["examples"] = seen
    pending = record.pop("pending", None)
    step = optimizer.recall(start, _STEP)
    if pending is None or step is None or not others:
        return
    risk = start.risk
    after = example_losses(risk, start.theta)
    fresh = reduction_ratio(
        example_losses(risk, start.theta - step),
        after,
        # The prediction is that of other examples: one number, the same for each.
        torch.full_like(after, pending["predicted"] * risk.weight / len(after)),
        risk.weight,
        precision=start.theta.dtype,
    )
    decision = record["decisions"][-1]
    following, action = rule.decide(decision["damping"], ReductionRatio(**pending["own"]), fresh)
    decision |= {
        "fresh_ratio": fresh.value,
        "fresh_error": fresh.error,
        "action": action,
        "next": following,
    }
    optimizer.param_groups[0]["damping"] = following


def fingerprint(risk: EmpiricalRisk) -> list[float]:
    """Give numbers that tell the data of an objective from others, whatever their order."""
    count, squares, shifted = 0, 0.0, 0.0
    for batch in risk.batches:
        for tensor in (*input_tensors(batch.inputs), batch.targets):
            own = tensor.detach().double()
            count += own.numel()
            # A plain sum may cancel, and would then depend on the order.
            squares += float(own.square().sum())
            shifted += float((own - 1).square().sum())
    return [float(count), squares, shifted]
