"""The figures of docs/optimizers.md: damping, step control and refresh at work.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/optimizer_figures.py [--out docs/pictures]

A perceptron on MNIST, batches of 256 and of 32, and one batch that comes again and again.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai import data, seeds
from kobai.optim import KFAC
from kobai.plots.style import dress

STEPS = 300


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )


def follow(x: Tensor, y: Tensor, batch: int, *, same: bool, **settings: Any) -> dict[str, Any]:
    """Diagnostics of every step."""
    model = network()
    optimizer = KFAC(model, **settings)
    generator = seeds.generator(0, "batches")
    trace: list[dict[str, Any]] = []
    rows = torch.randperm(len(x), generator=generator)[:batch]
    for _ in range(STEPS):
        if not same:
            rows = torch.randint(0, len(x), (batch,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        trace.append({**optimizer.diagnostics(), "loss": float(loss.detach())})
    decisions = trace[-1]["decisions"]
    for one in trace:
        del one["decisions"]
    return {"trace": trace, "decisions": decisions}


def series(run: dict[str, Any], key: str) -> list[float]:
    return [one[key] for one in run["trace"]]


def damping_figure(runs: dict[str, dict[str, Any]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for label, run in runs.items():
        left.plot(series(run, "damping"), drawstyle="steps-post", label=label)
    left.set(yscale="log", xlabel="step", ylabel="damping λ", title="the floor is measured")
    left.legend(loc="center", bbox_to_anchor=(0.62, 0.5))
    noisy = [d for d in runs["batches of 256"]["decisions"] if d["fresh_ratio"] is not None]
    steps = [d["step"] for d in noisy]
    right.plot(steps, [d["ratio"] for d in noisy], ".-", label="the step's own examples")
    right.errorbar(
        steps,
        [d["fresh_ratio"] for d in noisy],
        [d["fresh_error"] for d in noisy],
        fmt=".",
        capsize=2,
        label="the next batch",
    )
    right.axhline(0.75, color="0.6", lw=0.8)
    right.set(xlabel="step", ylabel="actual / predicted", ylim=(-0.6, 1.6), title="batches of 256")
    right.legend()
    for axis in figure.axes:
        dress(axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def control_figure(run: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    axes[0].plot(series(run, "rate"), label="α, of the direction")
    axes[0].plot(series(run, "momentum_rate"), label="μ, of the last update")
    axes[0].set(xlabel="step", title="the 2×2 solve")
    axes[0].legend()
    axes[1].plot(series(run, "kl"))
    axes[1].set(xlabel="step", yscale="log", title="δᵀGδ of each step")
    axes[2].plot(series(run, "loss"))
    axes[2].set(xlabel="step", yscale="log", title="loss of the batch")
    for axis in figure.axes:
        dress(axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def refresh_figure(run: dict[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for key in ("statistics", "inversions", "models"):
        axis.plot(series(run, key), drawstyle="steps-post", label=key)
    axis.set(xlabel="step", ylabel="made so far", title="dense at the start, then every 10 or 100")
    axis.legend()
    for axis in figure.axes:
        dress(axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="The figures of docs/optimizers.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = data.load("mnist", standardize=True).train
    x = images.flatten(1)
    runs = {
        "one batch again and again": follow(x, labels, 256, same=True),
        "batches of 256": follow(x, labels, 256, same=False),
        "batches of 32": follow(x, labels, 32, same=False),
    }
    assert all(math.isfinite(v) for run in runs.values() for v in series(run, "loss"))
    damping_figure(runs, options.out / "kfac_damping.png")
    control_figure(runs["batches of 256"], options.out / "kfac_control.png")
    refresh_figure(runs["batches of 256"], options.out / "kfac_refresh.png")


if __name__ == "__main__":
    main()
