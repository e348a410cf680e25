"""Likelihoods: the geometry of a network's outputs.

Normalisation, stated once. The loss of an example is its negative log-likelihood summed over
outputs and over extra axes such as tokens, times `scale`; an objective is the sum over examples
divided by the sum of `weight`, which is the number of examples (``reduction="examples"``) or the
number of terms (``reduction="terms"``: positions that are not ignored for `Categorical`, single
outputs for `Bernoulli` and `Gaussian`). Gaussian means ½‖f − y‖² per example.

The three families are exponential families in their natural parameter, so the Hessian of the loss
in the outputs does not depend on the labels and equals the Fisher information of the predictive
distribution: Gauss-Newton and true Fisher coincide (Martens 2020, New insights and perspectives on
the natural gradient method, §9).
"""

import abc
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Literal["examples", "terms"]
Outputs = Float[Tensor, "N *outputs"]


class Likelihood(abc.ABC):
    """What an objective, a Gauss-Newton matrix and a Fisher matrix ask of a loss.

    All members take raw network outputs (logits or means) with the examples first, and return
    per-example quantities that are not divided by N. `scale` is included everywhere.

    Attributes:
        name: "categorical", "bernoulli" or "gaussian".
        scale: Factor on the loss, positive.
        reduction: What the normaliser counts, "examples" or "terms".
    """

    name: str
    scale: float
    reduction: Reduction

    @abc.abstractmethod
    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Negative log-likelihood of each example, summed over outputs and extra axes."""

    @abc.abstractmethod
    def terms(self, targets: Tensor) -> Float[Tensor, " N"]:
        """Number of terms in each example's sum (ignored ones left out)."""

    @abc.abstractmethod
    def residual(self, outputs: Outputs, targets: Tensor) -> Outputs:
        """Gradient of `nll` in the outputs, such as p − y; shaped like the outputs."""

    @abc.abstractmethod
    def hvp(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """Hessian of `nll` in the outputs, times `u`; block-diagonal over examples and terms.

        Targets matter only through what they switch off (ignored terms) or their mass.
        """

    @abc.abstractmethod
    def factor_product(self, outputs: Outputs, targets: Tensor, s: Outputs) -> Outputs:
        """S s for a factor S of the output Hessian, S Sᵀ = Hessian; `s` shaped like the outputs."""

    @abc.abstractmethod
    def factor_transpose(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """Sᵀ u for the same factor S."""

    @abc.abstractmethod
    def sample(self, outputs: Outputs, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from the predictive distribution at these outputs.

        `targets` tell which terms are ignored, and stay so in the sample. Draws are made on the
        generator's device and moved.
        """

    @abc.abstractmethod
    def fisher_sample(
        self, outputs: Outputs, targets: Tensor, generator: torch.Generator
    ) -> Outputs:
        """A random cotangent u with E[u uᵀ] = output Hessian: the score at sampled labels."""

    @abc.abstractmethod
    def correct(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"] | None:
        """Number of terms of each example predicted right, or None where that has no meaning."""

    @abc.abstractmethod
    def check(self, outputs: Outputs, targets: Tensor) -> None:
        """Raise `ValueError` if outputs and targets do not fit each other."""

    def weight(self, targets: Tensor) -> float:
        """What these targets add to the normaliser of an objective."""
        if self.reduction == "examples":
            return float(targets.shape[0])
        return float(self.terms(targets).sum(dtype=torch.float64))


def check_settings(scale: float, reduction: str) -> None:
    """Refuse a scale or reduction that no likelihood has."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if reduction not in ("examples", "terms"):
        raise ValueError(f"reduction must be 'examples' or 'terms', got {reduction!r}")


def sum_per_example(values: Tensor) -> Tensor:
    """Sum over all axes but the first."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def uniform_draws(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) shaped like a tensor, made on the generator's device and moved.

    At least single precision: half precision knows so few values that draws would be biased.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    draws = torch.rand(like.shape, generator=generator, device=generator.device, dtype=dtype)
    return draws.to(like.device)


def require_finite(targets: Tensor) -> None:
    """Refuse targets with NaN or infinite values."""
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        raise ValueError("targets hold NaN or infinite values; clean the data first")
