"""Steepest descent: along the negative gradient, as far as a line search says."""

import dataclasses
from typing import final

from torch import nn

from kobai.optim.entry import OptimizerEntry, check_line, settings_of
from kobai.optim.line_search import SearchName
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import LineModel, Proposal
from kobai.optim.second_order.evaluator import StartingPoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteepestDescentConfig:
    """Gradient descent with a line search."""

    lr: float = 1.0
    """First trial step of the first search."""
    search: SearchName = "backtracking"
    """How far to go along the gradient."""
    iterations: int = 1
    """Iterations per minibatch (count)."""

    def __post_init__(self) -> None:
        check_line("steepest-descent", self.lr, self.search, self.iterations)


@final
class SteepestDescent(SecondOrder):
    r"""θ ← θ − ε* ∇L with ε* from a line search.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)`` or ``optimizer.step(closure)``.
    With the exact search successive directions are orthogonal: the zig-zag of an ill-conditioned
    valley. The gradient before the step is left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: First trial step of the first iteration; later ones begin where the last one ended. With
            ``search="constant"`` the step itself.
        search: "backtracking", "strong-wolfe", "exact", "constant", or a `LineSearch`.
        iterations: Iterations per step, all on the same data.
        tol: Largest magnitude of a gradient component at which nothing is moved any more.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.

    The "status" of a step in `diagnostics` is "max-iterations", "stationary", "no-step",
    "no-decrease" or "non-finite".

    Source: Cauchy 1847; Goodfellow, Bengio and Courville 2016, Deep Learning, §8.6.2.
    """

    needs = "closure"
    damped, quadratic, iterative, restarts = False, False, True, True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        search: Globalisation = "backtracking",
        iterations: int = 1,
        tol: float = 0.0,
    ) -> None:
        self.iterations, self.tol = iterations, tol
        super().__init__(model, lr=lr, search=search)

    def model_at(self, start: StartingPoint) -> "GradientModel":
        """Take the gradient alone."""
        return GradientModel(self, start)

    def forget(self) -> None:
        """Begin with the learning rate again."""
        self.record.pop("trial", None)


@final
class GradientModel(LineModel):
    """The direction of the negative gradient."""

    def __init__(self, optimizer: SteepestDescent, start: StartingPoint) -> None:
        self.start, self._optimizer = start, optimizer

    def propose(self, damping: float) -> Proposal:
        """Go against the gradient."""
        gradient = self.start.gradient
        slope = -float(gradient.double().square().sum())
        return Proposal(direction=-gradient, first=self._optimizer.first_trial(slope))


ENTRY = OptimizerEntry(
    name="steepest-descent",
    config=SteepestDescentConfig,
    make=lambda model, likelihood, config, generator: SteepestDescent(model, **settings_of(config)),
    space={"lr": (1e-3, 10.0, "log")},
    color="#2b6cb8",
    dash="dash",
    on_all_data=True,
)
