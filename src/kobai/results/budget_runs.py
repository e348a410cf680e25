"""Many methods on many problems within equal budgets: the runs, and the tables cut from them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kobai.results.fields import coerce_fields, one_of
from kobai.results.look import Look
from kobai.results.registry import register

UNITS = ("steps", "gradient evaluations", "CPU seconds")
"""What a budget is counted in."""

ENDINGS = ("budget", "stationary", "diverged")


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class BudgetRun:
    """One run with all that it spent, recorded T times; every budget is cut from it.

    Attributes:
        rate: Factor on the method's default learning rate.
        seed: Of start and order of the examples.
        status: ``budget``: all budgets are spent. ``stationary``: the method moved no more, the
            last record is that of ever after. ``diverged``.
        step: (T,) steps done.
        evaluations: (T,) gradients over all training data asked for, other things as multiples.
        seconds: (T,) CPU seconds in steps.
        loss: (T,) loss over all training data, or value of the surface.
        accuracy: (T,) accuracy on the test data; NaN where there are none.
    """

    rate: float
    seed: int
    status: str
    step: Int[np.ndarray, "T"]
    evaluations: Float[np.ndarray, "T"]
    seconds: Float[np.ndarray, "T"]
    loss: Float[np.ndarray, "T"]
    accuracy: Float[np.ndarray, "T"]

    def __post_init__(self) -> None:
        columns = dict.fromkeys(("evaluations", "seconds", "loss", "accuracy"), "f T")
        coerce_fields(self, arrays={"step": "i T", **columns}, floats=("rate",), integers=("seed",))
        one_of(self, "status", ENDINGS)

    def spent(self, unit: str) -> Float[np.ndarray, "T"]:
        """What was spent at each record, in one of `UNITS`."""
        columns = (self.step.astype(float), self.evaluations, self.seconds)
        return columns[UNITS.index(unit)]


@register
@dataclass(frozen=True, kw_only=True)
class BudgetRuns:
    """All runs of one method on one problem.

    Attributes:
        problem: Name of the problem.
        method: Name of the method.
        runs: At the default rate and at the tuned one (the same where it is the default), every
            seed.
        tuned: Factor of the tuned rate; 1 where there is nothing to tune.
        tried: Factor → loss at the end of the run that judged it, on a seed of its own; empty where
            there is nothing to tune.
        look: Look of the method in figures, or None.
    """

    problem: str
    method: str
    runs: tuple[BudgetRun, ...]
    tuned: float = 1.0
    tried: dict[str, float]
    look: Look | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("tuned",))
        object.__setattr__(self, "runs", tuple(self.runs))

    def at(self, rate: float) -> tuple[BudgetRun, ...]:
        """The runs at a rate, by seed."""
        return tuple(run for run in self.runs if run.rate == rate)


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class BudgetTable:
    """What M methods reach within one budget on Q problems, over S seeds.

    Arrays have two entries in their second axis: at the default learning rate and at the tuned one.

    Attributes:
        unit: One of `UNITS`.
        budget: How much of it everybody had.
        methods: M names.
        problems: Q names.
        networks: Q flags: whether a problem is a network on data; else it is a surface.
        rate: (M, Q) factor of the tuned learning rate on the default one.
        loss: (M, 2, Q, S) training loss when the budget was spent; infinite after divergence.
        accuracy: (M, 2, Q, S) test accuracy then; NaN on surfaces.
        cost: (M, 2, Q, S) spent until the target was met; infinite where it was not within budget.
        tolerance: τ of the target: L ≤ L* + τ (L₀ − L*), L* the lowest any method reached in any
            run on the instance, or the known minimum.
        note: Anything worth saying.
    """

    unit: str
    budget: float
    methods: tuple[str, ...]
    problems: tuple[str, ...]
    networks: tuple[bool, ...]
    rate: Float[np.ndarray, "M Q"]
    loss: Float[np.ndarray, "M R Q S"]
    accuracy: Float[np.ndarray, "M R Q S"]
    cost: Float[np.ndarray, "M R Q S"]
    tolerance: float
    note: str = ""

    def __post_init__(self) -> None:
        wide = dict.fromkeys(("loss", "accuracy", "cost"), "f M R Q S")
        coerce_fields(self, arrays={"rate": "f M Q", **wide}, floats=("budget", "tolerance"))
        one_of(self, "unit", UNITS)
        for name in ("methods", "problems", "networks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        expected = (len(self.methods), 2, len(self.problems))
        if self.loss.shape[:3] != expected or len(self.networks) != len(self.problems):
            raise ValueError(
                f"BudgetTable of {expected[0]} methods at two rates on {expected[2]} problems has "
                f"losses of shape {self.loss.shape} and {len(self.networks)} flags"
            )
