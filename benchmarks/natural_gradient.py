"""Dampings of the optimizers that are handed the objective, on minibatches of real data.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/natural_gradient.py \
        [--data digits mnist] [--optimizers ngd ngd-unit] [--damping auto 0.01] [--seeds 3] \
        [--steps 60] [--directions]

Digits: 64-32-32-10 with tanh, four epochs of batches of 128. MNIST: 784-32-32-10 with tanh, one
epoch of batches of 256. `--steps` ends a run sooner. All settings but the damping are the defaults
by name. Printed as each run ends: the losses of training and test data, test accuracy, the last
damping, CPU seconds. `--directions` prints instead, on digits, the cosines between the directions
(F + λ)⁻¹∇L of K-FAC's and EKFAC's matrices and those of the layer blocks and of the exact matrix.
"""

import argparse
import time

import torch
from torch import nn

from kobai import Problem, data
from kobai.curvature import Fisher
from kobai.optim import CONFIGS, build
from kobai.problem import Batch

NAMES = (
    "ngd",
    "ngd-layer",
    "ngd-unit",
    "ngd-tridiagonal",
    "ngd-diagonal",
    "gauss-newton",
    "hessian-free",
)
RUNS = {"digits": (128, 4), "mnist": (256, 1)}


def network(inputs: int, seed: int) -> nn.Sequential:
    """784 or 64 inputs, two hidden layers of 32, ten outputs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, 32),
        nn.Tanh(),
        nn.Linear(32, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def directions() -> None:
    """Cosines at initial weights and after two epochs of K-FAC, float64, 256 examples."""
    x, y = data.load("digits").train
    x = x.double()
    net = network(64, 0).double()
    objective = Problem(net, "categorical", train=(x, y)).objective(Batch(x[:256], y[:256]))
    generator = torch.Generator().manual_seed(0)
    for epochs in (0, 2):
        optimizer = build("kfac", net, "categorical")
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator)[: 11 * 128].split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
        gradient = objective.grad(objective.theta())
        for damping in (1e-1, 1e-2):
            found = {
                name: Fisher(objective, name).inverse(damping, "exact") @ gradient
                for name in ("kronecker", "ekfac", "layer", "full")
            }
            for name in ("kronecker", "ekfac", "layer"):
                cosines = [
                    float(nn.functional.cosine_similarity(found[name], found[other], dim=0))
                    for other in ("layer", "full")
                ]
                print(
                    f"epochs {epochs} damping {damping} {name}: layer {cosines[0]:.3f} "
                    f"full {cosines[1]:.3f}",
                    flush=True,
                )


def run(name: str, source: str, damping: float | str, seed: int, steps: int | None) -> str:
    """One run at a damping."""
    splits = data.load(source)
    assert splits.test is not None
    (x, y), (x_test, y_test) = splits.train, splits.test
    net = network(x[0].numel(), seed)
    problem = Problem(net, "categorical", train=(x, y), test=(x_test, y_test))
    optimizer = build(name, net, "categorical", CONFIGS[name](damping=damping))
    generator = torch.Generator().manual_seed(seed)
    size, epochs = RUNS[source]
    batches: list[torch.Tensor] = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        batches += order[: len(x) // size * size].split(size)
    start = time.process_time()
    for rows in batches[:steps]:
        optimizer.step(problem.objective(Batch(x[rows], y[rows])))
    seconds = time.process_time() - start
    with torch.no_grad():
        losses = [
            float(nn.functional.cross_entropy(net(a), b)) for a, b in (splits.train, splits.test)
        ]
        right = float((net(x_test).argmax(1) == y_test).float().mean())
    told = optimizer.diagnostics()  # type: ignore[attr-defined]
    counts = {k: v for k, v in told.items() if k.endswith(("_steps", "_solves", "_trials")) and v}
    return (
        f"{source} {name} {damping} seed {seed}: train {losses[0]:.3f} test {losses[1]:.3f} "
        f"accuracy {100 * right:.2f} damping {told['damping']:.2g} seconds {seconds:.1f} {counts}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=tuple(RUNS), default=list(RUNS))
    parser.add_argument("--optimizers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--damping", nargs="+", default=["auto", "0.01"])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--steps", type=int, default=None, help="most steps a run")
    parser.add_argument("--directions", action="store_true", help="cosines of directions instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.directions:
        directions()
        return
    for source in options.data:
        for name in options.optimizers:
            for damping in options.damping:
                for seed in range(options.seeds):
                    value = damping if damping == "auto" else float(damping)
                    print(run(name, source, value, seed, options.steps), flush=True)


if __name__ == "__main__":
    main()
