"""Levenberg-Marquardt: damped Gauss-Newton steps that are made only if the loss falls."""

import dataclasses
from typing import Literal, final

from torch import nn

from kobai.curvature import Fisher
from kobai.optim.damping import Damping
from kobai.optim.entry import OptimizerEntry, check_damping, check_positive, settings_of
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import Proposal
from kobai.optim.second_order.evaluator import StartingPoint
from kobai.optim.second_order.fisher_solve import SOLVE_COUNTS, FisherModel
from kobai.problem import Likelihood, as_likelihood


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussNewtonConfig:
    """Levenberg-Marquardt: damped Gauss-Newton steps that are made only if the loss falls."""

    lr: float = 1.0
    """Factor on the step."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Gauss-Newton matrix; auto: by the reduction ratio."""
    max_trials: int = 10
    """Trials per step with growing damping (count)."""

    def __post_init__(self) -> None:
        check_positive("gauss-newton", "lr", self.lr)
        check_positive("gauss-newton", "max_trials", self.max_trials)
        check_damping("gauss-newton", self.damping, positive=True)


@final
class GaussNewton(SecondOrder):
    r"""θ ← θ − η (G + λ)⁻¹ ∇L with the exact Gauss-Newton matrix and Levenberg-Marquardt damping.

    Called like `torch.optim.LBFGS`: ``optimizer.step(problem.objective())``. Under automatic
    damping a step is made only if it lowers the loss: a trial that does not is undone, λ raised and
    the system solved again, up to `max_trials` times; the matrix is built once for all of
    them. For kobai's likelihoods G is the Fisher matrix, so a trial is the exact natural gradient
    of `NaturalGradient`, solved on the smaller side likewise. The gradient is left in ``.grad``.

    Args:
        model: The model.
        likelihood: What its outputs mean; the objective's must be of the same family.
        lr: η, usually 1.
        damping: λ: a number or a schedule step ↦ number (every finite step is then made), "auto",
            or a `LevenbergMarquardt` rule. "auto" takes the ratio of the step's own examples as
            exact; on minibatches the next examples are asked as well, see `kobai.optim.damping`.
        search: None for the step itself; a line search by name or object, along the step; a
            `TrustRegion` (λ is then a number, and 0 for "auto"); or a `LevenbergMarquardt` rule, as
            for `damping`.
        max_trials: Most trials per step.

    Raises:
        ValueError: If a number is out of range or nothing is trainable.
        TypeError: If the damping is none of its forms.

    `diagnostics` counts "jittered_solves", "unconverged_solves" and "cg_iterations" of solves.

    Source: Levenberg 1944; Marquardt 1963; Nocedal and Wright 2006, Numerical Optimization, §10.3;
    Schraudolph 2002 (the generalised Gauss-Newton matrix).
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
        max_trials: int = 10,
    ) -> None:
        self.likelihood = as_likelihood(likelihood)
        self.max_trials = max_trials
        super().__init__(model, lr=lr, search=search, damping=damping, counts=SOLVE_COUNTS)

    def model_at(self, start: StartingPoint) -> "GaussNewtonModel":
        """Make the Gauss-Newton matrix, once for all trials."""
        return GaussNewtonModel(self, start, Fisher(start.risk, "full", theta=start.theta))


@final
class GaussNewtonModel(FisherModel):
    """The model with B = G."""

    def propose(self, damping: float) -> Proposal:
        """Solve (G + λ) p = −g."""
        found = self.solve(damping)
        return Proposal(direction=-found.value, status=found.status)


ENTRY = OptimizerEntry(
    name="gauss-newton",
    config=GaussNewtonConfig,
    make=lambda model, likelihood, config, generator: GaussNewton(
        model, likelihood, **settings_of(config)
    ),
    space={"lr": (0.1, 1.0)},
    color="#2b6cb8",
    dash="dot",
    needs_objective=True,
)
