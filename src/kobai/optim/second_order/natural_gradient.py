"""Natural gradient with any structure of the Fisher matrix, handed the objective step by step."""

import dataclasses
import math
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from kobai.curvature import STRUCTURES, Fisher, Structure
from kobai.curvature.fisher import StructureName
from kobai.curvature.scores import Labels
from kobai.curvature.structures import KroneckerStructure, TridiagonalStructure
from kobai.linalg.operators.solvable import DampingForm
from kobai.optim.damping import Damping, LevenbergMarquardt
from kobai.optim.entry import (
    Dash,
    OptimizerEntry,
    check_damping,
    check_decay,
    check_fraction,
    check_positive,
    settings_of,
)
from kobai.optim.second_order.base import Globalisation, SecondOrder
from kobai.optim.second_order.descent import Proposal
from kobai.optim.second_order.evaluator import StartingPoint, is_finite
from kobai.optim.second_order.examples import ExampleModel, example_model
from kobai.optim.second_order.fisher_solve import SOLVE_COUNTS, FisherModel
from kobai.optim.trust_region import TrustRegion
from kobai.problem import Likelihood, as_likelihood

StepSize = Literal["fixed", "model"]

FIRST_RULE = LevenbergMarquardt(initial=1e-2)
"""Rule that a damping of "auto" stands for by name: lower than for the class itself, since step and
divergence are bounded otherwise there; minibatches send it back to where it starts."""

_VELOCITY = "momentum_buffer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaturalGradientConfig:
    """Natural gradient with the Fisher matrix, or a structure of it, of each minibatch."""

    lr: float = 1.0
    """Learning rate; a factor on the model's own step size where that is asked for."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Fisher matrix; auto: from 0.01 by the reduction ratios
    of the step's own examples and, on minibatches, of the next ones."""
    momentum: float = 0.0
    """Share of the last update kept."""
    weight_decay: float = 0.0
    """Share of the parameters, times the learning rate, taken off each step."""
    labels: Labels | Literal["auto"] = "auto"
    """Whose labels: all of them weighted by the model, drawn from it, or the data's; auto: drawn
    for ngd-tridiagonal, whose dense system has a row for each of them and layer, else all."""
    step_size: StepSize = "model"
    """Step: the minimiser of the quadratic model along it, or the learning rate as it is."""
    kl_bound: float | None = 0.1
    """Largest squared length of a step in the Fisher metric, against overfitted minibatches."""

    def __post_init__(self) -> None:
        check_positive("ngd", "lr", self.lr)
        check_damping("ngd", self.damping, positive=True)
        check_fraction("ngd", "momentum", self.momentum)
        check_decay("ngd", self.weight_decay)
        if self.kl_bound is not None:
            check_positive("ngd", "kl_bound", self.kl_bound)


@final
class NaturalGradient(SecondOrder):
    r"""θ ← (1 − η·weight_decay) θ − η v, v ← momentum · v + (F + λ)⁻¹ ∇L, for a chosen F.

    Called like `torch.optim.LBFGS`, with the objective of all data or of a minibatch:
    ``optimizer.step(problem.objective(batch))``. The system is solved on its smaller side: with
    fewer rows (examples times outputs) than parameters, in function space,
    (JᵀQJ/N + λ)⁻¹g = Jᵀ(QK/N + λ)⁻¹r/N, so that the exact natural gradient needs neither P² numbers
    nor P³ operations. Beyond 5,000 on both sides "full" turns to conjugate gradients.

    The objective's pure members are used: active dropout and batch normalisation in training mode
    are refused, naming the module (see `kobai.problem.pure`). The gradient is left in ``.grad``.

    Args:
        model: The model.
        likelihood: What its outputs mean; the objective's must be of the same family.
        structure: "full" (exact), "layer", "tridiagonal" (may be indefinite; a direction
            that then leads uphill is not taken), "chain", "unit", "kronecker", "ekfac",
            "diagonal"; or a structure object, such as ``KroneckerStructure("reduce")``.
        lr: η. Undamped, wide networks contract by 1 − η α per step with α = 1 for "full", the
            number of layers L for "layer", ⌈L/3⌉ for "tridiagonal" and N(L − 1) + 1 for "kronecker"
            with `damping_form` "each"; η = 1/α fits the training data in one step.
        damping: λ: a number, a schedule step ↦ number, "auto" (Levenberg-Marquardt on the reduction
            ratio of the same examples and, on minibatches, of the next ones, see
            `kobai.optim.damping`), or such a rule. Zero is allowed
            but for "tridiagonal".
        damping_form: "exact" λI; for "kronecker" also "pi" or "each", λ shared out to the factors.
            Default: "pi" for "kronecker", "exact" elsewhere.
        momentum: Share of the last update kept, in [0, 1).
        weight_decay: Decoupled weight decay.
        labels: "exact" (the Fisher matrix), "sampled" (one label per example drawn from the model)
            or "observed" (the empirical Fisher).
        step_size: "fixed": η as it is. "model": η times the minimiser of the damped quadratic model
            along the step, which makes one η serve all structures; costs one Jacobian product.
        kl_bound: Largest δᵀGδ of a step δ, G the exact Fisher matrix whatever the structure: twice
            the Kullback-Leibler divergence of the predictions. None: no bound. Costs one Jacobian
            product.
        search: None for the step itself; a line search by name or object, along the step; a
            `TrustRegion`, in which the model with F is minimised (λ is then a number, and 0 for
            "auto"; momentum and weight decay do not go with it); or a `LevenbergMarquardt` rule, as
            for `damping`. Searches exclude ``step_size="model"`` and `kl_bound`.
        generator: Draws labels. Default: one of its own, seed 0, kept in `state_dict`.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.
        TypeError: If the damping is none of its forms.

    A step whose gradient, solve or new loss is not finite is not made but counted, and so is, under
    automatic damping, one that raises the loss of its own examples beyond doubt.

    `diagnostics` counts "bounded_steps" (by `kl_bound`), "jittered_solves" (more damping was
    needed, or a singular system had its shortest solution), "unconverged_solves" and
    "cg_iterations"; of the last step it has also "kl", δᵀGδ, where a Jacobian product was made.

    Source: Amari 1998, Natural gradient works efficiently in learning; Karakida and Osawa 2020,
    Understanding approximate Fisher information for fast convergence of natural gradient descent in
    wide neural networks; Martens and Grosse 2015 (§6, damping; §7, step size).

    Example:
        >>> import torch
        >>> from kobai import Problem
        >>> from kobai.optim import NaturalGradient
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1).double()
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> x, y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> problem = Problem(model, "gaussian", train=(x, y))
        >>> optimizer = NaturalGradient(model, "gaussian", damping=0.0)
        >>> _ = optimizer.step(problem.objective())
        >>> bool(problem.objective()() < 1e-20)
        True
    """

    needs = "risk"
    exact, monotone, values_wanted = False, False, False
    max_trials = 1

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        structure: StructureName | Structure = "full",
        lr: float = 1.0,
        damping: Damping = "auto",
        damping_form: DampingForm | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        labels: Labels = "exact",
        step_size: StepSize = "fixed",
        kl_bound: float | None = None,
        search: Globalisation | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(structure, str) and structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {list(STRUCTURES)}, got {structure!r}")
        chosen = STRUCTURES[structure] if isinstance(structure, str) else structure
        if labels not in get_args(Labels):
            raise ValueError(f"labels must be one of {get_args(Labels)}, got {labels!r}")
        if damping_form not in (None, "exact", "pi", "each"):
            raise ValueError(f"damping_form is exact, pi or each; got {damping_form!r}")
        if step_size not in get_args(StepSize):
            raise ValueError(f"step_size must be one of {get_args(StepSize)}, got {step_size!r}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay must be non-negative and finite, got {weight_decay}")
        if kl_bound is not None and not kl_bound > 0:
            raise ValueError(f"kl_bound must be positive or None, got {kl_bound}")
        if search is not None and not isinstance(search, LevenbergMarquardt):
            moved = isinstance(search, TrustRegion) and (momentum or weight_decay)
            if moved or step_size == "model" or kl_bound is not None:
                raise ValueError(
                    "a search finds the length of the step; leave out step_size and kl_bound, and "
                    "with a trust region momentum and weight_decay"
                )
            self.max_trials = SecondOrder.max_trials
        self.likelihood = as_likelihood(likelihood)
        self.structure: StructureName | Structure = structure
        self.damping_form: DampingForm = damping_form or (
            "pi" if isinstance(chosen, KroneckerStructure) else "exact"
        )
        self.labels: Labels = labels
        self.step_size: StepSize = step_size
        self.kl_bound = kl_bound
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._velocity: Tensor | None = None
        super().__init__(
            model,
            lr=lr,
            search=search,
            damping=damping,
            automatic=LevenbergMarquardt(),
            positive=isinstance(chosen, TridiagonalStructure),
            counts=("bounded_steps", *SOLVE_COUNTS),
            defaults={"momentum": momentum, "weight_decay": weight_decay},
        )

    def model_at(self, start: StartingPoint) -> "NaturalModel":
        """Take the structure of the Fisher matrix."""
        fisher = Fisher(
            start.risk, self.structure, self.labels, generator=self.generator, theta=start.theta
        )
        return NaturalModel(self, start, fisher, self.damping_form)

    def accept(self, start: StartingPoint) -> None:
        """Keep the velocity of the step that is made."""
        if self._velocity is not None:
            self.remember(start, _VELOCITY, self._velocity)

    def keep_velocity(self, velocity: Tensor | None) -> None:
        """Hold a velocity until its step is made or refused."""
        self._velocity = velocity

    def forget(self) -> None:
        """Begin without momentum again."""
        self.drop(_VELOCITY)


@final
class NaturalModel(FisherModel):
    """The model with B = F, and what is made of its step before it is judged."""

    optimizer: NaturalGradient

    def propose(self, damping: float) -> Proposal | None:
        """Solve (F + λ) v = g, add momentum and weight decay, and size the step."""
        optimizer, start = self.optimizer, self.start
        group = optimizer.param_groups[0]
        found = self.solve(damping)
        if not is_finite(found.value):
            return Proposal(direction=found.value, status=found.status)
        if found.status == "indefinite":
            return self._uphill(found.status)
        velocity = found.value
        past = optimizer.recall(start, _VELOCITY) if group["momentum"] else None
        if past is not None:
            velocity = velocity + group["momentum"] * past
        direction = -velocity
        if group["weight_decay"]:
            direction.sub_(start.theta, alpha=group["weight_decay"])
        optimizer.keep_velocity(velocity if group["momentum"] else None)
        if isinstance(optimizer.search, TrustRegion) or not self._is_measured():
            return Proposal(direction=direction, status=found.status)
        step = group["lr"] * direction
        model = example_model(start.risk, start.theta, step)
        scale = self._scale(model, step)
        if scale is None:
            return self._uphill(found.status)
        optimizer.record["last"] |= {"step_scale": scale, "kl": scale**2 * model.length}
        return Proposal(direction=direction, status=found.status, scale=scale, examples=model)

    def _is_measured(self) -> bool:
        """Tell if the model of the examples is wanted."""
        own = self.optimizer
        return own.rule is not None or own.kl_bound is not None or own.step_size == "model"

    def _uphill(self, status: str) -> None:
        optimizer = self.optimizer
        optimizer.record["counts"]["ascent_steps"] += 1
        optimizer.record["last"]["status"] = status
        optimizer.forget()

    def _scale(self, model: ExampleModel, step: Tensor) -> float | None:
        """Give the factor on the step; None if it leads uphill where a minimiser is asked for."""
        optimizer, scale = self.optimizer, 1.0
        group = optimizer.param_groups[0]
        if optimizer.step_size == "model":
            curvature = model.length + group["damping"] * float(step.double().square().sum())
            if not (model.slope < 0 and curvature > 0):
                return None
            scale = -group["lr"] * model.slope / curvature
        if optimizer.kl_bound is not None and scale**2 * model.length > optimizer.kl_bound:
            scale = math.sqrt(optimizer.kl_bound / model.length)
            optimizer.record["counts"]["bounded_steps"] += 1
        return scale


_LOOKS: dict[str, tuple[StructureName, str, Dash]] = {
    "ngd": ("full", "#be1e56", "dot"),
    "ngd-layer": ("layer", "#be1e56", "dashdot"),
    "ngd-tridiagonal": ("tridiagonal", "#1fb39a", "longdash"),
    "ngd-unit": ("unit", "#2b6cb8", "dashdot"),
    "ngd-kronecker": ("kronecker", "#b09cf0", "longdash"),
    "ngd-ekfac": ("ekfac", "#eaa21a", "longdash"),
    "ngd-diagonal": ("diagonal", "#d9601a", "dashdot"),
}
"""Structure, colour and dash of each name."""


def _entry(name: str) -> OptimizerEntry:
    structure, color, dash = _LOOKS[name]

    def make(
        model: nn.Module,
        likelihood: Any,
        config: NaturalGradientConfig,
        generator: torch.Generator | None,
    ) -> NaturalGradient:
        settings = settings_of(config)
        if settings["damping"] == "auto":
            settings["damping"] = FIRST_RULE
        if settings["labels"] == "auto":
            settings["labels"] = "sampled" if structure == "tridiagonal" else "exact"
        return NaturalGradient(
            model, likelihood, structure=structure, **settings, generator=generator
        )

    return OptimizerEntry(
        name=name,
        config=NaturalGradientConfig,
        make=make,
        space={
            "lr": (1e-2, 1.0, "log"),
            "damping": (1e-4, 1.0, "log"),
            "momentum": (0.0, 0.95),
        },
        color=color,
        dash=dash,
        needs_objective=True,
    )


ENTRIES = tuple(_entry(name) for name in _LOOKS)
