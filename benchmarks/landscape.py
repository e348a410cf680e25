"""How long a 51 x 51 loss surface takes here, against the loop that visualisation scripts run.

The reference evaluates one point after the other: it writes the moved parameters into the model and
goes over a `DataLoader` of normalised tensors with batches of 128, with one loss and one count of
right answers copied to the host for each batch. Both sides use one thread and the same data, model
and directions. A subgrid is timed in process seconds, alternating over rounds, and scaled to
51 x 51 by the number of points. What kobai does once a plane (joining the data, comparing
back-ends, keeping what can be reused, and with --checks all self-checks) is measured apart and
added once. Ratios are medians over rounds.

With --peer, loss-landscapes 3.0.6 takes its turn in every round (`landscape_peer.py` says how to
make its environment), and ratios are to both.

With --tol, a 51 x 51 surface that a spline completes to that accuracy is made from beginning to end
(choosing, refining, verifying, without the checks) and its process time held against the same
references.

    KOBAI_DATA=... python benchmarks/landscape.py [--cases mlp cnn resnet toy] [--rounds 3]
        [--peer PEER/bin/python] [--side 4] [--tol 0.01] [--checks] [--examples 1000]

Case mlp: 784-512-512-10 ReLU on 10,000 MNIST test images. cnn (3-16-32 channels, pooled) and
resnet (the 20-layer CIFAR form): 1,000 random images of CIFAR's shape, as time does not depend on
what they show. toy: 1-64-16-2 on 256 examples, where the reference takes single examples.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kobai import data, seeds
from kobai.landscape import Directions, evaluate_plane, random_directions
from kobai.landscape.backends.choice import choose
from kobai.models.cnn import CNN, CNNConfig
from kobai.models.mlp import MLP, MLPConfig
from kobai.models.resnet import ResNet, ResNetConfig
from kobai.problem import EmpiricalRisk, Problem

GRID = 51
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


def peer(python: str, case: Case, side: int) -> float:
    """Process seconds a point of loss-landscapes, in the environment of that Python."""
    source = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pt"
        torch.save(case[:3], path)
        environment = {**os.environ, "PYTHONPATH": str(source.parent / "src")}
        command = [python, str(source / "landscape_peer.py"), str(path), str(side)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure(name: str, options: argparse.Namespace) -> None:
    model, x, y, batch = CASES[name]()
    x, y = x[: options.examples], y[: options.examples]
    model.eval()
    objective = Problem(model, "categorical", train=(x, y)).objective()
    assert isinstance(objective, EmpiricalRisk)
    directions = random_directions(objective, generator=seeds.generator(0, "plane"))
    axis = np.linspace(-0.5, 0.5, options.side).tolist()
    points = [(a, b) for a in axis for b in axis]
    loader = DataLoader(TensorDataset(x, y), batch_size=batch)

    start = time.process_time()
    choice = choose(objective, directions, points=GRID**2)
    evaluator, note = choice.evaluator, choice.note
    evaluator.measure(points[:1])
    once = time.process_time() - start

    times: dict[str, list[float]] = {"kobai": [], "reference loop": []}
    for _ in range(options.rounds):
        start = time.process_time()
        mine = evaluator.measure(points)[:, 0].tolist()
        times["kobai"].append((time.process_time() - start) / len(points))
        some = points if batch > 1 else points[:4]
        start = time.process_time()
        plain = reference(model, loader, directions, some)
        times["reference loop"].append((time.process_time() - start) / len(some))
        assert np.allclose(mine[: len(some)], plain, rtol=1e-5), "the two surfaces differ"
        if options.peer:
            spent = peer(options.peer, (model, x, y, batch), options.side)
            times.setdefault("loss-landscapes", []).append(spent)
    each = {who: statistics.median(found) for who, found in times.items()}
    if options.checks:
        start = time.process_time()
        evaluate_plane(objective, directions, a=axis, b=axis)
        once = time.process_time() - start - len(points) * each["kobai"]

    print(f"{name}: {note}")
    for who, seconds in each.items():
        shown = ", ".join(f"{1e3 * t:.2f}" for t in times[who])
        print(f"  {who:16s} {GRID**2 * seconds:8.1f} s for 51 x 51 (ms a point: {shown})")
    what = "choosing, keeping and all checks" if options.checks else "choosing and keeping"
    print(f"  once a plane {once:.1f} s {what}")
    spent = 0.0
    if options.tol:
        axis = np.linspace(-0.5, 0.5, GRID)
        start = time.process_time()
        plane = evaluate_plane(objective, directions, a=axis, b=axis, tol=options.tol, checks=False)
        spent = time.process_time() - start
        print(f"  {plane.note}")
    for who in (who for who in times if who != "kobai"):
        pairs = zip(times["kobai"], times[who], strict=True)
        exact = statistics.median(mine / other for mine, other in pairs)
        whole = GRID**2 * each[who]
        line = f"  of {who}: exact {exact:.3f}, with what is done once {exact + once / whole:.3f}"
        print(line + (f", within {options.tol:g} {spent / whole:.4f}" if spent else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default="", help="Python of loss-landscapes' environment")
    parser.add_argument("--side", type=int, default=4, help="nodes along each side of the subgrid")
    parser.add_argument("--tol", type=float, default=0.0)
    parser.add_argument("--checks", action="store_true")
    parser.add_argument("--examples", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.cases:
        measure(name, options)


if __name__ == "__main__":
    main()
