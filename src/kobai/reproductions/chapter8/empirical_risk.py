"""Section 8.1: what learning minimises, the surrogate loss, minibatches."""

import time
from typing import Any

import numpy as np
import torch

from kobai import seeds
from kobai.curvature import Fisher
from kobai.problem import Batch, Problem
from kobai.problem.examples import TensorExamples
from kobai.reproductions.chapter8.config import Config
from kobai.reproductions.chapter8.networks import classifier, endless, per_step, pictures
from kobai.reproductions.chapter8.page import Page, judge, mean_of
from kobai.reproductions.figures import Outcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import EarlyStopping, train


def empirical_risk(config: Config) -> Outcome:
    """Training and test risk of networks of growing width on few examples, and the 0/1 loss."""
    splits = pictures(config, limit=150)
    epochs = config.pick(40, 80)
    problem = classifier(splits, (64,), seed=config.seed)
    history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.2, momentum=0.9),
                    generator=seeds.generator(config.seed, "order"), epochs=epochs,
                    batch_size=30)  # fmt: skip
    # The 0/1 loss along a line has no slope: it changes in jumps.
    line = classifier(splits, (16,), seed=config.seed, dtype=torch.float64)
    objective, theta = line.objective(), line.space.theta()
    direction = objective.grad(theta)
    t = np.linspace(0, 0.6, 400)
    rows = [objective.metrics(theta - float(a) * direction) for a in t]
    errors = np.array([1 - row["accuracy"] for row in rows])
    flat = float((np.diff(errors) == 0).mean())
    gap = float(history.test_loss[-1] - history.train_loss[-1])
    return Outcome(
        results={
            "risk": Panels(
                label="8.1.1", title="The risk one has and the risk one wants", columns=2,
                panels=(
                    Panel(title="150 examples, width 64", x_label="epoch", log_y=True,
                          y_label="negative log-likelihood",
                          series=(Series(label="training", x=history.epoch, y=history.train_loss),
                                  Series(label="test", x=history.epoch, y=history.test_loss))),
                    Panel(title="along the negative gradient", x_label="step length",
                          y_label="0/1 loss · NLL / NLL at 0",
                          series=(Series(label="0/1 loss", x=t, y=errors),
                                  Series(label="surrogate", x=t, y=np.array(
                                      [row["loss"] for row in rows]) / rows[0]["loss"]))),
                ),
            )
        },
        findings=[
            Finding(claim="8.1.1-overfit", what="test loss minus training loss at the end",
                    measured=gap),
            Finding(claim="8.1.1-overfit", what="least test loss over the last one",
                    measured=float(history.test_loss.min() / history.test_loss[-1])),
            Finding(claim="8.1.1-flat", what="share of small steps that leave the 0/1 loss alone",
                    measured=flat),
        ],
        verdicts=[
            judge("8.1.1-overfit", gap > 5 * float(history.train_loss[-1]),
                  because=f"training loss {history.train_loss[-1]:.4f}, test loss "
                  f"{history.test_loss[-1]:.3f} (least on the way {history.test_loss.min():.3f})"),
            judge("8.1.1-flat", flat > 0.5, because=f"{100 * flat:.0f} % of 400 small steps change "
                  "it by exactly 0: its derivative is 0 or does not exist"),
        ],
        note=f"{config.data}; one seed.",
    )  # fmt: skip


def surrogate(config: Config) -> Outcome:
    """The 0/1 loss of training at zero while that of the test still falls; early stopping."""
    splits = pictures(config, limit=400 if config.data == "digits" else 1000)
    epochs, zero, later, stopped = config.pick(40, 100), [], [], []
    curves: list[tuple[np.ndarray, np.ndarray]] = []
    x = np.arange(0)
    for seed in config.seeds:
        problem = classifier(splits, (64,), seed=seed)
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
        x = history.epoch
    for seed in config.seeds:
        problem = classifier(splits, (64,), seed=seed)
        assert problem.test is not None
        whole = problem.examples("test").first(problem.test.size)
        half = whole.size // 2
        problem.validation = TensorExamples(whole.take(slice(0, half)))
        history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.2, momentum=0.9),
                        generator=seeds.generator(seed, "order"), epochs=epochs, batch_size=32,
                        early_stopping=EarlyStopping(patience=5))  # fmt: skip
        stopped.append(float(history.epoch[-1]))
    mean_train = np.mean([c[0] for c in curves], axis=0)
    mean_test = np.mean([c[1] for c in curves], axis=0)
    fall = np.array(zero) - np.array(later)
    error = fall.std(ddof=1) / len(fall) ** 0.5
    return Outcome(
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
        note=f"{config.data}, {len(splits.train[0])} examples, width 64. For early stopping half "
        "of the test split serves as validation.",
    )  # fmt: skip


def minibatches(config: Config) -> Outcome:
    """Error, cost and curvature of minibatch estimates; order of the data; critical batch sizes."""
    splits = pictures(config)
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
    seconds, memory = _throughput(problem, data, sizes)
    ordered, shuffled = _order(config)
    small, large = _regularisation(config)
    gain = np.array(small) - np.array(large)
    error = gain.std(ddof=1) / len(gain) ** 0.5
    needs = {
        name: float(np.interp(-0.5, -np.array(v), x)) if min(v) < 0.5 else float("nan")
        for name, v in (("gradient", measured), ("step", np.array([np.mean(a) for a in second])))
    }
    slope = float(np.polyfit(np.log(x), np.log(measured), 1)[0])
    return Outcome(
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
                          log_y=True, series=(ordered, shuffled)),
                ),
            )
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
            judge("8.1.3-order", float(shuffled.y[-1]) < float(ordered.y[-1]),
                  because=f"training loss after the run {shuffled.y[-1]:.3f} shuffled, "
                  f"{ordered.y[-1]:.3f} sorted by class"),
        ],
        note=f"{config.data}, tanh network of width 8, after 60 steps; times are of this machine.",
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


def _order(config: Config) -> tuple[Series, Series]:
    """Loss by epoch with the examples sorted by class, and shuffled once."""
    splits, made = pictures(config), []
    for label in ("sorted by class", "shuffled once"):
        problem = classifier(splits, (32,), seed=config.seed)
        data = problem.train.first(problem.train.size)
        order = (
            torch.argsort(data.targets, stable=True)
            if label.startswith("sorted")
            else torch.randperm(data.size, generator=seeds.generator(config.seed, "once"))
        )
        data = data.take(order)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        whole = problem.objective()
        losses = [float(whole.value(whole.theta()))]
        for _ in range(config.pick(4, 12)):
            for batch in data.chunks(32):
                optimizer.step(problem.objective(batch))  # pyright: ignore
            losses.append(float(whole.value(whole.theta())))
        made.append(Series(label=label, x=np.arange(len(losses), dtype=float), y=np.array(losses),
                           kind="both"))  # fmt: skip
    return made[0], made[1]


def _regularisation(config: Config) -> tuple[list[float], list[float]]:
    splits = pictures(config, limit=150)
    found: dict[int, list[float]] = {8: [], 150: []}
    for size, ends in found.items():
        for seed in config.seeds:
            problem = classifier(splits, (64,), seed=seed)
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
            from kobai.training import EarlyStopping, train

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
