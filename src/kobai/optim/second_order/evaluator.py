"""What methods that search along lines share: the function they ask, and a step made of iterations.

They need values and gradients at points of their choice. An `Objective` gives both without touching
the module; a bare closure gives them too, as in `torch.optim.LBFGS`, by moving the parameters. All
trial points of a step are asked of one and the same closure, that is of one minibatch.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import LinearOperator
from kobai.optim.line_search import Line, LineSearch
from kobai.optim.second_order.base import is_finite, record_of
from kobai.problem import Objective

LINE_COUNTS = (
    "iterations",
    "values",
    "gradients",
    "products",
    "skipped_steps",
    "failed_searches",
    "restarts",
)
"""What methods that search along lines count."""


def as_objective(closure: Any, optimizer: torch.optim.Optimizer, model: nn.Module) -> Objective:
    """The argument of `step`, checked.

    Raises:
        TypeError: If it is not an `Objective`, saying how to make one.
        ValueError: If it belongs to another model or to other parameters.
    """
    name = type(optimizer).__name__
    if not isinstance(closure, Objective):
        got = "nothing" if closure is None else type(closure).__name__
        raise TypeError(
            f"{name}.step needs the objective itself, to differentiate it twice; got {got}. Make "
            "one by problem = Problem(model, likelihood, train=(x, y)) and call "
            "optimizer.step(problem.objective()), or problem.objective(batch) for a minibatch; a "
            "formula is Analytic(function, theta)"
        )
    if closure.space.module is not model:
        raise ValueError(f"the objective belongs to another model than {name}")
    named = dict(model.named_parameters())
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strangers = [n for n in closure.space.names if id(named[n]) not in own]
    if strangers:
        raise ValueError(
            f"{strangers} are trainable but not held by {name}; freeze them before the optimizer "
            "is made, or make it anew"
        )
    return closure


def leave_gradient_of(objective: Objective, gradient: Float[Tensor, " P"]) -> None:
    """Put an objective's gradient where a backward pass would have left it."""
    for name, piece in objective.space.unflatten(gradient).items():
        objective.space.module.get_parameter(name).grad = piece.clone()


@final
class Counted(LinearOperator):
    """A symmetric operator whose products are counted.

    Args:
        operator: The operator.
        counts: Where, under "products".
    """

    def __init__(self, operator: LinearOperator, counts: dict[str, int]) -> None:
        super().__init__(
            operator.shape, dtype=operator.dtype, device=operator.device, symmetric=True
        )
        self._operator, self._counts = operator, counts

    def _matmat(self, columns: Tensor) -> Tensor:
        self._counts["products"] += columns.shape[1]
        return self._operator._matmat(columns)

    def _adjoint(self) -> LinearOperator:
        return self


@final
class Asked:
    """A function of θ: an objective, or a closure that is run with the parameters moved.

    Args:
        closure: What `step` was given.
        optimizer: Holds the parameters.
        model: The model it was made for.

    Raises:
        TypeError: If the closure cannot be called, saying what to give.
        ValueError: If an objective belongs to another model.
    """

    def __init__(self, closure: Any, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self.objective: Objective | None = None
        self.counts: dict[str, int] = record_of(optimizer)["counts"]
        if isinstance(closure, Objective):
            self.objective = as_objective(closure, optimizer, model)
            named = dict(model.named_parameters())
            self.parameters = [named[n] for n in closure.space.names]
        elif callable(closure):
            self._closure = closure
            self.parameters = [
                p for g in optimizer.param_groups for p in g["params"] if p.requires_grad
            ]
        else:
            got = "nothing" if closure is None else type(closure).__name__
            raise TypeError(
                f"{type(optimizer).__name__}.step needs to ask for the loss at several points; got "
                f"{got}. Give it an objective, optimizer.step(problem.objective()), or a closure "
                "that zeroes the gradients, runs backward and returns the loss"
            )
        self._shapes = [p.shape for p in self.parameters]
        self._sizes = [p.numel() for p in self.parameters]

    def theta(self) -> Float[Tensor, " P"]:
        """A copy of the parameters now."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def split(self, vector: Float[Tensor, " P"]) -> list[Tensor]:
        """Views of a vector, shaped like the parameters."""
        pieces = vector.split(self._sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def assign(self, theta: Float[Tensor, " P"]) -> None:
        """Move the parameters."""
        with torch.no_grad():
            for parameter, piece in zip(self.parameters, self.split(theta), strict=True):
                parameter.copy_(piece)

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """The loss at θ; a closure runs its backward pass too."""
        if self.objective is None:
            return self.value_and_grad(theta)[0]
        self.counts["values"] += 1
        return self.objective.value(theta)

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """The loss and its gradient at θ."""
        self.counts["gradients"] += 1
        if self.objective is not None:
            return self.objective.value_and_grad(theta)
        self.assign(theta)
        with torch.enable_grad():
            loss = self._closure()
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return torch.as_tensor(loss).detach(), torch.cat(
            [piece.detach().reshape(-1) for piece in pieces]
        ).clone()

    def first(self) -> tuple[Any, Float[Tensor, ""], Float[Tensor, " P"]]:
        """What the closure returned at the parameters as they are, the loss and the gradient."""
        if self.objective is not None:
            loss, gradient = self.value_and_grad(self.theta())
            return loss, loss, gradient
        self.counts["gradients"] += 1
        with torch.enable_grad():
            returned = self._closure()
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        gradient = torch.cat([piece.detach().reshape(-1) for piece in pieces]).clone()
        return returned, torch.as_tensor(returned).detach(), gradient

    def bend(self, theta: Float[Tensor, " P"]) -> Callable[[Tensor], float] | None:
        """p ↦ pᵀHp at θ, one product; None for a bare closure."""
        objective = self.objective
        if objective is None:
            return None

        def along(direction: Tensor) -> float:
            self.counts["products"] += 1
            product = Hessian(objective, theta) @ direction
            return float((direction * product).double().sum())

        return along

    def leave_gradient(self, gradient: Float[Tensor, " P"]) -> None:
        """Put a gradient where a backward pass would have left it."""
        for parameter, piece in zip(self.parameters, self.split(gradient), strict=True):
            parameter.grad = piece.clone()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Move:
    """One iteration as it was made, all on the same data.

    Attributes:
        direction: p.
        step: a, so that θ moved by a p.
        before: Gradient at the old point.
        after: Gradient at the new one.
    """

    direction: Float[Tensor, " P"]
    step: float
    before: Float[Tensor, " P"]
    after: Float[Tensor, " P"]


def descend(
    optimizer: torch.optim.Optimizer,
    asked: Asked,
    *,
    search: LineSearch,
    iterations: int,
    tol: float,
    direct: Callable[[Tensor], tuple[Tensor, float]],
    learn: Callable[[Move], None] | None,
    forget: Callable[[], None],
) -> Any:
    """Iterations of "find a direction, search along it, learn from the move" on one closure.

    Args:
        optimizer: Has a record and one group with "lr".
        asked: The function.
        search: The line search.
        iterations: Most iterations.
        tol: Largest magnitude of a gradient component at which it ends.
        direct: Gradient ↦ direction and first trial step; a zero step makes none.
        learn: Told of every move; None if there is nothing to learn.
        forget: Called where memory misled: the direction led uphill or no step was found.

    Returns:
        What the closure returned before the step. The gradient there is left in ``.grad``.
    """
    record = record_of(optimizer)
    counts = record["counts"]
    returned, loss, gradient = asked.first()
    initial, theta, value = gradient, asked.theta(), float(loss)
    record["last"] = {"status": "max-iterations", "line": "ok", "step": 0.0}
    moved = False
    if not is_finite(loss, gradient):
        counts["skipped_steps"] += 1
        record["last"]["status"] = "non-finite"
        iterations = 0
    for iteration in range(iterations):
        if float(gradient.abs().max()) <= tol:
            record["last"]["status"] = "stationary"
            break
        direction, first = direct(gradient)
        slope = float((gradient * direction).double().sum())
        if not (math.isfinite(slope) and slope < 0):
            counts["restarts"] += 1
            forget()
            direction, first = direct(gradient)
        if not first > 0:
            record["last"]["status"] = "no-step"
            break
        line = Line(
            asked.value_and_grad,
            asked.value,
            theta,
            direction,
            start=value,
            gradient=gradient,
            curvature=asked.bend(theta),
        )
        found = search.search(line, first)
        counts["iterations"] += 1
        record["last"] |= {"line": found.status, "step": found.step}
        if found.step == 0 or not math.isfinite(found.value):
            counts["failed_searches"] += 1
            record["last"]["status"] = "no-decrease"
            forget()
            break
        record["trial"] = {"step": found.step, "slope": line.origin.slope}
        if learn is not None or iteration + 1 < iterations:
            fresh, after = line.gradient(found.step)
            if not is_finite(fresh, after):
                counts["failed_searches"] += 1
                record["last"]["status"] = "non-finite"
                forget()
                break
            move = Move(direction=direction, step=found.step, before=gradient, after=after)
            value, gradient = float(fresh), after
            if learn is not None:
                learn(move)
        theta, moved = line.point(found.step), True
    if moved or asked.objective is None:
        asked.assign(theta)
    asked.leave_gradient(initial)
    counts["steps"] += 1
    return returned


def first_trial(optimizer: torch.optim.Optimizer, search: LineSearch, slope: float) -> float:
    """A first trial step for directions without a length of their own.

    What the search makes of the last step, or the learning rate where there is none. A schedule
    acts by its ratio to the rate at the start.
    """
    trial, lr = record_of(optimizer).get("trial"), optimizer.param_groups[0]["lr"]
    if trial is None:
        return lr
    resumed = search.resume(trial["step"], trial["slope"] / slope if slope else 1.0)
    return lr if resumed is None else resumed * (lr / optimizer.defaults["lr"])


def recall(optimizer: torch.optim.Optimizer, asked: Asked, key: str) -> Float[Tensor, " P"] | None:
    """A vector kept by parameter; None where there is none for all of these parameters."""
    if any(key not in optimizer.state[p] for p in asked.parameters):
        return None
    return torch.cat([optimizer.state[p][key].reshape(-1) for p in asked.parameters])


def keep(optimizer: torch.optim.Optimizer, asked: Asked, key: str, vector: Tensor | None) -> None:
    """Keep a vector by parameter; None forgets it."""
    if vector is None:
        for parameter in asked.parameters:
            optimizer.state[parameter].pop(key, None)
        return
    for parameter, piece in zip(asked.parameters, asked.split(vector), strict=True):
        optimizer.state[parameter][key] = piece.clone()


def line_diagnostics(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Counts and the numbers of the last step."""
    record = record_of(optimizer)
    return copy.deepcopy({**record["counts"], **record["last"]})


def check_iterations(iterations: int, tol: float) -> None:
    """Refuse a number of iterations below 1 and a negative tolerance."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol must be non-negative and finite, got {tol}")
