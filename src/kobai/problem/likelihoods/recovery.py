"""Targets read off the gradient that a loss leaves at the model's outputs.

An ordinary training loop does not show the optimizer its targets, but cross-entropy and squared
error show them: ∂L/∂f = κ (p − y), hence y = p − ∂L/∂f / κ. Hard labels follow from the pattern of
signs alone, whatever the factor κ; soft targets and regression need κ, which is the `scale` of the
likelihood over its normaliser. A residual that is not parallel to the gradient, or a probability
outside [0, 1], shows that the loss has another form.
"""

import dataclasses

import torch
from torch import Tensor

_OUTSIDE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Most that rounding may take a probability out of [0, 1]; half precision has 2e-2."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RecoveredTargets:
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

    @classmethod
    def none(cls, reason: str) -> "RecoveredTargets":
        """Say that there are no targets with this gradient."""
        return cls(targets=None, kind="none", reason=reason)


@dataclasses.dataclass(frozen=True, slots=True)
class Rounding:
    """The precision of a gradient, by the dtype it arrived in."""

    dtype: torch.dtype

    @property
    def exact(self) -> bool:
        """Single precision or better."""
        return self.dtype in _OUTSIDE

    @property
    def angle(self) -> float:
        """Largest distance from 1 of the cosine of two parallel gradients."""
        return 1e-5 if self.exact else 1e-3

    @property
    def outside(self) -> float:
        """Largest distance of a probability out of [0, 1]."""
        return _OUTSIDE.get(self.dtype, 2e-2)

    def probabilities(self, values: Tensor) -> RecoveredTargets:
        """Take values as probabilities, or say that they are none."""
        low, high = float(values.min()), float(values.max())
        if not (low >= -self.outside and high <= 1 + self.outside):
            return RecoveredTargets.none(
                f"its gradient would belong to target probabilities of {low:.3g}…{high:.3g}"
            )
        return RecoveredTargets(targets=values.clamp(0.0, 1.0), kind="soft")

    def restore_whole(self, values: Tensor, size: Tensor) -> Tensor:
        """Round to whole numbers what is one up to the rounding of numbers of this size."""
        whole = values.round()
        # The gradient was rounded a few times on its way: by the mean, the difference, the average.
        near = (values - whole).abs() <= 8 * torch.finfo(self.dtype).eps * size
        return torch.where(near, whole, values)
