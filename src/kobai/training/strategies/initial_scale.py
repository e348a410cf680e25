"""The scale of each layer's initial weights: by a look at one minibatch, or by search.

Both start from any initialisation of any model and only multiply weight matrices (parameters with
two axes or more), so that what an initialisation draws keeps its directions.

Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.4.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from kobai.problem import Batch, Problem, call_arguments, evaluation_mode, output_tensor
from kobai.results import Trials
from kobai.training.loop import train

Statistic = Literal["std", "range"]


def weight_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the trainable weight matrices, the parameters whose scales there are to choose."""
    return tuple(n for n, p in model.named_parameters() if p.requires_grad and p.ndim >= 2)


def scale_weights(model: nn.Module, scales: Mapping[str, float]) -> None:
    """Multiply weight matrices in place.

    Args:
        model: The model.
        scales: Name of a weight matrix → positive factor; those left out stay as they are.

    Raises:
        ValueError: If a name is none of `weight_names`, or a factor is not positive and finite.
    """
    known = weight_names(model)
    if unknown := [name for name in scales if name not in known]:
        raise ValueError(f"no trainable weight matrices: {unknown}; there are {', '.join(known)}")
    if wrong := {n: s for n, s in scales.items() if not 0 < s < float("inf")}:
        raise ValueError(f"scales must be positive and finite, got {wrong}")
    with torch.no_grad():
        for name, scale in scales.items():
            model.get_parameter(name).mul_(scale)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Signals:
    """How signals spread through a network on one minibatch.

    Attributes:
        layers: Names of the modules that hold weight matrices, in the order they are called.
        activations: Layer → spread of its outputs over examples and units.
        gradients: Layer → spread of the loss's gradient with respect to them.
    """

    layers: tuple[str, ...]
    activations: dict[str, float]
    gradients: dict[str, float]


def signals(problem: Problem, batch: Batch, *, statistic: Statistic = "std") -> Signals:
    """Measure activations and gradients layer by layer, with the model in evaluation mode.

    Args:
        problem: The model and what its outputs mean.
        batch: One minibatch, of at least two examples.
        statistic: "std" (standard deviation) or "range" (largest minus smallest).

    Raises:
        ValueError: If the statistic is unknown or no layer with weights is called.

    Cost: one gradient of the minibatch.
    """
    if statistic not in ("std", "range"):
        raise ValueError(f"statistic is 'std' or 'range', got {statistic!r}")
    model = problem.model
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            # Recurrent layers return their outputs first, then their states.
            found = output if isinstance(output, Tensor) else output[0]
            seen.setdefault(name, found)

        return keep

    owners = dict.fromkeys(name.rpartition(".")[0] for name in weight_names(model))
    hooks = [model.get_submodule(name).register_forward_hook(watch(name)) for name in owners]
    batch = batch.to(problem.space.device)
    try:
        with evaluation_mode(model), torch.enable_grad():
            args, kwargs = call_arguments(batch)
            outputs = output_tensor(model(*args, **kwargs))
            loss = problem.likelihood.nll(outputs, batch.targets).sum() / batch.size
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError(f"{type(model).__name__} calls no module with weight matrices")
    found = torch.autograd.grad(loss, list(seen.values()), allow_unused=True)

    def spread(values: Tensor | None) -> float:
        if values is None:
            return 0.0
        values = values.detach()
        return float(values.std() if statistic == "std" else values.max() - values.min())

    return Signals(
        layers=tuple(seen),
        activations={name: spread(value) for name, value in seen.items()},
        gradients={n: spread(g) for n, g in zip(seen, found, strict=True)},
    )


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Raised:
    """What `raise_vanishing` did.

    Attributes:
        scales: Weight matrix → the factor its initial values were multiplied by, in all.
        before: Signals at the start.
        after: Signals at the end.
        rounds: Layers raised, counted each time.
        status: "done" (no activation vanishes), "dead" (a layer's outputs stay constant however
            large its weights are) or "max-rounds".
    """

    scales: dict[str, float]
    before: Signals
    after: Signals
    rounds: int
    status: str


def raise_vanishing(
    problem: Problem,
    batch: Batch,
    *,
    least: float = 0.5,
    target: float = 1.0,
    statistic: Statistic = "std",
    max_rounds: int = 200,
) -> Raised:
    """Raise the weights of the first layer whose activations vanish, again and again.

    A minibatch is sent through; the first layer whose outputs spread less than `least` gets its
    weights multiplied so that they would spread by `target` if they were linear in them; and so on
    until no layer is below. Gradients are only looked at: where they vanish although activations do
    not, a search is the next thing to try.

    Args:
        problem: Its model's weights are multiplied in place.
        batch: One minibatch.
        least: Spread below which activations vanish.
        target: Spread to raise them to, at least `least`.
        statistic: See `signals`.
        max_rounds: Most raises.

    Raises:
        ValueError: If a number is out of range.

    Cost: a gradient of the minibatch a round.
    """
    if not 0 < least <= target:
        raise ValueError(f"need 0 < least <= target, got {least} and {target}")
    if max_rounds < 1:
        raise ValueError(f"max_rounds must be at least 1, got {max_rounds}")
    names = weight_names(problem.model)
    scales = dict.fromkeys(names, 1.0)
    before = now = signals(problem, batch, statistic=statistic)
    rounds, status = 0, "max-rounds"
    while rounds < max_rounds:
        small = next((n for n in now.layers if now.activations[n] < least), None)
        if small is None:
            status = "done"
            break
        if not now.activations[small] > 0:
            status = "dead"
            break
        # Several matrices of one layer, as in an LSTM, share the raise; a factor beyond what its
        # outputs answer to, such as a saturated gate's, is bounded and asked for again.
        factor = min(target / now.activations[small], 10.0)
        own = {n: factor for n in names if n.rpartition(".")[0] == small}
        scale_weights(problem.model, own)
        scales |= {n: scales[n] * factor for n in own}
        rounds += 1
        now = signals(problem, batch, statistic=statistic)
    return Raised(scales=scales, before=before, after=now, rounds=rounds, status=status)


def search_initial_scales(
    problem: Problem,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    trials: int = 20,
    steps: int = 50,
    batch_size: int = 64,
    low: float = 0.1,
    high: float = 10.0,
    sampler: Literal["tpe", "random"] = "tpe",
    generator: torch.Generator,
) -> Trials:
    """Treat the scale of each layer's initial weights as a hyperparameter and search it.

    Every trial starts from the model as it is now with each weight matrix multiplied by a factor of
    its own, and trains for a few steps on minibatches that are the same for all trials. The first
    trial leaves the model as it is, so that the search does not end at a worse score. Afterwards
    the model stands at the start of the best trial.

    Args:
        problem: Any model; scored by the validation loss where there is a validation split, else by
            the training loss.
        make: From the model to an optimizer of its parameters; called once a trial.
        trials: How many, the first one included.
        steps: Optimizer steps of each.
        batch_size: Examples a minibatch.
        low: Smallest factor.
        high: Largest factor; factors are searched in their logarithm.
        sampler: "tpe" (tree-structured Parzen estimator) or "random", both Optuna's.
        generator: Draws the factors and the order of the examples.

    Returns:
        The trials: factors by weight matrix, scores (infinite where a run diverged), losses at the
        start and at the end.

    Raises:
        ValueError: If a number is out of range or the sampler unknown.

    Cost: `trials` times `steps` optimizer steps, and two passes over the data a trial.
    """
    # Takes a while to load, and only a search needs it.
    import optuna

    if trials < 1 or steps < 1:
        raise ValueError(f"trials and steps must be at least 1, got {trials} and {steps}")
    if not 0 < low < high < float("inf"):
        raise ValueError(f"need 0 < low < high, got {low} and {high}")
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    if sampler not in samplers:
        raise ValueError(f"sampler is {' or '.join(samplers)}, got {sampler!r}")
    names = weight_names(problem.model)
    seed, order = torch.randint(2**31, (2,), generator=generator).tolist()
    metric = "train_loss" if problem.validation is None else "validation_loss"
    start = {n: v.detach().clone() for n, v in problem.model.state_dict().items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=samplers[sampler](seed=seed))
        study.enqueue_trial(dict.fromkeys(names, 1.0))
        records, tried = [], []
        for _ in range(trials):
            trial = study.ask()
            scales = {n: trial.suggest_float(n, low, high, log=True) for n in names}
            problem.model.load_state_dict(start)
            scale_weights(problem.model, scales)
            record = train(
                problem, make(problem.model), steps=steps, batch_size=batch_size,
                evaluate_every=1e9, generator=torch.Generator().manual_seed(order),
            )  # fmt: skip
            score = float(getattr(record, metric)[-1])
            lost = record.status == "diverged" or not np.isfinite(score)
            records.append(record)
            tried.append((scales, float("inf") if lost else score))
            # What learns from scores needs a number; the largest is worse than any loss.
            study.tell(trial, np.finfo(np.float64).max if lost else score)
    finally:
        optuna.logging.set_verbosity(verbosity)
    value = np.array([score for _, score in tried])
    problem.model.load_state_dict(start)
    if np.isfinite(value).any():
        scale_weights(problem.model, tried[int(value.argmin())][0])
    columns = ("train_loss", "train_accuracy", metric)
    return Trials(
        label="initial scales",
        optimizer=records[0].optimizer,
        metric=metric,
        maximise=False,
        budget=trials,
        number=np.arange(trials),
        state=tuple("finished" if np.isfinite(v) else "diverged" for v in value),
        value=value,
        parameters={n: np.array([scales[n] for scales, _ in tried]) for n in names},
        log=names,
        final={c: np.array([[getattr(r, c)[-1]] for r in records]) for c in columns},
        seconds=np.array([[r.seconds[-1]] for r in records]),
        epoch=np.array([0.0, steps * min(batch_size, problem.train.size) / problem.train.size]),
        curve=np.array([[getattr(r, metric)[[0, -1]]] for r in records]),
        note=f"{steps} steps on batches of {batch_size} from each start",
    )
