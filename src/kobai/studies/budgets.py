"""Methods under equal budgets: runs that count what they spend, and what a budget cuts from them.

A run is made once, to the end of its largest budget, and recorded with everything it has spent:
steps, gradient evaluations and CPU seconds. What a budget allowed is read off afterwards, so that
three tables cost one run.

Gradient evaluations are counted in gradients over all training data. A minibatch of m of N examples
counts m/N. A value without its gradient counts `VALUE`, since the backward pass costs about twice
the forward pass; a product with the Hessian counts `PRODUCT`, since it differentiates both passes
once more. The loss and accuracy of the record are not counted, in neither unit.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kobai import seeds
from kobai.optim.entry import OptimizerEntry
from kobai.optim.registry import entry_of
from kobai.problem import EmpiricalRisk, Objective, Problem, Surface
from kobai.results import BudgetRun
from kobai.studies.setting import Setting

VALUE = 1 / 3
"""What a value without a gradient counts, in gradients."""

PRODUCT = 2.0
"""What a product with the Hessian counts, in gradients."""

DIVERGED = 1e6
"""A run has diverged when its loss exceeds this many times the first one (or 1, if more)."""

STILL = 10
"""So many steps in a row of a method on all data that move nothing are its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What everybody may spend."""

    steps: int = 40
    """Optimizer steps (count)."""
    gradients: float = 10.0
    """Gradients over all training data, other evaluations as multiples (count)."""
    seconds: float = 0.2
    """CPU seconds in steps."""

    def __post_init__(self) -> None:
        for name in ("steps", "gradients", "seconds"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"--budget.{name} must be positive and finite, got {value}")

    def spent(self, steps: int, gradients: float, seconds: float) -> bool:
        """Whether nothing is left of any of them."""
        return steps >= self.steps and gradients >= self.gradients and seconds >= self.seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """An optimizer with its settings, under a name of its own.

    Attributes:
        name: What tables call it.
        optimizer: Its name in `kobai.optim.OPTIMIZERS`, or an entry of your own.
        config: Its settings; default: those of the name.
    """

    name: str
    optimizer: str | OptimizerEntry
    config: Any = None

    @property
    def entry(self) -> OptimizerEntry:
        """The optimizer."""
        return entry_of(self.optimizer)

    @property
    def on_all_data(self) -> bool:
        """Whether every step asks for all training data; else for minibatches."""
        return self.entry.on_all_data

    def make(
        self, module: torch.nn.Module, likelihood: Any, rate: float, *, seed: int
    ) -> torch.optim.Optimizer:
        """The optimizer at a factor on its learning rate."""
        config = self.entry.config() if self.config is None else self.config
        config = dataclasses.replace(config, lr=config.lr * rate) if rate != 1 else config
        return self.entry.build(
            module, likelihood, config, generator=seeds.generator(seed, "labels")
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """A problem at the start of a run.

    Attributes:
        whole: The objective over all training data.
        likelihood: What a network's outputs mean.
        next: The next minibatch objective and its share of the data.
        accuracy: Accuracy on the test data now; NaN where there are none.
        lowest: The known minimum, or NaN.
    """

    whole: Objective
    likelihood: Any
    next: Callable[[], tuple[Objective, float]]
    accuracy: Callable[[], float]
    lowest: float


def start_network(setting: Setting, seed: int, *, batch_size: int) -> Started:
    """A network at its initial parameters, and shuffled minibatches of its data."""
    problem = setting.problem(seed)
    draw = seeds.generator(seed, "shuffle")
    size = problem.train.size

    def endless():
        while True:
            for batch in problem.minibatches(batch_size, generator=draw):
                yield problem.objective(batch), batch.size / size

    return Started(
        whole=problem.objective(),
        likelihood=problem.likelihood,
        next=endless().__next__,
        accuracy=_accuracy_of(problem),
        lowest=math.nan,
    )


def _accuracy_of(problem: Problem) -> Callable[[], float]:
    if problem.test is None:
        return lambda: math.nan
    test: EmpiricalRisk = problem.objective(split="test")
    return lambda: test.metrics()["accuracy"]


def start_surface(make: Callable[[torch.Generator], Surface], seed: int) -> Started:
    """A surface at a point drawn from where it is looked at; every gradient is exact."""
    draw = seeds.generator(seed, "surface")
    surface = make(draw)
    low, high = surface.extent
    point = low + (high - low) * torch.rand(len(surface.start), generator=draw, dtype=torch.float64)
    objective = surface.objective(point)
    return Started(
        whole=objective,
        likelihood="gaussian",
        next=lambda: (objective, 1.0),
        accuracy=lambda: math.nan,
        lowest=surface.minimum,
    )


def evaluations(optimizer: torch.optim.Optimizer, closures: int) -> float:
    """Gradients an optimizer has asked for, other evaluations as multiples.

    Args:
        optimizer: One that counts what it asks an objective, or one of torch's.
        closures: How often one of torch's has called its closure.

    Raises:
        ValueError: If it is handed the objective and does not count.
    """
    if type(optimizer).__module__.startswith("torch."):
        return float(closures)
    counts = getattr(optimizer, "diagnostics", dict)()
    if not {"values", "gradients", "products"} <= set(counts):
        raise ValueError(
            f"{type(optimizer).__name__} does not count what it asks for, so there is no equal "
            "budget to give it; leave it out"
        )
    return counts["gradients"] + VALUE * counts["values"] + PRODUCT * counts["products"]


def run_within(
    started: Started, method: Method, budget: Budget, *, rate: float = 1.0, seed: int = 0
) -> BudgetRun:
    """Step until every budget is spent, and record what was spent on the way.

    Records are made before the first step, after each of the first ones, and then whenever steps
    have grown by a tenth; after every step of a method on all data. Seconds include the choice of
    the minibatch.

    Args:
        started: The problem; its module is trained in place.
        method: The method.
        budget: When it ends.
        rate: Factor on the method's default learning rate.
        seed: For the record, and for methods that draw.

    Raises:
        ValueError: If the method does not count what it asks for.
    """
    whole = started.whole
    optimizer = method.make(whole.space.module, started.likelihood, rate, seed=seed)
    plain = type(optimizer).__module__.startswith("torch.")
    closures = 0
    steps, spent, seconds = 0, 0.0, 0.0
    rows: list[tuple[float, ...]] = []

    def record() -> float:
        theta = whole.theta()
        loss = float(whole.value(theta)) if bool(theta.isfinite().all()) else math.inf
        rows.append((steps, spent, seconds, loss, started.accuracy()))
        return loss

    def step() -> float:
        """One step; the gradients it asked for."""
        objective, share = (whole, 1.0) if method.on_all_data else started.next()

        def closure() -> Tensor:
            nonlocal closures
            closures += 1
            return objective()

        counted = evaluations(optimizer, closures)
        optimizer.step(closure if plain else objective)  # pyright: ignore
        return share * (evaluations(optimizer, closures) - counted)

    first = record()
    still, status = 0, ""
    while not status and not budget.spent(steps, spent, seconds):
        before = whole.theta()
        count = 1 if method.on_all_data else max(1, math.floor(0.1 * steps))
        # Asking for CPU time can cost more than a step, so a whole block is timed.
        began = time.process_time()
        spent += sum(step() for _ in range(count))
        seconds += time.process_time() - began
        steps += count
        still = still + 1 if torch.equal(before, whole.theta()) else 0
        loss = record()
        if not loss <= DIVERGED * max(1.0, abs(first)):
            status = "diverged"
        elif method.on_all_data and still == STILL:
            status = "stationary"
    columns = np.array(rows, dtype=float).T
    return BudgetRun(
        rate=rate, seed=seed, status=status or "budget", step=columns[0].astype(int),
        evaluations=columns[1], seconds=columns[2], loss=columns[3], accuracy=columns[4],
    )  # fmt: skip


def cut(run: BudgetRun, unit: str, amount: float) -> tuple[float, float]:
    """Loss and accuracy at the last record within a budget.

    Args:
        run: The run.
        unit: One of `kobai.results.UNITS`.
        amount: The budget.

    Returns:
        The pair; the loss is infinite if the run had diverged within the budget.
    """
    within = int(np.flatnonzero(run.spent(unit) <= amount)[-1])
    if run.status == "diverged" and within == len(run.step) - 1:
        return math.inf, math.nan
    return float(run.loss[within]), float(run.accuracy[within])


def cost_to(run: BudgetRun, unit: str, amount: float, target: float) -> float:
    """What had been spent at the first record at or below a target; infinite if not in budget."""
    spent: Float[np.ndarray, " T"] = run.spent(unit)
    reached = np.flatnonzero((run.loss <= target) & (spent <= amount))
    return float(spent[reached[0]]) if len(reached) else math.inf
