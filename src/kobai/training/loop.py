"""Move θ: one training loop for every optimizer.

`train` reads in the order in which things happen; `TrainingRun` holds the parts of one run, its
state and the loop.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn

from kobai.problem import Problem, evaluation_mode
from kobai.results import History
from kobai.training.batch_sizes import ConstantBatch
from kobai.training.clipping import step
from kobai.training.epochs import EpochCounter, Timetable, run_length
from kobai.training.evaluation import Evaluator
from kobai.training.minibatches import Minibatches, uses_batch_statistics
from kobai.training.options import TrainingOptions
from kobai.training.progress import Progress
from kobai.training.recorder import Recorder, TrainingClock
from kobai.training.run_files import RunFiles, random_state, set_random_state
from kobai.training.schedules import ScheduledRates
from kobai.training.strategies.early_stopping import Best

DIVERGED = 1e4
"""A run has diverged when a loss exceeds this many times the first one (or 1, if that is more)."""


def train(
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions | None = None,
    *,
    generator: torch.Generator,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    **changes: Any,
) -> History:
    """Train a problem's model in place and record the run.

    Every step is ``optimizer.step(objective)`` with the minibatch objective as closure, so that
    first-order, closure-style (`torch.optim.LBFGS`) and curvature-using optimizers all fit; with
    clipping the closure is a bare one. Steps run with every submodule in training mode, evaluations
    in evaluation mode; afterwards each submodule has its own mode back and the gradients are gone.
    The library itself draws only from `generator`; a model with dropout draws from torch's global
    random state, as it does by nature.

    A record is made before the first step, every ``evaluate_every`` epochs and at the end: loss and
    accuracy on all splits, seconds of training without evaluation and saving, the learning rate
    and the batch size of the step before it (of the first step, at the start), and the norm of
    the last *minibatch* gradient before clipping (what the optimizer left in ``.grad``; NaN before
    the first step), which costs next to nothing. A record costs one forward pass over each split.

    A run diverges when a loss is not finite, or exceeds 10,000 times the first minibatch loss and
    10,000. (For the loss in evaluation mode of a model with batch normalisation only the first
    counts: its running statistics may be far off early on.) It then stops and keeps its record and
    its parameters.

    Args:
        problem: Model, likelihood and data.
        optimizer: Made over the model's parameters.
        options: Length, batch size, schedules and all other settings; default: those of
            `TrainingOptions`.
        generator: Draws the order of the examples, and what the augmentation draws.
        progress: Is told of every step and record; None is silent.
        stop: Asked before every step; when true the run saves itself and returns.
        **changes: Fields of `TrainingOptions` by their names, in place of those of `options`, such
            as ``epochs=5``.

    Returns:
        The record, its status "finished", "early-stopped", "diverged" or "interrupted". Except for
        an interrupted run the last record describes the model as it is left.

    Raises:
        ValueError: If an option is out of its range, the optimizer belongs to another model,
            early stopping lacks a validation split, or a checkpoint is damaged or of another run.
        TypeError: If an option is unknown, or an optimizer needs more than a closure or does not
            return its loss.
    """
    options = dataclasses.replace(options or TrainingOptions(), **changes)
    run = TrainingRun(problem, optimizer, options, generator=generator, progress=progress)
    if run.batch_size < options.batch_size:
        warnings.warn(run.remarks[0], stacklevel=2)
    # Entered for what it does at the end: every submodule gets its own mode back.
    with evaluation_mode(problem.model):
        problem.model.train()
        try:
            run.resume()
            run.go(stop)
        finally:
            run.rates.restore()
            problem.model.zero_grad(set_to_none=True)
    return run.recorder.history(
        label=options.label,
        optimizer=options.name or type(optimizer).__name__.lower(),
        seed=options.seed,
        status=run.status,
        note="; ".join([*run.remarks, *run.ending]),
    )


@final
class TrainingRun:
    """The parts of one run, where it stands, and the loop.

    Args:
        problem: Model, likelihood and data.
        optimizer: Steps on the model's parameters.
        options: The settings of the run.
        generator: Draws the order of the examples, and what the augmentation draws.
        progress: Is told of every step and record, or None.

    Attributes:
        step: Optimizer steps done.
        status: Empty while the run goes on, else that of the `History`.
        remarks: Sentences of the note on how the run was set up.
        ending: Sentences of the note on how the run ended.

    Raises:
        ValueError: If problem, optimizer and options do not fit each other.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: torch.optim.Optimizer,
        options: TrainingOptions,
        *,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> None:
        if options.early_stopping is not None and problem.validation is None:
            raise ValueError(
                "early stopping needs a validation split: give the problem validation=data or a "
                "fraction of the training data"
            )
        self.problem, self.optimizer, self.options = problem, optimizer, options
        self.parameters = _trainable_parameters(problem.model, optimizer)
        self.batch_size = min(options.batch_size, problem.train.size)
        sizes = options.batch_schedule or ConstantBatch()
        self.minibatches = Minibatches(
            problem,
            lambda epoch: sizes.size(epoch, first=self.batch_size),
            generator=generator,
            augment=options.augment,
        )
        self.epochs = EpochCounter(self.minibatches.length)
        self.total = run_length(options.epochs, options.steps, counter=self.epochs)
        self.evaluations = Timetable(self.epochs, every=options.evaluate_every)
        self.evaluator = Evaluator(problem, train_limit=options.evaluate_train_limit)
        self.rates = ScheduledRates(optimizer, options.schedule, total=self.total)
        self.best = (
            None if options.early_stopping is None else Best(problem.model, options.early_stopping)
        )
        self.clock = TrainingClock(problem.space.device)
        self.recorder = Recorder()
        self.progress = progress
        self.files: RunFiles | None = None
        self.step = 0
        self.status = ""
        self.remarks = self._remarks()
        self.ending: list[str] = []

    def _remarks(self) -> list[str]:
        remarks, available = [], self.problem.train.size
        if self.batch_size < self.options.batch_size:
            remarks.append(
                f"batch_size={self.options.batch_size} is larger than the {available} training "
                "examples; every step uses all of them"
            )
        epochs = range(math.ceil(self.epochs.at(self.total)))
        if any(self.minibatches.leaves_one_out(epoch) for epoch in epochs):
            remarks.append(
                f"{'an epoch' if self.options.batch_schedule else 'each epoch'} leaves out a last "
                "minibatch of one example, which batch normalisation cannot use"
            )
        if self.evaluator.measured < available:
            remarks.append(
                f"train loss and accuracy are those of {self.evaluator.measured} of {available} "
                "examples"
            )
        return remarks

    def go(self, stop: Callable[[], bool] | None) -> None:
        """Step to the end, whatever it is, and leave the model as `train` returns it."""
        if self.progress is not None:
            self.progress.begin(self.options.label, step=self.step, total=self.total)
        if self.recorder.is_empty:
            self.rates.set(0)
            self._evaluate(float("nan"))
        while not self.status and self.step < self.total:
            if stop is not None and stop():
                self._end("interrupted", f"interrupted after {self._where()}")
                break
            gradient_norm = self._advance()
            if self.status or self.step == self.total or self.evaluations.due(self.step):
                self._evaluate(gradient_norm())
            if self.files is not None and self.files.due(self.step):
                self.files.write(self.problem.model, self.step, self.state_dict())
        if not self.status:
            self.status = "finished"
        if self.files is not None:
            self.files.write(self.problem.model, self.step, self.state_dict())
        if self.best is not None and self.status != "interrupted":
            self._return_to(self.best)
        if self.files is not None:
            self.files.finish(self.problem.model, self.step)
        if self.progress is not None:
            self.progress.end(self.status, "; ".join(self.ending))

    def _advance(self) -> Callable[[], float]:
        """Take one optimizer step; returns what gives the norm of its gradient."""
        with self.clock.running():
            self.rates.set(self.step)
            objective = self.problem.objective(self.minibatches.next())
            loss, gradient_norm = step(
                self.optimizer, objective, self.options.clipping, self.parameters
            )
        self.step += 1
        self.recorder.add_loss(loss)
        self._check(loss, "minibatch loss", bounded=True)
        if self.progress is not None:
            self.progress.step(self.step, loss=loss)
        return gradient_norm

    def _evaluate(self, gradient_norm: float) -> None:
        """Measure the model, and see what follows from that."""
        row = self._measure(gradient_norm)
        loss = row["train_loss"]
        self._check(loss, "train loss", bounded=not uses_batch_statistics(self.problem.model))
        if self.best is not None:
            self.best.observe(self.step, row)
            if self.best.exhausted and not self.status and self.step < self.total:
                self._end(
                    "early-stopped",
                    f"stopped after {self._where()}: no better validation "
                    f"{self.best.config.measure} in {self.best.waited} evaluations",
                )
        if self.files is not None:
            self.files.snapshots.take(self.step)

    def _measure(self, gradient_norm: float) -> dict[str, float]:
        """Add a row to the record."""
        row = {
            **self.evaluator(),
            "epoch": self.epochs.at(self.step),
            "seconds": self.clock.seconds,
            "gradient_norm": gradient_norm,
            "learning_rate": self.rates.current(),
            "batch_size": self.minibatches.batch_size(int(self.epochs.at(max(self.step - 1, 0)))),
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
        return f"step {self.step} of {self.total} (epoch {self.epochs.at(self.step):.4g})"

    def resume(self) -> None:
        """Claim the place on disk and take up the run that is saved there, if there is one."""
        if self.options.checkpoint is None:
            return
        self.files = RunFiles(
            self.options.checkpoint, self.problem.space, self.epochs, self._fixed_settings()
        )
        state = self.files.restore(self.problem.model, self.optimizer, longest=self.total)
        if state is not None:
            self.load_state_dict(state)
            self.files.take_up(state)
            # Last, so that nothing above can have moved it.
            set_random_state(self.problem.space.device, state["random"])

    def _fixed_settings(self) -> dict[str, Any]:
        """The settings that a resumed run must share with the saved one, by names users know."""
        options, kind = self.options, type(self.optimizer)
        return {
            "optimizer": f"{kind.__module__}.{kind.__qualname__}",
            "optimizer's options": _plain(self.optimizer.defaults),
            "number of training examples": self.problem.train.size,
            "batch_size": self.batch_size,
            "batch_schedule": repr(options.batch_schedule),
            "schedule": repr(options.schedule),
            "augmentation": "" if options.augment is None else type(options.augment).__qualname__,
            "clipping": repr(options.clipping),
            "early_stopping": repr(options.early_stopping),
            "evaluate_every": float(options.evaluate_every),
            "evaluate_train_limit": options.evaluate_train_limit,
            "seed": options.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything the run goes on from, except for the model."""
        # A finished or interrupted run may go on; one that stopped by itself has ended.
        ended = self.status in ("early-stopped", "diverged")
        return {
            "status": self.status if ended else "",
            "ending": list(self.ending) if ended else [],
            "seconds": self.clock.seconds,
            "optimizer": self.optimizer.state_dict(),
            "rates": self.rates.state_dict(),
            "order": self.minibatches.state_dict(),
            "recorder": self.recorder.state_dict(),
            "best": None if self.best is None else self.best.state_dict(),
            "random": random_state(self.problem.space.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the run up where it was saved; model and optimizer are there already."""
        self.step = state["step"]
        self.status, self.ending = state["status"], list(state["ending"])
        self.clock.seconds = state["seconds"]
        self.rates.load_state_dict(state["rates"])
        self.minibatches.load_state_dict(state["order"])
        self.recorder.load_state_dict(state["recorder"])
        if self.best is not None:
            self.best.load_state_dict(state["best"])


def _trainable_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """List the model's trainable parameters; refuse an optimizer that has been given others."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    own = {id(p) for p in parameters}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = sum(id(p) not in own for p in held if p.requires_grad)
    if strangers:
        raise ValueError(
            f"{strangers} of the {len(held)} tensors in the optimizer are not trainable parameters "
            "of the problem's model; make the optimizer over problem.model.parameters()"
        )
    return parameters


def _plain(options: dict[str, object]) -> str:
    """Write the options of an optimizer that read the same in another process."""
    kinds = (bool, int, float, str, tuple, type(None))
    return ", ".join(f"{k}={v!r}" for k, v in sorted(options.items()) if isinstance(v, kinds))
