"""BFGS: an approximation of the inverse Hessian that every move improves by rank two."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.optim.line_search import Search, as_search
from kobai.optim.second_order.base import (
    check_lr,
    rebuild,
    record_of,
    refuse_second_group,
    start_record,
    trainable,
)
from kobai.optim.second_order.evaluator import (
    LINE_COUNTS,
    Asked,
    Move,
    check_iterations,
    descend,
    line_diagnostics,
)

_LARGEST = 2**31
"""Bytes of the largest matrix that is made."""


def bfgs_update(
    inverse: Float[Tensor, "P P"], s: Float[Tensor, " P"], y: Float[Tensor, " P"]
) -> Float[Tensor, "P P"]:
    """(I − ρ s yᵀ) M (I − ρ y sᵀ) + ρ s sᵀ with ρ = 1 / sᵀy, written so that symmetry is exact.

    Args:
        inverse: M, symmetric.
        s: Change of θ.
        y: Change of the gradient, with sᵀy > 0.

    Source: Nocedal and Wright 2006, Numerical Optimization, equation 6.17.
    """
    rho = 1.0 / torch.dot(s, y)
    image = inverse @ y
    cross = torch.outer(s, image)
    scale = rho * (1.0 + rho * torch.dot(y, image))
    return inverse - rho * (cross + cross.T) + scale * torch.outer(s, s)


@final
class BFGS(torch.optim.Optimizer):
    r"""θ ← θ − ε* M ∇L with M ≈ H⁻¹ from the changes of the gradient, ε* from a line search.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)`` or ``optimizer.step(closure)``.
    Holds M, P × P in the parameters' precision; for large P take L-BFGS ("lbfgs" by name,
    `torch.optim.LBFGS` with strong Wolfe). An update is made from two gradients of the same data,
    and only if sᵀy > 0, so that M stays positive definite; before the first one M is set to
    (sᵀy / yᵀy) I. The gradient before the step is left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: Trial step along −M g, usually 1; the first iteration tries lr / max(1, ‖g‖).
        search: "strong-wolfe", "exact", "backtracking", "constant", or a `LineSearch`.
        scale_first: Whether to scale the first M; False leaves it the identity.
        iterations: Iterations a step, all on the same data.
        tol: Largest magnitude of a gradient component at which nothing is moved any more.

    Raises:
        ValueError: If a number is out of range, a name unknown, nothing is trainable, or M would
            take more than 2 GiB.

    Cost of an iteration: two gradients or so for the search, 4 P² multiplications.

    Source: Broyden, Fletcher, Goldfarb and Shanno 1970; Nocedal and Wright 2006, Numerical
    Optimization, Algorithm 6.1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        search: Search = "strong-wolfe",
        scale_first: bool = True,
        iterations: int = 1,
        tol: float = 0.0,
    ) -> None:
        check_iterations(iterations, tol)
        parameters = trainable(model)
        size = sum(p.numel() for p in parameters)
        if size**2 * parameters[0].element_size() > _LARGEST:
            raise ValueError(
                f"BFGS holds a {size} x {size} matrix, more than 2 GiB; "
                'use torch.optim.LBFGS (by name "lbfgs") for so many parameters'
            )
        self.model = model
        self.search = as_search(search)
        self.scale_first = scale_first
        self.iterations, self.tol = iterations, tol
        super().__init__(parameters, {"lr": check_lr(lr)})
        start_record(self, (*LINE_COUNTS, "skipped_updates"))

    def __repr__(self) -> str:
        return (
            f"BFGS(lr={self.param_groups[0]['lr']:g}, search={self.search}, "
            f"scale_first={self.scale_first}, iterations={self.iterations})"
        )

    @property
    def inverse_hessian(self) -> Float[Tensor, "P P"] | None:
        """M; None before the first update."""
        return record_of(self).get("inverse")

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far; see `SteepestDescent.diagnostics`.

        "restarts" counts returns to the identity, "skipped_updates" moves without sᵀy > 0.
        """
        return line_diagnostics(self)

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
            closure: An `Objective` of the model, or a closure.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it cannot be asked.
            ValueError: If it belongs to another model, or the model is not a function of θ now.
        """
        asked = Asked(closure, self, self.model)
        lr, record = self.param_groups[0]["lr"], record_of(self)

        def direct(gradient: Tensor) -> tuple[Tensor, float]:
            inverse = record.get("inverse")
            # Parameters that were frozen or freed since make the matrix useless.
            if inverse is None or len(inverse) != len(gradient):
                return -gradient, lr / max(1.0, float(gradient.norm()))
            return -(inverse @ gradient), lr

        def learn(move: Move) -> None:
            s, y = move.step * move.direction, move.after - move.before
            along = float((s * y).double().sum())
            if along <= torch.finfo(s.dtype).eps * float(s.norm()) * float(y.norm()):
                record["counts"]["skipped_updates"] += 1
                return
            inverse = record.get("inverse")
            if inverse is None or len(inverse) != len(s):
                scale = along / float((y * y).double().sum()) if self.scale_first else 1.0
                inverse = scale * torch.eye(len(s), dtype=s.dtype, device=s.device)
            record["inverse"] = bfgs_update(inverse, s, y)

        def forget() -> None:
            record.pop("inverse", None)

        return descend(
            self,
            asked,
            search=self.search,
            iterations=self.iterations,
            tol=self.tol,
            direct=direct,
            learn=learn,
            forget=forget,
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        group = self.param_groups[0]
        arguments = {
            "lr": self.defaults["lr"],
            "search": self.search,
            "scale_first": self.scale_first,
            "iterations": self.iterations,
            "tol": self.tol,
        }
        return rebuild, (type(self), self.model, arguments, group["params"], self.state_dict())
