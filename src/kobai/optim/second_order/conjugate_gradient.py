"""Nonlinear conjugate gradients: each direction keeps what the one before it has gained."""

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from kobai.optim.line_search import Search, StrongWolfe, as_search
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
    first_trial,
    keep,
    line_diagnostics,
    recall,
)

Beta = Literal["polak-ribiere+", "polak-ribiere", "fletcher-reeves", "hestenes-stiefel", "dai-yuan"]

BETAS: tuple[Beta, ...] = (
    "polak-ribiere+",
    "polak-ribiere",
    "fletcher-reeves",
    "hestenes-stiefel",
    "dai-yuan",
)
"""The formulas for β by name."""


def beta_of(name: Beta, move: Move) -> float:
    """β of the next direction p⁺ = −g⁺ + β p, with y = g⁺ − g.

    "fletcher-reeves" g⁺ᵀg⁺ / gᵀg, "polak-ribiere" g⁺ᵀy / gᵀg and its positive part, "hestenes-
    stiefel" g⁺ᵀy / pᵀy, "dai-yuan" g⁺ᵀg⁺ / pᵀy. On a quadratic with exact steps all are the same.
    0 where the denominator vanishes.
    """
    before, after = move.before.double(), move.after.double()
    difference = after - before
    squares = name in ("fletcher-reeves", "dai-yuan")
    above = float(after @ (after if squares else difference))
    along = name in ("hestenes-stiefel", "dai-yuan")
    below = float(
        (move.direction.double() if along else before) @ (difference if along else before)
    )
    beta = above / below if below else 0.0
    return max(beta, 0.0) if name == "polak-ribiere+" else beta


@final
class NonlinearCG(torch.optim.Optimizer):
    r"""θ ← θ + ε* p with p = −∇L + β p_before and ε* from a line search.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)`` or ``optimizer.step(closure)``.
    With ``search="exact"`` the step is the analytic one wherever the function is quadratic along
    the line. β is computed from two gradients of the same data at the end of an iteration, so
    minibatches may change between steps. Memory is one vector. The gradient before the step is left
    in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: First trial step of the first iteration; later ones follow from the step before. With
            ``search="constant"`` the step itself.
        beta: One of `BETAS`.
        search: "strong-wolfe" with c₂ = 0.1, "exact", "backtracking", "constant", or a
            `LineSearch`.
        restart_every: Iterations after which β is set to 0, such as 5; None: as many as there are
            parameters.
        restart_above: Restart where |g⁺ᵀg| ≥ this times ‖g⁺‖², that is where successive gradients
            are far from orthogonal; None for never. A direction that leads uphill always restarts.
        iterations: Iterations a step, all on the same data.
        tol: Largest magnitude of a gradient component at which nothing is moved any more.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.

    Source: Nocedal and Wright 2006, Numerical Optimization, §5.2; Powell 1977 (restarts);
    Goodfellow, Bengio and Courville 2016, Deep Learning, Algorithm 8.9.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        beta: Beta = "polak-ribiere+",
        search: Search = "strong-wolfe",
        restart_every: int | None = None,
        restart_above: float | None = None,
        iterations: int = 1,
        tol: float = 0.0,
    ) -> None:
        check_iterations(iterations, tol)
        if beta not in BETAS:
            raise ValueError(f"unknown beta {beta!r}; choose from {', '.join(BETAS)}")
        if restart_every is not None and restart_every < 1:
            raise ValueError(f"restart_every is a number of iterations, got {restart_every}")
        if restart_above is not None and not restart_above > 0:
            raise ValueError(f"restart_above must be positive, got {restart_above}")
        self.model = model
        self.beta: Beta = beta
        self.search = StrongWolfe(curvature=0.1) if search == "strong-wolfe" else as_search(search)
        self.restart_every, self.restart_above = restart_every, restart_above
        self.iterations, self.tol = iterations, tol
        super().__init__(trainable(model), {"lr": check_lr(lr)})
        start_record(self, LINE_COUNTS)

    def __repr__(self) -> str:
        return (
            f"NonlinearCG(lr={self.param_groups[0]['lr']:g}, beta={self.beta!r}, "
            f"search={self.search}, restart_every={self.restart_every}, "
            f"restart_above={self.restart_above}, iterations={self.iterations})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far; see `SteepestDescent.diagnostics`. "restarts" counts all kinds.

        Of the last step also "beta".
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
        record = record_of(self)

        def direct(gradient: Tensor) -> tuple[Tensor, float]:
            kept = recall(self, asked, "kept_direction")
            direction = -gradient if kept is None else kept - gradient
            slope = float((gradient * direction).double().sum())
            return direction, first_trial(self, self.search, slope)

        def learn(move: Move) -> None:
            beta = beta_of(self.beta, move)
            since = record.get("since_restart", 0) + 1
            if self._restarts(move, since):
                record["counts"]["restarts"] += 1
                beta, since = 0.0, 0
            record["since_restart"] = since
            record["last"]["beta"] = beta
            keep(self, asked, "kept_direction", beta * move.direction if beta else None)

        def forget() -> None:
            keep(self, asked, "kept_direction", None)
            record.pop("trial", None)
            record["since_restart"] = 0

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

    def _restarts(self, move: Move, since: int) -> bool:
        """Whether the next direction is to be the plain gradient."""
        every = move.before.numel() if self.restart_every is None else self.restart_every
        if since >= every:
            return True
        if self.restart_above is None:
            return False
        after = move.after.double()
        overlap = abs(float(after @ move.before.double()))
        return overlap >= self.restart_above * float(after @ after)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        group = self.param_groups[0]
        arguments = {
            "lr": self.defaults["lr"],
            "beta": self.beta,
            "search": self.search,
            "restart_every": self.restart_every,
            "restart_above": self.restart_above,
            "iterations": self.iterations,
            "tol": self.tol,
        }
        return rebuild, (type(self), self.model, arguments, group["params"], self.state_dict())
