"""What curvature costs, in gradients: forward and backward on the same data with plain torch.

Every row is timed in process CPU seconds on one thread, alternating with the gradient, and reported
as the ratio of medians. A child process a row shows the peak memory: the growth of its resident set
over one whole piece of work with everything that it sets up. curvlinops and
PyHessian are timed on the same model, data and vectors where they are installed.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/curvature.py [--cases mlp resnet] [--full]

Case mlp: 784-100-100-10 with ReLU on 10,000 MNIST images, P = 89,610, with PyTorch's initial
weights and after one epoch of SGD. Case resnet: ResNet-20 with BatchNorm in evaluation mode on 200
CIFAR-10 images, 2,000 with ``--full``.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai import data, seeds
from kobai.curvature import GGN, Hessian, density, dual_eigenvalues, eigenvalues, trace
from kobai.models.resnet import ResNet, ResNetConfig
from kobai.problem import EmpiricalRisk, Problem

try:
    import curvlinops  # pyright: ignore[reportMissingImports]
except ImportError:
    curvlinops = None
try:
    import pyhessian  # pyright: ignore[reportMissingImports]
except ImportError:
    pyhessian = None


# A search depends on where it starts: in a crowd by a fifth of its products.
STARTS = 4


@dataclass
class Row:
    """One piece of work: made ready by `prepare`, then done again and again."""

    name: str
    prepare: Callable[[], Callable[[], object]]
    rounds: int = 15
    per: int = 1  # units in one piece, such as columns
    target: str = ""


def subset(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return images[:count], labels[:count]


def mlp(trained: bool) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = data.load("mnist", download=False).train
    images, labels = subset(images.flatten(1), labels, 10_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
        )
    if trained:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in zip(images.split(100), labels.split(100), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, images, labels


def resnet(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = data.load("cifar10", download=False).train
    images, labels = subset(images, labels, count)
    model = ResNet(
        ResNetConfig(), input_shape=images.shape[1:], num_outputs=10,
        generator=seeds.generator(0, "init"),
    )  # fmt: skip
    # Statistics of the data, so that evaluation mode is a sensible network.
    with torch.no_grad():
        model.train()
        for _ in range(20):
            model(images[:200])
    return model.eval(), images, labels


def gradient(model: nn.Module, images: Tensor, labels: Tensor, chunk: int) -> None:
    model.zero_grad()
    for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
        (F.cross_entropy(model(x), y, reduction="sum") / len(labels)).backward()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def describe(result: object) -> str:
    if isinstance(result, list):
        return "; ".join(describe(one) for one in result)
    spent = getattr(result, "num_products", None)
    return "" if spent is None else f"{spent} products, {getattr(result, 'status', '')}"


def products(objective: EmpiricalRisk, *, columns: int = 0) -> list[Row]:
    """Products at a fixed point, everything prepared before the clock starts."""
    size = objective.space.dimension
    vector = torch.randn(size, generator=seeded())
    block = torch.randn(size, max(columns, 1), generator=seeded())

    def times(kind: type, what: Tensor) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            matrix = kind(objective)
            return lambda: matrix @ what

        return prepare

    rows = [
        Row("kobai Hessian·v", times(Hessian, vector), target="1.2"),
        Row("kobai GGN·v", times(GGN, vector), target="1.15"),
    ]
    if columns:
        rows += [
            Row(
                f"kobai Hessian, per column of {columns}", times(Hessian, block), 5, columns, "1.2"
            ),
            Row(f"kobai GGN, per column of {columns}", times(GGN, block), 5, columns, "1.1"),
        ]
    return rows


def peers(model: nn.Module, images: Tensor, labels: Tensor, *, columns: int = 0) -> list[Row]:
    """The same products by curvlinops and PyHessian, where installed."""
    rows = []
    size = sum(p.numel() for p in model.parameters())
    vector = torch.randn(size, generator=seeded())
    block = torch.randn(size, max(columns, 1), generator=seeded())
    if curvlinops is not None:
        for name in ("HessianLinearOperator", "GGNLinearOperator"):

            def prepare(what: Tensor = vector, name: str = name) -> Callable[[], object]:
                kind = getattr(curvlinops, name)
                matrix = kind(
                    model, nn.CrossEntropyLoss(), list(model.parameters()), [(images, labels)],
                    check_deterministic=False,
                )  # fmt: skip
                return lambda: matrix @ what

            short = name.removesuffix("LinearOperator")
            rows.append(Row(f"curvlinops {short}·v", prepare, 7))
            if columns:
                rows.append(
                    Row(
                        f"curvlinops {short}, per column of {columns}",
                        lambda prepare=prepare: prepare(block), 3, columns,
                    )
                )  # fmt: skip
    if pyhessian is not None:

        def kept_graph() -> Callable[[], object]:
            matrix = pyhessian.hessian(
                model, nn.CrossEntropyLoss(), data=(images, labels), cuda=False
            )
            parts = [p.view_as(q) for p, q in zip(
                vector.split([p.numel() for p in model.parameters()]), model.parameters(),
                strict=True,
            )]  # fmt: skip
            return lambda: pyhessian.utils.hessian_vector_product(
                matrix.gradsH, matrix.params, parts
            )

        rows.append(Row("PyHessian Hessian·v", kept_graph, 7))
    return rows


def spectra(objective: EmpiricalRisk) -> list[Row]:
    """Whole estimates, from nothing to the result."""
    rows = []
    for kind, goal, limit in ((Hessian, "40", "600"), (GGN, "40", "560")):
        name = kind.__name__
        rows += [
            Row(
                f"kobai top 10 of the {name}, 1e-3, mean of {STARTS} starts",
                lambda kind=kind: lambda: [
                    eigenvalues(kind(objective), 10, generator=seeded(seed))
                    for seed in range(STARTS)
                ],
                1, STARTS, target=goal,
            ),
            Row(
                f"kobai density of the {name}, 10 × 50",
                lambda kind=kind: lambda: density(kind(objective), generator=seeded()),
                1, target=limit,
            ),
            Row(
                f"kobai density of the {name}, to an L1 error of 0.1",
                lambda kind=kind: lambda: density(
                    kind(objective), tolerance=0.1, generator=seeded()
                ),
                1, target=f"< {limit}",
            ),
            Row(
                f"kobai trace of the {name} to 1 %",
                lambda kind=kind: lambda: trace(kind(objective), generator=seeded()),
                1,
            ),
        ]  # fmt: skip
    return rows


def peer_spectra(model: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    """curvlinops with SciPy's ARPACK."""
    if curvlinops is None:
        return []
    rows = []
    for name in ("Hessian", "GGN"):

        def prepare(name: str = name) -> Callable[[], object]:
            matrix = getattr(curvlinops, f"{name}LinearOperator")(
                model, nn.CrossEntropyLoss(), list(model.parameters()), [(images, labels)],
                check_deterministic=False,
            ).to_scipy()  # fmt: skip
            return lambda: scipy.sparse.linalg.eigsh(matrix, k=10, which="LA", tol=1e-3)

        rows.append(Row(f"curvlinops + ARPACK top 10 of the {name}, 1e-3", prepare, 1))
    return rows


def dual(model: nn.Module, images: Tensor, labels: Tensor) -> list[Row]:
    small = Problem(model, "categorical", train=subset(images, labels, 200)).objective()
    return [Row("whole GGN spectrum, N = 200 (2,000 of 89,610)",
                lambda: lambda: dual_eigenvalues(small), 3)]  # fmt: skip


def in_child(row: Row, reference: Callable[[], None]) -> dict[str, Any]:
    """Time a row and the gradient in turns, in a child process that shows the row's own memory.

    The peak is the growth of the resident set over the first piece of work with all it sets up; a
    short piece is timed from its second run on.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            gc.collect()
            with open("/proc/self/clear_refs", "w") as reset:
                reset.write("5")
            before = resident("VmRSS")
            gradients: list[float] = []
            work = row.prepare()
            seconds, result = timed(work)
            peak = (resident("VmHWM") - before) / 1024
            times = [seconds]
            # A long gradient needs no repetition to be timed well.
            few = 1 if timed(reference)[0] > 2 else 7
            if row.rounds > 3:
                times = []
                for _ in range(row.rounds):
                    gradients.append(timed(reference)[0])
                    times.append(timed(work)[0])
            else:
                gradients += [timed(reference)[0] for _ in range(few)]
                times += [timed(work)[0] for _ in range(row.rounds - 1)]
                gradients += [timed(reference)[0] for _ in range(few)]
            found = {
                "seconds": statistics.median(times) / row.per,
                "gradient": statistics.median(gradients),
                "peak": peak,
                "note": describe(result),
            }
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {}


def resident(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))


def run(title: str, rows: list[Row], reference: Callable[[], None], note: str) -> None:
    """Time and print one table, row by row."""
    print(f"\n### {title}\n\n{note}\n")
    print("| work | gradients | to reach | peak MiB | |\n|---|---|---|---|---|", flush=True)
    own = Row("gradient", lambda: reference, rounds=rows[0].rounds)
    for row in [own, *rows]:
        found = in_child(row, reference)
        if not found:
            print(f"| {row.name} | failed | {row.target} | | |", flush=True)
            continue
        ratio = found["seconds"] / found["gradient"]
        digits = ".2f" if ratio < 10 else ".0f"
        remark = f"{1e3 * found['gradient']:.0f} ms" if row is own else found["note"]
        print(
            f"| {row.name} | {format(ratio, digits)} | {row.target} | {found['peak']:.0f} | "
            f"{remark} |",
            flush=True,
        )


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--cases", nargs="+", default=["mlp", "resnet"], choices=["mlp", "resnet"])
    parser.add_argument(
        "--points", nargs="+", default=["initial", "trained"], choices=["initial", "trained"],
        help="weights of the perceptron",
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="2,000 images for the ResNet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, curvlinops "
          f"{'installed' if curvlinops else 'not installed'}, PyHessian "
          f"{'installed' if pyhessian else 'not installed'}", flush=True)  # fmt: skip
    if "mlp" in options.cases:
        for trained in (point == "trained" for point in options.points):
            model, images, labels = mlp(trained)
            problem = Problem(model, "categorical", train=(images, labels))
            objective = problem.objective()
            rows = []
            if not trained:
                rows += products(objective, columns=8) + peers(model, images, labels, columns=8)
                rows += dual(model, images, labels)
            rows += spectra(objective) + peer_spectra(model, images, labels)
            where = "after one epoch" if trained else "at initialisation"
            run(f"MLP 784-100-100-10, 10,000 MNIST images, {where}", rows,
                lambda m=model, x=images, y=labels: gradient(m, x, y, len(y)),
                f"P = {objective.space.dimension:,}.")  # fmt: skip
    if "resnet" in options.cases:
        count = 2000 if options.full else 200
        model, images, labels = resnet(count)
        problem = Problem(model, "categorical", train=(images, labels))
        chunk = min(count, 200)
        objective = problem.objective(chunk=chunk)
        rows = products(objective)
        rows[0].target, rows[1].target = "2.5", "1.7"
        for row in rows:
            row.rounds = 5 if count == 200 else 1
        if count == 200:
            rows += peers(model, images, labels)
            for row in rows[2:]:
                row.rounds = 3
        run(f"ResNet-20, {count:,} CIFAR-10 images", rows,
            lambda: gradient(model, images, labels, chunk),
            f"P = {objective.space.dimension:,}, in batches of {chunk}.")  # fmt: skip


if __name__ == "__main__":
    main()
