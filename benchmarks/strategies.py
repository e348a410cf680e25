"""Does each training strategy of the chapter show the effect it exists for, on MNIST?

Every strategy runs with and without on the same seeds; the effect is the mean paired difference,
positive where the strategy is better, with a 95 % interval (Student's t). Verdicts: "shown" where
the interval lies above 0, "opposite" below, else "not shown". Networks and subsets are small, so
that all of it takes minutes; the two recurrent tasks are on synthetic sequences.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/strategies.py --out strategies.jsonl \
        [--only clipping fitnets] [--seeds 5]

Finished pairs are lines of the file and are not repeated.
"""

import argparse
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from kobai import data, models, seeds
from kobai.problem import Problem
from kobai.reproductions.deep_learning_book.pages.continuation import lagged_sums
from kobai.reproductions.deep_learning_book.pages.pretraining import chain
from kobai.training import (
    AuxiliaryHeads,
    EarlyStopping,
    GeometricBatch,
    PolyakAverage,
    auxiliary_problem,
    choose_first_rate,
    greedy_pretraining,
    minimize_by_continuation,
    raise_vanishing,
    search_initial_scales,
    train,
    train_by_curriculum,
    train_by_hints,
)

EXAMPLES = 1000

Make = Callable[[nn.Module], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """One row.

    Attributes:
        section: Of the chapter.
        measure: What is compared at the end.
        less: Whether less of it is better.
        setting: In words.
        run: Seed → the measure without and with the strategy.
    """

    section: str
    measure: str
    less: bool
    setting: str
    run: Callable[[int], tuple[float, float]]


@functools.cache
def digits(count: int = EXAMPLES) -> data.DataSplits:
    """A balanced subset of MNIST, standardised; 1,000 test images."""
    return data.load("mnist", limit=(count, 1000), standardize=True)


def problem(seed: int, *, count: int = EXAMPLES, validation: bool = False, **settings: Any
            ) -> Problem:  # fmt: skip
    """A perceptron on the subset."""
    splits = digits(count)
    model = models.build(
        models.MLPConfig(**{"widths": (64,), **settings}), input_shape=splits.input_shape,
        num_outputs=10, generator=seeds.generator(seed, "init"),
    )  # fmt: skip
    return Problem(model, "categorical", train=splits.train, test=splits.test,
                   validation=0.2 if validation else None,
                   generator=seeds.generator(seed, "validation"))  # fmt: skip


def sgd(rate: float, momentum: float = 0.0) -> Make:
    """SGD of what can be trained."""
    return lambda m: torch.optim.SGD(
        [p for p in m.parameters() if p.requires_grad], lr=rate, momentum=momentum
    )


def fit(p: Problem, make: Make, seed: int, **plan: Any):
    """A run whose order of examples belongs to the seed."""
    return train(p, make(p.model), generator=seeds.generator(seed, "order"), **plan)


def end(history: Any, column: str = "train_loss", worst: float = 10.0) -> float:
    """The last value; a loss that is not finite counts as `worst`."""
    value = float(getattr(history, column)[-1])
    return min(value, worst) if math.isfinite(value) else worst


def growing_batch(seed: int, column: str = "test_loss") -> tuple[float, float]:
    plan = {"epochs": 8, "batch_size": 8}
    plain = fit(problem(seed), sgd(0.2), seed, **plan)
    grown = fit(problem(seed), sgd(0.2), seed, batch_schedule=GeometricBatch(every=2), **plan)
    return end(plain, column), end(grown, column)


def shuffling(seed: int) -> tuple[float, float]:
    ends = []
    for shuffled in (False, True):
        p = problem(seed)
        whole = p.train.first(p.train.size)
        order = (torch.randperm(whole.size, generator=seeds.generator(seed, "order")) if shuffled
                 else torch.argsort(whole.targets, stable=True))  # fmt: skip
        ordered, optimizer = whole.take(order), sgd(0.05)(p.model)
        for _ in range(4):
            for batch in ordered.chunks(32):
                optimizer.step(p.objective(batch))  # pyright: ignore
        ends.append(p.objective(split="test").metrics()["loss"])
    return ends[0], ends[1]


def early_stopping(seed: int) -> tuple[float, float]:
    plan = {"epochs": 40, "batch_size": 32}
    whole = fit(problem(seed, validation=True), sgd(0.1, 0.9), seed, **plan)
    stopped = fit(problem(seed, validation=True), sgd(0.1, 0.9), seed,
                  early_stopping=EarlyStopping(patience=3), **plan)  # fmt: skip
    return end(whole, "test_loss"), end(stopped, "test_loss")


def clipping(seed: int) -> tuple[float, float]:
    splits = digits(300)
    ends = []
    for bound in (None, 0.5):
        model = models.build(models.LSTMConfig(hidden=24), input_shape=splits.input_shape,
                             num_outputs=10, generator=seeds.generator(seed, "init"))  # fmt: skip
        p = Problem(model, "categorical", train=splits.train)
        ends.append(end(fit(p, sgd(3.0), seed, epochs=8, batch_size=30, clip_norm=bound,
                            evaluate_every=8.0)))  # fmt: skip
    return ends[0], ends[1]


def first_rate(seed: int) -> tuple[float, float]:
    """Against the middle of the grid: what one would take without looking."""
    rates = np.geomspace(1e-3, 3.0, 7)
    found = choose_first_rate(
        problem(seed), lambda m, r: torch.optim.SGD(m.parameters(), lr=r), rates, steps=40,
        batch_size=32, generator=seeds.generator(seed, "watch"),
    )  # fmt: skip
    plan = {"epochs": 5, "batch_size": 32, "evaluate_every": 5.0}
    middle = fit(problem(seed), sgd(float(rates[3])), seed, **plan)
    return end(middle), end(fit(problem(seed), sgd(found.chosen), seed, **plan))


def batch_normalisation(seed: int, rate: float = 0.3) -> tuple[float, float]:
    ends = [
        end(fit(problem(seed, widths=(32,) * 6, activation="tanh", init="glorot-uniform",
                        normalization=kind), sgd(rate), seed, epochs=5, batch_size=64,
                evaluate_every=5.0)) for kind in ("none", "batch")
    ]  # fmt: skip
    return ends[0], ends[1]


def greedy(seed: int) -> tuple[float, float]:
    splits, depth, width = digits(), 5, 20
    inputs = (splits.train[0].flatten(1), splits.train[1])
    sizes = (784, *(width,) * depth, 10)
    plan = {"batch_size": 32, "evaluate_every": 30.0}
    together = chain(sizes, nn.Sigmoid, seed=seed, name="deep")
    plain = fit(Problem(together, "categorical", train=inputs), sgd(0.3, 0.9), seed,
                epochs=3 * depth + 8, **plan)  # fmt: skip
    deep = chain(sizes, nn.Sigmoid, seed=seed, name="deep")
    heads: list[nn.Module] = [
        chain((width, 10), nn.Sigmoid, seed=seed, name=f"head {i}") for i in range(depth)
    ]
    heads[-1] = nn.Sequential(deep[-1])
    greedy_pretraining(list(deep)[:-1], heads, "categorical", inputs, sgd(0.3, 0.9), epochs=3,
                       batch_size=32, generator=seeds.generator(seed, "greedy"))  # fmt: skip
    tuned = fit(Problem(deep, "categorical", train=inputs), sgd(0.3, 0.9), seed, epochs=8, **plan)
    return end(plain), end(tuned)


def _accuracy(model: nn.Module) -> float:
    images, labels = digits().test or digits().train
    with torch.no_grad():
        return float((model(images.flatten(1)).argmax(1) == labels).double().mean())


def fitnets(seed: int, layers: int = 8) -> tuple[float, float]:
    inputs: tuple[Tensor, Tensor] = (digits().train[0].flatten(1), digits().train[1])
    thin, plan = (784, *(16,) * layers, 10), {"batch_size": 32, "evaluate_every": 100.0}
    teacher = chain((784, 100, 100, 10), nn.Tanh, seed=seed, name="teacher")
    fit(Problem(teacher, "categorical", train=inputs), sgd(0.05, 0.9), seed, epochs=8, **plan)
    alone = chain(thin, nn.Tanh, seed=seed, name="student")
    fit(Problem(alone, "categorical", train=inputs), sgd(0.02, 0.9), seed, epochs=16, **plan)
    student = chain(thin, nn.Tanh, seed=seed, name="student")
    regressor = chain((16, 100), nn.Tanh, seed=seed, name="regressor")
    with torch.no_grad():
        for p in regressor.parameters():
            p.mul_(0.1)
    train_by_hints(student, teacher, regressor, inputs, sgd(0.02, 0.9), guided=layers // 2, hint=1,
                   epochs=(8, 8), batch_size=32, generator=seeds.generator(seed, "order")
                   )  # fmt: skip
    return _accuracy(alone), _accuracy(student)


def auxiliary_heads(seed: int) -> tuple[float, float]:
    inputs = (digits().train[0].flatten(1), digits().train[1])
    ends = []
    for weight in (0.0, 0.3):
        trunk = chain((784, *(20,) * 5, 10), nn.Sigmoid, seed=seed, name="trunk")
        heads: dict[int, nn.Module] = {
            at: chain((20, 10), nn.Sigmoid, seed=seed, name=f"head {at}") for at in range(4)
        }
        model = AuxiliaryHeads(list(trunk)[:-1], trunk[-1], heads)
        p = auxiliary_problem(model, inputs, weights=(1.0, *(weight,) * 4))
        fit(p, sgd(0.3, 0.9), seed, epochs=20, batch_size=32, evaluate_every=100.0)
        main = Problem(model.main(), "categorical", train=inputs).objective()
        ends.append(float(main.value(main.theta())))
    return ends[0], ends[1]


def skips(seed: int) -> tuple[float, float]:
    ends = [
        end(fit(problem(seed, widths=(32,) * 15, activation="tanh", init="glorot-uniform",
                        skips=skip), sgd(0.02), seed, epochs=5, batch_size=32, evaluate_every=5.0))
        for skip in (False, True)
    ]  # fmt: skip
    return ends[0], ends[1]


def continuation(seed: int) -> tuple[float, float]:
    """Full-batch descent with as many gradients as the blurred stages take."""
    sigmas, steps, pairs = (0.2, 0.1, 0.05), 15, 2
    settings = {"widths": (16,) * 3, "activation": "tanh", "init": "glorot-uniform", "count": 300}
    last = 60
    plain = problem(seed, **settings)
    optimizer = sgd(0.3)(plain.model)
    for _ in range(len(sigmas) * steps * 2 * pairs + last):
        optimizer.step(plain.objective())  # pyright: ignore
    blurred = problem(seed, **settings)
    minimize_by_continuation(blurred.objective(), sgd(0.3), sigmas, steps=steps, pairs=pairs,
                             generator=seeds.generator(seed, "blur"))  # fmt: skip
    optimizer = sgd(0.3)(blurred.model)
    for _ in range(last):
        optimizer.step(blurred.objective())  # pyright: ignore
    ends = [float(p.objective().value(p.space.theta())) for p in (plain, blurred)]
    return ends[0], ends[1]


def curriculum(seed: int) -> tuple[float, float]:
    """Difficulty of an image: its loss under softmax regression."""
    judge = problem(seed, widths=())
    fit(judge, sgd(0.02), seed, epochs=3, batch_size=32, evaluate_every=3.0)
    whole = judge.train.first(judge.train.size)
    with torch.no_grad():
        score = judge.likelihood.nll(judge.model(whole.inputs), whole.targets).flatten()
    ends = []
    for shares in ((1.0,) * 5, (0.3, 0.5, 0.7, 1.0, 1.0)):
        p = problem(seed)
        records = train_by_curriculum(p, sgd(0.05)(p.model), score, shares, batch_size=32,
                                      generator=seeds.generator(seed, "order"))  # fmt: skip
        ends.append(end(records[-1], "test_loss"))
    return ends[0], ends[1]


def stochastic_curriculum(seed: int) -> tuple[float, float]:
    steps, longest = 12, 10
    pair, lag = lagged_sums(400, steps, longest, seeds.generator(seed, "lags"))
    test, _ = lagged_sums(400, steps, longest, seeds.generator(seed, "test"))
    ends = []
    for strategy, shares in (("easiest", (1.0,) * 6), ("stochastic", (0, 0.2, 0.4, 0.6, 1.0, 1.0))):
        model = models.LSTM(models.LSTMConfig(hidden=24), input_shape=(steps, 2), num_outputs=5,
                            generator=seeds.generator(seed, "init"))  # fmt: skip
        p = Problem(model, "categorical", train=pair, test=test)
        records = train_by_curriculum(
            p, torch.optim.Adam(model.parameters(), lr=0.01), lag, shares,
            strategy=strategy, epochs=3, batch_size=50, generator=seeds.generator(seed, "order"),
        )  # fmt: skip
        ends.append(float(records[-1].test_accuracy[-1]))
    return ends[0], ends[1]


def polyak(seed: int) -> tuple[float, float]:
    p = problem(seed)
    optimizer, average = sgd(0.2)(p.model), PolyakAverage(p.model, decay=0.98)
    draw = seeds.generator(seed, "order")
    for _ in range(3):
        for batch in p.minibatches(8, generator=draw):
            optimizer.step(p.objective(batch))  # pyright: ignore
            average.update(p.model)
    test = p.objective(split="test")
    last = test.metrics()["loss"]
    with average.swapped_into(p.model):
        return last, test.metrics()["loss"]


_SMALL = {"widths": (24,) * 6, "activation": "tanh", "init": "standard", "weight_variance": 0.09}


def raised_scales(seed: int) -> tuple[float, float]:
    ends = []
    for raised in (False, True):
        p = problem(seed, **_SMALL)
        if raised:
            raise_vanishing(p, p.train.first(64))
        ends.append(end(fit(p, sgd(0.1), seed, steps=100, batch_size=32, evaluate_every=100.0)))
    return ends[0], ends[1]


def searched_scales(seed: int) -> tuple[float, float]:
    ends = []
    for searched in (False, True):
        p = problem(seed, **_SMALL)
        if searched:
            search_initial_scales(p, sgd(0.1), trials=15, steps=30, batch_size=32,
                                  generator=seeds.generator(seed, "search"))  # fmt: skip
        ends.append(end(fit(p, sgd(0.1), seed, steps=100, batch_size=32, evaluate_every=100.0)))
    return ends[0], ends[1]


STRATEGIES: dict[str, Strategy] = {
    "shuffling once": Strategy(
        section="8.1.3", measure="test loss", less=True, run=shuffling,
        setting="784-64-10, sorted by class against shuffled once, 4 epochs of batches of 32"),
    "growing batches": Strategy(
        section="8.1.3", measure="test loss", less=True, run=growing_batch,
        setting="784-64-10, rate 0.2, batch 8, doubled every 2 of 8 epochs: half the steps"),
    "early stopping": Strategy(
        section="8.1.2", measure="test loss", less=True, run=early_stopping,
        setting="784-64-10, SGD with momentum, patience 3, against 40 epochs"),
    "first rate": Strategy(
        section="8.3.1", measure="training loss", less=True, run=first_rate,
        setting="784-64-10, chosen from 7 rates in 40 steps each, against the middle of the grid"),
    "clipping": Strategy(
        section="8.2.4", measure="training loss", less=True, run=clipping,
        setting="LSTM on the rows of 300 images, rate 3, norm 0.5"),
    "scales raised": Strategy(
        section="8.4", measure="training loss", less=True, run=raised_scales,
        setting="784-24x6-10 tanh, weights too small, one minibatch looked at"),
    "scales searched": Strategy(
        section="8.4", measure="training loss", less=True, run=searched_scales,
        setting="the same, 15 trials of 30 steps"),
    "batch normalisation": Strategy(
        section="8.7.1", measure="training loss", less=True, run=batch_normalisation,
        setting="784-32x6-10 tanh, rate 0.3, 5 epochs"),
    "batch normalisation, small rate": Strategy(
        section="8.7.1", measure="training loss", less=True,
        run=functools.partial(batch_normalisation, rate=0.02), setting="the same at rate 0.02"),
    "Polyak averaging": Strategy(
        section="8.7.3", measure="test loss", less=True, run=polyak,
        setting="784-64-10, batches of 8, rate 0.2, exponential mean 0.98"),
    "greedy pretraining": Strategy(
        section="8.7.4", measure="training loss", less=True, run=greedy,
        setting="784-20x5-10 sigmoid, the same epochs in all"),
    "FitNets": Strategy(
        section="8.7.4", measure="test accuracy", less=False, run=fitnets,
        setting="784-16x8-10 tanh, guided by 784-100-100-10, the same epochs"),
    "FitNets, deeper": Strategy(
        section="8.7.4", measure="test accuracy", less=False,
        run=functools.partial(fitnets, layers=14), setting="784-16x14-10 tanh, the same otherwise"),
    "auxiliary heads": Strategy(
        section="8.7.5", measure="training loss", less=True, run=auxiliary_heads,
        setting="784-20x5-10 sigmoid, four heads of weight 0.3"),
    "skip connections": Strategy(
        section="8.7.5", measure="training loss", less=True, run=skips,
        setting="784-32x15-10 tanh, rate 0.02, 5 epochs"),
    "continuation": Strategy(
        section="8.7.6", measure="training loss", less=True, run=continuation,
        setting="784-16x3-10 tanh, 300 images, sigma 0.2 to 0, the same number of gradients"),
    "curriculum": Strategy(
        section="8.7.6", measure="test loss", less=True, run=curriculum,
        setting="784-64-10, easiest images of softmax regression first, the same steps"),
    "stochastic curriculum": Strategy(
        section="8.7.6", measure="test accuracy", less=False, run=stochastic_curriculum,
        setting="LSTM, sums of two digits up to 10 steps apart, the same steps"),
}  # fmt: skip


def row(name: str, pairs: Iterable[tuple[float, float]]) -> str:
    """One line of the table: means, effect with its interval, verdict."""
    strategy, found = STRATEGIES[name], np.array(list(pairs))
    gain = (found[:, 0] - found[:, 1]) * (1 if strategy.less else -1)
    count = len(gain)
    reach = float("inf")
    if count > 1:
        reach = float(scipy.stats.t.ppf(0.975, count - 1) * gain.std(ddof=1) / count**0.5)
    mean = float(gain.mean())
    verdict = "shown" if mean > reach else "opposite" if mean < -reach else "not shown"
    before, after = found.mean(axis=0)
    return (
        f"| {strategy.section} | {name} | {strategy.setting} | {strategy.measure} | {before:.3f} | "
        f"{after:.3f} | {mean:+.3f} ± {reach:.3f} | {verdict} |"
    )


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("strategies.jsonl"))
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(r["strategy"], r["seed"]): r for r in map(json.loads, lines)}
    for name in options.only:
        for seed in range(options.seeds):
            if (name, seed) in done:
                continue
            began = time.process_time()
            without, with_it = STRATEGIES[name].run(seed)
            done[name, seed] = {
                "strategy": name, "seed": seed, "without": without, "with": with_it,
                "seconds": time.process_time() - began,
            }  # fmt: skip
            with options.out.open("a") as file:
                file.write(json.dumps(done[name, seed]) + "\n")
    print(f"{sum(r['seconds'] for r in done.values()):.0f} CPU seconds in all\n")
    print("| section | strategy | setting | measure | without | with | effect | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.only:
        pairs = [(r["without"], r["with"]) for (n, _), r in done.items() if n == name]
        print(row(name, pairs))


if __name__ == "__main__":
    main()
