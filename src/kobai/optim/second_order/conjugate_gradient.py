"""Nonlinear conjugate gradients: each direction keeps what the one before it has gained."""

import dataclasses
from typing import Literal, final

from torch import nn

from kobai.optim.entry import OptimizerEntry, check_choice, check_line, check_positive, settings_of
from kobai.optim.line_search import SearchName, StrongWolfe
from kobai.optim.second_order.base import Displacement, Globalisation, SecondOrder
from kobai.optim.second_order.descent import LineModel, Proposal
from kobai.optim.second_order.evaluator import StartingPoint, inner

Beta = Literal["polak-ribiere+", "polak-ribiere", "fletcher-reeves", "hestenes-stiefel", "dai-yuan"]

BETAS: tuple[Beta, ...] = (
    "polak-ribiere+",
    "polak-ribiere",
    "fletcher-reeves",
    "hestenes-stiefel",
    "dai-yuan",
)
"""The formulas for β by name."""


def beta_of(name: Beta, move: Displacement) -> float:
    """Compute β of the next direction p⁺ = −g⁺ + β p, with y = g⁺ − g.

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


_KEPT = "kept_direction"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonlinearCGConfig:
    """Nonlinear conjugate gradients."""

    lr: float = 1.0
    """First trial step of the first search."""
    beta: Beta = "polak-ribiere+"
    """Formula for the share of the last direction."""
    search: SearchName = "strong-wolfe"
    """How far to go along a direction."""
    restart_every: int | None = None
    """Iterations between restarts from the gradient (count); none: the number of parameters."""
    iterations: int = 1
    """Iterations per minibatch (count)."""

    def __post_init__(self) -> None:
        check_line("nonlinear-cg", self.lr, self.search, self.iterations)
        check_choice("nonlinear-cg", "beta", self.beta, BETAS)
        if self.restart_every is not None:
            check_positive("nonlinear-cg", "restart_every", self.restart_every)


@final
class NonlinearCG(SecondOrder):
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
        iterations: Iterations per step, all on the same data.
        tol: Largest magnitude of a gradient component at which nothing is moved any more.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.

    `diagnostics` counts restarts of all kinds, and has of the last step also "beta".

    Source: Nocedal and Wright 2006, Numerical Optimization, §5.2; Powell 1977 (restarts);
    Goodfellow, Bengio and Courville 2016, Deep Learning, Algorithm 8.9.
    """

    needs = "closure"
    damped, quadratic, iterative, restarts, learns = False, False, True, True, True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        beta: Beta = "polak-ribiere+",
        search: Globalisation = "strong-wolfe",
        restart_every: int | None = None,
        restart_above: float | None = None,
        iterations: int = 1,
        tol: float = 0.0,
    ) -> None:
        if beta not in BETAS:
            raise ValueError(f"unknown beta {beta!r}; choose from {', '.join(BETAS)}")
        if restart_every is not None and restart_every < 1:
            raise ValueError(f"restart_every is a number of iterations, got {restart_every}")
        if restart_above is not None and not restart_above > 0:
            raise ValueError(f"restart_above must be positive, got {restart_above}")
        self.beta: Beta = beta
        self.restart_every, self.restart_above = restart_every, restart_above
        self.iterations, self.tol = iterations, tol
        chosen = StrongWolfe(curvature=0.1) if search == "strong-wolfe" else search
        super().__init__(model, lr=lr, search=chosen)

    def model_at(self, start: StartingPoint) -> "ConjugateModel":
        """Take the gradient and the direction kept."""
        return ConjugateModel(self, start)

    def learn(self, start: StartingPoint, move: Displacement) -> None:
        """Keep the share β of the direction."""
        record = self.record
        beta = beta_of(self.beta, move)
        since = record.get("since_restart", 0) + 1
        if self._is_far(move, since):
            record["counts"]["restarts"] += 1
            beta, since = 0.0, 0
        record["since_restart"] = since
        record["last"]["beta"] = beta
        if beta:
            self.remember(start, _KEPT, beta * move.direction)
        else:
            self.drop(_KEPT)

    def forget(self) -> None:
        """Begin with the gradient and the learning rate again."""
        self.drop(_KEPT)
        self.record.pop("trial", None)
        self.record["since_restart"] = 0

    def _is_far(self, move: Displacement, since: int) -> bool:
        """Tell if the next direction is to be the plain gradient."""
        every = move.before.numel() if self.restart_every is None else self.restart_every
        if since >= every:
            return True
        if self.restart_above is None:
            return False
        after = move.after.double()
        overlap = abs(float(after @ move.before.double()))
        return overlap >= self.restart_above * float(after @ after)


@final
class ConjugateModel(LineModel):
    """The direction −g + β p."""

    def __init__(self, optimizer: NonlinearCG, start: StartingPoint) -> None:
        self.start, self._optimizer = start, optimizer

    def propose(self, damping: float) -> Proposal:
        """Add what is kept of the last direction to the negative gradient."""
        optimizer, gradient = self._optimizer, self.start.gradient
        kept = optimizer.recall(self.start, _KEPT)
        direction = -gradient if kept is None else kept - gradient
        first = optimizer.first_trial(inner(gradient, direction))
        return Proposal(direction=direction, first=first)


ENTRY = OptimizerEntry(
    name="nonlinear-cg",
    config=NonlinearCGConfig,
    make=lambda model, likelihood, config, generator: NonlinearCG(model, **settings_of(config)),
    space={"lr": (1e-3, 1.0, "log")},
    color="#1fb39a",
    dash="dashdot",
    on_all_data=True,
)
