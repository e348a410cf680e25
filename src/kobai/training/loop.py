"""How θ moves: one training loop for every optimizer."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import nn

from kobai.problem import Problem, evaluation_mode
from kobai.results import History
from kobai.training.batch_sizes import BatchSchedule, ConstantBatch
from kobai.training.checkpoint import Checkpoint
from kobai.training.clipping import Clipping
from kobai.training.epochs import Passes, Plan, run_length
from kobai.training.evaluation import Evaluator
from kobai.training.minibatches import Augment, Order
from kobai.training.progress import Progress
from kobai.training.rates import LearningRates
from kobai.training.recorder import Clock, Recorder
from kobai.training.run import Run
from kobai.training.run_files import Saved
from kobai.training.schedules import Schedule
from kobai.training.strategies.early_stopping import Best, EarlyStopping


def train(
    problem: Problem,
    optimizer: torch.optim.Optimizer,
    *,
    generator: torch.Generator,
    epochs: float | int | None = None,
    steps: int | None = None,
    batch_size: int = 256,
    batch_schedule: BatchSchedule | None = None,
    schedule: Schedule | None = None,
    augment: Augment | None = None,
    clip_norm: float | int | None = None,
    clip_value: float | int | None = None,
    early_stopping: EarlyStopping | None = None,
    evaluate_every: float | int = 1.0,
    evaluate_train_limit: int | None = None,
    label: str = "",
    name: str = "",
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> History:
    """Train a problem's model in place and record the run.

    Every step is ``optimizer.step(objective)`` with the minibatch objective as closure, so that
    first-order, closure-style (`torch.optim.LBFGS`) and curvature-using optimizers all fit; with
    clipping the closure is a bare one. Steps run with every submodule in training mode, evaluations
    in evaluation mode; afterwards each submodule has its own mode back and the gradients are gone.
    The library itself draws only from `generator`; a model with dropout draws from torch's global
    random state, as it does by nature.

    A record is made before the first step, every `evaluate_every` epochs and at the end: loss and
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
        generator: Draws the order of the examples, and what `augment` draws.
        epochs: Passes over the training data, fractions allowed; default 10.
        steps: Optimizer steps, in place of `epochs`.
        batch_size: Examples a minibatch. The last one of an epoch may be smaller; a single last
            example is left out if the model has batch normalisation, and the note says so. A size
            beyond the data set warns and uses all of it.
        batch_schedule: What the batch size becomes, epoch by epoch; None leaves it as it is.
        schedule: Multiplies the learning rates the groups start with, which they have again
            afterwards; None leaves them to the optimizer.
        augment: What every minibatch passes through before its step, such as a
            `SelfPacedAugmentation`; evaluations see the data as they are.
        clip_norm: Bound on the Euclidean norm of the gradient.
        clip_value: Bound on each component of the gradient, applied first.
        early_stopping: Watches the validation split; the model then ends at the best parameters
            (unless interrupted), and a last record measures them again.
        evaluate_every: Epochs between evaluations; less than one step means every step.
        evaluate_train_limit: Evaluate on at most so many training examples, a fixed, evenly spaced
            subset; None means all.
        label: Name of the run.
        name: Name of the optimizer in the record; default: its class in lower case.
        seed: The seed of the run, for the record only.
        checkpoint: Where to save the run, and whether to go on from there; see `Checkpoint`. A
            resumed run ends in the same bits as one that was never interrupted (on the CPU; all but
            the seconds): the global random state is then set to the saved one. All arguments must
            be as before, except that the run may be made longer. Not covered: data sets whose items
            are random, and non-persistent buffers.
        progress: Is told of every step and record; None is silent.
        stop: Asked before every step; when true the run saves itself and returns.

    Returns:
        The record, its status "finished", "early-stopped", "diverged" or "interrupted". Except for
        an interrupted run the last record describes the model as it is left.

    Raises:
        ValueError: If an argument is out of its range, the optimizer belongs to another model,
            early stopping lacks a validation split, or a checkpoint is damaged or of another run.
        TypeError: If an optimizer needs more than a closure, or does not return its loss.
    """
    clipping = Clipping(norm=clip_norm, value=clip_value)
    if early_stopping is not None and problem.validation is None:
        raise ValueError(
            "early stopping needs a validation split: give the problem validation=data or a "
            "fraction of the training data"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not (evaluate_every > 0 and math.isfinite(evaluate_every)):
        raise ValueError(
            f"evaluate_every must be a positive number of epochs, got {evaluate_every}"
        )
    parameters = _trained(problem.model, optimizer)
    remarks: list[str] = []
    available = problem.train.size
    if too_large := batch_size > available:
        remarks.append(
            f"batch_size={batch_size} is larger than the {available} training examples; "
            "every step uses all of them"
        )
        batch_size = available
    sizes = ConstantBatch() if batch_schedule is None else batch_schedule
    order = Order(
        problem,
        lambda epoch: sizes.size(epoch, first=batch_size),
        generator=generator,
        augment=augment,
    )
    passes = Passes(order.length)
    total = run_length(epochs, steps, passes=passes)
    if any(order.leaves_one_out(epoch) for epoch in range(math.ceil(passes.epoch(total)))):
        remarks.append(
            f"{'each epoch' if batch_schedule is None else 'an epoch'} leaves out a last minibatch "
            "of one example, which batch normalisation cannot use"
        )
    plan = Plan(
        passes=passes,
        total=total,
        evaluate_every=float(evaluate_every),
        save_every=None if checkpoint is None else float(checkpoint.every),
    )
    evaluator = Evaluator(problem, train_limit=evaluate_train_limit)
    if evaluator.measured < available:
        remarks.append(
            f"train loss and accuracy are those of {evaluator.measured} of {available} examples"
        )
    run = Run(
        problem=problem,
        optimizer=optimizer,
        parameters=parameters,
        plan=plan,
        order=order,
        rates=LearningRates(optimizer, schedule, total=plan.total),
        clipping=clipping,
        evaluator=evaluator,
        best=None if early_stopping is None else Best(problem.model, early_stopping),
        clock=Clock(problem.space.device),
        recorder=Recorder(),
        progress=progress,
    )
    if too_large:
        warnings.warn(remarks[0], stacklevel=2)
    # What a resumed run must have in common with the one that was saved.
    settings = {
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "optimizer's options": _plain(optimizer.defaults),
        "number of training examples": available,
        "batch_size": batch_size,
        "batch_schedule": repr(batch_schedule),
        "schedule": repr(schedule),
        "augmentation": "" if augment is None else type(augment).__qualname__,
        "clipping": repr(clipping),
        "early_stopping": repr(early_stopping),
        "evaluate_every": plan.evaluate_every,
        "evaluate_train_limit": evaluate_train_limit,
        "seed": seed,
    }
    # Entered for what it does at the end: every submodule gets its own mode back.
    with evaluation_mode(problem.model):
        problem.model.train()
        try:
            run.go(None if checkpoint is None else Saved(run, checkpoint, settings), label, stop)
        finally:
            run.rates.restore()
            problem.model.zero_grad(set_to_none=True)
    return run.recorder.history(
        label=label,
        optimizer=name or type(optimizer).__name__.lower(),
        seed=seed,
        status=run.status,
        note="; ".join([*remarks, *run.ending]),
    )


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The model's trainable parameters, after a look at whether the optimizer knows them."""
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
    """Those of an optimizer's options that read the same in another process."""
    kinds = (bool, int, float, str, tuple, type(None))
    return ", ".join(f"{k}={v!r}" for k, v in sorted(options.items()) if isinstance(v, kinds))
