"""Levenberg-Marquardt: damped Gauss-Newton steps that are made only if the loss falls."""

from typing import Any, final

import torch
from torch import nn

from kobai.curvature import Fisher
from kobai.optim.damping import Damping, LevenbergMarquardt, as_rule, first_damping
from kobai.optim.second_order.base import (
    Start,
    begin_step,
    check_lr,
    count_solve,
    diagnostics_of,
    is_finite,
    log_decision,
    ratio_at,
    record_of,
    reduced,
    refuse_second_group,
    start_record,
    trainable,
)
from kobai.optim.second_order.example_model import local_model
from kobai.optim.second_order.fisher_solve import natural_direction
from kobai.optim.second_order.fresh_examples import await_fresh, judge_last_step
from kobai.problem import Likelihood, as_likelihood

LEVENBERG_MARQUARDT = LevenbergMarquardt(
    initial=1e-2, raise_by=4.0, lower_by=1 / 3, minimum=1e-10, maximum=1e10, noise=0.0
)
"""What "auto" stands for here: the ratio of all data is exact, and a rejected step costs little."""

_COUNTS = (
    "skipped_steps",
    "rejected_trials",
    "rejected_steps",
    "jittered_solves",
    "unconverged_solves",
    "cg_iterations",
)


@final
class GaussNewton(torch.optim.Optimizer):
    r"""θ ← θ − η (G + λ)⁻¹ ∇L with the exact Gauss-Newton matrix and Levenberg-Marquardt damping.

    Called like `torch.optim.LBFGS`: ``optimizer.step(problem.objective())``. Under automatic
    damping a step is made only if it lowers the loss: a trial that does not is undone, λ raised and
    the system solved again, up to `max_trials` times a step; the matrix is built once for all of
    them. For kobai's likelihoods G is the Fisher matrix, so a trial is the exact natural gradient
    of `NaturalGradient`, solved on the smaller side likewise. The gradient is left in ``.grad``.

    Args:
        model: The model.
        likelihood: What its outputs mean; the objective's must be of the same family.
        lr: η, usually 1.
        damping: λ: a number or a schedule step ↦ number (every finite step is then made), "auto",
            or a `LevenbergMarquardt` rule. "auto" takes the ratio of the step's own examples as
            exact; on minibatches the next examples are asked as well, see `kobai.optim.damping`.
        max_trials: Trials a step.

    Raises:
        ValueError: If a number is out of range or nothing is trainable.
        TypeError: If the damping is none of its forms.

    Source: Levenberg 1944; Marquardt 1963; Nocedal and Wright 2006, Numerical Optimization, §10.3;
    Schraudolph 2002 (the generalised Gauss-Newton matrix).
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        max_trials: int = 10,
    ) -> None:
        if max_trials < 1:
            raise ValueError(f"max_trials must be at least 1, got {max_trials}")
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.damping: Damping = as_rule(damping, LEVENBERG_MARQUARDT)
        self.max_trials = max_trials
        super().__init__(
            trainable(model), {"lr": check_lr(lr), "damping": first_damping(self.damping)}
        )
        start_record(self, _COUNTS)

    def __repr__(self) -> str:
        group = self.param_groups[0]
        return (
            f"GaussNewton(lr={group['lr']:g}, damping={group['damping']:g}, "
            f"max_trials={self.max_trials}, {self.likelihood!r})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "skipped_steps" (something was not finite), "rejected_trials",
            "rejected_steps" (no trial lowered the loss: nothing was moved), "jittered_solves",
            "unconverged_solves" and "cg_iterations". Of the last step: "status" of the solve and
            "trials". "damping" of the next step and "decisions", one a trial; see
            `NaturalGradient.diagnostics`.
        """
        return diagnostics_of(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the one group of the constructor.

        Raises:
            ValueError: At a second group.
        """
        super().add_param_group(param_group)
        refuse_second_group(self)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step.

        Args:
            closure: An `EmpiricalRisk` of the model, such as ``problem.objective()``.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it is anything else, such as a plain closure.
            ValueError: If it belongs to another model, or the model is not a function of θ now.
        """
        start = begin_step(self, closure)
        judge_last_step(self, start)
        group, record = self.param_groups[0], record_of(self)
        if not start.finite:
            record["counts"]["skipped_steps"] += 1
        elif group["lr"]:
            self._search(start, group, record)
        record["counts"]["steps"] += 1
        return start.loss

    def _search(self, start: Start, group: dict[str, Any], record: dict[str, Any]) -> None:
        """Try steps of growing damping until one is good; one trial if the damping is given."""
        counts, rule = record["counts"], self.damping
        risk, theta = start.risk, start.theta
        fisher = Fisher(risk, "full", theta=theta)
        trials = self.max_trials if isinstance(rule, LevenbergMarquardt) else 1
        for trial in range(1, trials + 1):
            damping = group["damping"]
            found = natural_direction(fisher, start.gradient, damping)
            count_solve(counts, found)
            record["last"] = {"status": found.status, "trials": trial}
            step = -group["lr"] * found.value
            moved = theta + step
            if not isinstance(rule, LevenbergMarquardt):
                if not is_finite(moved) or not is_finite(risk.value(moved)):
                    counts["skipped_steps"] += 1
                    return
                risk.space.assign(moved)
                return
            if not is_finite(moved):
                counts["rejected_trials"] += 1
                group["damping"], _ = rule.raised(damping)
                continue
            ratio = ratio_at(risk, local_model(risk, theta, step), moved)
            lowered = ratio.actual < 0
            following, action = rule.decide(damping, ratio) if lowered else rule.raised(damping)
            if ratio.actual == 0 or (not lowered and abs(ratio.predicted) <= ratio.resolution):
                # The minimum is reached to rounding: neither move nor damp.
                following, action = damping, "kept"
            log_decision(
                record,
                damping=damping,
                ratio=ratio,
                action=action if lowered or action == "kept" else "rejected",
                following=following,
            )
            group["damping"] = following
            if lowered:
                risk.space.assign(moved)
                await_fresh(self, risk, step, ratio.predicted, ratio)
                return
            counts["rejected_trials"] += 1
            if action == "kept":
                break
        counts["rejected_steps"] += 1

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, ("damping", "max_trials"))
