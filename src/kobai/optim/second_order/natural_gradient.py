"""Natural gradient with any structure of the Fisher matrix, handed the objective step by step."""

import math
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from kobai.curvature import STRUCTURES, Fisher
from kobai.curvature.fisher import StructureName
from kobai.curvature.scores import Labels
from kobai.linalg.solvable import DampingForm
from kobai.optim.damping import (
    Damping,
    LevenbergMarquardt,
    as_rule,
    first_damping,
    reduction_ratio,
)
from kobai.optim.second_order.base import (
    Start,
    begin_step,
    check_lr,
    count_solve,
    diagnostics_of,
    is_finite,
    log_decision,
    recall,
    record_of,
    reduced,
    refuse_second_group,
    remember,
    start_record,
    trainable,
)
from kobai.optim.second_order.example_model import LocalModel, example_losses, local_model
from kobai.optim.second_order.fisher_solve import Direction, natural_direction
from kobai.optim.second_order.fresh_examples import await_fresh, judge_last_step
from kobai.problem import EmpiricalRisk, Likelihood, as_likelihood

StepSize = Literal["fixed", "model"]

_VELOCITY = "momentum_buffer"
_COUNTS = (
    "skipped_steps",
    "bounded_steps",
    "ascent_steps",
    "rejected_steps",
    "jittered_solves",
    "unconverged_solves",
    "cg_iterations",
)


@final
class NaturalGradient(torch.optim.Optimizer):
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
            that then leads uphill is not taken), "chain", "unit", "kronecker", "ekfac", "diagonal".
        lr: η. Undamped, wide networks contract by 1 − η α a step with α = 1 for "full", the number
            of layers L for "layer", ⌈L/3⌉ for "tridiagonal" and N(L − 1) + 1 for "kronecker" with
            `damping_form` "each"; η = 1/α fits the training data in one step.
        damping: λ: a number, a schedule step ↦ number, "auto" (Levenberg-Marquardt on the reduction
            ratio of the same examples and, on minibatches, of the next ones, see
            `kobai.optim.damping`), or such a rule. Zero is allowed
            but for "tridiagonal".
        damping_form: "exact" λI; for "kronecker" also "pi" or "each", λ shared out to the factors.
            Default: "pi" for "kronecker", "exact" elsewhere.
        momentum: Share of the last update kept, in [0, 1).
        weight_decay: Decoupled weight decay.
        labels: "exact" (the Fisher matrix), "sampled" (one label an example drawn from the model)
            or "observed" (the empirical Fisher).
        step_size: "fixed": η as it is. "model": η times the minimiser of the damped quadratic model
            along the step, which makes one η serve all structures; costs one Jacobian product.
        kl_bound: Largest δᵀGδ of a step δ, G the exact Fisher matrix whatever the structure: twice
            the Kullback-Leibler divergence of the predictions. None: no bound. Costs one Jacobian
            product.
        generator: Draws labels. Default: one of its own, seed 0, kept in `state_dict`.

    Raises:
        ValueError: If a number is out of range, a name unknown, or nothing is trainable.
        TypeError: If the damping is none of its forms.

    A step whose gradient, solve or new loss is not finite is not made but counted, and so is, under
    automatic damping, one that raises the loss of its own examples beyond doubt.

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

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        structure: StructureName = "full",
        lr: float = 1.0,
        damping: Damping = "auto",
        damping_form: DampingForm | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        labels: Labels = "exact",
        step_size: StepSize = "fixed",
        kl_bound: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if structure not in STRUCTURES:
            raise ValueError(f"structure must be one of {list(STRUCTURES)}, got {structure!r}")
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
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.structure: StructureName = structure
        self.damping: Damping = as_rule(damping, LevenbergMarquardt())
        self.damping_form: DampingForm = damping_form or (
            "pi" if structure == "kronecker" else "exact"
        )
        self.labels: Labels = labels
        self.step_size: StepSize = step_size
        self.kl_bound = kl_bound
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        defaults = {
            "lr": check_lr(lr),
            "damping": first_damping(self.damping, positive=structure == "tridiagonal"),
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        super().__init__(trainable(model), defaults)
        start_record(self, _COUNTS)

    def __repr__(self) -> str:
        group = self.param_groups[0]
        settings = ", ".join(
            f"{n}={group[n]:g}" for n in ("lr", "damping", "momentum", "weight_decay")
        )
        return (
            f"NaturalGradient(structure={self.structure!r}, {settings}, "
            f"damping_form={self.damping_form!r}, labels={self.labels!r}, "
            f"step_size={self.step_size!r}, kl_bound={self.kl_bound}, {self.likelihood!r})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "skipped_steps" (something was not finite), "bounded_steps" (by
            `kl_bound`), "ascent_steps" (not made: the direction led uphill), "rejected_steps"
            (undone: under automatic damping, the loss of the same examples rose beyond doubt),
            "jittered_solves" (more damping was needed, or a singular system had its shortest
            solution),
            "unconverged_solves" and "cg_iterations" of conjugate gradients. Of the last step:
            "status" of the solve, "step_scale" and "kl", δᵀGδ (where a Jacobian product was made).
            "damping" of the next step, and "decisions": one dictionary for each step on which the
            damping was judged, with "step", "damping", "actual" and "predicted" change, "ratio",
            its standard "error", the "action" and the "next" damping; "fresh_ratio" and
            "fresh_error" are those of the next objective's examples and None while it has the same
            ones. They revise action, next and damping when that objective comes.
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
            closure: An `EmpiricalRisk` of the model: ``problem.objective()`` or
                ``problem.objective(batch)``.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it is anything else, such as a plain closure.
            ValueError: If it belongs to another model, the model is not a function of θ now, or the
                structure needs too large a dense system.
        """
        start = begin_step(self, closure, positive=self.structure == "tridiagonal")
        judge_last_step(self, start)
        record = record_of(self)
        if start.finite:
            self._advance(start, self.param_groups[0], record)
        else:
            record["counts"]["skipped_steps"] += 1
        record["counts"]["steps"] += 1
        return start.loss

    def _advance(self, start: Start, group: dict[str, Any], record: dict[str, Any]) -> None:
        """Solve, size the step, make it and judge it."""
        counts, risk, theta = record["counts"], start.risk, start.theta
        found = self._solve(start, group["damping"])
        count_solve(counts, found)
        record["last"] = {"status": found.status}
        if not is_finite(found.value):
            counts["skipped_steps"] += 1
            self._back_off(group)
            return
        if found.status == "indefinite":
            counts["ascent_steps"] += 1
            remember(self, risk, _VELOCITY, None)
            self._back_off(group)
            return
        velocity = found.value
        past = recall(self, risk, _VELOCITY) if group["momentum"] else None
        if past is not None:
            velocity = velocity + group["momentum"] * past
        step = velocity.mul(-group["lr"])
        if group["weight_decay"]:
            step.sub_(theta, alpha=group["lr"] * group["weight_decay"])
        model, scale = None, 1.0
        adaptive = isinstance(self.damping, LevenbergMarquardt)
        if adaptive or self.kl_bound is not None or self.step_size == "model":
            model = local_model(risk, theta, step)
            scale = self._scale(model, step, group, counts)
            if scale is None:
                counts["ascent_steps"] += 1
                remember(self, risk, _VELOCITY, None)
                self._back_off(group)
                return
            record["last"] |= {"step_scale": scale, "kl": scale**2 * model.bend}
        moved = torch.add(theta, step, alpha=scale)
        after = example_losses(risk, moved) if adaptive else None
        if not is_finite(moved) or (after is not None and not is_finite(after)):
            counts["skipped_steps"] += 1
            remember(self, risk, _VELOCITY, None)
            self._back_off(group)
            return
        if (
            after is not None
            and model is not None
            and group["lr"]
            and not self._judge(risk, model, step, scale, after)
        ):
            counts["rejected_steps"] += 1
            remember(self, risk, _VELOCITY, None)
            return
        risk.space.assign(moved)
        if group["momentum"]:
            remember(self, risk, _VELOCITY, velocity)

    def _solve(self, start: Start, damping: float) -> Direction:
        fisher = Fisher(
            start.risk, self.structure, self.labels, generator=self.generator, theta=start.theta
        )
        return natural_direction(fisher, start.gradient, damping, self.damping_form)

    def _scale(
        self, model: LocalModel, step: Tensor, group: dict[str, Any], counts: dict[str, int]
    ) -> float | None:
        """Factor on the step; None if it leads uphill where a minimiser is asked for."""
        scale = 1.0
        if self.step_size == "model" and group["lr"]:
            bend = model.bend + group["damping"] * float(step.double().square().sum())
            if not (model.slope < 0 and bend > 0):
                return None
            scale = -group["lr"] * model.slope / bend
        if self.kl_bound is not None and scale**2 * model.bend > self.kl_bound:
            scale = math.sqrt(self.kl_bound / model.bend)
            counts["bounded_steps"] += 1
        return scale

    def _judge(
        self, risk: EmpiricalRisk, model: LocalModel, step: Tensor, scale: float, after: Tensor
    ) -> bool:
        """Let the rule set the next damping by what the step did; whether the step is kept."""
        assert isinstance(self.damping, LevenbergMarquardt)
        group = self.param_groups[0]
        ratio = reduction_ratio(
            model.losses, after, model.change(scale), model.weight, precision=step.dtype
        )
        following, action = self.damping.decide(group["damping"], ratio)
        uphill = self.damping.refuses(ratio)
        log_decision(
            record_of(self),
            damping=group["damping"],
            ratio=ratio,
            action="rejected" if uphill else action,
            following=following,
        )
        group["damping"] = following
        if not uphill:
            await_fresh(self, risk, scale * step, ratio.predicted, ratio)
        return not uphill

    def _back_off(self, group: dict[str, Any]) -> None:
        """After a step that could not be made: more damping, where it adapts."""
        if isinstance(self.damping, LevenbergMarquardt):
            group["damping"], _ = self.damping.raised(group["damping"])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        own = ("structure", "damping", "damping_form", "labels", "step_size", "kl_bound")
        return reduced(self, own)
