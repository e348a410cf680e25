"""Section 8.1: what learning minimises, the surrogate loss, minibatches."""

import dataclasses
import time
from typing import Any

import numpy as np
import torch

from kobai import seeds
from kobai.curvature import Fisher
from kobai.problem import Batch, Problem
from kobai.problem.examples import TensorExamples
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import (
    classifier,
    endless,
    level,
    per_step,
    pictures,
)
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import EarlyStopping, GeometricBatch, Schedule, train


def empirical_risk(config: Config) -> FigureOutcome:
    """Training and test risk of networks on few examples, and the 0/1 loss along a line."""
    splits = pictures(config, limit=150)
    epochs = config.pick(40, 80)
    histories, lines, flat = [], [], []
    t = np.linspace(0, 0.6, config.pick(200, 400))
    for seed in config.seeds:
        problem = classifier(splits, (64,), seed=seed, model=config.model)
        histories.append(
            train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.2, momentum=0.9),
                  generator=seeds.generator(seed, "order"), epochs=epochs, batch_size=30)
        )  # fmt: skip
        # The 0/1 loss along a line has no slope: it changes in jumps.
        line = classifier(splits, (16,), seed=seed, dtype=torch.float64, model=config.model)
        objective, theta = line.objective(), line.space.theta()
        direction = objective.grad(theta)
        rows = [objective.metrics(theta - float(a) * direction) for a in t]
        lines.append(rows)
        flat.append(float((np.diff([row["accuracy"] for row in rows]) == 0).mean()))
    last = [float(h.train_loss[-1]) for h in histories]
    gap = [float(h.test_loss[-1] - h.train_loss[-1]) for h in histories]
    over = [float(h.test_loss.min() / h.test_loss[-1]) for h in histories]
    longest = max(histories, key=lambda h: len(h.epoch)).epoch
    first = lines[0]
    return FigureOutcome(
        results={
            "risk": Panels(
                label="8.1.1", title="The risk one has and the risk one wants", columns=2,
                panels=(
                    Panel(title=f"150 examples, mean of {len(gap)} networks", x_label="epoch",
                          log_y=True, y_label="negative log-likelihood",
                          series=tuple(
                              Series(label=name, x=longest,
                                     y=level([h_of(h) for h in histories]).mean(0))
                              for name, h_of in (("training", lambda h: h.train_loss),
                                                 ("test", lambda h: h.test_loss)))),
                    Panel(title="along the negative gradient", x_label="step length",
                          y_label="0/1 loss · NLL / NLL at 0",
                          series=(Series(label="0/1 loss", x=t,
                                         y=np.array([1 - row["accuracy"] for row in first])),
                                  Series(label="surrogate", x=t, y=np.array(
                                      [row["loss"] for row in first]) / first[0]["loss"]))),
                ),
            )
        },
        findings=[
            mean_of("8.1.1-overfit", "test loss minus training loss at the end", gap),
            mean_of("8.1.1-overfit", "least test loss over the last one", over),
            mean_of("8.1.1-flat", "share of small steps that leave the 0/1 loss alone", flat),
        ],
        verdicts=[
            judge("8.1.1-overfit", all(g > 5 * n for g, n in zip(gap, last, strict=True)),
                  because=f"training loss {np.mean(last):.4f}, test loss "
                  f"{np.mean(gap) + np.mean(last):.3f} at the end of {len(gap)} runs"),
            judge("8.1.1-flat", min(flat) > 0.5,
                  because=f"{100 * np.mean(flat):.0f} % of {len(t) - 1} small steps change it by "
                  "exactly 0: its derivative is 0 or does not exist"),
        ],
        note=f"{config.data}; {len(gap)} seeds, the line of the first one is shown.",
    )  # fmt: skip


def surrogate(config: Config) -> FigureOutcome:
    """The 0/1 loss of training at zero while that of the test still falls; early stopping."""
    splits = pictures(config, limit=400 if config.data == "digits" else 1000)
    epochs, zero, later, stopped = config.pick(40, 100), [], [], []
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    x = np.arange(0)
    for seed in config.seeds:
        problem = classifier(splits, (64,), seed=seed, model=config.model)
        history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.05),
                        generator=seeds.generator(seed, "order"), epochs=epochs,
                        batch_size=32)  # fmt: skip
        train_error, test_error = 1 - history.train_accuracy, 1 - history.test_accuracy
        first = (
            int(np.argmax(train_error == 0)) if (train_error == 0).any() else len(test_error) - 1
        )
        zero.append(float(test_error[first]))
        later.append(float(test_error[first:][-5:].mean()))
        curves.append((train_error, test_error))
        x = max(x, history.epoch, key=len)
    for seed in config.seeds:
        problem = classifier(splits, (64,), seed=seed, model=config.model)
        assert problem.test is not None
        whole = problem.examples("test").first(problem.test.size)
        half = whole.size // 2
        problem.validation = TensorExamples(whole.take(slice(0, half)))
        history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.2, momentum=0.9),
                        generator=seeds.generator(seed, "order"), epochs=epochs, batch_size=32,
                        early_stopping=EarlyStopping(patience=5))  # fmt: skip
        stopped.append(float(history.epoch[-1]))
    mean_train, mean_test = (level([c[i] for c in curves]).mean(0) for i in (0, 1))
    fall = np.array(zero) - np.array(later)
    error = fall.std(ddof=1) / len(fall) ** 0.5
    return FigureOutcome(
        results={
            "surrogate": Panels(
                label="8.1.2", title="The 0/1 loss on the way", panels=(
                    Panel(title=f"mean of {len(curves)} networks", x_label="epoch",
                          y_label="0/1 loss", percent=True, log_x=False,
                          series=(Series(label="training", x=x, y=mean_train),
                                  Series(label="test", x=x, y=mean_test))),
                ),
            )
        },
        findings=[
            mean_of("8.1.2-falls", "test 0/1 loss where the training one reaches 0", zero),
            mean_of("8.1.2-falls", "test 0/1 loss at the end", later),
            mean_of("8.1.2-stop", "epoch at which early stopping ends a run", stopped),
        ],
        verdicts=[
            judge("8.1.2-falls", float(fall.mean()) > 2 * error, float(fall.mean()) > 0,
                  because=f"it falls by {100 * fall.mean():.2f} ± {100 * error:.2f} points after "
                  f"the training 0/1 loss is 0 ({len(fall)} seeds)"),
            judge("8.1.2-stop", max(stopped) < epochs,
                  because=f"after {np.mean(stopped):.0f} of {epochs} epochs, judged by the "
                  "validation loss while the training loss still falls"),
        ],
        note=f"{config.data}, {len(splits.train[0])} examples, {config.model or 'width 64'}. For "
        "early stopping half of the test split serves as validation.",
    )  # fmt: skip


def minibatches(config: Config) -> FigureOutcome:
    """Error, cost and curvature of minibatch estimates; order of the data; critical batch sizes."""
    splits = pictures(config)
    # Its exact Fisher matrix is inverted, so it stays small whatever network the user brings.
    problem = classifier(splits, (8,), seed=config.seed, dtype=torch.float64, activation="tanh")
    per_step(problem, torch.optim.SGD(problem.model.parameters(), lr=0.1), 60, 64,
             lambda step, objective: None,
             generator=seeds.generator(config.seed, "order"))  # fmt: skip
    draw = seeds.generator(config.seed, "batches")
    data = problem.train.first(problem.train.size)
    whole, theta = problem.objective(), problem.space.theta()
    exact = whole.grad(theta)
    rows = _gradients(problem, data, theta)
    sigma = float(rows.var(0, correction=0).sum())
    sizes = (1, 4, 16, 64, 256, 1024)
    repeats = config.pick(40, 100)
    first, second = [], []
    damping = 1e-3
    # Newton-like directions from the batch's own curvature, against the whole's.
    fisher = Fisher(whole, labels="exact", structure="full")
    best = fisher.solve(exact, damping=damping)
    for size in sizes:
        chosen = [torch.randint(len(rows), (size,), generator=draw) for _ in range(repeats)]
        first.append([float((rows[i].mean(0) - exact).norm() / exact.norm()) for i in chosen])
        apart = []
        for index in chosen[: config.pick(2, 4)]:
            batch = problem.objective(data.take(index))
            own = Fisher(batch, labels="exact", structure="full")
            step = own.solve(batch.grad(theta), damping=damping)
            apart.append(float((step - best).norm() / best.norm()))
        second.append(apart)
    x = np.array(sizes, dtype=float)
    measured = np.array([np.mean(np.square(v)) ** 0.5 for v in first])
    theory = np.sqrt(sigma / x) / float(exact.norm())
    simple = sigma / float(exact @ exact)
    # The same in the metric of the damped Fisher: tr(F⁻¹Σ) / gᵀF⁻¹g.
    centred = rows - rows.mean(0)
    some = centred[torch.randperm(len(rows), generator=draw)[: config.pick(20, 150)]]
    noise = float(np.mean([float(r @ fisher.solve(r, damping=damping)) for r in some]))
    natural = noise / float(exact @ best)
    timed = classifier(splits, (8,), seed=config.seed, dtype=torch.float64, activation="tanh",
                       model=config.model)  # fmt: skip
    seconds, memory = _throughput(timed, timed.train.first(timed.train.size), sizes)
    order, ends = _order(config)
    apart_order = np.array(ends["sorted by class"]) - np.array(ends["shuffled once"])
    order_error = apart_order.std(ddof=1) / len(apart_order) ** 0.5
    growth, grown = _growing(config)
    small, large = _regularisation(config)
    gain = np.array(small) - np.array(large)
    error = gain.std(ddof=1) / len(gain) ** 0.5
    needs = {
        name: float(np.interp(-0.5, -np.array(v), x)) if min(v) < 0.5 else float("nan")
        for name, v in (("gradient", measured), ("step", np.array([np.mean(a) for a in second])))
    }
    slope = float(np.polyfit(np.log(x), np.log(measured), 1)[0])
    return FigureOutcome(
        results={
            "batches": Panels(
                label="8.1.3", title="What a larger minibatch buys", columns=2,
                panels=(
                    Panel(title="relative error of the estimate", x_label="batch size m",
                          y_label="relative error", log_x=True, log_y=True,
                          series=(Series(label="gradient", x=x, y=measured, kind="both"),
                                  Series(label="second-order step", x=x, kind="both",
                                         y=np.array([np.mean(a) for a in second])),
                                  Series(label="√(tr Σ / m) / ‖g‖", x=x, y=theory,
                                         kind="theory"))),
                    Panel(title="examples a second", x_label="batch size m", log_x=True,
                          log_y=True, y_label="examples / s",
                          series=(Series(label="throughput", x=x, y=x / seconds, kind="both"),)),
                    Panel(title="memory of a gradient", x_label="batch size m", log_x=True,
                          log_y=True, y_label="saved activations (KiB)",
                          series=(Series(label="memory", x=x, y=memory / 1024, kind="both"),)),
                    Panel(title="order of the examples", x_label="epoch", y_label="training loss",
                          log_y=True, series=order),
                ),
            ),
            "growing": growth,
        },
        findings=[
            Finding(claim="8.1.3-root", what="slope of log error over log m", measured=slope,
                    predicted=-0.5),
            Finding(claim="8.1.3-second", what="batch for a gradient within 50 %",
                    measured=needs["gradient"]),
            Finding(claim="8.1.3-second", what="batch for a second-order step within 50 % (damping "
                    f"{damping:g})", measured=needs["step"]),
            Finding(claim="8.1.3-root", what="critical batch size tr Σ / ‖g‖²", measured=simple),
            Finding(claim="8.1.3-root", what="critical batch size in the Fisher metric, "
                    "tr(F⁻¹Σ) / gᵀF⁻¹g", measured=natural),
            Finding(claim="8.1.3-parallel", what="throughput at m = 1024 over that at m = 1",
                    measured=float(1024 / seconds[-1] * seconds[0])),
            Finding(claim="8.1.3-parallel", what="memory at m = 1024 over that at m = 1",
                    measured=float(memory[-1] / memory[0]), predicted=1024.0),
            mean_of("8.1.3-regular", "test accuracy, batch 8", small),
            mean_of("8.1.3-regular", "test accuracy, full batch", large),
            *(mean_of("8.1.3-order", f"training loss after the run, {n}", v)
              for n, v in ends.items()),
            *(mean_of("", f"{what}, {n}", v) for what, row in grown.items()
              for n, v in row.items()),
        ],
        verdicts=[
            judge("8.1.3-root", abs(slope + 0.5) < 0.05,
                  because=f"the error falls as m^{slope:.3f}: 100 times the examples for a tenth"),
            judge("8.1.3-parallel", seconds[-1] < 1024 * seconds[0] / 10, memory[-1] > memory[0],
                  because=f"{1024 / seconds[-1] * seconds[0]:.0f} times the examples a second at "
                  f"1024, {memory[-1] / memory[0]:.0f} times the memory"),
            judge("8.1.3-second", bool(np.mean(second[2]) > measured[2]),
                  bool(np.mean(second[3]) > measured[3]),
                  because=f"at m = 64 the gradient is off by {100 * measured[3]:.0f} %, the "
                  f"second-order step by {100 * np.mean(second[3]):.0f} %"),
            judge("8.1.3-regular", gain.mean() > 2 * error, gain.mean() > 0,
                  because=f"test accuracy {100 * np.mean(small):.1f} % with batches of 8, "
                  f"{100 * np.mean(large):.1f} % with the full batch, both at training loss below "
                  f"0.02 or the end of the budget: {100 * gain.mean():.2f} ± {100 * error:.2f} "
                  f"points over {len(gain)} seeds"),
            judge("8.1.3-order", apart_order.mean() > 2 * order_error,
                  because="training loss after the run "
                  + ", ".join(f"{np.mean(v):.3f} {n}" for n, v in ends.items())
                  + f": {apart_order.mean():.3f} ± {order_error:.3f} apart over "
                  f"{len(apart_order)} seeds"),
        ],
        note=f"{config.data}, tanh network of width 8, after 60 steps; times are of this machine. "
        f"Errors of estimates: one network, {repeats} batches of each size.",
    )  # fmt: skip


def _gradients(problem: Problem, data: Batch, theta: torch.Tensor) -> torch.Tensor:
    """(N, P) gradients of single examples."""
    space, model, likelihood = problem.space, problem.model, problem.likelihood

    def loss(point: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, space.unflatten(point), (x[None],))
        return likelihood.nll(out, y[None]).sum()

    inputs: Any = data.inputs
    return torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(theta, inputs, data.targets)


def _throughput(
    problem: Problem, data: Batch, sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    seconds, memory = [], []
    for size in sizes:
        objective = problem.objective(data.take(torch.arange(size) % data.size))
        objective()
        began = time.process_time()
        count = 0
        while count < 3 or time.process_time() - began < 0.05:
            objective()
            count += 1
        seconds.append((time.process_time() - began) / count)
        seen: dict[int, int] = {}

        def keep(t: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            problem.model(next(iter(objective.batches)).inputs)
        own = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}
        memory.append(sum(n for pointer, n in seen.items() if pointer not in own))
    return np.array(seconds), np.array(memory, dtype=float)


def _order(config: Config) -> tuple[tuple[Series, ...], dict[str, list[float]]]:
    """Loss by epoch with the examples sorted by class, and shuffled once."""
    splits = pictures(config)
    made: list[Series] = []
    ends: dict[str, list[float]] = {"sorted by class": [], "shuffled once": []}
    for label, found in ends.items():
        curves = []
        for seed in config.seeds[:3]:
            problem = classifier(splits, (32,), seed=seed, model=config.model)
            data = problem.train.first(problem.train.size)
            order = (
                torch.argsort(data.targets, stable=True)
                if label.startswith("sorted")
                else torch.randperm(data.size, generator=seeds.generator(seed, "once"))
            )
            data = data.take(order)
            optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
            whole = problem.objective()
            losses = [float(whole.value(whole.theta()))]
            for _ in range(config.pick(4, 8)):
                for batch in data.chunks(32):
                    optimizer.step(problem.objective(batch))  # pyright: ignore
                losses.append(float(whole.value(whole.theta())))
            curves.append(losses)
            found.append(losses[-1])
        made.append(Series(label=label, x=np.arange(len(curves[0]), dtype=float),
                           y=np.mean(curves, axis=0), kind="both"))  # fmt: skip
    return tuple(made), ends


def _growing(config: Config) -> tuple[Panels, dict[str, dict[str, list[float]]]]:
    """A batch that doubles every other epoch, against constant ones and a falling rate."""
    splits, epochs, rate = pictures(config), config.pick(6, 10), 0.3
    plans: dict[str, dict[str, Any]] = {
        "batch 8": {},
        "batch 8, rate halved every 2 epochs": {"schedule": _Halving(epochs=epochs)},
        "batch doubled every 2 epochs": {"batch_schedule": GeometricBatch(every=2)},
    }
    losses: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    by_epoch, sizes = [], []
    for name, plan in plans.items():
        runs = []
        for seed in config.seeds[:3]:
            problem = classifier(splits, (32,), seed=seed, model=config.model)
            runs.append(
                train(problem, torch.optim.SGD(problem.model.parameters(), lr=rate), epochs=epochs,
                      batch_size=8, generator=seeds.generator(seed, "order"), **plan)
            )  # fmt: skip
        losses[name] = [float(h.test_loss[-1]) for h in runs]
        steps[name] = [float(h.step[-1]) for h in runs]
        x = max((h.epoch for h in runs), key=len)
        mean = level([h.test_loss for h in runs]).mean(0)
        by_epoch.append(Series(label=name, x=x, y=mean, kind="both"))
        size = max((h.batch_size for h in runs), key=len)
        sizes.append(Series(label=name, x=x, y=size, kind="both"))
    panels = (
        Panel(title=f"mean of {len(losses['batch 8'])} networks, first rate {rate:g}",
              x_label="epoch", y_label="test loss", log_y=True, series=tuple(by_epoch)),
        Panel(title="batch size in force", x_label="epoch", y_label="examples", log_y=True,
              series=tuple(sizes)),
    )  # fmt: skip
    shown = Panels(
        label="8.1.3", title="Batches that grow", panels=panels, columns=2,
        note="A larger batch and a smaller rate both quiet the noise at the end of a run; growing "
        "the batch does it in fewer steps: " + ", ".join(
            f"{np.mean(v):.0f} ({n})" for n, v in steps.items()) + ".",
    )  # fmt: skip
    return shown, {"test loss at the end": losses, "optimizer steps": steps}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Halving(Schedule):
    """The rate halved every other epoch of a run of so many."""

    epochs: int

    def factor(self, step: int, *, total: int) -> float:
        """2^−⌊epoch / 2⌋."""
        return 0.5 ** (step * self.epochs // total // 2)


def _regularisation(config: Config) -> tuple[list[float], list[float]]:
    splits = pictures(config, limit=150)
    found: dict[int, list[float]] = {8: [], 150: []}
    for size, ends in found.items():
        for seed in config.seeds:
            problem = classifier(splits, (64,), seed=seed, model=config.model)
            optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
            batches = endless(problem, size, generator=seeds.generator(seed, "order"))
            whole = problem.objective()
            for step in range(config.pick(300, 1500)):
                optimizer.step(problem.objective(next(batches)))  # pyright: ignore
                if step % 25 == 0 and float(whole.value(whole.theta())) < 0.02:
                    break
            ends.append(problem.objective(split="test").metrics()["accuracy"])
    return found[8], found[150]


PAGES = (
    Page(
        name="8.1.1",
        title="Empirical risk minimisation",
        question="Learning wants a small loss on data it has not seen; all it can compute is the "
        "mean over the data it has. How far apart are the two?",
        claims={
            "8.1.1-overfit": "minimising the empirical risk overfits",
            "8.1.1-flat": "losses such as the 0/1 loss have no useful derivative",
        },
        make=empirical_risk,
        code="""
            from kobai import Problem, models, seeds
            from kobai.data import load

            splits = load("digits", limit=100)
            model = models.build("mlp", input_shape=splits.input_shape, num_outputs=10,
                                 generator=seeds.generator(0, "init"))
            problem = Problem(model, "categorical", train=splits.train, test=splits.test)
            print("training", problem.objective().metrics())
            print("test    ", problem.objective(split="test").metrics())
        """,
    ),
    Page(
        name="8.1.2",
        title="Surrogate losses and early stopping",
        question="The negative log-likelihood stands in for the 0/1 loss. Does it go on learning "
        "when no training example is wrong any more, and when should one stop?",
        claims={
            "8.1.2-falls": "the test 0/1 loss can go on falling after the training 0/1 loss is 0",
            "8.1.2-stop": "training ends by early stopping, not at a minimum of the surrogate",
        },
        make=surrogate,
        code="""
            import torch
            from kobai import Problem, models, seeds
            from kobai.data import load
            from kobai.training import EarlyStopping, GeometricBatch, Schedule, train

            splits = load("digits", limit=200)
            model = models.build("mlp", input_shape=splits.input_shape, num_outputs=10,
                                 generator=seeds.generator(0, "init"))
            problem = Problem(model, "categorical", train=splits.train, validation=0.25,
                              generator=seeds.generator(0, "split"))
            history = train(problem, torch.optim.Adam(model.parameters(), lr=0.01), epochs=60,
                            batch_size=25, early_stopping=EarlyStopping(patience=3),
                            generator=seeds.generator(0, "order"))
            print(history.status, "after", history.epoch[-1], "epochs")
        """,
    ),
    Page(
        name="8.1.3",
        title="Batches and minibatches",
        question="How good is a gradient from m examples, what does it cost, and when is a larger "
        "batch a waste?",
        claims={
            "8.1.3-root": "the error of the gradient falls as 1/√m, less than linearly",
            "8.1.3-parallel": "small batches leave the hardware idle; memory grows with the batch",
            "8.1.3-second": "second-order updates need larger batches",
            "8.1.3-regular": "small batches regularise",
            "8.1.3-order": "examples must come in random order; shuffling once is enough",
        },
        make=minibatches,
        code="""
            import torch
            from kobai import Problem, models, seeds
            from kobai.data import load

            splits = load("digits", limit=500)
            model = models.build(models.MLPConfig(widths=(16,)), input_shape=splits.input_shape,
                                 num_outputs=10, generator=seeds.generator(0, "init"))
            problem = Problem(model, "categorical", train=splits.train)
            theta, exact = problem.space.theta(), problem.objective().grad(problem.space.theta())
            for size in (5, 50, 500):
                batch = next(problem.minibatches(size, generator=seeds.generator(0, "order")))
                error = (problem.objective(batch).grad(theta) - exact).norm() / exact.norm()
                print(f"batch of {size}: relative error {float(error):.3f}")
        """,
    ),
)
