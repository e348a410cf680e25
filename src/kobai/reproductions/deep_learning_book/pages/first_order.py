"""Section 8.3: stochastic gradient descent, momentum, Nesterov's momentum."""

import math
from typing import Any

import numpy as np
import torch

from kobai import seeds
from kobai.problem.surfaces import quadratic
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, level, pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.deep_learning_book.surface_paths import (
    contours,
    map_panel,
    path,
    values_along,
    walk,
)
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import Constant, LinearDecay, train


def decay(config: Config) -> FigureOutcome:
    """SGD on a noisy quadratic and on a network, at a constant and at a decaying rate."""
    draw = seeds.generator(config.seed, "noise")
    steps, runs = 400, 200
    ends: dict[str, float] = {}
    series = []
    for label, rule in (("constant rate", Constant()), ("linear decay",
                        LinearDecay(until=200, final_fraction=0.01))):  # fmt: skip
        theta, losses = torch.full((runs,), 2.0).double(), []
        for step in range(steps):
            losses.append(float(0.5 * theta.square().mean()))
            noise = torch.randn(runs, generator=draw).double()
            theta = theta - 0.3 * rule.factor(step, total=steps) * (theta + noise)
        series.append(Series(label=label, x=np.arange(steps, dtype=float), y=np.array(losses)))
        ends[label] = float(np.mean(losses[-50:]))
    # θ' = (1 − ε)θ − ε n has the stationary variance ε²/(1 − (1 − ε)²) = ε/(2 − ε).
    floor = 0.5 * 0.3 / (2 - 0.3)
    splits = pictures(config)
    rates = (0.003, 0.03, 0.3, 3.0)
    curves, tail, rough = [], {}, {}
    for rate in rates:
        name = f"ε₀ = {rate:g}"
        tail[name], rough[name] = [], []
        for seed in config.seeds:
            problem = classifier(splits, (32,), seed=seed, model=config.model)
            history = train(
                problem, torch.optim.SGD(problem.model.parameters(), lr=rate),
                generator=seeds.generator(seed, "order"), steps=config.pick(60, 150),
                batch_size=64,
            )  # fmt: skip
            loss = np.minimum(np.nan_to_num(history.step_loss, nan=20.0), 20.0)
            tail[name].append(float(loss[-20:].mean()))
            rough[name].append(float(np.diff(loss[-40:]).std()))
            if seed == config.seed:
                curves.append(Series(label=name, x=np.arange(len(loss), dtype=float), y=loss))
    return FigureOutcome(
        results={
            "decay": Panels(
                label="8.3.1", title="The learning rate of SGD", columns=2,
                panels=(
                    Panel(title="mean loss of 200 runs on a noisy quadratic", x_label="step",
                          y_label="loss", log_y=True, series=tuple(series),
                          levels={"ε/(2(2 − ε))": floor}),
                    Panel(title="first iterations of a network", x_label="step", log_y=True,
                          y_label="minibatch loss", series=tuple(curves)),
                ),
                note="The noise of the minibatches keeps a constant rate from settling; the decay "
                "ε_k = (1 − α)ε₀ + αε_τ, α = k/τ, lets it. The first iterations tell a rate that "
                "is too small from one that is too large.",
            )
        },
        findings=[
            Finding(claim="8.3.1-decay", what="loss that a constant rate settles at",
                    measured=ends["constant rate"], predicted=floor),
            Finding(claim="8.3.1-decay", what="loss after the decay to ε₀/100",
                    measured=ends["linear decay"]),
            *(mean_of("8.3.1-rate", f"network: loss after the first steps, {name}", value)
              for name, value in tail.items()),
        ],
        verdicts=[
            judge("8.3.1-decay", ends["linear decay"] < 0.1 * ends["constant rate"],
                  because=f"{ends['linear decay']:.4f} against {ends['constant rate']:.4f}"),
            judge("8.3.1-rate",
                  np.mean(tail["ε₀ = 0.003"]) > 2 * np.mean(tail["ε₀ = 0.3"]),
                  np.mean(rough["ε₀ = 3"]) > 2 * np.mean(rough["ε₀ = 0.3"]),
                  because=f"after the same steps {np.mean(tail['ε₀ = 0.003']):.2f} at 0.003 and "
                  f"{np.mean(tail['ε₀ = 0.3']):.2f} at 0.3; from step to step the loss jumps by "
                  f"{np.mean(rough['ε₀ = 3']):.2f} at 3 and {np.mean(rough['ε₀ = 0.3']):.2f} at "
                  f"0.3; {len(config.seeds)} seeds"),
        ],
        note="Losses above 20 are cut; the network of the first seed is drawn.",
    )  # fmt: skip


_SPELLED = {"sgd": "gradient descent", "momentum": "momentum", "nesterov": "Nesterov"}


def _methods(rate: float, mu: float) -> dict[str, dict[str, Any]]:
    return {
        "sgd": {"lr": rate},
        "momentum": {"lr": rate, "momentum": mu},
        "nesterov": {"lr": rate, "momentum": mu, "nesterov": True},
    }


def momentum(config: Config) -> FigureOutcome:
    """The valley, the terminal velocity, and a network."""
    condition = 100.0
    surface = quadratic(condition)
    start = torch.tensor([-1.4, 0.25]).double()
    # The best constants on a quadratic with eigenvalues 1 and κ (Polyak 1964).
    root = math.sqrt(condition)
    best_mu, best_rate = ((root - 1) / (root + 1)) ** 2, (2 / (root + 1)) ** 2
    settings: dict[str, dict[str, Any]] = {
        "sgd": {"lr": 2 / (1 + condition)},
        "momentum": {"lr": best_rate, "momentum": best_mu},
        "nesterov": {"lr": 1 / condition, "momentum": (root - 1) / (root + 1), "nesterov": True},
    }
    walks, losses, needed = {}, [], {}
    for name, arguments in settings.items():
        objective = surface.objective(start)
        optimizer = torch.optim.SGD(objective.space.module.parameters(), **arguments)
        walks[name] = walk(objective, optimizer, 400)
        values = values_along(objective, walks[name])
        needed[name] = float(np.argmax(values < 1e-6 * values[0])) or math.nan
        losses.append(Series(label=_SPELLED[name], x=np.arange(len(values), dtype=float),
                             y=np.maximum(values, 1e-14)))  # fmt: skip
    ground = contours(surface.function, (-1.6, 0.6), (-1.1, 1.1), np.logspace(-2, 1.8, 14))
    shown = [path(_SPELLED[name], w[:60]) for name, w in walks.items()]
    # A constant gradient g: speeds tend to ε‖g‖/(1 − α).
    speeds = []
    for mu in (0.5, 0.9, 0.99):
        v, track = 0.0, []
        for _ in range(400):
            v = mu * v - 0.01
            track.append(abs(v) / 0.01)
        speeds.append((mu, track))
    network, ends = _on_network(config)
    gain = needed["sgd"] / needed["momentum"]
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.3.2", title="A valley with condition number 100", columns=2,
                panels=(
                    map_panel("first 60 steps", ground, shown),
                    Panel(title="loss", x_label="step", y_label="loss", log_y=True,
                          series=tuple(losses)),
                ),
                note="Every method at its best constant rate and momentum for a quadratic.",
            ),
            "speed": Panels(
                label="8.3.2", title="Terminal velocity and a network", columns=2,
                panels=(
                    Panel(title="speed under a constant gradient", x_label="step", log_y=True,
                          log_x=True, y_label="speed / (ε‖g‖)",
                          levels={f"1/(1 − {mu:g})": 1 / (1 - mu) for mu, _ in speeds},
                          series=tuple(Series(label=f"α = {mu:g}", y=np.array(t),
                                              x=np.arange(1, 401, dtype=float))
                                       for mu, t in speeds)),
                    network,
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.3.2-valley", what=f"valley: steps to 10⁻⁶ of the loss, {name}",
                      measured=count) for name, count in needed.items()),
            *(Finding(claim="8.3.2-speed", what=f"terminal speed / (ε‖g‖) at α = {mu:g}",
                      measured=t[-1], predicted=1 / (1 - mu)) for mu, t in speeds),
            *(mean_of("8.3.2-network", f"network: training loss at the end, {name}", values)
              for name, values in ends.items()),
        ],
        verdicts=[
            judge("8.3.2-valley", gain > 2, needed["sgd"] > 2 * needed["nesterov"],
                  because=f"momentum needs {gain:.1f} times fewer steps than gradient descent, "
                  f"Nesterov {needed['sgd'] / needed['nesterov']:.1f} times; theory for κ = 100: "
                  "about √κ / 2 to √κ times"),
            judge("8.3.2-speed", all(abs(t[-1] * (1 - mu) - 1) < 0.02 for mu, t in speeds),
                  because="measured " + ", ".join(f"{t[-1]:.1f}" for _, t in speeds)),
            judge("8.3.2-network", np.mean(ends["momentum"]) < np.mean(ends["sgd"]),
                  np.mean(ends["nesterov"]) < np.mean(ends["sgd"]),
                  because="training loss " + ", ".join(f"{np.mean(v):.4f} ({n})"
                                                       for n, v in ends.items())
                  + f"; {len(config.seeds)} seeds, the same rate for all"),
        ],
        note="torch's Nesterov iterates are the chapter's look-ahead points.",
    )  # fmt: skip


def _on_network(config: Config) -> tuple[Panel, dict[str, list[float]]]:
    splits, epochs = pictures(config), config.pick(3, 8)
    series, ends, x = [], {}, np.arange(0)
    for name, arguments in _methods(0.02, 0.9).items():
        losses = []
        for seed in config.seeds:
            problem = classifier(splits, (32,), seed=seed, model=config.model)
            history = train(
                problem, torch.optim.SGD(problem.model.parameters(), **arguments),
                generator=seeds.generator(seed, "order"), epochs=epochs, batch_size=64,
            )  # fmt: skip
            losses.append(history.train_loss)
            x = max(x, history.epoch, key=len)
        ends[name] = [float(loss[-1]) for loss in losses]
        series.append(Series(label=name, x=x, y=level(losses).mean(0), kind="both",
                             error=level(losses).std(0, ddof=1) / len(losses) ** 0.5)
                      )  # fmt: skip
    return (
        Panel(title="network, rate 0.02", x_label="epoch", y_label="training loss", log_y=True,
              series=tuple(series)),
        ends,
    )  # fmt: skip


PAGES = (
    Page(
        name="8.3.1",
        title="Stochastic gradient descent and its learning rate",
        question="Why must the learning rate fall, and how does one choose where it starts?",
        claims={
            "8.3.1-decay": "the noise of minibatches does not vanish at a minimum, so the rate "
            "must fall for SGD to settle",
            "8.3.1-rate": "too large a first rate makes the curve swing wildly, too small a one "
            "leaves it high; the first iterations tell",
        },
        make=decay,
        code="""
            from kobai.training import LinearDecay

            rule = LinearDecay(until=100, final_fraction=0.01)
            for step in (0, 25, 50, 100, 500):
                print(f"step {step}: {rule.factor(step, total=1000):.3f} of the first rate")
        """,
    ),
    Page(
        name="8.3.2",
        title="Momentum and Nesterov's momentum",
        question="What does a velocity change in a long valley, and how fast does it get?",
        claims={
            "8.3.2-valley": "in an ill-conditioned valley momentum moves along the floor where "
            "gradient descent swings from wall to wall",
            "8.3.2-speed": "under a constant gradient the speed tends to ε‖g‖/(1 − α)",
            "8.3.2-network": "momentum speeds up the training of a network",
        },
        make=momentum,
        code="""
            import torch
            from kobai.problem.surfaces import quadratic

            for arguments in ({"lr": 0.0198}, {"lr": 0.033, "momentum": 0.67}):
                objective = quadratic(condition=100.0).objective()
                optimizer = torch.optim.SGD(objective.space.module.parameters(), **arguments)
                for _ in range(100):
                    loss = optimizer.step(objective)
                print(arguments, f"loss after 100 steps {float(loss):.2g}")
        """,
    ),
)
