"""Steps, epochs and seconds that optimizers need to reach a target.

Every optimizer is tuned over a small grid of its learning rate; K-FAC also runs at its defaults,
which are tuned over nothing. The grid is run on seed 0, where a rate is given up once it is clearly
behind the best so far (see `behind`); on seed 1 those within 15 % of the best; on further seeds the
best. Runs of different optimizers alternate, seed by seed. Seconds are process CPU seconds of
forward, backward and step on one thread; measuring the target is not timed.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/time_to_accuracy.py --out times.jsonl \
        [--tasks mlp autoencoder resnet transformer] [--optimizers adam kfac] [--seeds 5] [--quick]

Finished runs are lines of the file and are not repeated. Tasks:

- mlp: 784-512-512-10 with ReLU on MNIST, batch 256, to 98 % of the test images.
- autoencoder: 784-1000-500-250-30-250-500-1000-784 with ReLU on MNIST, Bernoulli loss, batch 256,
  to a test error of 7 (squares summed over an image).
- resnet: ResNet-20 of half width on 10,000 CIFAR-10 images, mirrored and shifted by up to four
  pixels at random (without that no optimizer gets there), batch 256, to 60 % of 2,000 others.
- transformer: two blocks of width 64 over 49 patches of MNIST images and their mean, batch 256, to
  94 % of 2,000 test images. "kfac-expand" takes the patches as independent.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai import data, models, seeds
from kobai.models.resnet import ResNetConfig
from kobai.models.transformer import TransformerConfig
from kobai.optim import EKFAC, KFAC, MuonAdamW
from kobai.training import Augmentation, Compose, Flip, Shift

WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)


@dataclass
class Task:
    """A model, its data, and when it is done."""

    model: nn.Module
    likelihood: str
    loss: Callable[[Tensor, Tensor], Tensor]
    train: tuple[Tensor, Tensor]
    measure: Callable[[], float]
    target: float
    rising: bool
    every: int
    epochs: float
    augment: Augmentation | None = None


def layers(widths: tuple[int, ...], plain: tuple[int, ...], seed: int) -> nn.Sequential:
    """Linear layers with ReLU after all but the `plain` ones, with torch's initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for index in range(len(widths) - 1):
            parts.append(nn.Linear(widths[index], widths[index + 1]))
            if index not in plain:
                parts.append(nn.ReLU())
        return nn.Sequential(*parts)


def bernoulli_loss(f: Tensor, y: Tensor) -> Tensor:
    """Per image, summed over pixels."""
    return F.binary_cross_entropy_with_logits(f, y, reduction="sum") / len(f)


def perceptron(seed: int) -> Task:
    splits = data.load("mnist", standardize=True)
    assert splits.test is not None
    (x, y), (xt, yt) = splits.train, splits.test
    model, xt = layers((784, 512, 512, 10), (2,), seed), xt.flatten(1)

    def accuracy() -> float:
        return float((model(xt).argmax(1) == yt).float().mean())

    return Task(
        model, "categorical", F.cross_entropy, (x.flatten(1), y), accuracy, 0.98, True, 25, 8
    )


def autoencoder(seed: int) -> Task:
    splits = data.load("mnist")
    assert splits.test is not None
    x, xt = splits.train[0].flatten(1), splits.test[0].flatten(1)
    model = layers(WIDTHS, (3, 7), seed)

    def error() -> float:
        parts = (float((model(b).sigmoid() - b).square().sum()) for b in xt.split(2000))
        return sum(parts) / len(xt)

    return Task(model, "bernoulli", bernoulli_loss, (x, x), error, 7.0, False, 25, 20)


def resnet(seed: int) -> Task:
    splits = data.load("cifar10", limit=(10_000, 2_000), standardize=True)
    assert splits.test is not None
    (x, y), (xt, yt) = splits.train, splits.test
    model = models.build(
        ResNetConfig(width_multiplier=0.5),
        input_shape=(3, 32, 32),
        num_outputs=10,
        generator=seeds.generator(seed, "model"),
    ).to(memory_format=torch.channels_last)  # a quarter less time for all optimizers

    def accuracy() -> float:
        model.eval()
        parts = zip(xt.split(500), yt.split(500), strict=True)
        right = sum(float((model(a).argmax(1) == b).sum()) for a, b in parts)
        model.train()
        return right / len(xt)

    augment = Compose((Flip(), Shift(pixels=4)))
    return Task(model, "categorical", F.cross_entropy, (x, y), accuracy, 0.6, True, 20, 40, augment)


def transformer(seed: int) -> Task:
    splits = data.load("mnist", standardize=True)
    assert splits.test is not None
    (x, y), (xt, yt) = splits.train, (part[:2000] for part in splits.test)
    model = models.build(
        TransformerConfig(),
        input_shape=(1, 28, 28),
        num_outputs=10,
        generator=seeds.generator(seed, "model"),
    )

    def accuracy() -> float:
        return float((model(xt).argmax(1) == yt).float().mean())

    return Task(model, "categorical", F.cross_entropy, (x, y), accuracy, 0.94, True, 20, 5)


TASKS = {
    "mlp": perceptron,
    "autoencoder": autoencoder,
    "resnet": resnet,
    "transformer": transformer,
}

# The middle first: what the others are given up against.
GRIDS: dict[str, tuple[float | None, ...]] = {
    "kfac": (None,),
    "ekfac": (None,),
    "kfac-expand": (None,),
    "kfac-tuned": (0.03, 0.01, 0.1),
    "adam": (1e-3, 3e-3, 3e-4),
    "sgd-momentum": (0.1, 0.3, 0.03),
    "muon": (1e-3, 3e-3, 3e-4),
}
CLOSE = 1.15
QUICK = ("sgd-momentum", "adam", "kfac")


def optimizer_of(name: str, lr: float | None, task: Task, seed: int) -> torch.optim.Optimizer:
    """An optimizer by its name here; None is the default learning rate."""
    generator = seeds.generator(seed, "labels")
    if lr is None:
        kind = EKFAC if name == "ekfac" else KFAC
        sharing = "expand" if name == "kfac-expand" else "trace"
        return kind(task.model, task.likelihood, sharing=sharing, generator=generator)
    if name == "kfac-tuned":
        return KFAC(task.model, task.likelihood, lr=lr, damping=0.03, generator=generator)
    if name == "muon":
        return MuonAdamW(task.model, lr=lr)
    if name == "adam":
        return torch.optim.Adam(task.model.parameters(), lr=lr)
    return torch.optim.SGD(task.model.parameters(), lr=lr, momentum=0.9)


def behind(task: Task, curve: list[tuple[int, float, float]], best: dict | None) -> bool:
    """Whether a run is clearly worse than the best run of the same optimizer.

    It is once it took 15 % more steps than that one, or if, after half of that one's steps,
    it has not got where that one was after half as many steps as it has made.
    """
    if best is None or not best["reached"]:
        return False
    step, _, value = curve[-1]
    if step < best["steps"] / 2:
        return False
    earlier = [v for s, _, v in best["curve"] if s <= step / 2]
    if step > CLOSE * best["steps"] or not earlier:
        return step > CLOSE * best["steps"]
    return value < max(earlier) if task.rising else value > min(earlier)


def run(
    task_name: str, name: str, lr: float | None, seed: int, best: dict | None, batch: int = 256
) -> dict:
    """One run: until the target, the end of the epochs, or until it is behind `best`."""
    task = TASKS[task_name](seed)
    optimizer = optimizer_of(name, lr, task, seed)
    generator = seeds.generator(seed, "batches")
    changes = seeds.generator(seed, "augmentation")
    x, y = task.train
    a_epoch = len(x) // batch
    seconds, step, ended = 0.0, 0, ""
    curve: list[tuple[int, float, float]] = []
    while not ended:
        for rows in torch.randperm(len(x), generator=generator).split(batch)[:a_epoch]:
            inputs, targets = x[rows], y[rows]
            if task.augment is not None:
                inputs, targets = task.augment(inputs, targets, generator=changes)
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            start = time.process_time()
            optimizer.zero_grad()
            loss = task.loss(task.model(inputs), targets)
            loss.backward()
            optimizer.step()
            seconds += time.process_time() - start
            step += 1
            if not math.isfinite(float(loss.detach())):
                ended = "not finite"
            elif step % task.every == 0:
                with torch.no_grad():
                    value = task.measure()
                curve.append((step, round(seconds, 3), value))
                if value >= task.target if task.rising else value <= task.target:
                    ended = "reached"
                elif behind(task, curve, best):
                    ended = "behind"
            if not ended and step >= task.epochs * a_epoch:
                ended = "epochs"
            if ended:
                break
    return {
        "task": task_name,
        "optimizer": name,
        "lr": lr,
        "seed": seed,
        "reached": ended == "reached",
        "ended": ended,
        "steps": step,
        "epochs": step / a_epoch,
        "seconds": seconds,
        "curve": curve,
    }


def rank(runs: list[dict]) -> tuple[float, float]:
    """Settings compare by the share of runs that missed the target, then by the median time."""
    missed = sum(not r["reached"] for r in runs) / len(runs)
    return missed, statistics.median(r["seconds"] for r in runs)


def of_setting(rows: list[dict], task: str, name: str, lr: float | None) -> list[dict]:
    """The runs of one setting."""
    return [r for r in rows if (r["task"], r["optimizer"], r["lr"]) == (task, name, lr)]


def settings_of(rows: list[dict], task: str, name: str, seed: int) -> list[float | None]:
    """What a seed has to run: the grid, those close to the best, or the best."""
    grid = list(GRIDS[name])
    if seed == 0 or len(grid) == 1:
        return grid
    tuning = [r for r in rows if r["seed"] < min(seed, 2)]
    ranks = {lr: rank(runs) for lr in grid if (runs := of_setting(tuning, task, name, lr))}
    if seed == 1:
        first = min(ranks.values())
        return [lr for lr in ranks if ranks[lr] <= (first[0], CLOSE * first[1])]
    close = [lr for lr in ranks if any(r["seed"] == 1 for r in of_setting(tuning, task, name, lr))]
    return [min(close, key=lambda lr: ranks[lr])]


def table(rows: list[dict]) -> str:
    """Per task and optimizer the best setting: medians, least and greatest of the seeds."""
    lines = [
        "| task | optimizer | setting | seeds | reached | steps | epochs | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def spread(runs: list[dict], key: str, digits: int) -> str:
        values = [r[key] for r in runs]
        ends = f" [{min(values):.{digits}f}, {max(values):.{digits}f}]" if len(values) > 1 else ""
        return f"{statistics.median(values):.{digits}f}{ends}"

    for task in TASKS:
        for name in GRIDS:
            settings = {lr: of_setting(rows, task, name, lr) for lr in GRIDS[name]}
            most = max(len(runs) for runs in settings.values())
            if most == 0:
                continue
            full = [lr for lr, runs in settings.items() if len(runs) == most]
            best = min(full, key=lambda lr: rank(settings[lr]))
            runs = settings[best]
            reached = [r for r in runs if r["reached"]]
            cells = ["–"] * 3
            if reached:
                cells = [
                    spread(reached, key, digits)
                    for key, digits in (("steps", 0), ("epochs", 2), ("seconds", 1))
                ]
            label = "defaults" if best is None else f"lr {best:g}"
            lines.append(
                f"| {task} | {name} | {label} | {len(runs)} | {len(reached)} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("time_to_accuracy.jsonl"))
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument(
        "--optimizers",
        nargs="+",
        choices=tuple(GRIDS),
        default=["kfac", "adam", "sgd-momentum", "muon"],
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--quick", action="store_true", help="mlp, one seed, one setting each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = ["mlp"] if options.quick else options.tasks
    names = [n for n in GRIDS if n in (QUICK if options.quick else options.optimizers)]
    rows: list[dict] = []
    if options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(r["task"], r["optimizer"], r["lr"], r["seed"]) for r in rows}
    for task in tasks:
        for seed in range(1 if options.quick else options.seeds):
            for name in names:
                settings = GRIDS[name][:1] if options.quick else settings_of(rows, task, name, seed)
                for lr in settings:
                    if (task, name, lr, seed) in done:
                        continue
                    same = [r for r in rows if (r["task"], r["optimizer"]) == (task, name)]
                    best = min(same, key=lambda r: rank([r])) if seed == 0 and same else None
                    row = run(task, name, lr, seed, best)
                    rows.append(row)
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print({key: row[key] for key in row if key != "curve"}, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
