"""Ask the function that is minimised for values, gradients and curvature, and count what is asked.

Methods of second order need values and gradients at points of their choice. An `Objective` gives
both without touching the module; a bare closure gives them too, as in `torch.optim.LBFGS`, by
moving the parameters. All points of a step are asked of one and the same closure, that is of one
minibatch.
"""

import dataclasses
import math
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature import Hessian
from kobai.linalg import LinearOperator
from kobai.problem import EmpiricalRisk, Objective

Needs = Literal["closure", "objective", "risk"]
"""Needs of a method from the argument of `step`: values and gradients; second derivatives, too;
outputs and likelihood, too."""


def is_finite(*tensors: Tensor) -> bool:
    """Tell that no entry is NaN or infinite."""
    # A finite sum has finite terms, and is found ten times as quickly as by looking at each.
    return all(
        math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
        for tensor in tensors
    )


def inner(a: Tensor, b: Tensor) -> float:
    """Sum aᵀb in float64."""
    return float((a * b).double().sum())


@final
class Counted(LinearOperator):
    """A symmetric operator whose products are counted.

    Args:
        operator: The operator.
        counts: Dictionary whose entry "products" is raised.
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
class Evaluator:
    """A function of θ: an objective, or a closure that is run with the parameters moved.

    Args:
        closure: The argument of `step`.
        optimizer: A `SecondOrder` optimizer.

    Raises:
        TypeError: If the closure cannot give what the optimizer needs, saying what to give.
        ValueError: If an objective belongs to another model, other parameters or another
            likelihood.
    """

    def __init__(self, closure: Any, optimizer: Any) -> None:
        self.counts: dict[str, int] = optimizer.record["counts"]
        self.objective = _objective(closure, optimizer)
        if self.objective is None:
            self._closure = closure
            self.parameters = [
                p for g in optimizer.param_groups for p in g["params"] if p.requires_grad
            ]
        else:
            named = dict(optimizer.model.named_parameters())
            self.parameters = [named[n] for n in self.objective.space.names]
        self._shapes = [p.shape for p in self.parameters]
        self._sizes = [p.numel() for p in self.parameters]

    def theta(self) -> Float[Tensor, " P"]:
        """Copy the parameters as they are now."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def split(self, vector: Float[Tensor, " P"]) -> list[Tensor]:
        """Cut a vector into views shaped like the parameters."""
        pieces = vector.split(self._sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def assign(self, theta: Float[Tensor, " P"]) -> None:
        """Move the parameters."""
        with torch.no_grad():
            for parameter, piece in zip(self.parameters, self.split(theta), strict=True):
                parameter.copy_(piece)

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """Compute the loss at θ; a closure runs its backward pass too."""
        if self.objective is None:
            return self.value_and_grad(theta)[0]
        self.counts["values"] += 1
        return self.objective.value(theta)

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """Compute the loss and its gradient at θ."""
        self.counts["gradients"] += 1
        if self.objective is not None:
            return self.objective.value_and_grad(theta)
        self.assign(theta)
        with torch.enable_grad():
            loss = self._closure()
        return torch.as_tensor(loss).detach(), self._gradient()

    def begin(self) -> "StartingPoint":
        """Take loss and gradient at the parameters as they are, and leave it in ``.grad``."""
        theta = self.theta()
        if self.objective is not None:
            loss, gradient = self.value_and_grad(theta)
            self.leave_gradient(gradient)
            return StartingPoint(
                function=self, theta=theta, loss=loss, gradient=gradient, returned=loss
            )
        self.counts["gradients"] += 1
        with torch.enable_grad():
            returned = self._closure()
        return StartingPoint(
            function=self,
            theta=theta,
            loss=torch.as_tensor(returned).detach(),
            gradient=self._gradient(),
            returned=returned,
        )

    def _gradient(self) -> Tensor:
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return torch.cat([piece.detach().reshape(-1) for piece in pieces]).clone()

    def curvature(self, theta: Float[Tensor, " P"], direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀHp at θ by one product; NaN for a bare closure."""
        if self.objective is None:
            return math.nan
        self.counts["products"] += 1
        return inner(direction, Hessian(self.objective, theta) @ direction)

    def leave_gradient(self, gradient: Float[Tensor, " P"]) -> None:
        """Put a gradient where a backward pass would have left it."""
        for parameter, piece in zip(self.parameters, self.split(gradient), strict=True):
            parameter.grad = piece.clone()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StartingPoint:
    """The point where an iteration begins.

    Attributes:
        function: The function that is minimised.
        theta: θ.
        loss: Its value there.
        gradient: Its gradient there.
        returned: What a closure returned there; the loss itself for an objective.
    """

    function: Evaluator
    theta: Float[Tensor, " P"]
    loss: Float[Tensor, ""]
    gradient: Float[Tensor, " P"]
    returned: Any = None

    @property
    def objective(self) -> Objective:
        """The objective, for methods that need one."""
        assert self.function.objective is not None
        return self.function.objective

    @property
    def risk(self) -> EmpiricalRisk:
        """The objective of methods that need outputs and likelihood."""
        assert isinstance(self.function.objective, EmpiricalRisk)
        return self.function.objective


def _objective(closure: Any, optimizer: Any) -> Objective | None:
    """Check the argument of `step`; None for a closure that will do."""
    name, needs = type(optimizer).__name__, optimizer.needs
    wanted = EmpiricalRisk if needs == "risk" else Objective
    if not isinstance(closure, wanted):
        if needs == "closure" and callable(closure):
            return None
        got = "nothing" if closure is None else type(closure).__name__
        raise TypeError(f"{name}.step needs {_ASKED[needs]}".replace("GOT", got))
    if closure.space.module is not optimizer.model:
        raise ValueError(f"the objective belongs to another model than {name}")
    if isinstance(closure, EmpiricalRisk) and needs == "risk":
        own, other = optimizer.likelihood.name, closure.likelihood.name
        if own != other:
            raise ValueError(f"the objective's likelihood is {other}, {name} was made for {own}")
    named = dict(optimizer.model.named_parameters())
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strangers = [n for n in closure.space.names if id(named[n]) not in own]
    if strangers:
        raise ValueError(
            f"{strangers} are trainable but not held by {name}; freeze them before the optimizer "
            "is made, or make it anew"
        )
    return closure


_MAKE = (
    "Make one by problem = Problem(model, likelihood, train=(x, y)) and call "
    "optimizer.step(problem.objective()), or problem.objective(batch) for a minibatch"
)
_ASKED: dict[Needs, str] = {
    "closure": "to ask for the loss at several points; got GOT. Give it an objective, "
    "optimizer.step(problem.objective()), or a closure that zeroes the gradients, runs backward "
    "and returns the loss",
    "objective": f"the objective itself, to differentiate it twice; got GOT. {_MAKE}; a formula is "
    "Analytic(function, theta)",
    "risk": f"the objective itself, for its outputs and likelihood; got GOT. {_MAKE}",
}
