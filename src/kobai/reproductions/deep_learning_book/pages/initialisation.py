"""Section 8.4: how a network begins."""

import numpy as np
import torch
from torch import Tensor

from kobai import models, seeds
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, per_step, pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import raise_vanishing, search_initial_scales, signals, train

_SCHEMES = ("he", "glorot-uniform", "lecun", "orthogonal", "random-walk")


def _signals(scheme: str, config: Config, *, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean square of activations forward, and of gradients backward, by layer (ReLU, width 100)."""
    forward, backward = [], []
    for seed in config.seeds:
        draw = seeds.generator(seed, "signals")
        model = models.build(
            models.MLPConfig(widths=(100,) * 20, init=scheme,  # pyright: ignore
                             weight_variance=2.0 if scheme == "orthogonal" else None),
            input_shape=(100,), num_outputs=10, generator=draw, dtype=torch.float64,
        )  # fmt: skip
        if shift:
            models.set_hidden_bias(
                [m for m in model.modules() if isinstance(m, torch.nn.Linear)][:-1], shift
            )
        x = torch.randn(200, 100, generator=draw, dtype=torch.float64)
        h, states = x, []
        for layer in [m for m in model.modules() if isinstance(m, torch.nn.Linear)][:-1]:
            u = layer(h)
            u.retain_grad()
            h = u.relu()
            states.append((u, h))
        cotangent = torch.randn(h.shape, generator=draw, dtype=torch.float64)
        (h * cotangent).sum().backward()
        forward.append([float(a.detach().square().mean()) for _, a in states])
        backward.append([float(u.grad.square().mean()) for u, _ in states])
    return np.exp(np.log(forward).mean(0)), np.exp(np.log(backward).mean(0))


def initialisation(config: Config) -> FigureOutcome:
    """Signals by layer, symmetry, the scale of the weights, and biases."""
    x = np.arange(1, 21, dtype=float)
    waves = {scheme: _signals(scheme, config) for scheme in _SCHEMES}
    splits = pictures(config, limit=config.pick(200, 600))
    # Equal units stay equal.
    differ: dict[str, list[float]] = {}
    for label in ("equal start", "random start"):
        problem = classifier(splits, (16,), seed=config.seed, dtype=torch.float64)
        first = next(problem.model.parameters())
        last = [p for p in problem.model.parameters() if p.ndim == 2][1]
        if label == "equal start":
            with torch.no_grad():
                first.copy_(first[:1].expand_as(first))
                last.copy_(last[:, :1].expand_as(last))
        track: list[float] = []

        def watch(
            step: int, objective: object, w: Tensor = first, track: list[float] = track
        ) -> None:
            track.append(float((w - w.mean(0)).detach().norm() / w.detach().norm()))

        per_step(problem, torch.optim.SGD(problem.model.parameters(), lr=0.1), 60, 64, watch,
                 generator=seeds.generator(config.seed, "order"))  # fmt: skip
        differ[label] = track
    # Scale of the weights: training speed against the test.
    scales = (0.05, 0.3, 1.0, 3.0, 10.0)
    loss, test = [], []
    for scale in scales:
        ends = []
        for seed in config.seeds:
            problem = classifier(splits, (32, 32), seed=seed, init="standard",
                                 weight_variance=2 * scale**2)  # fmt: skip
            history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.02),
                            generator=seeds.generator(seed, "order"), epochs=config.pick(12, 25),
                            batch_size=32)  # fmt: skip
            ends.append((history.train_loss[-1], history.test_accuracy[-1]))
        loss.append(float(np.mean([e[0] for e in ends])))
        test.append([float(e[1]) for e in ends])
    dead = {
        f"{scheme}, bias {shift:g}": _signals(scheme, config, shift=shift)[0]
        for scheme in ("he", "random-walk") for shift in (0.0, 0.1)
    }  # fmt: skip
    prior = _output_bias(config)
    searched, start = _scales(config)
    gain = {n: np.array(start["as drawn"]) - np.array(start[n]) for n in ("raised", "searched")}
    error = {n: float(g.std(ddof=1) / len(g) ** 0.5) for n, g in gain.items()}
    drift = {s: float(f[-1] / f[0]) for s, (f, _) in waves.items()}
    back = {s: float(b[0] / b[-1]) for s, (_, b) in waves.items()}
    best = int(np.argmax([np.mean(t) for t in test]))
    grown = float(dead["random-walk, bias 0.1"][-1] / dead["random-walk, bias 0"][-1])
    return FigureOutcome(
        results={
            "signals": Panels(
                label="8.4", title="Signals through twenty ReLU layers at the start", columns=2,
                panels=(
                    Panel(title="forward", x_label="layer", y_label="mean square", log_y=True,
                          series=tuple(Series(label=s, x=x, y=f) for s, (f, _) in waves.items())),
                    Panel(title="backward", x_label="layer", y_label="mean square of the gradient",
                          log_y=True,
                          series=tuple(Series(label=s, x=x, y=b) for s, (_, b) in waves.items())),
                ),
            ),
            "scales": searched,
            "choices": Panels(
                label="8.4", title="Symmetry, scale and bias", columns=2,
                panels=(
                    Panel(title="how much hidden units differ", x_label="step",
                          y_label="‖W − mean unit‖ / ‖W‖",
                          series=tuple(Series(label=n, x=np.arange(60, dtype=float), y=np.array(v))
                                       for n, v in differ.items())),
                    Panel(title="weights scaled by s", x_label="s (1 is He's)", log_x=True,
                          log_y=True, y_label="training loss",
                          series=(Series(label="after training", x=np.array(scales),
                                         y=np.array(loss), kind="both"),)),
                    Panel(title="weights scaled by s", x_label="s (1 is He's)", log_x=True,
                          y_label="test accuracy", percent=True,
                          series=(Series(label="after training", x=np.array(scales), kind="both",
                                         y=np.array([np.mean(t) for t in test]),
                                         error=np.array([np.std(t, ddof=1) / len(t) ** 0.5
                                                         for t in test])),)),
                    Panel(title="hidden biases of 0.1", x_label="layer", y_label="mean square",
                          log_y=True,
                          series=tuple(Series(label=n, x=x, y=v) for n, v in dead.items())),
                ),
            ),
        },
        findings=[
            *(mean_of("8.4-search", f"training loss, weights {n}", v) for n, v in start.items()),
            *(Finding(claim="8.4-scale", what=f"forward mean square, layer 20 over layer 1, {s}",
                      measured=v) for s, v in drift.items()),
            *(Finding(claim="8.4-scale", what=f"backward mean square, layer 1 over layer 20, {s}",
                      measured=v) for s, v in back.items()),
            Finding(claim="8.4-symmetry", what="difference of units after an equal start",
                    measured=differ["equal start"][-1], predicted=0.0),
            *(mean_of("8.4-scale", f"test accuracy with weights scaled by {s:g}", t)
              for s, t in zip(scales, test, strict=True)),
            Finding(claim="8.4-bias", what="mean square at layer 20, random walk, bias 0.1 over "
                    "without", measured=grown),
            *(Finding(claim="8.4-output", what=f"first loss on skewed classes, {n}", measured=v)
              for n, v in prior.items()),
        ],
        verdicts=[
            judge("8.4-symmetry", differ["equal start"][-1] < 1e-12,
                  differ["random start"][-1] > 0.1,
                  because=f"after 60 steps equal units differ by {differ['equal start'][-1]:.0e}, "
                  f"random ones by {differ['random start'][-1]:.2f}"),
            judge("8.4-scale", 0 < best < len(scales) - 1, loss[0] > 2 * min(loss),
                  because=f"training loss {loss[0]:.2f} at s = 0.05, {loss[2]:.2f} at 1; test "
                  f"accuracy is best at s = {scales[best]:g} "
                  f"({100 * np.mean(test[best]):.1f} %), {100 * np.mean(test[-1]):.1f} % at 10"),
            judge("8.4-glorot", drift["he"] > 0.2, drift["glorot-uniform"] < 1e-3,
                  because=f"over 20 ReLU layers the signal keeps {drift['he']:.2f} of its square "
                  f"under He's rule and {drift['glorot-uniform']:.1e} under Glorot's, which is "
                  "derived for linear units"),
            judge("8.4-bias", grown > 2, because="a bias of 0.1 makes the signal of a random-walk "
                  f"start {grown:.2g} times as large after 20 layers: the scale was tuned for 0"),
            judge("8.4-search", *(float(g.mean()) > 2 * error[n] for n, g in gain.items()),
                  because="the training loss after the same steps falls by " + ", ".join(
                      f"{g.mean():.2f} ± {error[n]:.2f} ({n})" for n, g in gain.items())
                  + f" from {np.mean(start['as drawn']):.2f} with weights as drawn; the search "
                  "itself takes 800 steps"),
            judge("8.4-output", prior["from the marginals"] < prior["zero"],
                  because=f"first loss {prior['from the marginals']:.2f} against "
                  f"{prior['zero']:.2f}"),
        ],
        note=f"{config.data} ({len(splits.train[0])} examples); {len(config.seeds)} seeds. An "
        "LSTM starts with a forget bias of 1 (`LSTMConfig.forget_bias`).",
    )  # fmt: skip


def _scales(config: Config) -> tuple[Panels, dict[str, list[float]]]:
    """A deep net that starts too small: as drawn, raised by one minibatch, and searched."""
    splits = pictures(config, limit=config.pick(200, 600))
    found: dict[str, list[float]] = {"as drawn": [], "raised": [], "searched": []}
    spreads: dict[str, np.ndarray] = {}
    factors = np.empty(0)

    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    for seed in config.seeds[:3]:
        for name, ends in found.items():
            problem = classifier(splits, (24,) * 6, seed=seed, activation="tanh", init="standard",
                                 weight_variance=0.09, model=config.model)  # fmt: skip
            batch = problem.train.first(64)
            if name == "raised":
                raise_vanishing(problem, batch)
            elif name == "searched":
                tried = search_initial_scales(
                    problem, make, trials=20, steps=40, batch_size=32,
                    generator=seeds.generator(seed, "search"),
                )  # fmt: skip
                best = int(tried.value.argmin())
                if seed == config.seed:
                    factors = np.array([v[best] for v in tried.parameters.values()])
            if seed == config.seed:
                seen = signals(problem, batch)
                spreads[name] = np.array([seen.activations[n] for n in seen.layers])
            history = train(problem, make(problem.model), steps=config.pick(80, 200),
                            batch_size=32, evaluate_every=1e9,
                            generator=seeds.generator(seed, "order"))  # fmt: skip
            ends.append(float(history.train_loss[-1]))
    layers = np.arange(1, 1 + len(spreads["as drawn"]), dtype=float)
    return Panels(
        label="8.4", title="The scale of each layer, looked at and searched", columns=2,
        panels=(
            Panel(title="outputs of each layer at the start", x_label="layer", log_y=True,
                  y_label="standard deviation", series=tuple(
                      Series(label=n, x=layers, y=v, kind="both") for n, v in spreads.items())),
            Panel(title="factors of the best trial", x_label="weight matrix", log_y=True,
                  y_label="factor on the weights", levels={"as drawn": 1.0},
                  series=(Series(label="searched", kind="points", y=factors,
                                 x=np.arange(1, 1 + len(factors), dtype=float)),)),
        ),
        note="Raised: the first layer whose outputs vanish on one minibatch gets larger weights, "
        "again and again. Searched: a factor for every weight matrix, twenty trials of forty steps "
        "(tree-structured Parzen estimator). The network of the first seed.",
    ), found  # fmt: skip


def _output_bias(config: Config) -> dict[str, float]:
    """First loss on data with skewed classes, with and without marginal statistics."""
    splits = pictures(config)
    keep = torch.cat([(splits.train[1] == c).nonzero()[: 5 + 10 * int(c == 0) * 10, 0]
                      for c in range(splits.num_classes or 10)])  # fmt: skip
    found = {}
    for label in ("zero", "from the marginals"):
        problem = classifier(splits, (32,), seed=config.seed, init="lecun")
        data = problem.train.first(problem.train.size).take(keep)
        last = [m for m in problem.model.modules() if isinstance(m, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(0.1)
            if label != "zero":
                models.set_output_bias(problem.model, data.targets, "categorical")
        found[label] = float(problem.objective(data).value(problem.space.theta()))
    return found


PAGES = (
    Page(
        name="8.4",
        title="Initialisation",
        question="Everything depends on where training starts. What must an initialisation do?",
        claims={
            "8.4-symmetry": "units that start equal stay equal: random starts must break symmetry",
            "8.4-scale": "large weights carry information further, too large ones are as bad as "
            "too small ones: the scale is worth a search",
            "8.4-search": "with computing to spare, the scale of each layer's initial weights is a "
            "hyperparameter worth a search",
            "8.4-glorot": "normalised initialisation keeps signals level through layers",
            "8.4-bias": "biases of 0.1 keep ReLU units active, but do not go with random-walk "
            "initialisation",
            "8.4-output": "output biases should start at the marginal statistics",
        },
        make=initialisation,
        code="""
            from kobai import models, seeds

            for name in ("he", "glorot-uniform", "lecun", "random-walk"):
                law = models.Init(name=name)
                w = models.draw_weight(law, (100, 100), generator=seeds.generator(0, "w"))
                print(f"{name:15s} variance {float(w.var()):.4f}, law "
                      f"{law.variance(100, 100):.4f}")
        """,
    ),
)
