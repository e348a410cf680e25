"""Several trials trained as one computation: equal to training them one by one, up to rounding.

All trials of a batch have the same network, data order and number of steps, and differ in learning
rate, momentum, damping, weight decay and schedule. What a single run does is done here to a stack.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kobai import seeds
from kobai.optim import OPTIMIZERS
from kobai.optim.domains import Value
from kobai.problem import Problem
from kobai.problem.examples import TensorExamples
from kobai.studies.linear_stack import LinearStack
from kobai.studies.stacked import Gradient, Stack, design_of, matrices_of
from kobai.studies.stacked_kfac import Networks, StackedKFAC, column
from kobai.studies.trial import Task, TrialOutcome, run_trial
from kobai.training.epochs import EpochCounter, Timetable
from kobai.training.loop import DIVERGED

_FIXED = ("training.epochs", "training.batch_size", "training.evaluate_every")


def reason_not_to_batch(task: Task, searched: Sequence[str]) -> str:
    """Say why trials of a task cannot be trained together; empty if they can.

    Args:
        task: What the trials have in common.
        searched: Names of the hyperparameters they differ in.
    """
    if task.entry not in [OPTIMIZERS[name] for name in ("sgd", "momentum", "kfac")]:
        return f"{task.entry.name} has no stacked form; sgd, momentum and kfac have"
    fixed = [name for name in searched if name.startswith("training.")]
    if fixed:
        return f"{fixed[0]} changes the steps themselves"
    options = task.training
    if options.clip_norm is not None or options.clip_value is not None:
        return "gradients are clipped"
    if options.patience is not None:
        return "runs stop early by themselves"
    if task.entry.name == "kfac":
        config = task.config
        automatic = [f for f in ("lr", "damping") if getattr(config, f) == "auto"]
        missing = [f for f in automatic if f not in searched]
        if missing:
            return f"kfac's {missing[0]} is automatic"
        if config.labels != "sampled":
            return f"kfac's labels are {config.labels}"
        if "auto" in (config.statistics_every, config.inverse_every):
            return "kfac's statistics or inverses are renewed as they grow stale"
        if config.nesterov:
            return "kfac's momentum is Nesterov's"
        whole = {"statistics_every", "inverse_every", "labels", "output_damping"}
        mixed = sorted(whole & set(searched))
        if mixed:
            return f"{mixed[0]} changes the steps themselves"
    problem = task.setting.problem(task.seeds[0])
    if not isinstance(problem.train, TensorExamples):
        return "the data are streamed"
    found = design_of(problem.model)
    return found if isinstance(found, str) else ""


def run_batched(
    task: Task,
    values: Sequence[Mapping[str, Value]],
    *,
    stop: Callable[[], bool] | None = None,
) -> list[TrialOutcome]:
    """Train several settings of a task at once, with every seed of it.

    Args:
        task: What they have in common; `reason_not_to_batch` must be empty.
        values: Hyperparameters of each.
        stop: Asked before every step; when true all are ``interrupted``.

    Returns:
        One outcome each, as `run_trial` gives. A trial's share of the time is an equal one.

    Raises:
        ValueError: If the task does not allow it, or a value is out of its range.
    """
    reason = reason_not_to_batch(task, sorted({name for one in values for name in one}))
    if reason:
        raise ValueError(f"these trials cannot be trained together: {reason}")
    settings = [task.configured(one) for one in values]
    parts: list[list[_Run]] = []
    for seed in task.seeds:
        parts.append(_train(task, settings, seed, stop))
        if parts[-1][0].state == "interrupted":
            break
    return [_joined(task, [part[i] for part in parts]) for i in range(len(values))]


def run_trials(
    task: Task,
    values: Sequence[Mapping[str, Value]],
    *,
    stop: Callable[[], bool] | None = None,
) -> list[TrialOutcome]:
    """Train several settings of a task: as one computation where the task allows it, else in turn.

    Args:
        task: What they have in common.
        values: Hyperparameters of each.
        stop: Asked before every step; what is left then is ``interrupted``.

    Returns:
        One outcome each.
    """
    if reason_not_to_batch(task, sorted({name for one in values for name in one})):
        return [run_trial(task, one, stop=stop) for one in values]
    return run_batched(task, values, stop=stop)


@dataclasses.dataclass
class _Run:
    """One trial with one seed."""

    state: str = "finished"
    note: str = ""
    seconds: float = 0.0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    epochs: list[float] = dataclasses.field(default_factory=list)


class _Rule(Protocol):
    """How a stack moves; `step` is told gradients, and the pass for statistics."""

    def step(self, stack: Networks, run: Any, gradients: list[Gradient], factor: Tensor) -> None:
        """Make one step; `factor` (T,) multiplies the learning rates."""
        ...


def _train(
    task: Task, settings: Sequence[Any], seed: int, stop: Callable[[], bool] | None
) -> list[_Run]:
    problem = task.setting.problem(seed)
    design = design_of(problem.model)
    assert not isinstance(design, str)
    count = len(settings)
    weights = [m.repeat(count, 1, 1) for m in matrices_of(problem.model)]
    # A linear network's gradients have the rank of its outputs.
    linear = design.activation is nn.Identity
    stack = LinearStack(design, weights) if linear else Stack(design, weights)
    options = settings[0][2]
    size = min(options.batch_size, problem.train.size)
    steps_per_epoch = math.ceil(problem.train.size / size)
    total = max(1, round(options.epochs * steps_per_epoch))
    configs = [config for config, _, _ in settings]
    rule: _Rule = (
        StackedKFAC(problem, configs, stack, seed)
        if task.entry.name == "kfac"
        else _Momentum(configs, stack)
    )
    evaluations = Timetable(EpochCounter(lambda _: steps_per_epoch), every=options.evaluate_every)
    runs = [_Run() for _ in settings]
    evaluate = _Evaluator(problem, options.evaluate_train_limit)
    _record(runs, evaluate(stack), 0.0)
    order = seeds.generator(seed, "shuffle")
    first: Tensor | None = None
    began, done = time.process_time(), 0
    while done < total:
        for batch in problem.minibatches(size, generator=order):
            if stop is not None and stop():
                for run in runs:
                    run.state = "interrupted"
                return runs
            if done == total:
                break
            factor = _factors(settings, done, total).to(stack.weights[0])
            loss, run, gradients = _loss_and_gradients(problem, stack, batch)
            rule.step(stack, run, gradients, factor)
            done += 1
            first = loss if first is None else first
            bound = DIVERGED * torch.clamp(first, min=1.0)
            _mark_lost(runs, loss, bound, f"step {done} of {total}", "minibatch loss")
            if done == total or evaluations.due(done):
                elapsed = time.process_time() - began
                rows = evaluate(stack)
                _record(runs, rows, done / steps_per_epoch)
                losses = torch.tensor([row["train_loss"] for row in rows]).to(bound)
                _mark_lost(runs, losses, bound, f"step {done} of {total}", "train loss")
                began = time.process_time() - elapsed
    for one in runs:
        one.seconds = (time.process_time() - began) / count
    return runs


def _loss_and_gradients(problem: Problem, stack: Networks, batch: Any):
    """Losses (T,), the pass, and gradients of the minibatch objective."""
    likelihood = problem.likelihood
    run: Any = stack.forward(batch.inputs.flatten(1))
    count, size, classes = run.outputs.shape
    flat = run.outputs.reshape(count * size, classes)
    targets = batch.targets.repeat(count, *[1] * (batch.targets.ndim - 1))
    weight = likelihood.weight(batch.targets)
    loss = likelihood.nll(flat, targets).view(count, size).sum(1) / weight
    residual = likelihood.residual(flat, targets).view(run.outputs.shape) / weight
    return loss, run, stack.gradients(run, residual)


class _Momentum:
    """torch's SGD with heavy-ball momentum, settings of its own for every network."""

    def __init__(self, configs: Sequence[Any], stack: Networks) -> None:
        self._lr = column(configs, "lr", stack)
        self._momentum = column(configs, "momentum", stack)
        self._decay = column(configs, "weight_decay", stack)
        self._decays = bool((self._decay != 0).any())
        self._buffers = [torch.zeros_like(w) for w in stack.weights]

    def step(self, stack: Networks, run: Any, gradients: list[Gradient], factor: Tensor) -> None:
        del run
        rate = self._lr * factor.view(-1, 1, 1)
        for weight, buffer, gradient in zip(stack.weights, self._buffers, gradients, strict=True):
            gradient.add_to(buffer.mul_(self._momentum))
            if self._decays:
                buffer.addcmul_(self._decay, weight)
            weight.addcmul_(rate, buffer, value=-1)


class _Evaluator:
    """Loss and accuracy of every network on every split."""

    def __init__(self, problem: Problem, limit: int | None) -> None:
        self._likelihood = problem.likelihood
        self._splits = {}
        for name in problem.splits:
            examples = getattr(problem, name)
            batch = next(iter(examples.batches(examples.size)))
            if name == "train" and limit is not None and limit < examples.size:
                index = torch.arange(limit) * examples.size // limit
                batch = batch.take(index.to(batch.targets.device))
            self._splits[name] = batch

    def __call__(self, stack: Networks) -> list[dict[str, float]]:
        """One row a network."""
        count = len(stack.weights[0])
        rows: list[dict[str, float]] = [{} for _ in range(count)]
        for name, batch in self._splits.items():
            loss = torch.zeros(count, dtype=torch.float64)
            right = torch.zeros(count, dtype=torch.float64)
            terms, weight = 0.0, 0.0
            accurate = True
            for piece in batch.chunks(2000):
                outputs = stack.forward(piece.inputs.flatten(1)).outputs
                weight += self._likelihood.weight(piece.targets)
                terms += float(self._likelihood.terms(piece.targets).sum())
                for index, own in enumerate(outputs):
                    loss[index] += float(self._likelihood.nll(own, piece.targets).double().sum())
                    correct = self._likelihood.correct(own, piece.targets)
                    accurate = correct is not None
                    if correct is not None:
                        right[index] += float(correct.sum())
            for index, row in enumerate(rows):
                row[f"{name}_loss"] = float(loss[index]) / weight
                row[f"{name}_accuracy"] = float(right[index]) / terms if accurate else math.nan
        return rows


def _factors(settings: Sequence[Any], step: int, total: int) -> Tensor:
    """What each schedule makes of its learning rate at a step."""
    return torch.tensor(
        [1.0 if s is None else s.factor(step, total=total) for _, s, _ in settings],
        dtype=torch.float64,
    )


def _record(runs: list[_Run], rows: list[dict[str, float]], epoch: float) -> None:
    for run, row in zip(runs, rows, strict=True):
        if run.state == "finished":
            run.rows.append(row)
            run.epochs.append(epoch)


def _mark_lost(runs: list[_Run], loss: Tensor, bound: Tensor, where: str, what: str) -> None:
    lost = ~torch.isfinite(loss) | (loss > bound)
    for index in lost.nonzero().flatten().tolist():
        if runs[index].state == "finished":
            runs[index].state = "diverged"
            runs[index].note = f"stopped after {where}: the {what} is {float(loss[index]):.3g}"


def _joined(task: Task, runs: list[_Run]) -> TrialOutcome:
    """One trial's seeds as its outcome."""
    states = {run.state for run in runs}
    state = next((s for s in ("interrupted", "diverged") if s in states), "finished")
    names = runs[0].rows[-1].keys() if runs[0].rows else ()

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    final = {name: [finite(run.rows[-1][name]) for run in runs] for name in names}
    final = {name: v for name, v in final.items() if any(x is not None for x in v)}
    score = [v for v in final.get(task.metric, []) if v is not None]
    good = state == "finished" and len(score) == len(runs)
    return TrialOutcome(
        state=state if good or state != "finished" else "diverged",
        value=sum(score) / len(score) if good else task.worst,
        final=final,
        seconds=[run.seconds for run in runs],
        epoch=max((run.epochs for run in runs), key=len),
        curve=[[finite(row[task.metric]) for row in run.rows] for run in runs],
        note="; ".join(filter(None, (run.note for run in runs))),
    )
