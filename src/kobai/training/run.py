"""One run while it goes on: its parts, where it stands, and how it ends."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol, final, runtime_checkable

import torch
from torch import nn

from kobai.problem import Problem
from kobai.training.clipping import Clipping, step
from kobai.training.epochs import Plan
from kobai.training.evaluation import Evaluator
from kobai.training.minibatches import Order, uses_batch_statistics
from kobai.training.progress import Progress
from kobai.training.rates import LearningRates
from kobai.training.recorder import Clock, Recorder
from kobai.training.strategies.early_stopping import Best

DIVERGED = 1e4
"""A run has diverged when a loss exceeds this many times the first one (or 1, if that is more)."""


@runtime_checkable
class Keeper(Protocol):
    """Where a run is saved."""

    def recorded(self) -> None:
        """A record was made: time for a snapshot."""

    def write(self) -> None:
        """Save a checkpoint."""

    def finish(self) -> None:
        """Save the model as it is returned."""


@final
@dataclasses.dataclass(kw_only=True)
class Run:
    """The parts of a run and its state; `go` is the loop.

    Attributes:
        problem: Model, likelihood and data.
        optimizer: Steps on the model's parameters.
        parameters: The model's trainable parameters.
        plan: What is due when.
        order: Serves the minibatches.
        rates: Sets the learning rates.
        clipping: Bounds on the gradient.
        evaluator: Measures the model.
        best: The watch of early stopping, or None.
        clock: Counts the seconds of training.
        recorder: Keeps what was measured.
        progress: Is told of every step, or None.
        step: Optimizer steps done.
        status: Empty while the run goes on, else that of the `History`.
        ending: How the run ended, in sentences.
    """

    problem: Problem
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    plan: Plan
    order: Order
    rates: LearningRates
    clipping: Clipping
    evaluator: Evaluator
    best: Best | None
    clock: Clock
    recorder: Recorder
    progress: Progress | None
    step: int = 0
    status: str = ""
    ending: list[str] = dataclasses.field(default_factory=list)

    def go(self, keeper: Keeper | None, label: str, stop: Callable[[], bool] | None) -> None:
        """Step to the end, whatever it is, and leave the model as `train` returns it."""
        if self.progress is not None:
            self.progress.begin(label, step=self.step, total=self.plan.total)
        if self.recorder.is_empty:
            self.rates.set(0)
            self._record(float("nan"), keeper)
        while not self.status and self.step < self.plan.total:
            if stop is not None and stop():
                self._end("interrupted", f"interrupted after {self._where()}")
                break
            gradient_norm = self._advance()
            if self.plan.evaluates(self.step) or self.status:
                self._record(gradient_norm(), keeper)
            if keeper is not None and self.plan.saves(self.step):
                keeper.write()
        if not self.status:
            self.status = "finished"
        if keeper is not None:
            keeper.write()
        if self.best is not None and self.status != "interrupted":
            self._return_to(self.best)
        if keeper is not None:
            keeper.finish()
        if self.progress is not None:
            self.progress.end(self.status, "; ".join(self.ending))

    def _advance(self) -> Callable[[], float]:
        """One optimizer step; returns what gives the norm of its gradient."""
        with self.clock.running():
            self.rates.set(self.step)
            objective = self.problem.objective(self.order.next())
            loss, gradient_norm = step(self.optimizer, objective, self.clipping, self.parameters)
        self.step += 1
        self.recorder.add_loss(loss)
        self._check(loss, "minibatch loss", bounded=True)
        if self.progress is not None:
            self.progress.step(self.step, loss=loss)
        return gradient_norm

    def _record(self, gradient_norm: float, keeper: Keeper | None) -> None:
        """Measure the model, and see what follows from that."""
        row = self._measure(gradient_norm)
        loss = row["train_loss"]
        self._check(loss, "train loss", bounded=not uses_batch_statistics(self.problem.model))
        if self.best is not None:
            self.best.observe(self.step, row)
            if self.best.exhausted and not self.status and self.step < self.plan.total:
                self._end(
                    "early-stopped",
                    f"stopped after {self._where()}: no better validation "
                    f"{self.best.config.measure} in {self.best.waited} evaluations",
                )
        if keeper is not None:
            keeper.recorded()

    def _measure(self, gradient_norm: float) -> dict[str, float]:
        row = {
            **self.evaluator(),
            "epoch": self.plan.epoch(self.step),
            "seconds": self.clock.seconds,
            "gradient_norm": gradient_norm,
            "learning_rate": self.rates.current(),
            "batch_size": self.order.batch_size(int(self.plan.epoch(max(self.step - 1, 0)))),
        }
        self.recorder.add_row(self.step, row)
        if self.progress is not None:
            self.progress.record(self.step, row)
        return row

    def _return_to(self, best: Best) -> None:
        """Put the best parameters back; measure them again if they are not the last ones."""
        if best.step < 0:
            self.ending.append("no evaluation gave a validation result to go back to")
        elif best.step != self.step:
            best.restore()
            self.ending.append(f"went back to the best parameters, {best.describe()}")
            self._measure(float("nan"))

    def _check(self, loss: float, what: str, *, bounded: bool) -> None:
        """End the run as diverged if a loss says so."""
        if self.status:
            return
        first = self.recorder.first_loss
        bound = DIVERGED * max(first, 1.0) if bounded and math.isfinite(first) else math.inf
        if not math.isfinite(loss):
            self._end("diverged", f"stopped after {self._where()}: the {what} is {loss}")
        elif loss > bound:
            self._end(
                "diverged",
                f"stopped after {self._where()}: the {what} is {loss:.3g}, it began at {first:.3g}",
            )

    def _end(self, status: str, sentence: str) -> None:
        self.status = status
        self.ending.append(sentence)

    def _where(self) -> str:
        return f"step {self.step} of {self.plan.total} (epoch {self.plan.epoch(self.step):.4g})"
