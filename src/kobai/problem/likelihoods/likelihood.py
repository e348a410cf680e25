"""The interface of likelihoods: the geometry of a network's outputs.

Normalisation, stated once. The loss of an example is its negative log-likelihood summed over
outputs and over extra axes such as tokens, times `scale`; an objective is the sum over examples
divided by the sum of `weight`, which is the number of examples (``reduction="examples"``) or the
number of terms (``reduction="terms"``: positions that are not ignored for `Categorical`, single
outputs for the others). Gaussian means ½‖f − y‖² per example.

The families here are exponential families in their natural parameter, so the Hessian of the loss
in the outputs does not depend on the labels and equals the Fisher information of the predictive
distribution: Gauss-Newton and true Fisher coincide (Martens 2020, New insights and perspectives on
the natural gradient method, §9). Their residual is `scale` times the mean of the predictive
distribution less the targets, and that is what the defaults rest on.
"""

import abc
import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem.likelihoods.recovery import RecoveredTargets, Rounding

Reduction = Literal["examples", "terms"]
TargetKind = Literal["soft", "hard"]
Outputs = Float[Tensor, "N *outputs"]


class Likelihood(abc.ABC):
    """The interface of a loss to objectives, Gauss-Newton and Fisher matrices, and optimizers.

    All members take raw network outputs (logits or means) with the examples first, and return
    per-example quantities that are not divided by N. `scale` is included everywhere.

    A family of one's own defines `nll`, `residual`, `hvp`, `factor_product` and `sample`. The other
    members have defaults for families whose targets have the shape of the outputs and whose
    residual is scale · (mean − target), as that of every exponential family in its natural
    parameter; where the defaults rely on this form, they check it.

    Attributes:
        name: The family's name; default: the name of the class in small letters.
        scale: Factor on the loss, positive.
        reduction: What the normaliser counts, "examples" or "terms".
        excess: Whether `nll` leaves out the entropy of the targets.
        floor_is_zero: Whether the least `nll` of the likelihood that `for_own_targets` gives is 0.
    """

    name: str
    scale: float = 1.0
    reduction: Reduction = "examples"
    excess: bool = False
    floor_is_zero: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not hasattr(cls, "name"):
            cls.name = cls.__name__.lower()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    @abc.abstractmethod
    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Negative log-likelihood of each example, summed over outputs and extra axes."""

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
    def sample(self, outputs: Outputs, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from the predictive distribution at these outputs.

        `targets` tell which terms are ignored, and stay so in the sample. Draws are made on the
        generator's device and moved.
        """

    def fisher_sample(
        self, outputs: Outputs, targets: Tensor, generator: torch.Generator
    ) -> Outputs:
        """A random cotangent u with E[u uᵀ] = output Hessian: the score at sampled labels."""
        outputs = outputs.detach()
        score = self.residual(outputs, self.sample(outputs, targets, generator))
        return score / math.sqrt(self.scale)

    def terms(self, targets: Tensor) -> Float[Tensor, " N"]:
        """Number of terms in each example's sum (ignored ones left out); default: its outputs."""
        per_example = targets.numel() // targets.shape[0]
        return torch.full((targets.shape[0],), float(per_example), device=targets.device)

    def weight(self, targets: Tensor) -> float:
        """Return what these targets add to the normaliser of an objective."""
        if self.reduction == "examples":
            return float(targets.shape[0])
        return float(self.terms(targets).sum(dtype=torch.float64))

    def correct(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"] | None:
        """Number of terms of each example predicted right, or None where that has no meaning."""
        return None

    def check(self, outputs: Outputs, targets: Tensor) -> None:
        """Raise `ValueError` if outputs and targets do not fit each other."""
        targets_like(self.name, outputs, targets)
        require_finite(targets)

    @property
    def class_axis(self) -> int | None:
        """Axis of the outputs along which classes lie; None for families without classes."""
        return None

    def targets_as_outputs(self, outputs: Outputs, targets: Tensor) -> Outputs | None:
        """Write targets as numbers shaped like the outputs; None where some have none."""
        return targets.to(outputs.dtype) if targets.shape == outputs.shape else None

    def identifiable_part(self, targets: Tensor, change: Outputs) -> Outputs:
        """Keep of a change of outputs what predictions that count depend on; default: all."""
        return change

    def mean(self, outputs: Outputs) -> Outputs:
        """Mean of the predictive distribution: the targets at which the residual vanishes."""
        return self.residual(outputs, torch.zeros_like(outputs)) / self.scale

    # Targets without data: of a model's own, and of an unseen loss.

    def own_targets(self, outputs: Outputs, targets: Tensor, kind: TargetKind) -> Tensor:
        """Targets that a model with these outputs would give itself.

        Args:
            outputs: Raw outputs.
            targets: The targets of the data, for what they ignore.
            kind: "soft" for the mean of the predictive distribution, "hard" for decisions.

        Raises:
            ValueError: If the family has no such targets.
        """
        if kind == "hard":
            raise ValueError("a regression has no decisions to make targets of; use targets='soft'")
        made = self.mean(outputs)
        if not self._has_residual(outputs, made, torch.zeros_like(outputs)):
            raise ValueError(
                f"the residual of {self.name} does not vanish at its mean; define "
                f"{type(self).__name__}.mean, the targets at which it does"
            )
        return made

    def for_own_targets(self, kind: TargetKind) -> "Likelihood":
        """Return the likelihood whose loss is least where outputs and `own_targets` agree."""
        return self

    def placeholder_targets(self, outputs: Outputs, gradient: Outputs) -> Tensor:
        """Targets that say which terms are present, and nothing else.

        Args:
            outputs: The model's outputs.
            gradient: Gradient of the user's loss in them; where it is exactly zero, a family with
                terms that can be ignored takes them to be so.
        """
        return torch.zeros_like(outputs)

    def labels_by_sign(self, outputs: Outputs, gradient: Outputs) -> Tensor | None:
        """Labels that the signs of the gradient show, not checked; None where they show none."""
        return None

    def hard_targets(
        self, outputs: Outputs, gradient: Outputs, *, tolerance: float = 1e-5
    ) -> Tensor | None:
        """Hard labels read off the sign pattern of the output gradient, whatever the loss's scale.

        Args:
            outputs: The model's outputs.
            gradient: Gradient of the loss in them.
            tolerance: How far from 1 the cosine between gradient and residual may be.

        Returns:
            Targets whose residual is parallel to the gradient, or None if there are none such: soft
            targets, label smoothing, regression, or another loss.
        """
        targets = self.labels_by_sign(outputs, gradient)
        if targets is None or not self.is_parallel(outputs, targets, gradient, tolerance):
            return None
        return targets

    def is_parallel(
        self, outputs: Outputs, targets: Tensor, gradient: Outputs, tolerance: float
    ) -> bool:
        """Tell whether the residual at these targets has the direction of the gradient."""
        residual = self.residual(outputs, targets)
        lengths = residual.norm() * gradient.norm()
        return bool((residual * gradient).sum() >= (1 - tolerance) * lengths)

    def recover_targets(
        self, outputs: Outputs, gradient: Outputs, *, precision: torch.dtype | None = None
    ) -> RecoveredTargets:
        """Read the targets off the gradient that a loss leaves at the outputs.

        Hard labels follow from the signs alone, whatever the factor on the loss (a gradient
        scaler's, an accumulation's); other targets need the likelihood's own normalisation.

        Args:
            outputs: The model's outputs.
            gradient: ∂L/∂f of the user's loss, shaped like them.
            precision: The dtype the gradient arrived in, if that was coarser than its own.
        """
        outputs, gradient = outputs.detach(), gradient.detach()
        rounding = Rounding(gradient.dtype if precision is None else precision)
        if not rounding.exact:
            outputs, gradient = outputs.float(), gradient.float()
        hard = self.hard_targets(outputs, gradient, tolerance=rounding.angle)
        if hard is not None:
            return RecoveredTargets(targets=hard, kind="hard")
        weight = self.weight(self.placeholder_targets(outputs, gradient))
        return self.targets_of_residual(outputs, gradient * (weight / self.scale), rounding)

    def targets_of_residual(
        self, outputs: Outputs, residual: Outputs, rounding: Rounding
    ) -> RecoveredTargets:
        """Solve for the targets at which the residual, divided by `scale`, is the given one.

        By default they are the mean less the residual; whole numbers that rounding has moved are
        restored. The result is held against `residual` and `check`.
        """
        mean = self.mean(outputs)
        targets = mean - residual
        if not self._has_residual(outputs, targets, residual):
            return RecoveredTargets.none(
                f"{self.name} does not say how its targets follow from its gradient (define "
                f"{type(self).__name__}.targets_of_residual)"
            )
        targets = rounding.restore_whole(targets, mean.abs() + residual.abs())
        try:
            self.check(outputs, targets)
        except ValueError as error:
            return RecoveredTargets.none(f"its gradient would belong to other targets: {error}")
        return RecoveredTargets(targets=targets, kind="regression")

    def _has_residual(self, outputs: Tensor, targets: Tensor, residual: Tensor) -> bool:
        """Tell whether the residual at these targets, over `scale`, is this one to rounding."""
        found = self.residual(outputs, targets) / self.scale
        size = targets.abs() + residual.abs() + 1
        # A few operations' rounding; a residual of another form is off by far more.
        return bool(((found - residual).abs() <= 1e3 * torch.finfo(size.dtype).eps * size).all())


def check_settings(scale: float, reduction: str) -> None:
    """Refuse a scale or reduction that no likelihood has."""
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if reduction not in ("examples", "terms"):
        raise ValueError(f"reduction must be 'examples' or 'terms', got {reduction!r}")


def require_plain_mean(loss: nn.Module) -> None:
    """Refuse a torch loss module whose options have no likelihood."""
    kind = type(loss).__name__
    if loss.reduction != "mean":
        raise ValueError(
            f"{kind}(reduction={loss.reduction!r}) has no normalised objective; "
            "use reduction='mean', or a kobai likelihood with its scale"
        )
    for option in ("weight", "pos_weight"):
        if getattr(loss, option, None) is not None:
            raise ValueError(f"{kind}({option}=…) is not supported; drop the {option}")


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


def targets_like(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the outputs' dtype; (N,) against (N, 1) would broadcast to N² differences."""
    if targets.shape != outputs.shape:
        raise ValueError(
            f"{name} targets must have the outputs' shape {tuple(outputs.shape)}, got "
            f"{tuple(targets.shape)}; reshape one of them, broadcasting would be wrong here"
        )
    return targets.to(outputs.dtype)


def require_real(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Refuse targets that are not finite floating-point numbers shaped like the outputs."""
    targets_like(name, outputs, targets)
    if not targets.is_floating_point():
        raise ValueError(
            f"{name} targets must be floating point, got {targets.dtype}; convert by .to(dtype)"
        )
    require_finite(targets)


def require_finite(targets: Tensor) -> None:
    """Refuse targets with NaN or infinite values."""
    if targets.is_floating_point() and not bool(torch.isfinite(targets).all()):
        raise ValueError("targets hold NaN or infinite values; clean the data first")
