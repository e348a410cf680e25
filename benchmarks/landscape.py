"""How long a 51 x 51 loss surface takes here, against the loop that visualisation scripts run.

The reference evaluates one point after the other: it writes the moved parameters into the model and
goes over a `DataLoader` of normalised tensors with batches of 128, with one loss and one count of
right answers copied to the host for each batch. Both sides use one thread and the same data, model
and directions. A 4 x 4 subgrid is timed in process seconds, alternating over rounds, and scaled to
51 x 51 by the number of points. What kobai does once a plane (joining the data, comparing
back-ends, keeping what can be reused, and the self-checks) is measured apart and added once.

With --tol, a 51 x 51 surface that a spline completes to that accuracy is made from beginning to end
(choosing, refining, verifying, without the checks) and its process time held against the same
reference.

    KOBAI_DATA=... python benchmarks/landscape.py [--cases mlp cnn resnet toy] [--rounds 3]
        [--tol 0.01] [--examples 1000]

Case mlp: 784-512-512-10 ReLU on 10,000 MNIST test images. cnn (3-16-32 channels, pooled) and
resnet (the 20-layer CIFAR form): 1,000 random images of CIFAR's shape, as time does not depend on
what they show. toy: 1-64-16-2 on 256 examples, where the reference takes single examples.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kobai import data, seeds
from kobai.landscape import Directions, evaluate_plane, random_directions
from kobai.landscape.tune import choose_evaluator
from kobai.models.cnn import CNN, CNNConfig
from kobai.models.mlp import MLP, MLPConfig
from kobai.models.resnet import ResNet, ResNetConfig
from kobai.problem import EmpiricalRisk, Problem

GRID, SIDE = 51, 4
Case = tuple[nn.Module, torch.Tensor, torch.Tensor, int]


def mlp() -> Case:
    images, labels = data.load("mnist", download=False).test
    model = MLP(
        MLPConfig(widths=(512, 512)),
        input_shape=images.shape[1:],
        num_outputs=10,
        generator=seeds.generator(0, "init"),
    )
    return model, images, labels, 128


def _pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeds.generator(0, "pictures")
    images = torch.rand(1000, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 10, (1000,), generator=generator)


def cnn() -> Case:
    images, labels = _pictures()
    model = CNN(
        CNNConfig(channels=(16, 32)),
        input_shape=(3, 32, 32),
        num_outputs=10,
        generator=seeds.generator(0, "init"),
    )
    return model, images, labels, 128


def resnet() -> Case:
    images, labels = _pictures()
    model = ResNet(
        ResNetConfig(depth=20),
        input_shape=(3, 32, 32),
        num_outputs=10,
        generator=seeds.generator(0, "init"),
    )
    return model, images, labels, 128


def toy() -> Case:
    generator = seeds.generator(0, "toy")
    x = torch.rand(256, 1, generator=generator)
    model = MLP(
        MLPConfig(widths=(64, 16), activation="tanh"),
        input_shape=(1,),
        num_outputs=2,
        generator=seeds.generator(0, "init"),
    )
    return model, x, (x[:, 0] > 0.5).long(), 1


CASES: dict[str, Callable[[], Case]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "toy": toy}


def reference(
    model: nn.Module, loader: DataLoader, directions: Directions, points: list[tuple[float, ...]]
) -> list[float]:
    """The loss at each point, one batch after the other."""
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    steps = [
        [
            piece.view_as(p)
            for piece, p in zip(v.split([p.numel() for p in start]), start, strict=True)
        ]
        for v in directions.vectors.T.contiguous()
    ]
    losses = []
    for point in points:
        for i, parameter in enumerate(parameters):
            moved = start[i] + sum(c * step[i] for c, step in zip(point, steps, strict=True))
            parameter.data = moved
        total, right, seen = 0.0, 0, 0
        with torch.no_grad():
            for x, y in loader:
                outputs = model(x)
                total += F.cross_entropy(outputs, y).item() * len(y)
                right += outputs.argmax(1).eq(y).sum().item()
                seen += len(y)
        losses.append(total / seen)
    for parameter, value in zip(parameters, start, strict=True):
        parameter.data = value
    return losses


def measure(name: str, rounds: int, tol: float = 0.0, examples: int | None = None) -> None:
    model, x, y, batch = CASES[name]()
    x, y = x[:examples], y[:examples]
    model.eval()
    objective = Problem(model, "categorical", train=(x, y)).objective()
    assert isinstance(objective, EmpiricalRisk)
    directions = random_directions(objective, generator=seeds.generator(0, "plane"))
    axis = np.linspace(-0.5, 0.5, SIDE).tolist()
    points = [(a, b) for a in axis for b in axis]
    loader = DataLoader(TensorDataset(x, y), batch_size=batch)

    start = time.process_time()
    evaluator, note = choose_evaluator(objective, directions, points=GRID**2)
    evaluator.measure(points[:1])
    once = time.process_time() - start

    ours, theirs = [], []
    for _ in range(rounds):
        start = time.process_time()
        mine = evaluator.measure(points)[:, 0].tolist()
        ours.append((time.process_time() - start) / len(points))
        some = points if batch > 1 else points[:4]
        start = time.process_time()
        plain = reference(model, loader, directions, some)
        theirs.append((time.process_time() - start) / len(some))
        assert np.allclose(mine[: len(some)], plain, rtol=1e-5), "the two surfaces differ"
    start = time.process_time()
    evaluate_plane(objective, directions, a=axis, b=axis)
    whole = time.process_time() - start - len(points) * statistics.median(ours)

    mine, plain = (GRID**2 * statistics.median(t) for t in (ours, theirs))
    print(f"{name}: {note}")
    print(f"  reference loop {plain:8.1f} s for 51 x 51 ({1e3 * plain / GRID**2:.2f} ms a point)")
    print(f"  kobai          {mine:8.1f} s                ({1e3 * mine / GRID**2:.2f} ms a point)")
    print(f"  once a plane   {once:8.1f} s choosing and keeping; {whole:.1f} s with all checks")
    ratio, total = mine / plain, (mine + max(once, whole)) / plain
    print(f"  ratio {ratio:.3f}; with everything that is done once {total:.3f}", flush=True)
    if tol:
        axis = np.linspace(-0.5, 0.5, GRID)
        start = time.process_time()
        plane = evaluate_plane(objective, directions, a=axis, b=axis, tol=tol, checks=False)
        spent = time.process_time() - start
        print(f"  within {tol:g}: ratio {spent / plain:.4f}; {plane.note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tol", type=float, default=0.0)
    parser.add_argument("--examples", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.cases:
        measure(name, options.rounds, options.tol, options.examples)


if __name__ == "__main__":
    main()
