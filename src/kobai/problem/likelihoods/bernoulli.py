"""Likelihoods whose terms are single outputs: independent binary outputs, and regression."""

import math
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kobai.problem.likelihoods.divergence import divergence
from kobai.problem.likelihoods.likelihood import (
    Likelihood,
    Outputs,
    Reduction,
    check_settings,
    require_finite,
    sum_per_example,
    uniform_draws,
)


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

    def __init__(
        self, *, reduction: Reduction = "examples", scale: float = 1.0, excess: bool = False
    ) -> None:
        check_settings(scale, reduction)
        self.reduction = reduction
        self.scale = scale
        self.excess = excess

    def __repr__(self) -> str:
        return f"Bernoulli(reduction={self.reduction!r}, scale={self.scale}, excess={self.excess})"

    def _root(self, outputs: Tensor) -> Tensor:
        """√(scale p (1 − p)), from both tails so that it does not underflow early."""
        log_variance = F.logsigmoid(outputs) + F.logsigmoid(-outputs)
        return math.sqrt(self.scale) * torch.exp(0.5 * log_variance)

    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Binary cross-entropy (or its excess) of each example summed over its outputs."""
        targets = _like(self.name, outputs, targets)
        if self.excess:
            one = torch.ones((), dtype=outputs.dtype, device=outputs.device)
            loss = divergence(targets, one, F.logsigmoid(outputs))
            loss = loss + divergence(1 - targets, one, F.logsigmoid(-outputs))
            return self.scale * sum_per_example(loss)
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return self.scale * sum_per_example(loss)

    def terms(self, targets: Tensor) -> Float[Tensor, " N"]:
        """Number of outputs of an example."""
        return _count(targets)

    def residual(self, outputs: Outputs, targets: Tensor) -> Outputs:
        """σ(f) − y."""
        return self.scale * (torch.sigmoid(outputs) - _like(self.name, outputs, targets))

    def hvp(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """p (1 − p) u."""
        return self._root(outputs).square() * u

    def factor_product(self, outputs: Outputs, targets: Tensor, s: Outputs) -> Outputs:
        """√(p (1 − p)) s."""
        return self._root(outputs) * s

    def factor_transpose(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """√(p (1 − p)) u."""
        return self._root(outputs) * u

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
        _check("bernoulli", outputs, targets)
        if bool(((targets < 0) | (targets > 1)).any()):
            raise ValueError(
                f"bernoulli targets must lie in [0, 1], got "
                f"{float(targets.min()):g}…{float(targets.max()):g}"
            )


@final
class Gaussian(Likelihood):
    """Regression: ½‖f − y‖² an example, unit variance; targets shaped like the outputs.

    Args:
        reduction: "examples" or "terms" (single outputs).
        scale: Factor on the loss; the Hessian is scale · I.
    """

    name = "gaussian"

    def __init__(self, *, reduction: Reduction = "examples", scale: float = 1.0) -> None:
        check_settings(scale, reduction)
        self.reduction = reduction
        self.scale = scale

    def __repr__(self) -> str:
        return f"Gaussian(reduction={self.reduction!r}, scale={self.scale})"

    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """½‖f − y‖² of each example (the constant of the density left out)."""
        difference = outputs - _like(self.name, outputs, targets)
        return self.scale * sum_per_example(0.5 * difference.square())

    def terms(self, targets: Tensor) -> Float[Tensor, " N"]:
        """Number of outputs of an example."""
        return _count(targets)

    def residual(self, outputs: Outputs, targets: Tensor) -> Outputs:
        """The difference f − y."""
        return self.scale * (outputs - _like(self.name, outputs, targets))

    def hvp(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """The same u, times scale."""
        return self.scale * u

    def factor_product(self, outputs: Outputs, targets: Tensor, s: Outputs) -> Outputs:
        """The same s, times √scale."""
        return math.sqrt(self.scale) * s

    def factor_transpose(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """The same u, times √scale."""
        return math.sqrt(self.scale) * u

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

    def correct(self, outputs: Outputs, targets: Tensor) -> None:
        """None: regression has no notion of a right answer."""
        return None

    def check(self, outputs: Outputs, targets: Tensor) -> None:
        """Raise `ValueError` on wrong shapes or non-finite targets."""
        _check("gaussian", outputs, targets)


def _count(targets: Tensor) -> Tensor:
    per_example = targets.numel() // targets.shape[0]
    return torch.full((targets.shape[0],), float(per_example), device=targets.device)


def _like(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the outputs' dtype; (N,) against (N, 1) would broadcast to N² differences."""
    if targets.shape != outputs.shape:
        raise ValueError(
            f"{name} targets must have the outputs' shape {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}; reshape one of them, broadcasting would be wrong here"
        )
    return targets.to(outputs.dtype)


def _check(name: str, outputs: Tensor, targets: Tensor) -> None:
    _like(name, outputs, targets)
    if not targets.is_floating_point():
        raise ValueError(
            f"{name} targets must be floating point, got {targets.dtype}; convert by .to(dtype)"
        )
    require_finite(targets)
