"""Section 8.7.4: greedy supervised pretraining and FitNets."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from kobai import models, seeds
from kobai.problem import Problem
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.networks import pictures
from kobai.reproductions.deep_learning_book.page import Page, judge, mean_of
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Panel, Panels, Series
from kobai.training import greedy_pretraining, train, train_by_hints


def chain(
    sizes: tuple[int, ...], activation: type[nn.Module], *, seed: int, name: str
) -> nn.Sequential:
    """Dense layers with an activation each, then a dense output layer."""
    with torch.device("meta"):
        parts: list[nn.Module] = [
            nn.Sequential(nn.Linear(m, n), activation()) for m, n in pairwise(sizes[:-1])
        ]
        model = nn.Sequential(*parts, nn.Linear(sizes[-2], sizes[-1]))
    model.to_empty(device="cpu")
    models.initialize(model, "glorot-uniform", generator=seeds.generator(seed, name))
    return model


def _sgd(rate: float):
    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate,
                               momentum=0.9)  # fmt: skip

    return make


def _accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).double().mean())


def pretraining(config: Config) -> FigureOutcome:
    """A deep net trained jointly, after greedy stages, and by hints; the same total of epochs."""
    splits = pictures(config, limit=config.pick(400, 1000))
    assert splits.test is not None
    data = (splits.train[0].flatten(1), splits.train[1])
    test = (splits.test[0].flatten(1), splits.test[1])
    inputs, classes = data[0].shape[1], splits.num_classes or 10
    depth, width, rate = 5, 20, 0.3
    sizes = (inputs, *(width,) * depth, classes)
    each = 3
    total = each * depth + config.pick(8, 15)
    curves: dict[str, list[np.ndarray]] = {"together": [], "greedy, then fine-tuned": []}
    greedy: dict[str, list[float]] = {name: [] for name in curves}
    greedy_test: dict[str, list[float]] = {name: [] for name in curves}
    fit: dict[str, list[float]] = {"alone": [], "with hints": [], "teacher": []}
    x = np.arange(0)
    for seed in config.seeds:
        together = chain(sizes, nn.Sigmoid, seed=seed, name="deep")
        history = train(Problem(together, "categorical", train=data, test=test),
                        _sgd(rate)(together), epochs=total, batch_size=32,
                        generator=seeds.generator(seed, "order"))  # fmt: skip
        curves["together"].append(history.train_loss)
        greedy["together"].append(float(history.train_loss[-1]))
        greedy_test["together"].append(float(history.test_accuracy[-1]))
        deep = chain(sizes, nn.Sigmoid, seed=seed, name="deep")
        heads = [
            chain((width, classes), nn.Sigmoid, seed=seed, name=f"head {i}") for i in range(depth)
        ]
        heads[-1] = nn.Sequential(deep[-1])
        stages = greedy_pretraining(
            list(deep)[:-1], heads, "categorical", data, _sgd(rate), epochs=each, batch_size=32,
            generator=seeds.generator(seed, "greedy"),
        )  # fmt: skip
        tuned = train(Problem(deep, "categorical", train=data, test=test), _sgd(rate)(deep),
                      epochs=total - each * depth, batch_size=32,
                      generator=seeds.generator(seed, "order"))  # fmt: skip
        curves["greedy, then fine-tuned"].append(
            np.concatenate([*(s.train_loss[1:] for s in stages), tuned.train_loss])
        )
        greedy["greedy, then fine-tuned"].append(float(tuned.train_loss[-1]))
        greedy_test["greedy, then fine-tuned"].append(float(tuned.test_accuracy[-1]))
        x = history.epoch
        # FitNets: a thin, deep student.
        thin = (inputs, *(12,) * 8, classes)
        teacher = chain((inputs, 100, 100, classes), nn.Tanh, seed=seed, name="teacher")
        train(Problem(teacher, "categorical", train=data), _sgd(0.05)(teacher), epochs=10,
              batch_size=32, generator=seeds.generator(seed, "teacher"))  # fmt: skip
        fit["teacher"].append(_accuracy(teacher, test))
        epochs = config.pick(8, 20)
        alone = chain(thin, nn.Tanh, seed=seed, name="student")
        train(Problem(alone, "categorical", train=data), _sgd(0.02)(alone), epochs=2 * epochs,
              batch_size=32, generator=seeds.generator(seed, "order"))  # fmt: skip
        fit["alone"].append(_accuracy(alone, test))
        student = chain(thin, nn.Tanh, seed=seed, name="student")
        regressor = chain((12, 100), nn.Tanh, seed=seed, name="regressor")
        with torch.no_grad():
            for p in regressor.parameters():
                p.mul_(0.1)
        train_by_hints(student, teacher, regressor, data, _sgd(0.02), guided=4, hint=1,
                       epochs=(epochs, epochs), batch_size=32,
                       generator=seeds.generator(seed, "order"))  # fmt: skip
        fit["with hints"].append(_accuracy(student, test))
    shown = {
        "together": (x, np.mean(curves["together"], axis=0)),
        "greedy, then fine-tuned": (
            np.arange(1, 1 + len(curves["greedy, then fine-tuned"][0]), dtype=float),
            np.mean(curves["greedy, then fine-tuned"], axis=0),
        ),
    }
    gain = np.array(fit["with hints"]) - np.array(fit["alone"])
    error = float(gain.std(ddof=1) / len(gain) ** 0.5)
    names = tuple(fit)
    return FigureOutcome(
        results={
            "greedy": Panels(
                label="8.7.4", title="Pretraining", columns=2,
                panels=(
                    Panel(title=f"{depth} sigmoid layers", x_label="epoch (stages in sequence)",
                          y_label="training loss",
                          marks={"fine-tuning": float(each * depth)},
                          series=tuple(Series(label=n, x=a, y=b) for n, (a, b) in shown.items())),
                    Panel(title="a student of 8 layers of 12 units", x_label="",
                          y_label="test accuracy", percent=True, x_names=names,
                          series=(Series(label="mean and 2 standard errors", kind="points",
                                         x=np.arange(len(names), dtype=float),
                                         y=np.array([np.mean(fit[n]) for n in names]),
                                         error=np.array([np.std(fit[n], ddof=1) / len(fit[n]) ** 0.5
                                                         for n in names])),)),
                ),
            )
        },
        findings=[
            *(mean_of("8.7.4-greedy", f"training loss at the end, {n}", v)
              for n, v in greedy.items()),
            *(mean_of("8.7.4-greedy", f"test accuracy at the end, {n}", v)
              for n, v in greedy_test.items()),
            *(mean_of("8.7.4-fitnets", f"test accuracy, {n}", v) for n, v in fit.items()),
        ],
        verdicts=[
            judge("8.7.4-greedy",
                  np.mean(greedy["greedy, then fine-tuned"]) < np.mean(greedy["together"]) - 0.1,
                  because="training loss after the same number of epochs: " + ", ".join(
                      f"{np.mean(v):.2f} ({n})" for n, v in greedy.items())),
            judge("8.7.4-fitnets", float(gain.mean()) > 2 * error, float(gain.mean()) > 0,
                  because=f"test accuracy of the student changes by {100 * gain.mean():.1f} ± "
                  f"{100 * error:.1f} points ({len(gain)} seeds)"),
        ],
        note=f"{config.data}, {len(data[0])} examples; SGD with momentum, batches of 32; hint "
        "layer 1 of the teacher (100 units), guided layer 4 of the student.",
    )  # fmt: skip


PAGES = (
    Page(
        name="8.7.4",
        own_network="greedy stages and hints need the layers of a chain",
        title="Supervised pretraining: greedy stages and FitNets",
        question="If a deep network cannot be trained at once, can it be trained piece by piece, "
        "or under the guidance of an easier one?",
        claims={
            "8.7.4-greedy": "training one layer after the other, then all of them, helps where "
            "training all at once is hard",
            "8.7.4-fitnets": "hints from a wide shallow teacher help to train a thin deep student",
        },
        make=pretraining,
        code="""
            import torch
            from torch import nn
            from kobai import Problem, models, seeds
            from kobai.data import load
            from kobai.training import greedy_pretraining, train

            splits = load("digits", limit=200)
            data = (splits.train[0].flatten(1), splits.train[1])
            parts = [nn.Sequential(nn.Linear(a, 20), nn.Sigmoid()) for a in (64, 20, 20)]
            heads = [nn.Linear(20, 10) for _ in parts]
            for module in (*parts, *heads):
                models.initialize(module, "glorot-uniform", generator=seeds.generator(0, "init"))
            sgd = lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5)
            draw = seeds.generator(0, "order")
            for stage in greedy_pretraining(parts, heads, "categorical", data, sgd, epochs=5,
                                            batch_size=20, generator=draw):
                print(stage.label, f"loss {stage.train_loss[-1]:.2f}")
            whole = nn.Sequential(*parts, heads[-1])
            tuned = train(Problem(whole, "categorical", train=data), sgd(whole), epochs=5,
                          batch_size=20, generator=draw)
            print(f"fine-tuned: loss {tuned.train_loss[-1]:.2f}")
        """,
    ),
)
