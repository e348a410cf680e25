"""The quadratic model of a loss along one step, example by example.

ℓₙ(θ + δ) ≈ ℓₙ(θ) + rₙ·uₙ + ½ uₙᵀHₙuₙ with u = Jδ the linearised change of the outputs, r the
residual and H the output Hessian: one product with the Jacobian gives the Gauss-Newton model of the
objective, its split over the examples, and twice the Kullback-Leibler divergence of the step.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.linearization import Linearization
from kobai.problem import EmpiricalRisk, pure


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
        """gᵀδ, the derivative of the objective along the step."""
        return float(self.linear.sum()) / self.weight

    @property
    def length(self) -> float:
        """δᵀGδ with G the Gauss-Newton matrix: to second order twice the KL divergence."""
        return float(self.curvature.sum()) / self.weight

    def change(self, scale: float = 1.0) -> Float[Tensor, " N"]:
        """The model's change of each loss by the step times `scale`."""
        return scale * self.linear + 0.5 * scale**2 * self.curvature


def example_model(
    risk: EmpiricalRisk, theta: Float[Tensor, " P"], step: Float[Tensor, " P"]
) -> ExampleModel:
    """The model of every example along `step`. Cost: about two forward and two backward passes."""
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
    """ℓₙ(θ) of all examples, float64. Cost: one forward pass."""
    losses = []
    with torch.no_grad(), pure(risk.model, coupled=risk.coupled):
        for batch in risk.batches:
            outputs = risk.forward(theta, batch)
            losses.append(risk.likelihood.nll(outputs, batch.targets.to(outputs.device)).double())
    return torch.cat(losses)
