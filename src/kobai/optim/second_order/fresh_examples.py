"""The last step judged by the examples of this one, which had no part in it.

For optimizers that are handed the objective. A step is judged by its own examples as soon as it is
made; where the next objective has other ones, they are asked too and the verdict is revised. Where
it has the same ones, as on all data, there is nothing to ask.
"""

import dataclasses
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.optim.damping import ReductionRatio, reduction_ratio
from kobai.optim.kfac.control_state import same_examples
from kobai.optim.second_order.evaluator import Start
from kobai.optim.second_order.example_model import example_losses
from kobai.problem import EmpiricalRisk
from kobai.problem.batch import input_tensors

if TYPE_CHECKING:
    from kobai.optim.second_order.base import SecondOrder

_STEP = "last_step"


def await_fresh(
    optimizer: "SecondOrder",
    start: Start,
    step: Float[Tensor, " P"],
    predicted: float,
    own: ReductionRatio,
) -> None:
    """Keep a step that was made, and whose damping was decided on last, for `judge_last_step`.

    Args:
        optimizer: An optimizer under automatic damping.
        start: The point where the step began.
        step: δ, as it was made.
        predicted: Change of the objective by the model of δ.
        own: The ratio on which the damping was decided.
    """
    if abs(predicted) <= own.resolution:
        return  # nothing left to judge
    optimizer.remember(start, _STEP, step)
    optimizer.record["pending"] = {"predicted": predicted, "own": dataclasses.asdict(own)}


def judge_last_step(optimizer: "SecondOrder", start: Start) -> None:
    """Revise the damping by what the last step did to the examples of this one, if others.

    Cost: two forward passes, and a pass over the data to tell them from the last ones. Nothing is
    done unless the damping is automatic.
    """
    rule, record = optimizer.rule, optimizer.record
    if rule is None:
        return
    seen = fingerprint(start.risk)
    others = not same_examples(record.get("examples", ()), seen)
    record["examples"] = seen
    pending = record.pop("pending", None)
    step = optimizer.recall(start, _STEP)
    if pending is None or step is None or not others:
        return
    risk = start.risk
    after = example_losses(risk, start.theta)
    fresh = reduction_ratio(
        example_losses(risk, start.theta - step),
        after,
        # The prediction is that of other examples: one number, the same for each.
        torch.full_like(after, pending["predicted"] * risk.weight / len(after)),
        risk.weight,
        precision=start.theta.dtype,
    )
    decision = record["decisions"][-1]
    following, action = rule.decide(decision["damping"], ReductionRatio(**pending["own"]), fresh)
    decision |= {
        "fresh_ratio": fresh.value,
        "fresh_error": fresh.error,
        "action": action,
        "next": following,
    }
    optimizer.param_groups[0]["damping"] = following


def fingerprint(risk: EmpiricalRisk) -> list[float]:
    """Give numbers that tell the data of an objective from others, whatever their order."""
    count, squares, shifted = 0, 0.0, 0.0
    for batch in risk.batches:
        for tensor in (*input_tensors(batch.inputs), batch.targets):
            own = tensor.detach().double()
            count += own.numel()
            # A plain sum may cancel, and would then depend on the order.
            squares += float(own.square().sum())
            shifted += float((own - 1).square().sum())
    return [float(count), squares, shifted]
