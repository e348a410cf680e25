"""Section 8.7.5: models that are easier to train."""

import math

import numpy as np
import torch
from torch import nn

from kobai import models, seeds
from kobai.problem import Problem
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import classifier, pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.deep_learning_book.pages.pretraining import chain
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Finding, Panel, Panels, Series
from kobai.training import AuxiliaryHeads, auxiliary_problem, train


def gradient_by_layer(activation: str, skips: bool, depth: int, config: Config) -> np.ndarray:
    """Norm of the gradient with respect to each hidden state over that at the last, at the start.

    Args:
        activation: Of the hidden units.
        skips: Whether each layer's input is added to its output.
        depth: Hidden layers, of width 50.
        config: For seeds.

    Returns:
        (depth,) geometric means over seeds.
    """
    rows = []
    for seed in config.seeds:
        draw = seeds.generator(seed, f"layers {activation} {skips}")
        # The larger of two pieces always passes, so that maxout keeps gradients at variance 1/m.
        init = {"relu": "he", "maxout": "lecun"}.get(activation, "glorot-uniform")
        net = models.MLP(
            models.MLPConfig(widths=(50,) * depth, activation=activation, skips=skips, init=init),  # pyright: ignore
            input_shape=(50,), num_outputs=10, generator=draw, dtype=torch.float64,
        )  # fmt: skip
        h = torch.randn(64, 50, generator=draw, dtype=torch.float64)
        states = []
        for layer in net.hidden:
            u = layer(h)
            h = u + h if skips else u
            h.retain_grad()
            states.append(h)
        cotangent = torch.randn(h.shape, generator=draw, dtype=torch.float64)
        (h * cotangent).sum().backward()
        norms = np.array([float(s.grad.norm()) for s in states])
        rows.append(np.log(np.maximum(norms / norms[-1], 1e-300)))
    return np.exp(np.mean(rows, axis=0))


def factor(depths: np.ndarray, slope: float, draw: torch.Generator) -> dict[str, np.ndarray]:
    """Π F′ and Π (F′ + 1) for chains of random linear maps of one unit, geometric means."""
    count = 400
    slopes = slope * torch.randn(count, int(depths[-1]), generator=draw, dtype=torch.float64)
    plain = slopes.abs().log().cumsum(1).mean(0).exp().numpy()
    skip = (slopes + 1).abs().log().cumsum(1).mean(0).exp().numpy()
    return {"F′": plain[depths - 1], "F′ + 1": skip[depths - 1]}


def architecture(config: Config) -> FigureOutcome:
    """Gradient by depth for units and skips; training of deep nets; auxiliary heads."""
    depth = 30
    x = np.arange(1, depth + 1, dtype=float)
    kinds = {
        "sigmoid": ("sigmoid", False), "tanh": ("tanh", False), "relu": ("relu", False),
        "maxout": ("maxout", False), "tanh, skips": ("tanh", True),
    }  # fmt: skip
    waves = {n: gradient_by_layer(a, s, depth, config) for n, (a, s) in kinds.items()}
    depths = np.array([1, 2, 5, 10, 20, 40])
    slope = 0.3
    products = factor(depths, slope, seeds.generator(config.seed, "factor"))
    splits = pictures(config, limit=config.pick(400, 1000))
    epochs = config.pick(4, 10)
    trained: dict[str, list[float]] = {}
    for name in ("sigmoid", "tanh", "relu", "tanh, skips"):
        activation, skips = kinds[name]
        ends = []
        for seed in config.seeds:
            problem = classifier(splits, (32,) * 15, seed=seed, activation=activation, skips=skips,
                                 init="he" if activation == "relu" else "glorot-uniform"
                                 )  # fmt: skip
            history = train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.02),
                            epochs=epochs, batch_size=32,
                            generator=seeds.generator(seed, "order"))  # fmt: skip
            ends.append(float(history.train_loss[-1]))
        trained[name] = ends
    data = (splits.train[0].flatten(1), splits.train[1])
    heads, reach = _auxiliary(config, data, splits.num_classes or 10)
    faint = {n: float(w[0]) for n, w in waves.items()}
    log_skip = float(np.log(products["F′ + 1"][-1]) / depths[-1])
    names = tuple(trained)
    return FigureOutcome(
        results={
            "units": Panels(
                label="8.7.5", title="How far gradients reach", columns=3,
                panels=(
                    Panel(title=f"{depth} layers of 50 units, at the start", x_label="layer",
                          y_label="gradient over that at the top", log_y=True,
                          series=tuple(Series(label=n, x=x, y=w) for n, w in waves.items())),
                    Panel(title="chain of one unit, F′ of size 0.3", x_label="depth", log_y=True,
                          log_x=True, y_label="gradient factor",
                          series=tuple(Series(label=n, x=depths.astype(float), y=v, kind="both")
                                       for n, v in products.items())),
                    Panel(title=f"15 layers, after {epochs} epochs", x_label="",
                          y_label="training loss", x_names=names,
                          series=(_ends(trained),)),
                ),
            ),
            "heads": Panels(
                label="8.7.5", title="Auxiliary heads on five sigmoid layers", columns=2,
                panels=(
                    Panel(title="gradient of each layer's weights, at the start", x_label="layer",
                          y_label="norm", log_y=True,
                          series=tuple(Series(label=n, x=np.arange(1, 6, dtype=float), y=v,
                                              kind="both") for n, v in reach.items())),
                    Panel(title="main output after training", x_label="", x_names=tuple(heads),
                          y_label="training loss",
                          series=(_ends(heads),)),
                ),
            ),
        },
        findings=[
            *(Finding(claim="8.7.5-linear", what=f"gradient at layer 1 over layer {depth}, {n}",
                      measured=v) for n, v in faint.items()),
            *(mean_of("8.7.5-linear", f"training loss of 15 layers, {n}", v)
              for n, v in trained.items()),
            Finding(claim="8.7.5-skip", what="mean log of |F′ + 1| a layer", measured=log_skip,
                    predicted=-0.5 * slope**2),
            *(Finding(claim="8.7.5-heads", what=f"gradient of layer 1's weights, {n}",
                      measured=float(v[0])) for n, v in reach.items()),
            *(mean_of("8.7.5-heads", f"training loss of the main output, {n}", v)
              for n, v in heads.items()),
        ],
        verdicts=[
            judge("8.7.5-linear", faint["relu"] > 100 * faint["sigmoid"],
                  np.mean(trained["relu"]) < np.mean(trained["sigmoid"]),
                  because=f"through {depth} layers the gradient keeps {faint['sigmoid']:.0e} of "
                  f"its norm (sigmoid), {faint['relu']:.2g} (ReLU), {faint['maxout']:.2g} (maxout)"
                  f"; 15 layers train to {np.mean(trained['sigmoid']):.2f} and "
                  f"{np.mean(trained['relu']):.2f}"),
            judge("8.7.5-skip", products["F′ + 1"][-1] > 1e6 * products["F′"][-1],
                  np.mean(trained["tanh, skips"]) < np.mean(trained["tanh"]),
                  because=f"at depth 40 the product of F′ is {products['F′'][-1]:.0e}, that of "
                  f"F′ + 1 is {products['F′ + 1'][-1]:.2g}; 15 tanh layers train to "
                  f"{np.mean(trained['tanh']):.2f} without and "
                  f"{np.mean(trained['tanh, skips']):.2f} with skips"),
            judge("8.7.5-heads", reach["with heads"][0] > 10 * reach["without"][0],
                  np.mean(heads["with heads"]) < np.mean(heads["without"]) - 0.1,
                  because=f"the first layer's gradient grows from {reach['without'][0]:.1e} to "
                  f"{reach['with heads'][0]:.1e}; the main output trains to "
                  f"{np.mean(heads['without']):.2f} without and "
                  f"{np.mean(heads['with heads']):.2f} with heads"),
        ],
        note=f"{config.data}, {len(config.seeds)} seeds, rate 0.02. LSTM cells: section 8.2.5.",
    )  # fmt: skip


def _ends(runs: dict[str, list[float]]) -> Series:
    """Means over seeds with their standard errors, one place a name."""
    values = np.array(list(runs.values()))
    return Series(label="mean and 2 standard errors", x=np.arange(len(values), dtype=float),
                  y=values.mean(1), error=values.std(1, ddof=1) / values.shape[1] ** 0.5,
                  kind="points")  # fmt: skip


def _auxiliary(
    config: Config, data: tuple[torch.Tensor, torch.Tensor], classes: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray]]:
    """Loss of the main output after training, and gradients by layer at the start."""
    sizes = (data[0].shape[1], *(20,) * 5, classes)
    ends: dict[str, list[float]] = {"without": [], "with heads": []}
    reach: dict[str, np.ndarray] = {}
    for name, found in ends.items():
        weights = (1.0, *(0.3 if name == "with heads" else 0.0,) * 4)
        for seed in config.seeds:
            trunk = chain(sizes, nn.Sigmoid, seed=seed, name="trunk")
            heads: dict[int, nn.Module] = {
                at: chain((20, classes), nn.Sigmoid, seed=seed, name=f"head {at}")
                for at in range(4)
            }
            model = AuxiliaryHeads(list(trunk)[:-1], trunk[-1], heads)
            problem = auxiliary_problem(model, data, weights=weights)
            objective = problem.objective()
            parts = objective.space.unflatten(objective.grad(objective.theta()))
            if seed == config.seeds[0]:
                reach[name] = np.array(
                    [float(parts[f"parts.{i}.0.weight"].norm()) for i in range(5)]
                )
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
            train(problem, optimizer, epochs=config.pick(20, 25), batch_size=32,
                  evaluate_every=1000.0, generator=seeds.generator(seed, "order"))  # fmt: skip
            main = Problem(model.main(), "categorical", train=data).objective()
            found.append(math.fsum([float(main.value(main.theta()))]))
    return ends, reach


PAGES = (
    Page(
        name="8.7.5",
        own_network="units, skips and heads are what is compared",
        title="Designing models to aid optimization",
        question="Progress often came from models that are easier to train rather than from better "
        "optimizers. Which changes let gradients through?",
        claims={
            "8.7.5-linear": "units closer to linear ones (ReLU, maxout) let gradients pass",
            "8.7.5-skip": "a skip connection turns the factor F′ into F′ + 1",
            "8.7.5-heads": "output layers on the way bring gradients to the middle",
        },
        make=architecture,
        code="""
            import torch
            from torch import nn
            from kobai import models, seeds
            from kobai.data import load
            from kobai.training import AuxiliaryHeads, auxiliary_problem, train

            splits = load("digits", limit=200)
            data = (splits.train[0].flatten(1), splits.train[1])
            parts = [nn.Sequential(nn.Linear(a, 20), nn.Tanh()) for a in (64, 20, 20)]
            model = AuxiliaryHeads(parts, nn.Linear(20, 10), {0: nn.Linear(20, 10)})
            models.initialize(model, "glorot-uniform", generator=seeds.generator(0, "init"))
            problem = auxiliary_problem(model, data, weights=(1.0, 0.3))
            history = train(problem, torch.optim.Adam(model.parameters(), lr=0.01), epochs=5,
                            batch_size=20, generator=seeds.generator(0, "order"))
            right = model.main()(data[0]).argmax(1) == data[1]
            print(f"accuracy of the main output {float(right.double().mean()):.3f}")
        """,
    ),
)
