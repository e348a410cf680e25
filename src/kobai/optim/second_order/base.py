"""Step by a model of the objective and a rule of how far to trust it: the frame of all methods."""

import abc
import copy
import dataclasses
import inspect
import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.optim.damping import (
    LOG_LENGTH,
    Action,
    Damping,
    LevenbergMarquardt,
    ReductionRatio,
    as_rule,
    check_damping,
    first_damping,
)
from kobai.optim.line_search import SEARCHES, LineSearch, Search, as_search
from kobai.optim.second_order.descent import Descent
from kobai.optim.second_order.evaluator import Evaluator, Needs, StartingPoint, is_finite
from kobai.optim.second_order.examples import await_fresh, judge_last_step
from kobai.optim.second_order.globalisation import globalise
from kobai.optim.state import keep_state
from kobai.optim.trust_region import TrustRegion

Globalisation = Search | TrustRegion | LevenbergMarquardt
"""Values that optimizers take for `search`."""

EXACT_RATIO = LevenbergMarquardt(
    initial=1e-2, raise_by=4.0, lower_by=1 / 3, minimum=1e-10, maximum=1e10, noise=0.0
)
"""Rule that a damping of "auto" stands for where the ratio is taken as exact: quick to give way,
since a rejected step costs one value."""

COUNTS = (
    "steps",
    "iterations",
    "values",
    "gradients",
    "skipped_steps",
    "ascent_steps",
    "rejected_trials",
    "rejected_steps",
    "failed_searches",
    "shortened_steps",
    "restarts",
    "indefinite_solves",
    "solve_iterations",
)


_ITERATIONS = {"status": "max-iterations", "line": "ok", "step": 0.0}
"""Numbers of a step of iterations that nothing ended early."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Displacement:
    """One iteration as it was made, all on the same data.

    Attributes:
        direction: p.
        step: a, so that θ moved by a p.
        before: Gradient at the old point.
        after: Gradient at the new one.
    """

    direction: Float[Tensor, " P"]
    step: float
    before: Float[Tensor, " P"]
    after: Float[Tensor, " P"]


class SecondOrder(torch.optim.Optimizer, abc.ABC):
    """Base of the optimizers that take the objective: begin, model, globalise, record.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)``. A subclass gives the model of
    the objective at a point (`model_at`); how far the model is trusted is the choice of `search`.

    Args:
        model: The model.
        lr: Learning rate: the step itself, or the first trial of a line search.
        search: None, a line search by name or object, a `TrustRegion` or a `LevenbergMarquardt`
            rule, which is the same as giving it for the damping.
        damping: α, added to the model's matrix; None where there is no matrix.
        automatic: The rule that a damping of "auto" stands for.
        positive: Whether a damping of zero is refused.
        counts: What is counted beside `COUNTS`.
        defaults: Further entries of the group.
    """

    needs: ClassVar[Needs] = "objective"
    """Needs that the argument of `step` must meet."""
    monotone: ClassVar[bool] = True
    """Tells whether under automatic damping a step must lower the loss; else it is refused only if
    it raises the loss beyond doubt."""
    exact: ClassVar[bool] = True
    """Tells whether the reduction ratio is one number without a known error."""
    values_wanted: ClassVar[bool] = True
    """Tells whether the loss at the end of a step must be finite where nothing judges the step."""
    restarts: ClassVar[bool] = False
    """Tells whether a direction that leads uphill is replaced by that of a fresh start."""
    learns: ClassVar[bool] = False
    """Tells whether moves are learnt from, which costs a gradient at the end of each."""
    iterative: ClassVar[bool] = False
    """Tells whether a step is made of iterations, each of which builds on the one before."""
    damped: ClassVar[bool] = True
    """Tells whether there is a damping without asking for one by `search`."""
    quadratic: ClassVar[bool] = True
    """Tells whether there is a matrix for trust regions and damping to act on."""
    generator: torch.Generator | None = None
    max_trials: int = 20
    max_iterations: int = 250
    iterations: int = 1
    tol: float = 0.0

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        search: Globalisation | None,
        damping: Damping | None = None,
        automatic: LevenbergMarquardt = EXACT_RATIO,
        positive: bool = False,
        counts: tuple[str, ...] = (),
        defaults: dict[str, Any] | None = None,
    ) -> None:
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr must be positive and finite, got {lr}")
        self._check_counts()
        self.model = model
        self.search, self.damping = self._compatible(search, damping, automatic)
        self._positive = positive
        group = {"lr": lr, **(defaults or {})}
        if self.damping is not None:
            group["damping"] = first_damping(self.damping, positive=positive)
        if isinstance(self.search, TrustRegion):
            group["radius"] = self.search.initial
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(
                f"{type(model).__name__} has no trainable parameters; "
                "set requires_grad=True on those to be learned"
            )
        super().__init__(parameters, group)
        self.record: dict[str, Any] = {
            "counts": dict.fromkeys((*COUNTS, *counts), 0),
            "last": {},
            "decisions": [],
        }
        if self.needs != "risk":  # products with Fisher matrices are not counted
            self.record["counts"]["products"] = 0
        keep_state(self, type(self).__name__.lower())

    def _compatible(
        self,
        search: Globalisation | None,
        damping: Damping | None,
        automatic: LevenbergMarquardt,
    ) -> tuple[LineSearch | TrustRegion | LevenbergMarquardt | None, Damping | None]:
        """Check that search and damping go together.

        Raises:
            ValueError: If they exclude each other, or a rule asks for noise that is not measured.
        """
        name = type(self).__name__
        if isinstance(search, TrustRegion | LevenbergMarquardt) and not self.quadratic:
            raise ValueError(
                f"{name} has no quadratic model for a {type(search).__name__} to act on; search is "
                f"a line search: one of {', '.join(SEARCHES)}, or an object"
            )
        if isinstance(search, LevenbergMarquardt):
            if damping not in (None, "auto", search):
                raise ValueError(
                    f"search=LevenbergMarquardt(...) sets the damping of {name}; leave damping out"
                )
            damping = search
        elif isinstance(search, TrustRegion):
            if isinstance(damping, LevenbergMarquardt):
                raise ValueError(
                    "a trust region takes the place of adaptive damping; give damping a number, "
                    "such as damping=0.0"
                )
            damping = 0.0 if damping in (None, "auto") else damping
        elif search is not None or not self.damped:
            search = as_search(search)  # pyright: ignore[reportArgumentType]
        if damping is None and not self.damped:
            return search, None
        damping = as_rule(check_damping(damping) if damping is None else damping, automatic)
        if self.exact and isinstance(damping, LevenbergMarquardt) and damping.noise:
            raise ValueError(
                f"{name} takes the reduction ratio as exact, since its model does not split over "
                f"examples; give the rule noise=0.0, got {damping.noise}"
            )
        return search, damping

    def _check_counts(self) -> None:
        for name in ("max_trials", "max_iterations", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.tol) and self.tol >= 0):
            raise ValueError(f"tol must be non-negative and finite, got {self.tol}")

    @property
    def rule(self) -> LevenbergMarquardt | None:
        """The rule of the damping, where it is automatic."""
        return self.damping if isinstance(self.damping, LevenbergMarquardt) else None

    @abc.abstractmethod
    def model_at(self, start: StartingPoint) -> Descent | None:
        """Make the model of the objective at a point; None where there is nothing to do."""

    def globalisation(self) -> LineSearch | TrustRegion | LevenbergMarquardt | None:
        """Give the rule for how far the model is trusted."""
        return self.search

    def rounds(self, function: Evaluator) -> int:
        """Give the number of iterations of a step."""
        return self.iterations

    def learn(self, start: StartingPoint, move: Displacement) -> None:
        """Take a move into account."""

    def accept(self, start: StartingPoint) -> None:
        """Take note that the step proposed last is made."""

    def forget(self) -> None:
        """Drop what misled: the direction led uphill or no step was found."""

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self._arguments(current=True).items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    def diagnostics(self) -> dict[str, Any]:
        """Tell what happened so far.

        Returns:
            Counts: "steps" and their "iterations"; "values", "gradients" and "products" with the
            Hessian asked for; "skipped_steps" (something was not finite), "ascent_steps" (not made:
            the direction led uphill), "rejected_trials" and "rejected_steps" (no trial was good:
            nothing was moved), "failed_searches" (no decrease along the line) and "shortened_steps"
            of line searches, "restarts", "indefinite_solves" and "solve_iterations"; and those that
            the optimizer's own description lists. Of the last step: its "status" and, where they
            apply, the number of "trials", the status "line" of the search, the "step" it found and
            "step_scale", which is the step over the learning rate. Where there is a damping, that
            of the next step, and "decisions": one dictionary for each trial on which it was judged,
            with "step", "damping", "actual" and "predicted" change, "ratio", its standard "error",
            the "action" and the "next" damping; "fresh_ratio" and "fresh_error" are those of the
            next objective's examples and None while it has the same ones. They revise action, next
            and damping when that objective comes.
        """
        found = {**self.record["counts"], **self.record["last"]}
        if "damping" in self.param_groups[0]:
            found["damping"] = self.param_groups[0]["damping"]
            found["decisions"] = self.record["decisions"]
        return copy.deepcopy(found)

    def log_decision(
        self, damping: float, ratio: ReductionRatio, action: Action, following: float
    ) -> None:
        """Set the damping of the next step and remember why."""
        self.record["decisions"].append(
            {
                "step": self.record["counts"]["steps"],
                "damping": damping,
                "actual": ratio.actual,
                "predicted": ratio.predicted,
                "ratio": ratio.value,
                "error": ratio.error,
                "fresh_ratio": None,
                "fresh_error": None,
                "action": action,
                "next": following,
            }
        )
        del self.record["decisions"][:-LOG_LENGTH]
        self.param_groups[0]["damping"] = following

    def await_fresh(
        self, start: StartingPoint, step: Float[Tensor, " P"], predicted: float, own: ReductionRatio
    ) -> None:
        """Keep a step to be judged by the examples of the next one, where examples are seen."""
        if not self.exact:
            await_fresh(self, start, step, predicted, own)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one group of the constructor.

        Raises:
            ValueError: At a second group: one system couples all parameters.
        """
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            del self.param_groups[-1]
            raise ValueError(
                f"{type(self).__name__} solves one system over all parameters and takes one "
                "group, that of its model"
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step.

        Args:
            closure: An objective of the model, such as ``problem.objective()`` or
                ``problem.objective(batch)``; methods that need no second derivatives take a closure
                too.

        Returns:
            Its value before the step. The gradient there is left in ``.grad``.

        Raises:
            TypeError: If the argument cannot give what the method needs, saying how to make one.
            ValueError: If it belongs to another model, the model is not a function of θ now, or a
                system is too large.
        """
        function = Evaluator(closure, self)
        group, record = self.param_groups[0], self.record
        counts = record["counts"]
        if callable(self.damping):
            group["damping"] = check_damping(self.damping(counts["steps"]), positive=self._positive)
        first = start = function.begin()
        if not self.exact:
            judge_last_step(self, start)
        theta = start.theta
        record["last"] = dict(_ITERATIONS) if self.iterative else {}
        if not is_finite(start.loss, start.gradient):
            counts["skipped_steps"] += 1
            record["last"] = {"status": "non-finite"}
        elif group["lr"]:
            theta = self._advance(start)
        else:
            record["last"] = {"status": "no-step"}
        if theta is not first.theta or function.objective is None:
            function.assign(theta)
        if function.objective is None:
            function.leave_gradient(first.gradient)
        counts["steps"] += 1
        return first.returned

    def _advance(self, start: StartingPoint) -> Tensor:
        """Make the iterations of a step and give the θ where they end."""
        record, rounds = self.record, self.rounds(start.function)
        for number in range(1, rounds + 1):
            if self.iterative and float(start.gradient.abs().max()) <= self.tol:
                record["last"]["status"] = "stationary"
                break
            model = self.model_at(start)
            outcome = None
            if model is not None:
                record["counts"]["iterations"] += 1
                outcome = globalise(self, start, model)
            if outcome is None:
                if self.iterative:
                    break
                continue
            if self.learns or number < rounds:
                value, gradient = outcome.arrive()
                if not is_finite(value, gradient):
                    record["counts"]["failed_searches"] += 1
                    record["last"]["status"] = "non-finite"
                    self.forget()
                    break
                if self.learns:
                    move = Displacement(
                        direction=outcome.direction,
                        step=outcome.step,
                        before=start.gradient,
                        after=gradient,
                    )
                    self.learn(start, move)
            else:
                value, gradient = start.loss, start.gradient  # the last iteration: not asked again
            self.accept(start)
            start = dataclasses.replace(start, theta=outcome.moved, loss=value, gradient=gradient)
        return start.theta

    def first_trial(self, slope: float) -> float:
        """Give the first trial along a direction that has no length of its own.

        It is what the line search makes of the last step, or the learning rate where there is none.
        A schedule acts by its ratio to the rate at the start.

        Args:
            slope: Derivative along the direction.
        """
        last, lr = self.record.get("trial"), self.param_groups[0]["lr"]
        if last is None or not isinstance(self.search, LineSearch):
            return lr
        resumed = self.search.resume(last["step"], last["slope"] / slope if slope else 1.0)
        return lr if resumed is None else resumed * (lr / self.defaults["lr"])

    def recall(self, start: StartingPoint, key: str) -> Float[Tensor, " P"] | None:
        """Give a vector kept by `remember`; None where there is none for all the parameters."""
        known = [self.state.get(p, {}) for p in start.function.parameters]
        if any(key not in own for own in known):
            return None
        return torch.cat([own[key].reshape(-1) for own in known])

    def remember(self, start: StartingPoint, key: str, vector: Float[Tensor, " P"]) -> None:
        """Keep a vector by parameters, under a name in their state."""
        function = start.function
        for parameter, piece in zip(function.parameters, function.split(vector), strict=True):
            self.state[parameter][key] = piece.clone()

    def drop(self, key: str) -> None:
        """Forget a vector."""
        for own in self.state.values():
            own.pop(key, None)

    def _export(self) -> tuple[list[tuple[Tensor, dict[str, Any]]], dict[str, Any]]:
        entries = [
            (p, {key: value for key, value in own.items() if isinstance(value, Tensor)})
            for p, own in self.state.items()
        ]
        draws = {} if self.generator is None else {"generator": self.generator.get_state()}
        return entries, {**self.record, **draws}

    def _restore(
        self, entries: list[tuple[Tensor, dict[str, Any]]], shared: dict[str, Any]
    ) -> None:
        for parameter, own in entries:
            self.state[parameter] = {k: v.to(parameter).clone() for k, v in own.items()}
        record = copy.deepcopy({k: v for k, v in shared.items() if k != "layout"})
        draws = record.pop("generator", None)
        record["counts"] = self.record["counts"] | record["counts"]
        self.record = record
        if draws is not None and self.generator is not None:
            self.generator.set_state(draws.cpu())

    def _arguments(self, *, current: bool = False) -> dict[str, Any]:
        """Give the constructor's arguments, with the group's numbers of now if `current`."""
        group = self.param_groups[0] if current else self.defaults
        names = list(inspect.signature(type(self)).parameters)[1:]
        found = {}
        for name in names:
            if name == "generator":  # its state is in `state_dict`
                continue
            if current and name in group:
                found[name] = group[name]
            else:
                found[name] = getattr(self, name) if hasattr(self, name) else group[name]
        return found

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parameters = self.param_groups[0]["params"]
        return _rebuild, (
            type(self),
            self.model,
            self._arguments(),
            parameters,
            self.state_dict(),
        )


def _rebuild(
    kind: type[SecondOrder],
    model: nn.Module,
    arguments: dict[str, Any],
    parameters: list[nn.Parameter],
    state_dict: dict[str, Any],
) -> SecondOrder:
    """Make a copied or unpickled optimizer, which steps the copied model."""
    optimizer = kind(model, **arguments)
    optimizer.param_groups[0]["params"] = parameters
    optimizer.load_state_dict(state_dict)
    return optimizer
