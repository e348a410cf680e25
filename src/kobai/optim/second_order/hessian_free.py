"""Hessian-free optimization: conjugate gradients on the Gauss-Newton matrix, products alone."""

import dataclasses
import math
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.curvature import GGN, Fisher
from kobai.linalg import Damped, Diagonal, LinearOperator, conjugate_gradient
from kobai.optim.damping import Damping, LevenbergMarquardt
from kobai.optim.entry import (
    OptimizerEntry,
    check_damping,
    check_decay,
    check_positive,
    settings_of,
)
from kobai.optim.line_search import Line, LineSearch, LineStep
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import Proposal, RiskModel
from kobai.optim.second_order.evaluator import StartingPoint, inner, is_finite
from kobai.optim.trust_region import TrustRegion
from kobai.problem import Likelihood, as_likelihood

HESSIAN_FREE = LevenbergMarquardt(initial=1.0, minimum=1e-10, maximum=1e10, noise=0.0)
"""Rule that "auto" stands for here: Martens's rule, the ratio of all data taken as exact."""

FIRST_RULE = dataclasses.replace(HESSIAN_FREE, initial=1e-2)
"""Rule that "auto" stands for by name: it starts lower, and minibatches send it back to there."""

_SUFFICIENT = 1e-2
"""Share of the predicted decrease that is asked for [Martens 2010, §4.8]."""
_SHRINK = 0.5
_TRIALS = 20
"""Halvings of a step: the shortest is a millionth of it."""
_SOLUTION = "solution"
_PRECONDITIONER_POWER = -0.75
"""Power of the diagonal [Martens 2010, §4.7]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HessianFreeConfig:
    """Truncated conjugate gradients on the damped Gauss-Newton matrix."""

    lr: float = 1.0
    """Factor on the direction before the line search."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Gauss-Newton matrix; auto: by the reduction ratio."""
    max_iterations: int = 50
    """Most iterations of conjugate gradients a step (count)."""
    progress: float = 5e-4
    """Relative improvement of the quadratic model an iteration below which they end."""
    warm_start: float = 0.95
    """Share of the last solution to start from."""

    def __post_init__(self) -> None:
        check_positive("hessian-free", "lr", self.lr)
        check_positive("hessian-free", "max_iterations", self.max_iterations)
        check_decay("hessian-free", self.progress)
        if not 0 <= self.warm_start <= 1:
            raise ValueError(f"--hessian-free.warm_start must lie in [0, 1], got {self.warm_start}")
        check_damping("hessian-free", self.damping, positive=True)


@final
class HessianFree(SecondOrder):
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
        search: None for the backtracking above; a line search by name or object in place of it; a
            `TrustRegion`, within which conjugate gradients then stay (λ is a number, and 0 for
            "auto"); or a `LevenbergMarquardt` rule, as for `damping`.
        max_iterations: Most iterations of conjugate gradients per step.
        progress: Relative improvement of the model per iteration below which they end.
        warm_start: Share of the last solution to start from, in [0, 1]; 0 starts from zero.
        preconditioner: "diagonal": (d + λ)^(−3/4) with d the diagonal of the empirical Fisher
            matrix; None for none.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.
        TypeError: If the damping is none of its forms.

    Cost of a step: a gradient, a product with G (about two gradients) per iteration, a forward pass
    for each iterate that is tried, and a Jacobian product.

    `diagnostics` counts "backtracked_steps" (an earlier iterate was better), "negative_curvature"
    (rounding made G look indefinite) and "cg_iterations"; of the last step "iterations" is their
    number, and "chosen" the iterate taken.

    Source: Martens 2010, Deep learning via Hessian-free optimization (§4.1, 4.4 to 4.8).
    """

    needs = "risk"
    exact = False

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        search: Globalisation | None = None,
        max_iterations: int = 250,
        progress: float = 5e-4,
        warm_start: float = 0.95,
        preconditioner: Literal["diagonal"] | None = None,
    ) -> None:
        if not (math.isfinite(progress) and progress >= 0):
            raise ValueError(f"progress must be non-negative and finite, got {progress}")
        if not 0 <= warm_start <= 1:
            raise ValueError(f"warm_start must lie in [0, 1], got {warm_start}")
        if preconditioner not in (None, "diagonal"):
            raise ValueError(f"preconditioner is 'diagonal' or None, got {preconditioner!r}")
        self.likelihood = as_likelihood(likelihood)
        self.max_iterations = max_iterations
        self.progress = progress
        self.warm_start = warm_start
        self.preconditioner: Literal["diagonal"] | None = preconditioner
        super().__init__(
            model,
            lr=lr,
            search=search,
            damping=damping,
            automatic=HESSIAN_FREE,
            counts=("backtracked_steps", "negative_curvature", "cg_iterations"),
        )

    def globalisation(self) -> LineSearch | TrustRegion:
        """Search along lines by halving where no other search is chosen."""
        if isinstance(self.search, LineSearch | TrustRegion):
            return self.search
        return Halving()

    def model_at(self, start: StartingPoint) -> "PathModel":
        """Take the Gauss-Newton matrix by its products."""
        return PathModel(self, start)


@final
class PathModel(RiskModel):
    """The model with B = G, minimised as far as conjugate gradients come."""

    def __init__(self, optimizer: HessianFree, start: StartingPoint) -> None:
        self.start, self._optimizer = start, optimizer

    def operator(self) -> LinearOperator:
        """Give the Gauss-Newton matrix."""
        return GGN(self.start.risk, self.start.theta)

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀGp."""
        return inner(direction, self.operator() @ direction)

    def propose(self, damping: float) -> Proposal | None:
        """Take the iterate of conjugate gradients with the lowest loss."""
        optimizer, start = self._optimizer, self.start
        counts, lr = optimizer.record["counts"], optimizer.param_groups[0]["lr"]
        path, status = self._path(damping)
        if not path:
            counts["skipped_steps"] += 1
            optimizer.drop(_SOLUTION)
            return None
        best, at = math.inf, len(path) - 1
        for position in reversed(range(len(path))):
            value = float(start.function.value(start.theta + lr * path[position][0]))
            if value < best:
                best, at = value, position
            elif math.isfinite(best):
                break
        counts["backtracked_steps"] += at < len(path) - 1
        direction, number = path[at]
        optimizer.record["last"]["chosen"] = number
        optimizer.remember(start, _SOLUTION, path[-1][0])
        return Proposal(direction=direction, status=status, value=best)

    def _path(self, damping: float) -> tuple[list[tuple[Tensor, int]], str]:
        """Give the finite iterates in order, each with its number, and how they ended."""
        optimizer, start = self._optimizer, self.start
        preconditioner = None
        if optimizer.preconditioner == "diagonal":
            fisher = Fisher(start.risk, "diagonal", "observed", theta=start.theta)
            squares = fisher.diagonal()
            shifted = squares + max(damping, float(squares.max()) * 1e-12, 1e-30)
            preconditioner = Diagonal(shifted**_PRECONDITIONER_POWER)
        last = optimizer.recall(start, _SOLUTION) if optimizer.warm_start else None
        solution = conjugate_gradient(
            Damped(self.operator(), damping),
            -start.gradient,
            preconditioner=preconditioner,
            start=None if last is None else optimizer.warm_start * last,
            tol=math.sqrt(torch.finfo(start.theta.dtype).eps),
            progress=optimizer.progress,
            max_iterations=optimizer.max_iterations,
            keep="geometric",
        )
        counts = optimizer.record["counts"]
        counts["cg_iterations"] += solution.iterations
        counts["negative_curvature"] += solution.status == "negative-curvature"
        optimizer.record["last"] |= {"status": solution.status, "iterations": solution.iterations}
        pairs = zip(solution.iterates, solution.iterate_steps, strict=True)
        return [(p, number) for p, number in pairs if is_finite(p)], solution.status


@final
class Halving(LineSearch):
    """Take the largest of 1, ½, ¼, … times the first step with a sufficient decrease.

    A direction that leads uphill to first order may be taken where the loss falls none the less.
    """

    downhill: ClassVar[bool] = False

    def resume(self, step: float, ratio: float) -> float | None:
        """Begin with the learning rate again."""
        return None

    def search(self, line: Line, first: float) -> LineStep:
        """Ask for values only."""
        origin, step = line.origin, first
        for _ in range(_TRIALS):
            value = line.value(step).value
            enough = origin.value + _SUFFICIENT * step * min(origin.slope, 0.0)
            if value <= enough and value < origin.value:
                return LineStep(step=step, value=value, slope=math.nan, status="ok")
            step *= _SHRINK
        return LineStep(step=0.0, value=origin.value, slope=origin.slope, status="max-evaluations")


def _make(
    model: nn.Module, likelihood: Any, config: HessianFreeConfig, generator: Any
) -> HessianFree:
    settings = settings_of(config)
    if settings["damping"] == "auto":
        settings["damping"] = FIRST_RULE
    return HessianFree(model, likelihood, **settings)


ENTRY = OptimizerEntry(
    name="hessian-free",
    config=HessianFreeConfig,
    make=_make,
    space={"lr": (0.1, 1.0), "max_iterations": (10, 100, "integer log")},
    color="#1fb39a",
    dash="dot",
    needs_objective=True,
)
