"""Newton's method with a damped Hessian: dense or matrix-free, adaptive or pure."""

import dataclasses
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import Damped, Dense, LinearOperator, cholesky, conjugate_gradient, lu, minres
from kobai.optim.damping import Damping
from kobai.optim.entry import (
    OptimizerEntry,
    check_choice,
    check_damping,
    check_positive,
    settings_of,
)
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import LossModel, Proposal
from kobai.optim.second_order.evaluator import Counted, StartingPoint, inner
from kobai.optim.trust_region import TrustRegion

Solver = Literal["auto", "cholesky", "cg", "minres"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewtonConfig:
    """Newton's method with a damped Hessian; matrix-free beyond 500 parameters."""

    lr: float = 1.0
    """Factor on the step; first trial of a line search."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Hessian; auto: by the reduction ratio."""
    max_iterations: int = 20
    """Most iterations of a matrix-free solve (count)."""
    search: Literal["none", "backtracking", "strong-wolfe", "exact", "trust-region"] = "none"
    """What shortens the step; a trust region wants a number for the damping."""

    def __post_init__(self) -> None:
        check_positive("newton", "lr", self.lr)
        check_positive("newton", "max_iterations", self.max_iterations)
        check_damping("newton", self.damping)
        searches = ("none", "backtracking", "strong-wolfe", "exact", "trust-region")
        check_choice("newton", "search", self.search, searches)
        if self.search == "trust-region" and self.damping == "auto":
            raise ValueError(
                "--newton.search trust-region takes the place of adaptive damping; "
                "give --newton.damping a number such as 0"
            )


@final
class Newton(SecondOrder):
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
            the solve; a `TrustRegion` in place of adaptive damping (α is then a number, and 0 for
            "auto"); or a `LevenbergMarquardt` rule, as for `damping`.
        solver: "cholesky" (dense; LU where the matrix is indefinite under a fixed α), "cg"
            (matrix-free; ends at negative curvature with the best so far, which leads downhill),
            "minres" (matrix-free, any signs), or "auto": "cholesky" up to `dense_limit` parameters,
            else "cg".
        dense_limit: Most parameters for which "auto" makes the matrix.
        max_iterations: Most iterations of a matrix-free solve.
        tol: Relative residual of a matrix-free solve.
        max_trials: Most trials per step.

    Raises:
        ValueError: If a number is out of range, a name unknown, settings exclude each other, or
            nothing is trainable.
        TypeError: If the damping is none of its forms.

    Cost of a step: a gradient, P products with H for the dense matrix or one per iteration, and a
    value per trial.

    `diagnostics` counts "jittered_solves", "unconverged_solves" and "solve_iterations" of
    matrix-free solves.

    Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.6.1 and equation 8.28; Nocedal
    and Wright 2006, Numerical Optimization, §3.4 and Algorithm 7.1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        search: Globalisation | None = None,
        solver: Solver = "auto",
        dense_limit: int = 500,
        max_iterations: int = 100,
        tol: float = 1e-6,
        max_trials: int = 20,
    ) -> None:
        if solver not in ("auto", "cholesky", "cg", "minres"):
            raise ValueError(f"solver is auto, cholesky, cg or minres; got {solver!r}")
        self.solver: Solver = solver
        self.dense_limit, self.max_iterations = dense_limit, max_iterations
        self.tol, self.max_trials = tol, max_trials
        super().__init__(
            model,
            lr=lr,
            search=search,
            damping=damping,
            counts=("jittered_solves", "unconverged_solves"),
        )

    def model_at(self, start: StartingPoint) -> "HessianModel":
        """Make the Hessian, dense where that is chosen."""
        counts = self.record["counts"]
        operator: LinearOperator = Counted(Hessian(start.objective, start.theta), counts)
        if self._is_dense(len(start.theta)):
            matrix = operator.dense()
            operator = Dense((matrix + matrix.T) / 2, symmetric=True)
        return HessianModel(self, start, operator)

    def _is_dense(self, size: int) -> bool:
        if isinstance(self.search, TrustRegion):
            return self.search.subproblem == "dogleg"
        return self.solver == "cholesky" or (self.solver == "auto" and size <= self.dense_limit)


@final
class HessianModel(LossModel):
    """The model with B = H."""

    def __init__(self, optimizer: Newton, start: StartingPoint, operator: LinearOperator) -> None:
        self.start, self._operator, self._optimizer = start, operator, optimizer

    def operator(self) -> LinearOperator:
        """Give the Hessian."""
        return self._operator

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀHp, by a product unless the Hessian is dense."""
        return inner(direction, self._operator @ direction)

    def propose(self, damping: float) -> Proposal:
        """Solve (H + α) p = −g."""
        direction, status = self._solve(-self.start.gradient, damping)
        return Proposal(direction=direction, status=status, usable=status != "indefinite")

    def _solve(self, right: Tensor, damping: float) -> tuple[Tensor, str]:
        """Give a solution and how it was found."""
        counts, optimizer = self._optimizer.record["counts"], self._optimizer
        if isinstance(self._operator, Dense):
            matrix = self._operator.dense()
            factor = cholesky(matrix, damping=damping)
            if factor.status in ("ok", "jittered"):
                counts["jittered_solves"] += factor.status == "jittered"
                return factor.solve(right), factor.status
            identity = torch.eye(len(right), dtype=matrix.dtype, device=matrix.device)
            return lu(matrix + damping * identity).solve(right), factor.status
        solve = minres if optimizer.solver == "minres" else conjugate_gradient
        found = solve(
            Damped(self._operator, damping),
            right,
            tol=optimizer.tol,
            max_iterations=optimizer.max_iterations,
        )
        counts["solve_iterations"] += found.iterations
        counts["unconverged_solves"] += found.status != "converged"
        if not bool(found.value.any()) and found.status == "negative-curvature":
            # Not one step was possible: what is left is the gradient itself.
            return right, found.status
        return found.value, found.status


def _make(model: nn.Module, likelihood: Any, config: NewtonConfig, generator: Any) -> Newton:
    settings = settings_of(config)
    chosen = settings.pop("search")
    search = {"none": None, "trust-region": TrustRegion()}.get(chosen, chosen)
    return Newton(model, search=search, **settings)


ENTRY = OptimizerEntry(
    name="newton",
    config=NewtonConfig,
    make=_make,
    space={"lr": (1e-2, 1.0, "log"), "damping": (1e-4, 1.0, "log")},
    color="#d9601a",
    dash="dot",
    needs_objective=True,
    on_all_data=True,
)
