"""Newton's method with a damped Hessian: dense or matrix-free, adaptive or pure."""

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import Damped, Dense, LinearOperator, cholesky, conjugate_gradient, lu, minres
from kobai.optim.damping import Damping, LevenbergMarquardt, check_damping, first_damping
from kobai.optim.line_search import Line, LineSearch, Search, as_search
from kobai.optim.second_order.base import (
    check_lr,
    diagnostics_of,
    is_finite,
    rebuild,
    record_of,
    refuse_second_group,
    start_record,
    trainable,
)
from kobai.optim.second_order.evaluator import Counted, as_objective, leave_gradient_of
from kobai.optim.second_order.globalisation import DAMPED_COUNTS, Proposal, exact_rule, take_step
from kobai.optim.trust_region import TrustRegion, dogleg, steihaug
from kobai.problem import Objective

Solver = Literal["auto", "cholesky", "cg", "minres"]

_COUNTS = (
    *DAMPED_COUNTS,
    "jittered_solves",
    "unconverged_solves",
    "solve_iterations",
    "ascent_steps",
    "failed_searches",
)


@final
class Newton(torch.optim.Optimizer):
    r"""θ ← θ − η (H + α)⁻¹ ∇L with H the Hessian.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)``. Under automatic damping a step
    is made only if it lowers the loss, α grows until H + α is positive definite and the step good,
    and falls again where the quadratic model is right. With a fixed α every finite step is made,
    towards saddles and maxima too if H + α is indefinite: that is the pure method. The gradient is
    left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: η, usually 1; the first trial of a line search.
        damping: α: a number or a schedule step ↦ number, "auto", or a `LevenbergMarquardt` rule
            with ``noise=0.0``.
        search: None for the step itself; a line search by name or object, along the direction of
            the solve; or a `TrustRegion` in place of adaptive damping (α then a number, such as 0).
        solver: "cholesky" (dense; LU where the matrix is indefinite under a fixed α), "cg"
            (matrix-free; ends at negative curvature with the best so far, which leads downhill),
            "minres" (matrix-free, any signs), or "auto": "cholesky" up to `dense_limit` parameters,
            else "cg".
        dense_limit: Most parameters for which "auto" makes the matrix.
        max_iterations: Most iterations of a matrix-free solve.
        tol: Relative residual of a matrix-free solve.
        max_trials: Trials a step.

    Raises:
        ValueError: If a number is out of range, a name unknown, settings exclude each other, or
            nothing is trainable.
        TypeError: If the damping is none of its forms.

    Cost of a step: a gradient, P products with H for the dense matrix or one an iteration, and a
    value a trial.

    Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.6.1 and equation 8.28; Nocedal
    and Wright 2006, Numerical Optimization, §3.4 and Algorithm 7.1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        search: Search | TrustRegion | None = None,
        solver: Solver = "auto",
        dense_limit: int = 500,
        max_iterations: int = 100,
        tol: float = 1e-6,
        max_trials: int = 20,
    ) -> None:
        if solver not in ("auto", "cholesky", "cg", "minres"):
            raise ValueError(f"solver is auto, cholesky, cg or minres; got {solver!r}")
        for name, count in (("max_iterations", max_iterations), ("max_trials", max_trials)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.model = model
        self.damping: Damping = exact_rule(damping, "Newton")
        self.search = (
            search if search is None or isinstance(search, TrustRegion) else as_search(search)
        )
        if isinstance(self.search, TrustRegion) and isinstance(self.damping, LevenbergMarquardt):
            raise ValueError(
                "a trust region takes the place of adaptive damping; give damping a number, such "
                "as damping=0.0"
            )
        self.solver: Solver = solver
        self.dense_limit, self.max_iterations = dense_limit, max_iterations
        self.tol, self.max_trials = tol, max_trials
        defaults = {"lr": check_lr(lr), "damping": first_damping(self.damping)}
        if isinstance(self.search, TrustRegion):
            defaults["radius"] = self.search.initial
        super().__init__(trainable(model), defaults)
        start_record(self, _COUNTS)

    def __repr__(self) -> str:
        group = self.param_groups[0]
        return (
            f"Newton(lr={group['lr']:g}, damping={group['damping']:g}, search={self.search}, "
            f"solver={self.solver!r}, max_iterations={self.max_iterations})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "values", "gradients" and "products" with the Hessian asked for,
            "skipped_steps" (something was not finite), "rejected_trials",
            "rejected_steps" (no trial lowered the loss: nothing was moved), "indefinite_solves",
            "jittered_solves", "unconverged_solves" and "solve_iterations" of matrix-free solves,
            "ascent_steps" (not searched along: the direction led uphill) and "failed_searches".
            Of the last step: "status" of the solve and "trials". "damping" of the next step and
            "decisions" about it; see `NaturalGradient.diagnostics`.
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
            closure: An `Objective` of the model.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it is anything else, such as a plain closure.
            ValueError: If it belongs to another model, or the model is not a function of θ now.
        """
        objective = as_objective(closure, self, self.model)
        group, record = self.param_groups[0], record_of(self)
        counts = record["counts"]
        if callable(self.damping) and not isinstance(self.damping, LevenbergMarquardt):
            group["damping"] = check_damping(self.damping(counts["steps"]))
        theta = objective.theta()
        counts["gradients"] += 1
        loss, gradient = objective.value_and_grad(theta)
        leave_gradient_of(objective, gradient)
        if not is_finite(loss, gradient):
            counts["skipped_steps"] += 1
        elif group["lr"]:
            operator: LinearOperator = Counted(Hessian(objective, theta), counts)
            if self._is_dense(len(theta)):
                matrix = operator.dense()
                operator = Dense((matrix + matrix.T) / 2, symmetric=True)
            if isinstance(self.search, TrustRegion):
                self._trust(objective, theta, float(loss), gradient, operator, self.search)
            elif isinstance(self.search, LineSearch):
                self._search(objective, theta, float(loss), gradient, operator, self.search)
            else:
                take_step(
                    objective,
                    theta,
                    loss,
                    self._proposer(operator, gradient, group["lr"], record),
                    rule=self.damping,
                    max_trials=self.max_trials,
                    group=group,
                    record=record,
                )
        counts["steps"] += 1
        return loss

    def _is_dense(self, size: int) -> bool:
        if isinstance(self.search, TrustRegion):
            return self.search.subproblem == "dogleg"
        return self.solver == "cholesky" or (self.solver == "auto" and size <= self.dense_limit)

    def _proposer(
        self, operator: LinearOperator, gradient: Tensor, lr: float, record: dict[str, Any]
    ) -> Callable[[float], Proposal]:
        """Damping ↦ step and what the quadratic model says of it."""

        def propose(damping: float) -> Proposal:
            direction, status = self._solve(operator, gradient, damping, record["counts"])
            step = lr * direction
            bend = float((step * (operator @ step)).double().sum())
            return Proposal(
                step=step,
                predicted=float((gradient * step).double().sum()) + 0.5 * bend,
                status=status,
                usable=status != "indefinite",
            )

        return propose

    def _solve(
        self, operator: LinearOperator, gradient: Tensor, damping: float, counts: dict[str, int]
    ) -> tuple[Float[Tensor, " P"], str]:
        """−(H + α)⁻¹ g and how it was found."""
        if isinstance(operator, Dense):
            matrix = operator.dense()
            factor = cholesky(matrix, damping=damping)
            if factor.status in ("ok", "jittered"):
                counts["jittered_solves"] += factor.status == "jittered"
                return -factor.solve(gradient), factor.status
            shifted = matrix + damping * torch.eye(
                len(gradient), dtype=matrix.dtype, device=matrix.device
            )
            return -lu(shifted).solve(gradient), factor.status
        damped = Damped(operator, damping)
        solve = minres if self.solver == "minres" else conjugate_gradient
        found = solve(damped, -gradient, tol=self.tol, max_iterations=self.max_iterations)
        counts["solve_iterations"] += found.iterations
        counts["unconverged_solves"] += found.status != "converged"
        if not bool(found.value.any()) and found.status == "negative-curvature":
            # Not one step was possible: what is left is the gradient itself.
            return -gradient, found.status
        return found.value, found.status

    def _search(
        self,
        objective: Objective,
        theta: Tensor,
        loss: float,
        gradient: Tensor,
        operator: LinearOperator,
        search: LineSearch,
    ) -> None:
        """A line search along the direction of the solve."""
        group, record = self.param_groups[0], record_of(self)
        counts = record["counts"]
        direction, status = self._solve(operator, gradient, group["damping"], counts)
        rule, trials = self.damping, 1
        while status == "indefinite" and isinstance(rule, LevenbergMarquardt):
            counts["indefinite_solves"] += 1
            group["damping"], action = rule.raised(group["damping"])
            if action == "bound" or trials == self.max_trials:
                break
            trials += 1
            direction, status = self._solve(operator, gradient, group["damping"], counts)
        else:
            if isinstance(rule, LevenbergMarquardt):
                group["damping"] = max(rule.minimum, group["damping"] * rule.lower_by)
        record["last"] = {"status": status, "trials": trials}
        if not is_finite(direction):
            counts["skipped_steps"] += 1
            return

        def value(at: Tensor) -> Tensor:
            counts["values"] += 1
            return objective.value(at)

        def value_and_grad(at: Tensor) -> tuple[Tensor, Tensor]:
            counts["gradients"] += 1
            return objective.value_and_grad(at)

        line = Line(
            value_and_grad,
            value,
            theta,
            direction,
            start=loss,
            gradient=gradient,
            curvature=lambda p: float((p * (operator @ p)).double().sum()),
        )
        if not line.origin.slope < 0:
            counts["ascent_steps"] += line.origin.slope > 0
            return
        found = search.search(line, group["lr"])
        record["last"] |= {"line": found.status, "step_scale": found.step}
        if found.step:
            objective.space.assign(line.point(found.step))
        else:
            counts["failed_searches"] += 1

    def _trust(
        self,
        objective: Objective,
        theta: Tensor,
        loss: float,
        gradient: Tensor,
        operator: LinearOperator,
        region: TrustRegion,
    ) -> None:
        """Steps within shrinking balls until one is good enough."""
        group, record = self.param_groups[0], record_of(self)
        counts, lr = record["counts"], group["lr"]
        damped = Damped(operator, group["damping"])
        rounding = 8 * torch.finfo(theta.dtype).eps * abs(loss)
        for trial in range(1, self.max_trials + 1):
            if region.subproblem == "dogleg":
                found = dogleg(damped.dense(), gradient, group["radius"])
            else:
                found = steihaug(
                    damped, gradient, group["radius"], max_iterations=self.max_iterations
                )
                counts["solve_iterations"] += found.products
            record["last"] = {"status": found.status, "trials": trial}
            counts["indefinite_solves"] += found.status == "indefinite"
            moved = theta + lr * found.step
            counts["values"] += 1
            change = float(objective.value(moved)) - loss
            slope = float((gradient * found.step).double().sum())
            predicted = lr * slope + lr**2 * (found.predicted - slope)
            if predicted >= 0 or (-predicted <= rounding and change <= rounding):
                # At the minimum, to rounding.
                if predicted < 0 and change <= 0:
                    objective.space.assign(moved)
                return
            ratio = change / predicted
            group["radius"] = region.update(
                group["radius"],
                ratio,
                length=float(found.step.norm()),
                on_boundary=found.on_boundary,
            )
            if ratio > region.accept:
                objective.space.assign(moved)
                return
            counts["rejected_trials"] += 1
        counts["rejected_steps"] += 1

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        group = self.param_groups[0]
        arguments = {
            "lr": self.defaults["lr"],
            "damping": self.damping,
            "search": self.search,
            "solver": self.solver,
            "dense_limit": self.dense_limit,
            "max_iterations": self.max_iterations,
            "tol": self.tol,
            "max_trials": self.max_trials,
        }
        return rebuild, (type(self), self.model, arguments, group["params"], self.state_dict())
