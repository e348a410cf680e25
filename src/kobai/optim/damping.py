"""Choose the damping: a number, a schedule, or Levenberg-Marquardt on the reduction ratio.

The ratio compares what a step did to the loss with what the quadratic model of the same examples
said it would do. Near one the model can be trusted further (less damping), near zero it cannot
(more). On a minibatch the ratio is an estimate: its standard error follows from how the changes of
single examples scatter about the model, and where it does not tell the ratio from a threshold, the
damping stays as it is.

A step fits the noise of its own minibatch, which its own ratio cannot see. The ratio of examples
that had no part in the step does: the damping falls only where they confirm the predicted decrease,
to the same threshold. That is its floor: on one and the same batch, again and again, it falls as
far as the model is exact; on minibatches it stays where noise begins to dominate. It rises where a
step does harm to fresh examples, and from above and below goes back to where it began while they
are neither harmed nor helped as much as predicted.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Action = Literal["raised", "lowered", "kept", "noise", "bound", "rejected"]

LOG_LENGTH = 10_000
"""Decisions that are remembered; older ones are dropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReductionRatio:
    """Measured over predicted change of the loss by one step.

    Attributes:
        actual: Change of the objective, negative where it fell; not finite where the loss was not.
        predicted: Change by the undamped quadratic model.
        value: actual / predicted. -inf if the loss rose although the step was not even predicted to
            lower it, or became non-finite; NaN if it fell although it was predicted to rise.
        error: Standard error of the value: scatter of the examples about the model, and rounding.
        resolution: Change of the objective that rounding could feign.
    """

    actual: float
    predicted: float
    value: float
    error: float
    resolution: float = 0.0


def reduction_ratio(
    before: Float[Tensor, " N"],
    after: Float[Tensor, " N"],
    predicted: Float[Tensor, " N"],
    weight: float,
    *,
    precision: torch.dtype = torch.float64,
    outputs: float = 0.0,
) -> ReductionRatio:
    """Compute the ratio and its standard error from the same examples before and after a step.

    With dₙ the change of example n's loss and mₙ the model's change of it, ρ = Σ dₙ / Σ mₙ, and by
    the delta method se(ρ)² = N/(N−1) Σ (dₙ − ρ mₙ)² / (Σ mₙ)². A model that is right for every
    example has no error however different the examples are; one example has an infinite one.

    Args:
        before: Losses of the examples at the old parameters.
        after: Losses at the new ones.
        predicted: mₙ.
        weight: The objective's normaliser.
        precision: In which the losses were computed; sets their rounding.
        outputs: Typical size of an example's outputs, whose rounding small losses inherit.
    """
    change, model = (after - before).double(), predicted.double()
    actual, expected = float(change.sum()) / weight, float(model.sum()) / weight
    inherited = outputs * math.sqrt(len(change))
    sizes = 8 * float(before.double().abs().sum()) + inherited
    rounding = torch.finfo(precision).eps * sizes / weight
    value, sampling = -math.inf, 0.0
    if math.isfinite(actual) and expected < 0:
        value = actual / expected
        count = len(change)
        scatter = float((change - value * model).square().sum())
        sampling = math.sqrt(scatter * count / (count - 1)) / weight if count > 1 else math.inf
    elif actual <= 0:
        value = math.nan
    return ReductionRatio(
        actual=actual,
        predicted=expected,
        value=value,
        error=math.hypot(sampling, rounding) / -expected if math.isfinite(value) else 0.0,
        resolution=rounding,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt:
    """Raise the damping when the ratio is low, lower it when it is high, hold when unsure.

    Attributes:
        initial: Damping of the first step.
        raise_below: Ratio below which the damping is raised.
        lower_above: Ratio above which it is lowered.
        raise_by: Factor of a rise.
        lower_by: Factor of a fall.
        minimum: Least damping.
        maximum: Most damping.
        noise: Standard errors by which a ratio must clear a threshold; 0 takes that of the step's
            own examples as exact, and that of fresh ones with one.

    Raises:
        ValueError: If bounds, factors or thresholds are out of order.

    Source: Martens 2010, Deep learning via Hessian-free optimization, §4.1 (thresholds, factors);
    Moré 1978, The Levenberg-Marquardt algorithm: implementation and theory.
    """

    initial: float = 1.0
    raise_below: float = 0.25
    lower_above: float = 0.75
    raise_by: float = 1.5
    lower_by: float = 2 / 3
    minimum: float = 1e-8
    maximum: float = 1e8
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.initial <= self.maximum < math.inf:
            raise ValueError(
                "damping needs 0 < minimum <= initial <= maximum, got "
                f"{self.minimum}, {self.initial}, {self.maximum}"
            )
        if not (0 < self.lower_by < 1 < self.raise_by < math.inf):
            raise ValueError(
                f"need lower_by < 1 < raise_by, got {self.lower_by} and {self.raise_by}"
            )
        if not 0 <= self.raise_below < self.lower_above <= 1:
            raise ValueError(
                "need 0 <= raise_below < lower_above <= 1, got "
                f"{self.raise_below} and {self.lower_above}"
            )
        if not self.noise >= 0:
            raise ValueError(f"noise counts standard errors, at least 0; got {self.noise}")

    def decide(
        self, damping: float, ratio: ReductionRatio, fresh: ReductionRatio | None = None
    ) -> tuple[float, Action]:
        """Give the next damping and why.

        Args:
            damping: λ of the step.
            ratio: Ratio of the step's own examples.
            fresh: Ratio of examples that had no part in the step, where there are such.
        """
        wanted, action = self._by_own(damping, ratio)
        if fresh is None:
            return wanted, action
        margin = (self.noise or 1.0) * fresh.error
        if not math.isfinite(fresh.actual) or fresh.value + margin < 0:
            return self.raised(damping)
        if fresh.value + margin < self.raise_below and damping < self.initial:
            return min(self.initial, self.raised(damping)[0]), "noise"
        if action == "lowered" and not fresh.value - margin > self.lower_above:
            back = damping > self.initial and fresh.value > margin
            return max(self.initial, wanted) if back else damping, "noise"
        return wanted, action

    def _by_own(self, damping: float, ratio: ReductionRatio) -> tuple[float, Action]:
        margin = self._margin(ratio)
        if ratio.value == -math.inf:
            return self.raised(damping)
        if math.isnan(ratio.value):
            return damping, "kept"
        if ratio.value + margin < self.raise_below:
            return self.raised(damping)
        if ratio.value - margin > self.lower_above:
            lower = max(self.minimum, damping * self.lower_by)
            return lower, "lowered" if lower < damping else "bound"
        inside = self.raise_below <= ratio.value <= self.lower_above
        return damping, "kept" if inside else "noise"

    def refuses(self, ratio: ReductionRatio) -> bool:
        """Tell if the loss rose beyond doubt, so that the step should be undone."""
        return ratio.actual > 0 and ratio.value + self._margin(ratio) < 0

    def _margin(self, ratio: ReductionRatio) -> float:
        """Give the likely error of the ratio, infinite for one example unless taken as exact."""
        return self.noise * ratio.error if self.noise else 0.0

    def raised(self, damping: float) -> tuple[float, Action]:
        """Give the next damping after a step that failed altogether."""
        higher = min(self.maximum, damping * self.raise_by)
        return higher, "raised" if higher > damping else "bound"


Damping = float | Callable[[int], float] | Literal["auto"] | LevenbergMarquardt
"""Forms of a damping: λ, a schedule step ↦ λ, "auto", or a rule with settings of its own."""


def check_damping(value: Any, *, positive: bool = False) -> float:
    """Check a damping and give it as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative, zero where that is not allowed, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(
            f"damping must be a number, a schedule step -> number, or 'auto'; got {value!r}"
        )
    if not (math.isfinite(value) and value >= 0 and (value > 0 or not positive)):
        least = "positive" if positive else "at least 0"
        raise ValueError(f"damping must be finite and {least}, got {value}")
    return float(value)


def first_damping(damping: Damping, *, positive: bool = False) -> float:
    """Give the damping of step 0, checked.

    Raises:
        TypeError: If it is none of the forms of `Damping`.
        ValueError: If it is out of range.
    """
    if isinstance(damping, LevenbergMarquardt):
        return damping.initial
    if callable(damping):
        return check_damping(damping(0), positive=positive)
    return check_damping(damping, positive=positive)


def as_rule(damping: Damping, automatic: LevenbergMarquardt) -> Damping:
    """Give the same damping with "auto" replaced by the rule it stands for."""
    if isinstance(damping, str):
        if damping != "auto":
            raise ValueError(f"damping is a number, a schedule or 'auto', got {damping!r}")
        return automatic
    return damping


def same_examples(before: Sequence[float], now: Sequence[float]) -> bool:
    """Say whether two fingerprints (sums over examples) are of the same ones, in any order."""
    return len(before) == len(now) and all(
        math.isclose(a, b, rel_tol=1e-9) for a, b in zip(before, now, strict=True)
    )
