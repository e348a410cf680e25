"""Independent binary outputs."""

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem.likelihoods.divergence import divergence
from kobai.problem.likelihoods.likelihood import (
    Likelihood,
    Outputs,
    Reduction,
    TargetKind,
    check_settings,
    require_plain_mean,
    require_real,
    sum_per_example,
    targets_like,
    uniform_draws,
)
from kobai.problem.likelihoods.recovery import RecoveredTargets, Rounding


@final
class Bernoulli(Likelihood):
    """Independent binary outputs given by logits; targets in [0, 1], shaped like the outputs.

    The Hessian is diagonal, p (1 − p).

    Args:
        reduction: "examples" or "terms" (single outputs).
        scale: Factor on the loss.
        excess: Leave out the entropy of the targets: the loss is then the Kullback-Leibler
            divergence, never negative, and 0 where target and prediction agree.
    """

    name = "bernoulli"
    floor_is_zero = True

    def __init__(
        self, *, reduction: Reduction = "examples", scale: float = 1.0, excess: bool = False
    ) -> None:
        check_settings(scale, reduction)
        self.reduction = reduction
        self.scale = scale
        self.excess = excess

    @classmethod
    def from_torch(cls, loss: nn.BCEWithLogitsLoss) -> "Bernoulli":
        """Convert torch's loss, which averages over single outputs."""
        require_plain_mean(loss)
        return cls(reduction="terms")

    def _root(self, outputs: Tensor) -> Tensor:
        """√(scale p (1 − p)), from both tails so that it does not underflow early."""
        log_variance = F.logsigmoid(outputs) + F.logsigmoid(-outputs)
        return math.sqrt(self.scale) * torch.exp(0.5 * log_variance)

    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Binary cross-entropy (or its excess) of each example summed over its outputs."""
        targets = targets_like(self.name, outputs, targets)
        if self.excess:
            one = torch.ones((), dtype=outputs.dtype, device=outputs.device)
            loss = divergence(targets, one, F.logsigmoid(outputs))
            loss = loss + divergence(1 - targets, one, F.logsigmoid(-outputs))
            return self.scale * sum_per_example(loss)
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return self.scale * sum_per_example(loss)

    def residual(self, outputs: Outputs, targets: Tensor) -> Outputs:
        """σ(f) − y."""
        return self.scale * (torch.sigmoid(outputs) - targets_like(self.name, outputs, targets))

    def hvp(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """p (1 − p) u."""
        return self._root(outputs).square() * u

    def factor_product(self, outputs: Outputs, targets: Tensor, s: Outputs) -> Outputs:
        """√(p (1 − p)) s."""
        return self._root(outputs) * s

    def sample(self, outputs: Outputs, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Zeros and ones drawn with probability σ(outputs)."""
        uniform = uniform_draws(outputs, generator)
        return (uniform < torch.sigmoid(outputs.detach().to(uniform.dtype))).to(outputs.dtype)

    def fisher_sample(
        self, outputs: Outputs, targets: Tensor, generator: torch.Generator
    ) -> Outputs:
        """√scale (p − y), y drawn from p."""
        labels = self.sample(outputs, targets, generator)
        return math.sqrt(self.scale) * (torch.sigmoid(outputs.detach()) - labels)

    def correct(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Outputs on the target's side of one half."""
        return sum_per_example(((outputs > 0) == (targets > 0.5)).float())

    def check(self, outputs: Outputs, targets: Tensor) -> None:
        """Raise `ValueError` on wrong shapes or targets outside [0, 1]."""
        require_real(self.name, outputs, targets)
        if bool(((targets < 0) | (targets > 1)).any()):
            raise ValueError(
                f"bernoulli targets must lie in [0, 1], got "
                f"{float(targets.min()):g}…{float(targets.max()):g}"
            )

    def mean(self, outputs: Outputs) -> Outputs:
        """Probabilities of a one."""
        return torch.sigmoid(outputs)

    def own_targets(self, outputs: Outputs, targets: Tensor, kind: TargetKind) -> Tensor:
        """Predicted probabilities, or on which side of one half they lie."""
        return (outputs > 0).to(outputs.dtype) if kind == "hard" else self.mean(outputs)

    def for_own_targets(self, kind: TargetKind) -> "Bernoulli":
        """Leave out the entropy of soft targets."""
        return Bernoulli(reduction=self.reduction, scale=self.scale, excess=kind == "soft")

    def labels_by_sign(self, outputs: Outputs, gradient: Outputs) -> Tensor:
        """Ones where the gradient p − y is negative."""
        return (gradient < 0).to(outputs.dtype)

    def targets_of_residual(
        self, outputs: Outputs, residual: Outputs, rounding: Rounding
    ) -> RecoveredTargets:
        """The probabilities p less the residual."""
        return rounding.probabilities(self.mean(outputs) - residual)
