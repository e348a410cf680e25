"""Steps whose damping is judged by the scalar loss: propose, compare with the model, keep or undo.

Gauss-Newton methods judge example by example (`local_model`); the Hessian's model has no such
split, so here the reduction ratio is one number and is taken as exact.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.optim.damping import Damping, LevenbergMarquardt, as_rule, reduction_ratio
from kobai.optim.second_order.base import is_finite, log_decision
from kobai.problem import Objective

EXACT_RATIO = LevenbergMarquardt(
    initial=1e-2, raise_by=4.0, lower_by=1 / 3, minimum=1e-10, maximum=1e10, noise=0.0
)
"""What "auto" stands for: quick to give way, since a rejected step costs one value."""

DAMPED_COUNTS = (
    "values",
    "gradients",
    "products",
    "skipped_steps",
    "rejected_trials",
    "rejected_steps",
    "indefinite_solves",
)
"""What these steps count."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Proposal:
    """A step for one damping.

    Attributes:
        step: δ, with the learning rate in it.
        predicted: Change of the loss by the undamped model.
        status: Of the solve.
        usable: Whether the step may be tried; False asks for more damping.
    """

    step: Float[Tensor, " P"]
    predicted: float
    status: str
    usable: bool = True


def exact_rule(damping: Damping, name: str) -> Damping:
    """The damping with "auto" replaced.

    Raises:
        ValueError: If a rule asks for noise, which one number does not show.
    """
    rule = as_rule(damping, EXACT_RATIO)
    if isinstance(rule, LevenbergMarquardt) and rule.noise:
        raise ValueError(
            f"{name} takes the reduction ratio as exact, since the Hessian's model does not split "
            f"over examples; give the rule noise=0.0, got {rule.noise}"
        )
    return rule


def take_step(
    objective: Objective,
    theta: Float[Tensor, " P"],
    loss: Float[Tensor, ""],
    propose: Callable[[float], Proposal],
    *,
    rule: Damping,
    max_trials: int,
    group: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Try proposals of growing damping until one lowers the loss; one, unjudged, without a rule.

    Writes the parameters, the group's "damping", and the record.
    """
    counts = record["counts"]
    if not isinstance(rule, LevenbergMarquardt):
        made = propose(group["damping"])
        record["last"] = {"status": made.status, "trials": 1}
        counts["indefinite_solves"] += made.status == "indefinite"
        moved = theta + made.step
        counts["values"] += 1
        if is_finite(moved) and is_finite(objective.value(moved)):
            objective.space.assign(moved)
        else:
            counts["skipped_steps"] += 1
        return
    for trial in range(1, max_trials + 1):
        damping = group["damping"]
        made = propose(damping)
        record["last"] = {"status": made.status, "trials": trial}
        moved = theta + made.step
        if not made.usable or not is_finite(moved):
            counts["indefinite_solves"] += made.status == "indefinite"
            counts["rejected_trials"] += 1
            group["damping"], action = rule.raised(damping)
            if action == "bound":
                break
            continue
        counts["values"] += 1
        after = objective.value(moved)
        ratio = reduction_ratio(
            loss.reshape(1),
            after.reshape(1),
            torch.tensor([made.predicted], dtype=torch.float64, device=theta.device),
            1.0,
            precision=theta.dtype,
        )
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
            objective.space.assign(moved)
            return
        counts["rejected_trials"] += 1
        if action == "kept":
            break
    counts["rejected_steps"] += 1
