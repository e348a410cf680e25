"""Softmax classification."""

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
    require_finite,
    require_plain_mean,
    sum_per_example,
    uniform_draws,
)
from kobai.problem.likelihoods.recovery import RecoveredTargets, Rounding


@final
class Categorical(Likelihood):
    """Softmax classification with class indices or soft targets.

    Args:
        ignore_index: Class index that marks a term as absent; plays no part with soft targets.
        label_smoothing: ε in [0, 1): targets become (1 − ε) y + ε/C.
        axis: Axis of the classes in the outputs: -1 (kobai's convention, (N, …, C)) or 1 (torch's
            cross-entropy convention, (N, C, …)). The same for matrices of outputs (N, C).
        reduction: "examples" or "terms" (positions that are not ignored).
        scale: Factor on the loss.
        excess: Leave out the entropy of the targets, which no model can get rid of: the loss is
            then the Kullback-Leibler divergence from target to prediction, never negative, and 0
            where they agree. Derivatives stay as they are.

    Class indices are int64 of the outputs' shape without the class axis; soft targets are floating
    point of the outputs' shape. The Hessian is m (diag p − p pᵀ) with m the mass of the target: 1,
    0 where ignored, or what soft targets sum to (after smoothing). Its factor is
    S = √m (diag √p − p √pᵀ).
    """

    name = "categorical"
    floor_is_zero = True

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "examples",
        scale: float = 1.0,
        excess: bool = False,
    ) -> None:
        check_settings(scale, reduction)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if axis not in (-1, 1):
            raise ValueError(f"axis of the classes must be -1 or 1, got {axis}")
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.axis = axis
        self.reduction = reduction
        self.scale = scale
        self.excess = excess

    @classmethod
    def from_torch(cls, loss: nn.CrossEntropyLoss) -> "Categorical":
        """Convert torch's cross-entropy, which averages over positions that are not ignored."""
        require_plain_mean(loss)
        return cls(
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
            axis=1,
            reduction="terms",
        )

    def _mass(self, targets: Tensor, like: Tensor) -> Tensor:
        """Mass of each term's target, shape (N, …, 1), in the dtype of `like` (classes last)."""
        if targets.is_floating_point():
            mass = targets.movedim(self.axis, -1).sum(-1, keepdim=True).to(like.dtype)
            return (1 - self.label_smoothing) * mass + self.label_smoothing
        return (targets != self.ignore_index).unsqueeze(-1).to(like.dtype)

    def _distribution(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Target distribution with classes last, zero where ignored."""
        classes = outputs.shape[-1]
        if targets.is_floating_point():
            soft = targets.movedim(self.axis, -1).to(outputs.dtype)
            return (1 - self.label_smoothing) * soft + self.label_smoothing / classes
        kept = targets != self.ignore_index
        hard = F.one_hot(torch.where(kept, targets, 0), classes).to(outputs.dtype)
        smooth = (1 - self.label_smoothing) * hard + self.label_smoothing / classes
        return smooth * kept.unsqueeze(-1)

    def nll(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Cross-entropy of each example, or its excess; see `Likelihood.nll`."""
        # In half precision the sum of log-probabilities that smoothing takes would overflow.
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        if self.excess:
            scores = outputs.movedim(self.axis, -1).to(dtype)
            loss = divergence(
                self._distribution(scores, targets),
                self._mass(targets, scores),
                torch.log_softmax(scores, -1),
            )
            return self.scale * sum_per_example(loss.sum(-1)).to(outputs.dtype)
        logits = outputs.movedim(self.axis, 1).to(dtype)
        ignore_index = self.ignore_index
        if targets.is_floating_point():
            targets = targets.movedim(self.axis, 1).to(dtype)
            ignore_index = -100  # torch refuses others here, where they have no meaning
        loss = F.cross_entropy(
            logits,
            targets,
            ignore_index=ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return self.scale * sum_per_example(loss).to(outputs.dtype)

    def terms(self, targets: Tensor) -> Float[Tensor, " N"]:
        """Number of positions that are not ignored; soft targets count one per position."""
        if targets.is_floating_point():
            count = targets.numel() // (targets.shape[0] * targets.shape[self.axis])
            return torch.full((targets.shape[0],), float(count), device=targets.device)
        return sum_per_example((targets != self.ignore_index).float())

    def residual(self, outputs: Outputs, targets: Tensor) -> Outputs:
        """m p − y, with m the mass of the target."""
        logits = outputs.movedim(self.axis, -1)
        p = torch.softmax(logits, -1)
        residual = self._mass(targets, logits) * p - self._distribution(logits, targets)
        return (self.scale * residual).movedim(-1, self.axis)

    def hvp(self, outputs: Outputs, targets: Tensor, u: Outputs) -> Outputs:
        """m (p ∘ u − p (pᵀu))."""
        logits, u = outputs.movedim(self.axis, -1), u.movedim(self.axis, -1)
        p = torch.softmax(logits, -1)
        pu = p * u
        product = pu - p * pu.sum(-1, keepdim=True)
        return (self.scale * self._mass(targets, logits) * product).movedim(-1, self.axis)

    def factor_product(self, outputs: Outputs, targets: Tensor, s: Outputs) -> Outputs:
        """√m (√p ∘ s − p (√pᵀs))."""
        logits, s = outputs.movedim(self.axis, -1), s.movedim(self.axis, -1)
        p = torch.softmax(logits, -1)
        root = p.sqrt()
        product = root * s - p * (root * s).sum(-1, keepdim=True)
        mass = (self.scale * self._mass(targets, logits)).sqrt()
        return (mass * product).movedim(-1, self.axis)

    def _draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """A class of every term, drawn from softmax(logits), classes last."""
        # The Gumbel trick needs one uniform draw per class and no normalised probabilities, so it
        # cannot fail on a saturated softmax as multinomial sampling does.
        uniform = uniform_draws(logits, generator)
        tiny = torch.finfo(uniform.dtype).tiny
        gumbel = -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))
        # Logits are taken relative to the largest, so that large ones do not round the noise off.
        return (logits - logits.amax(-1, keepdim=True) + gumbel).argmax(-1)

    def sample(self, outputs: Outputs, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Class indices drawn from softmax(outputs); ignored positions keep `ignore_index`.

        Where `ignore_index` is itself a class, a position that draws this class reads as ignored;
        `fisher_sample` has no such ambiguity.
        """
        labels = self._draw(outputs.detach().movedim(self.axis, -1), generator)
        if targets.is_floating_point():
            return labels
        return torch.where(targets == self.ignore_index, self.ignore_index, labels)

    def fisher_sample(
        self, outputs: Outputs, targets: Tensor, generator: torch.Generator
    ) -> Outputs:
        """√m (p − e_y), y drawn from p; label smoothing plays no part in the model's own labels."""
        logits = outputs.detach().movedim(self.axis, -1)
        labels = self._draw(logits, generator)
        score = torch.softmax(logits, -1)
        score.scatter_add_(-1, labels.unsqueeze(-1), -torch.ones_like(score[..., :1]))
        mass = (self.scale * self._mass(targets, logits)).sqrt()
        return (mass * score).movedim(-1, self.axis)

    def correct(self, outputs: Outputs, targets: Tensor) -> Float[Tensor, " N"]:
        """Positions whose largest output is the target's class (the largest soft target's)."""
        predicted = outputs.argmax(self.axis)
        if targets.is_floating_point():
            return sum_per_example((predicted == targets.argmax(self.axis)).float())
        right = (predicted == targets) & (targets != self.ignore_index)
        return sum_per_example(right.float())

    @property
    def class_axis(self) -> int:
        """The `axis`."""
        return self.axis

    def targets_as_outputs(self, outputs: Outputs, targets: Tensor) -> Outputs | None:
        """One-hot labels, or soft targets as they are; None where a position is ignored."""
        if targets.is_floating_point():
            return super().targets_as_outputs(outputs, targets)
        if bool((targets == self.ignore_index).any()):
            return None
        rows = F.one_hot(targets, outputs.shape[self.axis]).to(outputs.dtype)
        return rows.movedim(-1, self.axis)

    def identifiable_part(self, targets: Tensor, change: Outputs) -> Outputs:
        """Differences of logits at positions that are not ignored (I − 11ᵀ/C instead of I)."""
        rows = change.movedim(self.axis, -1)
        present = (targets != self.ignore_index).unsqueeze(-1)
        return ((rows - rows.mean(-1, keepdim=True)) * present).movedim(-1, self.axis)

    def mean(self, outputs: Outputs) -> Outputs:
        """Probabilities of the classes."""
        return torch.softmax(outputs, self.axis)

    def own_targets(self, outputs: Outputs, targets: Tensor, kind: TargetKind) -> Tensor:
        """Predicted distributions or classes; ignored positions stay so."""
        labelled = not targets.is_floating_point()
        kept = targets != self.ignore_index if labelled else None
        if kind == "hard":
            decided = outputs.argmax(self.axis)
            return decided if kept is None else torch.where(kept, decided, self.ignore_index)
        soft = self.mean(outputs)
        # A position without mass has no loss, whatever the outputs.
        return soft if kept is None else soft * kept.unsqueeze(self.axis)

    def for_own_targets(self, kind: TargetKind) -> "Categorical":
        """Leave out label smoothing, which would move the minimum, and the entropy if soft."""
        return Categorical(
            ignore_index=self.ignore_index,
            axis=self.axis,
            reduction=self.reduction,
            scale=self.scale,
            excess=kind == "soft",
        )

    def placeholder_targets(self, outputs: Outputs, gradient: Outputs) -> Tensor:
        """Any label where the gradient is not zero, `ignore_index` elsewhere.

        A position predicted with certainty has a zero gradient too, and a zero Fisher matrix.
        """
        present = gradient.movedim(self.axis, -1).ne(0).any(-1)
        label = 0 if self.ignore_index != 0 else 1
        return torch.where(present, label, self.ignore_index)

    def labels_by_sign(self, outputs: Outputs, gradient: Outputs) -> Tensor | None:
        """The class whose gradient p − y is negative; None with label smoothing."""
        if self.label_smoothing:
            return None
        rows = gradient.movedim(self.axis, -1)
        return torch.where(rows.ne(0).any(-1), rows.argmin(-1), self.ignore_index)

    def targets_of_residual(
        self, outputs: Outputs, residual: Outputs, rounding: Rounding
    ) -> RecoveredTargets:
        """Soft targets, or labels under smoothing; None where rows do not add up to zero."""
        rows = residual.movedim(self.axis, -1)
        p = torch.softmax(outputs.movedim(self.axis, -1), -1)
        if self.label_smoothing:
            smoothed = self._smoothed_labels(outputs, residual, p, 1e-5 if rounding.exact else 1e-2)
            if smoothed is not None:
                return RecoveredTargets(targets=smoothed, kind="hard")
        if float(rows.sum(-1).abs().max()) > rounding.outside * max(1.0, float(rows.abs().max())):
            return RecoveredTargets.none(
                "the gradients of the logits do not add up to zero over axis "
                f"{self.axis}, as those of a softmax do (nn.CrossEntropyLoss of outputs with "
                "further axes is over axis 1: give that loss module as the likelihood)"
            )
        soft = p - rows
        if self.label_smoothing:
            soft = (soft - self.label_smoothing / soft.shape[-1]) / (1 - self.label_smoothing)
        return rounding.probabilities(soft.movedim(-1, self.axis))

    def _smoothed_labels(
        self, outputs: Tensor, residual: Tensor, p: Tensor, tolerance: float
    ) -> Tensor | None:
        """Class indices under label smoothing, whatever the factor on the loss.

        Between two classes that are not the label the targets are equal, so that the differences of
        residuals and of probabilities have the ratio κ, 1 for a loss in its own scale: the median
        over neighbours in the order of probability, of which the label spoils two.
        """
        rows = residual.movedim(self.axis, -1)
        present = rows.ne(0).any(-1)
        order = p.argsort(-1)
        steps = p.gather(-1, order).diff(dim=-1)
        kappa = rows.gather(-1, order).diff(dim=-1) / steps
        certain = kappa[present][steps[present] > 1e-4]
        candidates = [1.0]
        if certain.numel():
            candidates.append(float(certain.median()))
        for factor in candidates:
            if not factor > 0:
                continue
            labels = torch.where(present, (p - rows / factor).argmax(-1), self.ignore_index)
            if self.is_parallel(outputs, labels, residual, tolerance):
                return labels
        return None

    def check(self, outputs: Outputs, targets: Tensor) -> None:
        """Raise `ValueError` on wrong shapes, classes out of range, negative targets."""
        if outputs.ndim < 2:
            raise ValueError(
                f"categorical outputs need a class axis, (N, C), got shape {tuple(outputs.shape)}"
            )
        classes = outputs.shape[self.axis]
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"soft targets must have the outputs' shape {tuple(outputs.shape)}, got "
                    f"{tuple(targets.shape)}; for class indices pass int64 targets"
                )
            require_finite(targets)
            if bool((targets < 0).any()):
                raise ValueError("soft targets must not be negative")
            return
        if targets.dtype != torch.int64:
            raise ValueError(
                f"class indices must be int64, got {targets.dtype}; convert by targets.long()"
            )
        expected = list(outputs.shape)
        del expected[self.axis]
        if list(targets.shape) != expected:
            raise ValueError(
                f"for outputs {tuple(outputs.shape)} with the classes on axis {self.axis}, class "
                f"indices must have shape {tuple(expected)}, got {tuple(targets.shape)}"
            )
        kept = targets[targets != self.ignore_index]
        if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= classes):
            raise ValueError(
                f"class indices must lie in 0…{classes - 1} for a model with {classes} outputs, "
                f"got {int(kept.min())}…{int(kept.max())}; widen the model or fix the labels"
            )
