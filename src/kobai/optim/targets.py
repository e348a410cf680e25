"""Targets read off the gradient that a loss leaves at the model's outputs.

An ordinary training loop does not show the optimizer its targets, but cross-entropy and squared
error show them: ∂L/∂f = κ (p − y), hence y = p − ∂L/∂f / κ. Hard labels follow from the pattern of
signs alone, whatever the factor κ (a gradient scaler's, an accumulation's); soft targets and
regression need κ, which is one over the normaliser of the likelihood. What was read off is held
against the gradient: a residual that is not parallel to it, or a probability outside [0, 1], shows
that the loss has another form.
"""

import dataclasses

import torch
from torch import Tensor

from kobai.optim.kfac.cotangents import observed_targets, placeholder_targets
from kobai.problem import Bernoulli, Categorical, Gaussian, Likelihood

_OUTSIDE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far rounding may take a probability out of [0, 1]; half precision has 2e-2."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recovery:
    """Targets, or why there are none.

    Attributes:
        targets: As `Likelihood.nll` takes them; None where the gradient has another form.
        kind: "hard" (labels, held against the whole gradient), "soft" (probabilities, held against
            [0, 1]), "regression" (any gradient is that of some targets: nothing to hold against) or
            "none".
        reason: Empty, or what does not fit.
    """

    targets: Tensor | None
    kind: str
    reason: str = ""


def recover_targets(
    likelihood: Likelihood,
    outputs: Tensor,
    gradient: Tensor,
    *,
    precision: torch.dtype | None = None,
) -> Recovery:
    """The targets of the loss whose gradient in the outputs this is.

    Args:
        likelihood: What the outputs mean, with the normalisation of the loss.
        outputs: The model's outputs.
        gradient: ∂L/∂f of the user's loss, shaped like them.
        precision: What the gradient arrived in, if that was coarser than what it is held in.

    Terms of a categorical likelihood whose gradient is exactly zero count as ignored.
    """
    outputs, gradient = outputs.detach(), gradient.detach()
    coarsest = gradient.dtype if precision is None else precision
    slack = _OUTSIDE.get(coarsest, 2e-2)
    exact = coarsest in _OUTSIDE
    if not exact:
        outputs, gradient = outputs.float(), gradient.float()
    hard = observed_targets(likelihood, outputs, gradient, tolerance=1e-5 if exact else 1e-3)
    if hard is not None:
        return Recovery(targets=hard, kind="hard")
    weight = likelihood.weight(placeholder_targets(likelihood, outputs, gradient))
    residual = gradient * (weight / likelihood.scale)
    if isinstance(likelihood, Gaussian):
        return Recovery(targets=outputs - residual, kind="regression")
    if isinstance(likelihood, Bernoulli):
        return _probabilities(torch.sigmoid(outputs) - residual, slack)
    if not isinstance(likelihood, Categorical):
        return Recovery(
            targets=None, kind="none", reason=f"{likelihood!r} is not of a family known here"
        )
    rows = residual.movedim(likelihood.axis, -1)
    p = torch.softmax(outputs.movedim(likelihood.axis, -1), -1)
    if likelihood.label_smoothing:
        smoothed = _smoothed_labels(likelihood, outputs, gradient, p, 1e-5 if exact else 1e-2)
        if smoothed is not None:
            return Recovery(targets=smoothed, kind="hard")
    if float(rows.sum(-1).abs().max()) > slack * max(1.0, float(rows.abs().max())):
        return Recovery(
            targets=None,
            kind="none",
            reason="the gradients of the logits do not add up to zero over axis "
            f"{likelihood.axis}, as those of a softmax do (nn.CrossEntropyLoss of outputs with "
            "further axes is over axis 1: give that loss module as the likelihood)",
        )
    soft = p - rows
    if likelihood.label_smoothing:
        smoothing = likelihood.label_smoothing
        soft = (soft - smoothing / soft.shape[-1]) / (1 - smoothing)
    return _probabilities(soft.movedim(-1, likelihood.axis), slack)


def _probabilities(values: Tensor, slack: float) -> Recovery:
    low, high = float(values.min()), float(values.max())
    if not (low >= -slack and high <= 1 + slack):
        return Recovery(
            targets=None,
            kind="none",
            reason=f"its gradient would belong to target probabilities of {low:.3g}…{high:.3g}",
        )
    return Recovery(targets=values.clamp(0.0, 1.0), kind="soft")


def _smoothed_labels(
    likelihood: Categorical, outputs: Tensor, gradient: Tensor, p: Tensor, tolerance: float
) -> Tensor | None:
    """Class indices under label smoothing, whatever the factor on the loss.

    Between two classes that are not the label the targets are equal, so that the differences of
    gradients and of probabilities have the ratio κ: the median over neighbours in the order of
    probability, of which the label spoils two.
    """
    rows = gradient.movedim(likelihood.axis, -1)
    present = rows.ne(0).any(-1)
    order = p.argsort(-1)
    steps = p.gather(-1, order).diff(dim=-1)
    kappa = rows.gather(-1, order).diff(dim=-1) / steps
    certain = kappa[present][steps[present] > 1e-4]
    candidates = [likelihood.scale / likelihood.weight(torch.where(present, 1, -100))]
    if certain.numel():
        candidates.append(float(certain.median()))
    for factor in candidates:
        if not factor > 0:
            continue
        labels = (p - rows / factor).argmax(-1)
        labels = torch.where(present, labels, likelihood.ignore_index)
        residual = likelihood.residual(outputs, labels)
        lengths = residual.norm() * gradient.norm()
        if bool((residual * gradient).sum() >= (1 - tolerance) * lengths):
            return labels
    return None
