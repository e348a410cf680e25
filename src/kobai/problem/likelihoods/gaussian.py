"""Regression with unit variance."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem.likelihoods.likelihood import (
    Likelihood,
    Outputs,
    Reduction,
    check_settings,
    require_plain_mean,
    require_real,
    sum_per_example,
    targets_like,
)
from kobai.problem.likelihoods.recovery import RecoveredTargets, Rounding


@final
class Gaussian(Likelihood):
    """Regression: ½‖f − y‖² per example, unit variance; targets shaped like the outputs.

    Args:
        reduction: "examples" or "terms" (single outputs).
        scale: Factor on the loss; the Hessian is scale · I.
    """

    name = "gaussian"
    floor_is_zero = True

    def __init__(self, *, reduction: Reduction = "examples", scale: float = 1.0) -> None:
        check_settings(scale, reduction)
        self.reduction = reduction
        self.scale = scale

    @classmethod
    def from_torch(cls, loss: nn.MSELoss) -> "Gaussian":
        """Convert torch's loss, the mean over single outputs of (f − y)²: 2/C of ½‖f − y‖²."""
        require_plain_mean(loss)
        return cls(reduction="terms", scale=2.0)

    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """½‖f − y‖² of each example (the constant of the density left out)."""
        difference = outputs - targets_like(self.name, outputs, targets)
        return self.scale * sum_per_example(0.5 * difference.square())

    def residual(self, outputs: Outputs, targets: Tensor) -> Outputs:
        """The difference f − y."""
        return self.scale * (outputs - targets_like(self.name, outputs, targets))

    def hvp(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """The same u, times scale."""
        return self.scale * u

    def factor_product(self, outputs: Outputs, targets: Tensor, s: Outputs) -> Outputs:
        """The same s, times √scale."""
        return math.sqrt(self.scale) * s

    def sample(self, outputs: Outputs, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Outputs plus Gaussian noise of variance 1/scale."""
        noise = torch.randn(
            outputs.shape, generator=generator, device=generator.device, dtype=outputs.dtype
        ).to(outputs.device)
        return outputs.detach() + noise / math.sqrt(self.scale)

    def fisher_sample(
        self, outputs: Outputs, targets: Tensor, generator: torch.Generator
    ) -> Outputs:
        """√scale times standard Gaussian noise."""
        return self.residual(outputs.detach(), self.sample(outputs, targets, generator))

    def check(self, outputs: Outputs, targets: Tensor) -> None:
        """Raise `ValueError` on wrong shapes or non-finite targets."""
        require_real(self.name, outputs, targets)

    def mean(self, outputs: Outputs) -> Outputs:
        """Return the outputs themselves."""
        return outputs

    def targets_of_residual(
        self, outputs: Outputs, residual: Outputs, rounding: Rounding
    ) -> RecoveredTargets:
        """The outputs less the residual; every gradient is that of some targets."""
        return RecoveredTargets(targets=outputs - residual, kind="regression")
