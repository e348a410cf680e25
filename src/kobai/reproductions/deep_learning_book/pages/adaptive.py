"""Section 8.5: learning rates of their own for every parameter."""

import numpy as np
import torch

from kobai import optim, seeds
from kobai.problem.surfaces import quadratic
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, pictures
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
from kobai.training import train

_SHORT = ("SGD", "mom.", "Nest.", "AdaG.", "RMSP.", "AdaD.", "Adam")
_METHODS = {
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-7),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.03, alpha=0.9),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
}


def adaptive(config: Config) -> FigureOutcome:
    """Effective steps of parameters that see large and small gradients; a valley; the start."""
    draw = seeds.generator(config.seed, "gradients")
    steps = 300
    # Two parameters: gradients of size 1 and 0.01; in the second half both shrink ten times.
    sizes = torch.tensor([1.0, 0.01]).double()
    noise = torch.randn(steps, 2, generator=draw, dtype=torch.float64)
    effective: dict[str, np.ndarray] = {}
    for name, make in _METHODS.items():
        p = torch.nn.Parameter(torch.zeros(2).double())
        optimizer = make([p])
        track = []
        for step in range(steps):
            g = sizes * (0.5 + 0.5 * noise[step]) * (1.0 if step < steps // 2 else 0.1)
            before = p.detach().clone()
            p.grad = g.clone()
            optimizer.step()
            track.append((p.detach() - before).abs().numpy())
        effective[name] = np.array(track)
    x = np.arange(1, steps + 1, dtype=float)

    def smooth(v: np.ndarray) -> np.ndarray:
        return np.convolve(np.pad(v, (10, 9), mode="edge"), np.ones(20) / 20, mode="valid")

    panels = [
        Panel(title=f"gradients of size {size}", x_label="step", y_label="|Δθ|, mean of 20",
              log_y=True, series=tuple(
                  Series(label=name, x=x, y=smooth(v[:, i])) for name, v in effective.items()))
        for i, size in ((0, "1, then 0.1"), (1, "0.01, then 0.001"))
    ]  # fmt: skip
    ratio = {n: float(np.median(v[30:150, 0]) / np.median(v[30:150, 1]))
             for n, v in effective.items()}  # fmt: skip
    recover = {n: float(np.median(v[-50:, 0]) / np.median(v[100:150, 0]))
               for n, v in effective.items()}  # fmt: skip
    surface = quadratic(100.0)
    start = torch.tensor([-1.4, 0.3]).double()
    walks = {}
    for name, make in _METHODS.items():
        objective = surface.objective(start)
        walks[name] = walk(objective, make(objective.space.module.parameters()), 150)
    ground = contours(surface.function, (-1.5, 0.5), (-0.4, 0.4), np.logspace(-2, 1.1, 12))
    bias = _bias_correction()
    first = bias["without"][0] / bias["with"][0]
    return FigureOutcome(
        results={
            "motion": Panels(
                label="8.5", title="A valley with condition number 100", columns=2,
                panels=(
                    map_panel("paths", ground, [path(n, w) for n, w in walks.items()]),
                    Panel(title="loss", x_label="step", y_label="loss", log_y=True,
                          series=tuple(
                              Series(label=n, x=np.arange(len(w), dtype=float),
                                     y=np.maximum(values_along(surface.objective(), w), 1e-12))
                              for n, w in walks.items())),
                ),
            ),
            "steps": Panels(
                label="8.5", title="The step each parameter gets", columns=3,
                panels=(
                    *panels,
                    Panel(title="Adam's first steps", x_label="step", log_x=True,
                          y_label="|Δθ| / rate", series=tuple(
                              Series(label=f"{n} bias correction",
                                     x=np.arange(1, len(v) + 1, dtype=float), y=v)
                              for n, v in bias.items())),
                ),
                note="Left and middle: noisy gradients that become ten times smaller half way. "
                "Right: a constant gradient.",
            ),
        },
        findings=[
            *(Finding(claim="8.5-scale", what=f"step of the parameter with gradients 100 times "
                      f"larger over the other's, {n}", measured=v, predicted=1.0)
              for n, v in ratio.items()),
            *(Finding(claim="8.5-adagrad", what=f"step late in the run over that before gradients "
                      f"shrank, {n}", measured=v) for n, v in recover.items()),
            Finding(claim="8.5-bias", what="first step without over with bias correction",
                    measured=first, predicted=(1 - 0.9) / (1 - 0.999) ** 0.5),
        ],
        verdicts=[
            judge("8.5-scale", all(0.5 < ratio[n] < 2 for n in ("adagrad", "rmsprop", "adam")),
                  because="ratio of the steps for gradients 100 to 1: " + ", ".join(
                      f"{v:.2f} ({n})" for n, v in ratio.items())),
            judge("8.5-adagrad", recover["adagrad"] < 0.2, recover["rmsprop"] > 0.5,
                  because=f"when gradients shrink to a tenth, AdaGrad's steps shrink to "
                  f"{recover['adagrad']:.2f} for good, RMSProp's come back to "
                  f"{recover['rmsprop']:.2f}"),
            judge("8.5-bias", abs(first / 3.16 - 1) < 0.02,
                  because=f"the first step is {first:.3f} times as long without correction "
                  "((1 − ρ₁)/√(1 − ρ₂) = 3.162): the second moment starts too small by more than "
                  "the first"),
        ],
        note="torch's RMSProp divides by √r + ε where the chapter has √(δ + r).",
    )  # fmt: skip


def _bias_correction(steps: int = 2000) -> dict[str, np.ndarray]:
    """|Δθ|/rate of Adam under a constant gradient, as in the chapter's formulas."""
    found = {}
    t = np.arange(1, steps + 1)
    first, second = 1 - 0.9**t, 1 - 0.999**t
    found["with"] = np.ones(steps)
    p = torch.nn.Parameter(torch.zeros(1).double())
    adam, track = torch.optim.Adam([p], lr=1.0), []
    for _ in range(steps):
        before = p.item()
        p.grad = torch.ones(1).double()
        adam.step()
        track.append(abs(p.item() - before))
    found["with"] = np.array(track)
    found["without"] = first / np.sqrt(second)
    return found


def choosing(config: Config) -> FigureOutcome:
    """The methods in use on three problems, each at its best of three rates."""
    problems = {
        "rectified": {"widths": (32,)},
        "deep tanh": {"widths": (24,) * 4, "activation": "tanh", "init": "glorot-uniform"},
        "bad scale": {"widths": (32, 32), "init": "standard", "weight_variance": 0.1},
    }
    if config.model:
        problems[config.model] = {"widths": (), "model": config.model}
    names = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adadelta", "adam")
    base = {"sgd": 0.3, "momentum": 0.05, "nesterov": 0.05, "adagrad": 0.03, "rmsprop": 0.003,
            "adadelta": 3.0, "adam": 0.01}  # fmt: skip
    splits, epochs = pictures(config, limit=config.pick(400, 700)), config.pick(3, 4)
    factors = (0.3, 1.0, 3.0)
    ends: dict[str, dict[str, list[float]]] = {p: {} for p in problems}
    for title, settings in problems.items():
        for name in names:
            by_rate = []
            for factor in factors:
                losses = []
                for seed in config.seeds[: config.pick(1, 2)]:
                    problem = classifier(splits, seed=seed, **settings)  # pyright: ignore
                    chosen = optim.CONFIGS[name](lr=base[name] * factor)
                    optimizer = optim.build(name, problem.model, "categorical", chosen)
                    history = train(problem, optimizer, epochs=epochs, batch_size=32,
                                    evaluate_every=float(epochs),
                                    generator=seeds.generator(seed, "order"))  # fmt: skip
                    end = float(history.train_loss[-1])
                    losses.append(end if np.isfinite(end) else 10.0)
                by_rate.append(losses)
            ends[title][name] = min(by_rate, key=lambda v: float(np.mean(v)))
    x = np.arange(len(names), dtype=float)
    winners = {t: min(v, key=lambda n: float(np.mean(v[n]))) for t, v in ends.items()}
    used = ("momentum", "rmsprop", "adadelta", "adam")
    worst = {
        n: max(float(np.mean(v[n]) / min(np.mean(w) for w in v.values())) for v in ends.values())
        for n in names
    }
    return FigureOutcome(
        results={
            "choice": Panels(
                label="8.5.4", title="Each method at its best rate",
                panels=(
                    Panel(title=f"after {epochs} epochs", x_label="", y_label="training loss",
                          log_y=True, x_names=_SHORT, series=tuple(
                              Series(label=t, x=x, kind="both",
                                     y=np.array([np.mean(v[n]) for n in names]))
                              for t, v in ends.items())),
                ),
            )
        },
        findings=[
            *(mean_of("8.5.4-one", f"training loss, {t}, {n}", v[n])
              for t, v in ends.items() for n in names),
            *(Finding(claim="8.5.4-used", what=f"worst ratio to the best method, {n}", measured=v)
              for n, v in worst.items()),
        ],
        verdicts=[
            judge("8.5.4-one", len(set(winners.values())) > 1,
                  because="best: " + ", ".join(f"{n} ({t})" for t, n in winners.items())),
            judge("8.5.4-used", all(worst[n] < worst["sgd"] for n in used),
                  any(worst[n] < worst["sgd"] for n in used),
                  because="worst ratio to the best: " + ", ".join(
                      f"{n} {v:.3g}" for n, v in sorted(worst.items(), key=lambda kv: kv[1]))),
        ],
        note=f"{config.data}, {epochs} epochs of batches of 32, rates {factors} times a usual one. "
        "`kobai compare --suite deep-learning-book` runs all algorithms within equal budgets.",
    )  # fmt: skip


PAGES = (
    Page(
        name="8.5",
        own_network="the gradients here are given",
        title="Adaptive learning rates: AdaGrad, RMSProp, AdaDelta, Adam",
        question="Gradients of different parameters differ by orders of magnitude. What step does "
        "each method give to each of them, and how does it change in time?",
        claims={
            "8.5-scale": "every parameter gets a learning rate of its own that makes up for the "
            "size of its gradients",
            "8.5-adagrad": "AdaGrad's rate only ever falls; RMSProp's moving average lets it come "
            "back",
            "8.5-bias": "moving averages that start at 0 are biased; Adam corrects them",
        },
        make=adaptive,
        code="""
            import torch

            for kind, rate in ((torch.optim.Adagrad, 0.1), (torch.optim.Adam, 0.1)):
                p = torch.nn.Parameter(torch.zeros(2))
                optimizer = kind([p], lr=rate)
                for step in (1, 2, 3):
                    p.grad = torch.tensor([100.0, 0.01])
                    optimizer.step()
                print(kind.__name__, "after three equal gradients:", p.detach().tolist())
        """,
    ),
    Page(
        name="8.5.4",
        title="Choosing an algorithm",
        question="Is there a best method?",
        claims={
            "8.5.4-one": "no single method is best",
            "8.5.4-used": "SGD with momentum, RMSProp, AdaDelta and Adam are the ones in use, "
            "because they are robust (here: never far behind the best)",
        },
        make=choosing,
        code="""
            from kobai import Problem, models, optim, seeds
            from kobai.data import load
            from kobai.training import train

            splits = load("digits", limit=300)
            for name in ("momentum", "rmsprop", "adam"):
                model = models.build("mlp", input_shape=splits.input_shape, num_outputs=10,
                                     generator=seeds.generator(0, "init"))
                problem = Problem(model, "categorical", train=splits.train)
                history = train(problem, optim.build(name, model), epochs=2, batch_size=32,
                                generator=seeds.generator(0, "order"))
                print(f"{name:9s} training loss {history.train_loss[-1]:.3f}")
        """,
    ),
)
