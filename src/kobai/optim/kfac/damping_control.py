"""K-FAC's damping follows measured steps: the two ratios of `kobai.optim.damping`."""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

from kobai.optim.damping import LOG_LENGTH, LevenbergMarquardt, ReductionRatio
from kobai.optim.kfac.control_state import ControlState
from kobai.optim.kfac.minibatch import Minibatch


@final
class DampingControl:
    """Decides about the damping and remembers why.

    Args:
        rule: Thresholds and factors; None leaves the damping alone.
        counts: Where decisions are counted, by "damping_" and the action.
    """

    def __init__(self, rule: LevenbergMarquardt | None, counts: dict[str, int]) -> None:
        self.rule = rule
        self.counts = counts
        self.decisions: list[dict[str, Any]] = []

    def judge(
        self,
        state: ControlState,
        batch: Minibatch,
        update: Sequence[Tensor],
        damping: float,
        step: int,
        inversions: int,
    ) -> float:
        """Judge what the last step did to examples it had not seen.

        Args:
            state: With the prediction and ratio of the last step; the prediction is used up.
            batch: The present minibatch.
            update: The last step.
            damping: λ of the last step.
            step: Number of steps made.
            inversions: Inversions made; a damping changes once per inversion.

        Returns:
            Factor on the damping.
        """
        rule = self.rule
        predicted, state.predicted = state.predicted, 0.0
        own = ReductionRatio(
            actual=state.ratio * predicted,
            predicted=predicted,
            value=state.ratio,
            error=0.0 if state.repeated else state.error,
        )
        if rule is None or inversions == state.damping_step:
            return 1.0
        fresh = None
        if not state.repeated:
            fresh = batch.fresh_ratio(update, predicted)
        wanted, action = rule.decide(damping, own, fresh)
        if wanted != damping:
            state.damping_step = inversions
        return self._log(step, damping, own, fresh, action, wanted)

    def shortened(self, step: int, damping: float, ratio: ReductionRatio) -> float:
        """Return the factor on the damping after a step that had to be shortened."""
        if self.rule is None:
            return 1.0
        wanted, action = self.rule.raised(damping)
        return self._log(step, damping, ratio, None, action, wanted)

    def _log(
        self,
        step: int,
        damping: float,
        own: ReductionRatio,
        fresh: ReductionRatio | None,
        action: str,
        wanted: float,
    ) -> float:
        if f"damping_{action}" in self.counts:
            self.counts[f"damping_{action}"] += 1
        self.decisions.append(
            {
                "step": step,
                "damping": damping,
                "predicted": own.predicted,
                "ratio": own.value,
                "error": own.error,
                "fresh_ratio": None if fresh is None else fresh.value,
                "fresh_error": None if fresh is None else fresh.error,
                "action": action,
                "next": wanted,
            }
        )
        del self.decisions[:-LOG_LENGTH]
        return wanted / damping
