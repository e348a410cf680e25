"""What optimizers that are handed the objective share: checks, gradients, what they remember.

They follow `torch.optim.LBFGS`: ``step(objective)``, one group of parameters, and a record of plain
numbers and lists that loads with ``weights_only=True``.
"""

import copy
import dataclasses
import math
import types
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.optim.damping import (
    LOG_LENGTH,
    Action,
    LevenbergMarquardt,
    ReductionRatio,
    check_damping,
    reduction_ratio,
)
from kobai.optim.second_order.example_model import LocalModel, example_losses
from kobai.optim.second_order.fisher_solve import Direction
from kobai.optim.state import keep_state
from kobai.problem import EmpiricalRisk, Likelihood


def as_risk(
    objective: Any, optimizer: torch.optim.Optimizer, model: nn.Module, likelihood: Likelihood
) -> EmpiricalRisk:
    """The argument of `step`, checked.

    Raises:
        TypeError: If it is not an `EmpiricalRisk`, saying how to make one.
        ValueError: If it belongs to another model, other parameters or another likelihood.
    """
    name = type(optimizer).__name__
    if not isinstance(objective, EmpiricalRisk):
        got = "nothing" if objective is None else type(objective).__name__
        raise TypeError(
            f"{name}.step needs the objective itself, for its outputs and likelihood; got {got}. "
            "Make one by problem = Problem(model, likelihood, train=(x, y)) and call "
            "optimizer.step(problem.objective()), or problem.objective(batch) for a minibatch"
        )
    if objective.space.module is not model:
        raise ValueError(f"the objective belongs to another model than {name}")
    if objective.likelihood.name != likelihood.name:
        raise ValueError(
            f"the objective's likelihood is {objective.likelihood.name}, {name} was made for "
            f"{likelihood.name}"
        )
    named = dict(model.named_parameters())
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strangers = [n for n in objective.space.names if id(named[n]) not in own]
    if strangers:
        raise ValueError(
            f"{strangers} are trainable but not held by {name}; freeze them before the optimizer "
            "is made, or make it anew"
        )
    return objective


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters to be learned.

    Raises:
        ValueError: If there are none.
    """
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters; "
            "set requires_grad=True on those to be learned"
        )
    return found


def check_lr(lr: float) -> float:
    """Refuse a learning rate that is not positive."""
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"lr must be positive and finite, got {lr}")
    return lr


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """Where a step begins.

    Attributes:
        risk: The objective.
        theta: θ.
        loss: Its value there.
        gradient: Its gradient, which is left in ``.grad``, too.
        finite: Whether both are.
    """

    risk: EmpiricalRisk
    theta: Float[Tensor, " P"]
    loss: Float[Tensor, ""]
    gradient: Float[Tensor, " P"]
    finite: bool


def begin_step(optimizer: Any, objective: Any, *, positive: bool = False) -> Start:
    """Check what `step` was handed, set a scheduled damping, and take value and gradient.

    Args:
        optimizer: Has a model, a likelihood, a damping and one group of parameters.
        objective: The argument of `step`; see `as_risk` for errors.
        positive: Whether a damping of zero is refused.
    """
    risk = as_risk(objective, optimizer, optimizer.model, optimizer.likelihood)
    schedule = optimizer.damping
    if callable(schedule) and not isinstance(schedule, LevenbergMarquardt):
        steps = record_of(optimizer)["counts"]["steps"]
        optimizer.param_groups[0]["damping"] = check_damping(schedule(steps), positive=positive)
    theta = risk.theta()
    loss, gradient = risk.value_and_grad(theta)
    leave_gradient(risk, gradient)
    return Start(
        risk=risk, theta=theta, loss=loss, gradient=gradient, finite=is_finite(loss, gradient)
    )


def count_solve(counts: dict[str, int], found: Direction) -> None:
    """Count how a direction was come by."""
    counts["jittered_solves"] += found.status in ("jittered", "pseudo-inverse")
    counts["cg_iterations"] += found.iterations
    counts["unconverged_solves"] += bool(found.iterations) and found.status != "ok"


def ratio_at(risk: EmpiricalRisk, model: LocalModel, theta: Float[Tensor, " P"]) -> ReductionRatio:
    """The reduction ratio of the model's whole step, which leads to `theta`."""
    return reduction_ratio(
        model.losses,
        example_losses(risk, theta),
        model.change(),
        model.weight,
        precision=theta.dtype,
    )


def recall(
    optimizer: torch.optim.Optimizer, risk: EmpiricalRisk, name: str
) -> Float[Tensor, " P"] | None:
    """A vector kept in `remember`; None where there is none for all of these parameters."""
    known = [optimizer.state[risk.model.get_parameter(own)] for own in risk.space.names]
    if any(name not in own for own in known):
        return None
    return torch.cat([own[name].reshape(-1) for own in known])


def remember(
    optimizer: torch.optim.Optimizer,
    risk: EmpiricalRisk,
    name: str,
    vector: Float[Tensor, " P"] | None,
) -> None:
    """Keep a vector by parameters, under a name in their state; None forgets it."""
    pieces = None if vector is None else risk.space.unflatten(vector)
    for path in risk.space.names:
        own = optimizer.state[risk.model.get_parameter(path)]
        if pieces is None:
            own.pop(name, None)
        else:
            own[name] = pieces[path].clone()


def leave_gradient(risk: EmpiricalRisk, gradient: Float[Tensor, " P"]) -> None:
    """Put the gradient where a backward pass would have left it."""
    for name, piece in risk.space.unflatten(gradient).items():
        risk.model.get_parameter(name).grad = piece.clone()


def is_finite(*tensors: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # A finite sum has finite terms, and is found ten times as quickly as by looking at each.
    return all(
        math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
        for tensor in tensors
    )


def start_record(optimizer: Any, counts: tuple[str, ...]) -> None:
    """Begin the record of a run, and let it survive saving and loading."""
    optimizer.record = {
        "counts": dict.fromkeys(("steps", *counts), 0),
        "last": {},
        "decisions": [],
    }
    optimizer._export = types.MethodType(_export, optimizer)
    optimizer._restore = types.MethodType(_restore, optimizer)
    keep_state(optimizer, type(optimizer).__name__.lower())


def record_of(optimizer: Any) -> dict[str, Any]:
    """The record: "counts", "last" (numbers of the latest step) and "decisions"."""
    return optimizer.record


def log_decision(
    record: dict[str, Any],
    *,
    damping: float,
    ratio: ReductionRatio,
    action: Action,
    following: float,
) -> None:
    """Remember one decision about the damping."""
    record["decisions"].append(
        {
            "step": record["counts"]["steps"],
            "damping": damping,
            "actual": ratio.actual,
            "predicted": ratio.predicted,
            "ratio": ratio.value,
            "error": ratio.error,
            "fresh_ratio": None,
            "fresh_error": None,
            "action": action,
            "next": following,
        }
    )
    del record["decisions"][:-LOG_LENGTH]


def diagnostics_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Counts, numbers of the last step, the damping to come and all decisions about it."""
    record = record_of(optimizer)
    return {
        **record["counts"],
        **record["last"],
        "damping": optimizer.param_groups[0]["damping"],
        "decisions": copy.deepcopy(record["decisions"]),
    }


def _export(optimizer: Any) -> tuple[list[tuple[Tensor, dict[str, Any]]], dict[str, Any]]:
    name, generator = type(optimizer).__name__.lower(), getattr(optimizer, "generator", None)
    entries = [(p, {k: v for k, v in e.items() if k != name}) for p, e in optimizer.state.items()]
    draws = {} if generator is None else {"generator": generator.get_state()}
    return entries, {**optimizer.record, **draws}


def _restore(
    optimizer: Any, entries: list[tuple[Tensor, dict[str, Any]]], shared: dict[str, Any]
) -> None:
    """Own what was loaded, and go on with its random draws."""
    for parameter, entry in entries:
        optimizer.state[parameter] = {k: v.to(parameter).clone() for k, v in entry.items()}
    optimizer.record = copy.deepcopy({k: v for k, v in shared.items() if k != "layout"})
    draws = optimizer.record.pop("generator", None)
    if draws is not None:
        optimizer.generator.set_state(draws.cpu())


def reduced(optimizer: Any, settings: tuple[str, ...]) -> tuple[Any, ...]:
    """What pickling and copying need of an optimizer.

    Args:
        optimizer: Has a model and a likelihood.
        settings: Its other arguments that are attributes under their own names.
    """
    arguments = {name: getattr(optimizer, name) for name in ("likelihood", *settings)}
    parameters = optimizer.param_groups[0]["params"]
    return rebuild, (
        type(optimizer),
        optimizer.model,
        arguments,
        parameters,
        optimizer.state_dict(),
    )


def rebuild(
    kind: Any,
    model: nn.Module,
    arguments: dict[str, Any],
    parameters: list[nn.Parameter],
    state_dict: dict[str, Any],
) -> Any:
    """Make a copied or unpickled optimizer, which steps the copied model."""
    optimizer = kind(model, **arguments)
    optimizer.param_groups[0]["params"] = parameters
    optimizer.load_state_dict(state_dict)
    return optimizer


def refuse_second_group(optimizer: torch.optim.Optimizer) -> None:
    """One system couples all parameters, so they cannot be split into groups.

    Raises:
        ValueError: If there is a second group, which is taken off again.
    """
    if len(optimizer.param_groups) > 1:
        del optimizer.param_groups[-1]
        raise ValueError(
            f"{type(optimizer).__name__} solves one system over all parameters and takes one "
            "group, that of its model"
        )
