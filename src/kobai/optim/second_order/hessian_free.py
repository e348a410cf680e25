"""Hessian-free optimization: conjugate gradients on the Gauss-Newton matrix, products alone."""

import math
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from kobai.curvature import GGN, Fisher
from kobai.linalg import Damped, Diagonal, conjugate_gradient
from kobai.optim.damping import Damping, LevenbergMarquardt, as_rule, first_damping
from kobai.optim.second_order.base import (
    Start,
    begin_step,
    check_lr,
    diagnostics_of,
    is_finite,
    log_decision,
    ratio_at,
    recall,
    record_of,
    reduced,
    refuse_second_group,
    remember,
    start_record,
    trainable,
)
from kobai.optim.second_order.example_model import local_model
from kobai.optim.second_order.fresh_examples import await_fresh, judge_last_step
from kobai.problem import EmpiricalRisk, Likelihood, as_likelihood

HESSIAN_FREE = LevenbergMarquardt(initial=1.0, minimum=1e-10, maximum=1e10, noise=0.0)
"""What "auto" stands for here: Martens's rule, the ratio of all data taken as exact."""

_SUFFICIENT = 1e-2
_SHRINK = 0.5
_LINE_SEARCH = 20
_SOLUTION = "solution"
_PRECONDITIONER_POWER = -0.75
_COUNTS = (
    "skipped_steps",
    "rejected_steps",
    "backtracked_steps",
    "shortened_steps",
    "negative_curvature",
    "cg_iterations",
)


@final
class HessianFree(torch.optim.Optimizer):
    r"""θ ← θ + α p, p from truncated conjugate gradients on (G + λ) p = −∇L, G the Gauss-Newton.

    Called like `torch.optim.LBFGS`: ``optimizer.step(problem.objective())``. Memory is a few
    vectors. Conjugate gradients start from the decayed solution of the step before and end when the
    quadratic model stops improving; of the iterates kept on the way, the one with the lowest *loss*
    is taken (the last are fitted to the model, not to the function); a backtracking line search
    then demands a sufficient decrease, and a step that cannot give one is not made. The gradient is
    left in ``.grad``.

    Args:
        model: The model.
        likelihood: What its outputs mean; the objective's must be of the same family.
        lr: Factor on p before the line search, usually 1.
        damping: λ: a number, a schedule step ↦ number, "auto" (by the reduction ratio of p: × 3/2
            below 1/4, × 2/3 above 3/4, taken as exact; on minibatches the next examples are asked
            as well, see `kobai.optim.damping`), or a `LevenbergMarquardt` rule.
        max_iterations: Most iterations of conjugate gradients a step.
        progress: Relative improvement of the model an iteration below which they end.
        warm_start: Share of the last solution to start from, in [0, 1]; 0 starts from zero.
        preconditioner: "diagonal": (d + λ)^(−3/4) with d the diagonal of the empirical Fisher
            matrix; None for none.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.
        TypeError: If the damping is none of its forms.

    Cost of a step: a gradient, a product with G (about two gradients) an iteration, a forward pass
    for each iterate that is tried, and a Jacobian product.

    Source: Martens 2010, Deep learning via Hessian-free optimization (§4.1, 4.4 to 4.8).
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        max_iterations: int = 250,
        progress: float = 5e-4,
        warm_start: float = 0.95,
        preconditioner: Literal["diagonal"] | None = None,
    ) -> None:
        if max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
        if not (math.isfinite(progress) and progress >= 0):
            raise ValueError(f"progress must be non-negative and finite, got {progress}")
        if not 0 <= warm_start <= 1:
            raise ValueError(f"warm_start must lie in [0, 1], got {warm_start}")
        if preconditioner not in (None, "diagonal"):
            raise ValueError(f"preconditioner is 'diagonal' or None, got {preconditioner!r}")
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.damping: Damping = as_rule(damping, HESSIAN_FREE)
        self.max_iterations = max_iterations
        self.progress = progress
        self.warm_start = warm_start
        self.preconditioner: Literal["diagonal"] | None = preconditioner
        super().__init__(
            trainable(model), {"lr": check_lr(lr), "damping": first_damping(self.damping)}
        )
        start_record(self, _COUNTS)

    def __repr__(self) -> str:
        group = self.param_groups[0]
        return (
            f"HessianFree(lr={group['lr']:g}, damping={group['damping']:g}, "
            f"max_iterations={self.max_iterations}, progress={self.progress:g}, "
            f"warm_start={self.warm_start:g}, preconditioner={self.preconditioner!r}, "
            f"{self.likelihood!r})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "skipped_steps" (something was not finite), "rejected_steps" (no
            decrease was found), "backtracked_steps" (an earlier iterate was better),
            "shortened_steps" (by the line search), "negative_curvature" (rounding made G look
            indefinite) and "cg_iterations". Of the last step: "status" of conjugate gradients,
            their "iterations", "chosen" (the iterate taken) and "step_scale". "damping" of the next
            step and "decisions"; see `NaturalGradient.diagnostics`.
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
            self._advance(start, group, record)
        record["counts"]["steps"] += 1
        return start.loss

    def _advance(self, start: Start, group: dict[str, Any], record: dict[str, Any]) -> None:
        """Directions, the best of them, how far, and the damping of the next step."""
        counts, lr = record["counts"], group["lr"]
        risk, theta, gradient = start.risk, start.theta, start.gradient
        path, steps, record["last"] = self._path(risk, theta, gradient, group["damping"])
        counts["cg_iterations"] += record["last"]["iterations"]
        counts["negative_curvature"] += record["last"]["status"] == "negative-curvature"
        if not path:
            counts["skipped_steps"] += 1
            remember(self, risk, _SOLUTION, None)
            if isinstance(self.damping, LevenbergMarquardt):
                group["damping"], _ = self.damping.raised(group["damping"])
            return
        best, at = math.inf, len(path) - 1
        for position in reversed(range(len(path))):
            value = _value(risk, theta + lr * path[position])
            if value < best:
                best, at = value, position
            elif math.isfinite(best):
                break
        counts["backtracked_steps"] += at < len(path) - 1
        step = lr * path[at]
        scale = self._line_search(
            risk, theta, step, float(start.loss), best, float(gradient @ step)
        )
        record["last"] |= {"chosen": steps[at], "step_scale": scale}
        counts["shortened_steps"] += 0 < scale < 1
        if isinstance(self.damping, LevenbergMarquardt):
            self._judge(risk, theta, step, scale)
        if scale > 0:
            risk.space.assign(theta + scale * step)
        else:
            counts["rejected_steps"] += 1
        remember(self, risk, _SOLUTION, path[-1])

    def _path(
        self, risk: EmpiricalRisk, theta: Tensor, gradient: Tensor, damping: float
    ) -> tuple[list[Tensor], list[int], dict[str, Any]]:
        """Finite iterates of conjugate gradients in order, their numbers, and how it ended."""
        preconditioner = None
        if self.preconditioner == "diagonal":
            squares = Fisher(risk, "diagonal", "observed", theta=theta).diagonal()
            shifted = squares + max(damping, float(squares.max()) * 1e-12, 1e-30)
            preconditioner = Diagonal(shifted**_PRECONDITIONER_POWER)
        start = recall(self, risk, _SOLUTION) if self.warm_start else None
        solution = conjugate_gradient(
            Damped(GGN(risk, theta), damping),
            -gradient,
            preconditioner=preconditioner,
            start=None if start is None else self.warm_start * start,
            tol=math.sqrt(torch.finfo(theta.dtype).eps),
            progress=self.progress,
            max_iterations=self.max_iterations,
            keep="geometric",
        )
        pairs = zip(solution.iterates, solution.iterate_steps, strict=True)
        finite = [(p, number) for p, number in pairs if is_finite(p)]
        last = {"status": solution.status, "iterations": solution.iterations}
        return [p for p, _ in finite], [number for _, number in finite], last

    def _line_search(
        self,
        risk: EmpiricalRisk,
        theta: Tensor,
        step: Tensor,
        loss: float,
        value: float,
        slope: float,
    ) -> float:
        """The largest of 1, ½, ¼, … with a sufficient decrease; 0 if there is none."""
        scale = 1.0
        for _ in range(_LINE_SEARCH):
            if value <= loss + _SUFFICIENT * scale * min(slope, 0.0) and value < loss:
                return scale
            scale *= _SHRINK
            value = _value(risk, theta + scale * step)
        return 0.0

    def _judge(
        self,
        risk: EmpiricalRisk,
        theta: Tensor,
        step: Tensor,
        scale: float,
    ) -> None:
        """Set the next damping by how the model predicted the step, of which `scale` is made."""
        assert isinstance(self.damping, LevenbergMarquardt)
        group, model = self.param_groups[0], local_model(risk, theta, step)
        ratio = ratio_at(risk, model, theta + step)
        following, action = group["damping"], "kept"
        if abs(ratio.predicted) > ratio.resolution:
            following, action = self.damping.decide(group["damping"], ratio)
        log_decision(
            record_of(self),
            damping=group["damping"],
            ratio=ratio,
            action=action,
            following=following,
        )
        group["damping"] = following
        if scale > 0:
            predicted = float(model.change(scale).sum()) / model.weight
            await_fresh(self, risk, scale * step, predicted, ratio)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(
            self, ("damping", "max_iterations", "progress", "warm_start", "preconditioner")
        )


def _value(risk: EmpiricalRisk, theta: Tensor) -> float:
    """The loss, infinite where it is not finite."""
    value = float(risk.value(theta))
    return value if math.isfinite(value) else math.inf
