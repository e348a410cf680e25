"""Decide how far a model of the objective is trusted: the one place where steps are judged.

Four ways, chosen by an optimizer's `search`: the step as it is; a line search along it; a trust
region, in which the model is minimised; and Levenberg-Marquardt, which adds damping to the model
until its step is good. Automatic damping may also go with a line search.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg import Damped
from kobai.optim.damping import Action, LevenbergMarquardt, ReductionRatio
from kobai.optim.line_search import Line, LineSearch
from kobai.optim.second_order.descent import Descent, Proposal
from kobai.optim.second_order.evaluator import StartingPoint, inner, is_finite
from kobai.optim.trust_region import TrustRegion, dogleg, steihaug

if TYPE_CHECKING:
    from kobai.optim.second_order.base import SecondOrder


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AcceptedStep:
    """A step that is to be made.

    Attributes:
        moved: The new θ.
        direction: p.
        step: a, so that θ moves by a p.
        arrive: Gives value and gradient at the new θ, at no cost if they are known.
    """

    moved: Float[Tensor, " P"]
    direction: Float[Tensor, " P"]
    step: float
    arrive: Callable[[], tuple[Tensor, Tensor]]


def globalise(
    optimizer: "SecondOrder", start: StartingPoint, model: Descent
) -> AcceptedStep | None:
    """Find the step from a model as the optimizer's search has it; None if none is to be made.

    Writes the damping or radius of the optimizer's group, and its record.
    """
    search, rule = optimizer.globalisation(), optimizer.rule
    if isinstance(search, TrustRegion):
        return _within_region(optimizer, start, model, search)
    if isinstance(search, LineSearch):
        return _along_line(optimizer, start, model, search)
    if rule is not None:
        return _under_damping(optimizer, start, model, rule)
    return _as_it_is(optimizer, start, model)


def _as_it_is(
    optimizer: "SecondOrder", start: StartingPoint, model: Descent
) -> AcceptedStep | None:
    """Make every finite step."""
    group, counts = optimizer.param_groups[0], optimizer.record["counts"]
    made = model.propose(group["damping"])
    if made is None:
        return None
    optimizer.record["last"] |= {"status": made.status, "trials": 1}
    counts["indefinite_solves"] += not made.usable
    moved = _point(start, made, group["lr"])
    if not is_finite(moved) or (
        optimizer.values_wanted and not is_finite(start.function.value(moved))
    ):
        counts["skipped_steps"] += 1
        optimizer.forget()
        return None
    return _outcome(start, made, group["lr"], moved)


def _under_damping(
    optimizer: "SecondOrder", start: StartingPoint, model: Descent, rule: LevenbergMarquardt
) -> AcceptedStep | None:
    """Raise the damping until the step of the model is good, and lower it where the model is."""
    group, record = optimizer.param_groups[0], optimizer.record
    counts = record["counts"]
    for trial in range(1, optimizer.max_trials + 1):
        damping = group["damping"]
        made = model.propose(damping)
        if made is None:
            group["damping"], _ = rule.raised(damping)
            return None
        record["last"] |= {"status": made.status, "trials": trial}
        moved = _point(start, made, group["lr"])
        if not made.usable or not is_finite(moved):
            counts["indefinite_solves"] += not made.usable
            group["damping"], action = rule.raised(damping)
            if not optimizer.monotone:
                counts["skipped_steps"] += 1
                optimizer.forget()
                return None
            counts["rejected_trials"] += 1
            if action == "bound":
                break
            continue
        verdict = model.judge(made, group["lr"], made.scale, 1.0)
        accepted, following, action = _decide(rule, damping, verdict.ratio, optimizer.monotone)
        optimizer.log_decision(damping, verdict.ratio, action, following)
        if accepted:
            step = made.scale * (group["lr"] * made.direction)
            optimizer.await_fresh(start, step, verdict.predicted, verdict.ratio)
            return _outcome(start, made, group["lr"], moved)
        if not optimizer.monotone:
            break
        counts["rejected_trials"] += 1
        if action == "kept":
            break
    counts["rejected_steps"] += 1
    optimizer.forget()
    return None


def _decide(
    rule: LevenbergMarquardt, damping: float, ratio: ReductionRatio, monotone: bool
) -> tuple[bool, float, Action]:
    """Tell if a step is made, the next damping and why."""
    if not monotone:
        following, action = rule.decide(damping, ratio)
        refused = rule.refuses(ratio) or not math.isfinite(ratio.actual)
        return not refused, following, "rejected" if refused else action
    if ratio.actual < 0:
        return True, *rule.decide(damping, ratio)
    if ratio.actual == 0 or abs(ratio.predicted) <= ratio.resolution:
        # The minimum is reached to rounding: neither move nor damp.
        return False, damping, "kept"
    return False, rule.raised(damping)[0], "rejected"


def _along_line(
    optimizer: "SecondOrder", start: StartingPoint, model: Descent, search: LineSearch
) -> AcceptedStep | None:
    """Search along the direction of the model."""
    group, record, rule = optimizer.param_groups[0], optimizer.record, optimizer.rule
    counts, lr = record["counts"], group["lr"]
    made = _definite(optimizer, model)
    if made is None:
        if rule is not None:
            group["damping"], _ = rule.raised(group["damping"])
        return None
    search = made.search or search
    line = _line(start, model, made, lr)
    if search.downhill and not (math.isfinite(line.origin.slope) and line.origin.slope < 0):
        if not optimizer.restarts:
            counts["skipped_steps"] += not is_finite(made.direction)
            counts["ascent_steps"] += line.origin.slope > 0
            return None
        counts["restarts"] += 1
        optimizer.forget()
        made = model.propose(0.0)
        assert made is not None
        line = _line(start, model, made, lr)
    first = lr if made.first is None else made.first
    if not first > 0:
        record["last"]["status"] = "no-step"
        return None
    found = search.search(line, first)
    record["last"] |= {"line": found.status, "step": found.step, "step_scale": found.step / lr}
    works = found.step > 0 and math.isfinite(found.value)
    if rule is not None and not optimizer.exact:
        verdict = model.judge(made, lr, 1.0, found.step / lr)
        ratio, damping = verdict.ratio, group["damping"]
        following, action = damping, "kept"
        if abs(ratio.predicted) > ratio.resolution:
            following, action = rule.decide(damping, ratio)
        optimizer.log_decision(damping, ratio, action, following)
        if works:
            optimizer.await_fresh(start, found.step * made.direction, verdict.predicted, ratio)
    if not works:
        counts["failed_searches"] += 1
        counts["rejected_steps"] += 1
        if optimizer.iterative or not optimizer.quadratic:
            record["last"]["status"] = "no-decrease"
        optimizer.forget()
        return None
    counts["shortened_steps"] += found.step < first
    record["trial"] = {"step": found.step, "slope": line.origin.slope}
    return AcceptedStep(
        moved=line.point(found.step),
        direction=made.direction,
        step=found.step,
        arrive=lambda: line.gradient(found.step),
    )


def _definite(optimizer: "SecondOrder", model: Descent) -> Proposal | None:
    """Raise an automatic damping until the model is definite; lower it for the next step."""
    group, record, rule = optimizer.param_groups[0], optimizer.record, optimizer.rule
    made, trials = model.propose(group.get("damping", 0.0)), 1
    while made is not None and not made.usable and rule is not None:
        record["counts"]["indefinite_solves"] += 1
        group["damping"], action = rule.raised(group["damping"])
        if action == "bound" or trials == optimizer.max_trials:
            break
        trials += 1
        made = model.propose(group["damping"])
    if made is None:
        return None
    if rule is not None and optimizer.exact and made.usable:
        group["damping"] = max(rule.minimum, group["damping"] * rule.lower_by)
    if not optimizer.iterative:
        record["last"] |= {"status": made.status, "trials": trials}
    return made


def _within_region(
    optimizer: "SecondOrder", start: StartingPoint, model: Descent, region: TrustRegion
) -> AcceptedStep | None:
    """Minimise the model within shrinking balls until a step is good enough."""
    group, record = optimizer.param_groups[0], optimizer.record
    counts, lr = record["counts"], group["lr"]
    damped = Damped(model.operator(), group["damping"])
    loss = float(start.loss)
    rounding = 8 * torch.finfo(start.theta.dtype).eps * abs(loss)
    for trial in range(1, optimizer.max_trials + 1):
        if region.subproblem == "dogleg":
            found = dogleg(damped.dense(), start.gradient, group["radius"])
        else:
            found = steihaug(
                damped, start.gradient, group["radius"], max_iterations=optimizer.max_iterations
            )
            counts["solve_iterations"] += found.products
        record["last"] |= {"status": found.status, "trials": trial}
        counts["indefinite_solves"] += found.status == "indefinite"
        made = Proposal(direction=found.step, status=found.status)
        moved = _point(start, made, lr)
        change = float(start.function.value(moved)) - loss
        slope = inner(start.gradient, found.step)
        predicted = lr * slope + lr**2 * (found.predicted - slope)
        if predicted >= 0 or (-predicted <= rounding and change <= rounding):
            # At the minimum, to rounding.
            better = predicted < 0 and change <= 0
            return _outcome(start, made, lr, moved) if better else None
        ratio = change / predicted
        group["radius"] = region.update(
            group["radius"],
            ratio,
            length=float(found.step.norm()),
            on_boundary=found.on_boundary,
        )
        if ratio > region.accept:
            return _outcome(start, made, lr, moved)
        counts["rejected_trials"] += 1
    counts["rejected_steps"] += 1
    return None


def _point(start: StartingPoint, made: Proposal, lr: float) -> Tensor:
    return torch.add(start.theta, lr * made.direction, alpha=made.scale)


def _outcome(start: StartingPoint, made: Proposal, lr: float, moved: Tensor) -> AcceptedStep:
    return AcceptedStep(
        moved=moved,
        direction=made.direction,
        step=lr * made.scale,
        arrive=lambda: start.function.value_and_grad(moved),
    )


def _line(start: StartingPoint, model: Descent, made: Proposal, lr: float) -> Line:
    return Line(
        start.function.value_and_grad,
        start.function.value,
        start.theta,
        made.direction,
        start=float(start.loss),
        gradient=start.gradient,
        curvature=model.curvature,
        known={} if made.value is None else {lr: made.value},
    )
