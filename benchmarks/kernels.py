"""What kernels cost, beside the contraction of torch.func's tutorial and layer Grams by hand.

All rows of a case are timed in process CPU seconds on one thread, in turns, and reported as medians
and as ratios to the layer Grams written by hand for that very network, and to one gradient (forward
and backward with plain torch on the same data). Data are standard normal: kernels do not care.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py [--cases mlp cnn …] [--rounds 7]
"""

import argparse
import itertools
import math
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from kobai.kernels import ntk, ntk_plan
from kobai.optim import NaturalGradient
from kobai.problem import EmpiricalRisk, Problem
from kobai.theory import WideNetwork, infinite_width_kernels

Work = Callable[[], object]


def perceptron(widths: list[int]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for fan_in, width in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_cnn() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 64, 10),
        )  # fmt: skip


def risk(model: nn.Module, x: Tensor, outputs: int = 10) -> EmpiricalRisk:
    return Problem(model, "gaussian", train=(x, torch.zeros(len(x), outputs))).objective(
        chunk=len(x)
    )


def tutorial(model: nn.Module, x: Tensor) -> Tensor:
    """Jacobian contraction as in torch.func's tutorial on tangent kernels."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x.unsqueeze(0),)).squeeze(0)

    jacobians = vmap(jacrev(one), (None, 0))(parameters, x)
    terms = [torch.einsum("Naf,Mbf->NMab", j.flatten(2), j.flatten(2)) for j in jacobians.values()]
    return torch.stack(terms).sum(0)


def hand_perceptron(model: nn.Sequential, x: Tensor) -> Tensor:
    """Forward, the backward recursion for all outputs, and a Gram matrix a layer."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    features, before = [x], []
    with torch.no_grad():
        for i, layer in enumerate(layers):
            before.append(layer(features[-1]))
            if i < len(layers) - 1:
                features.append(before[-1].relu())
        count, each = before[-1].shape
        delta = torch.eye(each).expand(count, each, each).reshape(count * each, each)
        kernel = torch.zeros(count * each, count * each)
        for i in range(len(layers) - 1, -1, -1):
            inner = features[i] @ features[i].T + 1
            spread = inner.repeat_interleave(each, 0).repeat_interleave(each, 1)
            kernel += (delta @ delta.T) * spread
            if i:
                mask = (before[i - 1] > 0).to(x.dtype).unsqueeze(1)
                delta = ((delta @ layers[i].weight).view(count, each, -1) * mask).flatten(0, 1)
    return kernel


def hand_cnn(model: nn.Sequential, x: Tensor) -> Tensor:
    """The same for the small convolutional network: rows written out by unfolding, then Grams."""
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    values, inputs, outputs = x, [], []
    for module in model:
        if isinstance(module, nn.Conv2d):
            inputs.append(values.detach())
            values = module(values)
            outputs.append(values)
        else:
            if isinstance(module, nn.Linear):
                last = values.detach()
            values = module(values)
    count, each = values.shape
    eye = torch.eye(each)
    kernel = torch.kron(last @ last.T + 1, eye)
    gradients = [
        torch.autograd.grad(values, outputs, eye[k].expand(count, each), retain_graph=True)
        for k in range(each)
    ]
    for i in range(len(convolutions)):
        patches = F.unfold(inputs[i], 3, padding=1)
        patches = torch.cat([patches, torch.ones_like(patches[:, :1])], 1)
        delta = torch.stack([g[i].flatten(2) for g in gradients], 1)
        rows = torch.einsum("nkot,nit->nkoi", delta, patches).flatten(2).flatten(0, 1)
        kernel += rows @ rows.T
    return kernel


def gradient(model: nn.Module, x: Tensor) -> Work:
    def work() -> None:
        model.zero_grad()
        (model(x).square().sum() / len(x)).backward()

    return work


def measure(rows: dict[str, Work], rounds: int, few: set[str]) -> dict[str, float]:
    """Median CPU seconds, in turns; those in `few` are run twice."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 1):
        for name, work in rows.items():
            if name in few and turn > 2:
                continue
            start = time.process_time()
            work()
            if turn:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def show(title: str, found: dict[str, float], base: str, reach: str) -> None:
    print(f"\n{title}\n{'':34}{'s':>9}{'/ by hand':>11}{'/ gradient':>12}")
    for name, seconds in found.items():
        by_hand = seconds / found[base] if base in found else math.nan
        print(
            f"{name:34}{seconds:9.4f}{by_hand:11.2f}{seconds / found['gradient']:12.1f}", flush=True
        )
    print(f"to reach: {reach}")


def agree(first: Tensor, second: Tensor) -> str:
    """Largest relative difference of two kernels."""
    return f"{float((first - second).abs().max() / second.abs().max()):.1e}"


def case_mlp(rounds: int) -> None:
    model, x = perceptron([784, 512, 512, 10]), torch.randn(100, 784, generator=_generator())
    objective = risk(model, x)
    print(f"\nplan: {ntk_plan(objective)}")
    flat = ntk(objective).flatten(2).flatten(0, 1)
    print(f"agrees with layer Grams by hand to {agree(flat, hand_perceptron(model, x))}")
    found = measure(
        {
            "gradient": gradient(model, x),
            "layer Grams by hand": lambda: hand_perceptron(model, x),
            "kobai ntk": lambda: ntk(objective),
            "kobai ntk, trace": lambda: ntk(objective, outputs="trace"),
            "torch.func tutorial": lambda: tutorial(model, x),
        },
        rounds, {"torch.func tutorial"},
    )  # fmt: skip
    show("784-512-512-10, N = 100, C = 10", found, "layer Grams by hand", "0.83 of by hand")


def case_mlp_1000(rounds: int) -> None:
    model, x = perceptron([784, 512, 512, 10]), torch.randn(1000, 784, generator=_generator())
    objective = risk(model, x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kernel = ntk(objective)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"\npeak memory: {grown / kernel.nbytes:.2f} times the result (2 to reach)")
    del kernel
    found = measure(
        {
            "gradient": gradient(model, x),
            "kobai ntk": lambda: ntk(objective),
            "layer Grams by hand": lambda: hand_perceptron(model, x),
        },
        min(rounds, 3), set(),
    )  # fmt: skip
    show("the same, N = 1,000", found, "layer Grams by hand", "0.63 of by hand")


def case_cnn(rounds: int) -> None:
    model, x = small_cnn(), torch.randn(100, 3, 32, 32, generator=_generator())
    objective = risk(model, x)
    print(f"\nplan: {ntk_plan(objective)}")
    flat = ntk(objective).flatten(2).flatten(0, 1)
    print(f"agrees with layer Grams by hand to {agree(flat, hand_cnn(model, x))}")
    found = measure(
        {
            "gradient": gradient(model, x),
            "layer Grams by hand": lambda: hand_cnn(model, x),
            "kobai ntk": lambda: ntk(objective),
            "torch.func tutorial": lambda: tutorial(model, x),
        },
        rounds, {"torch.func tutorial"},
    )  # fmt: skip
    show("CNN 16-32 on 32×32×3, N = 100", found, "layer Grams by hand", "0.63 of by hand")


def plain_infinite(x: np.ndarray, depth: int) -> np.ndarray:
    """Arc-cosine recursion in plain NumPy, σ_w² = 2, no biases."""
    k = 2 * x @ x.T / x.shape[1]
    theta = k.copy()
    for _ in range(depth - 1):
        root = np.sqrt(np.outer(np.diag(k), np.diag(k)))
        cosine = np.clip(k / root, -1, 1)
        angle = np.arccos(cosine)
        slope = (np.pi - angle) / (2 * np.pi)
        k = 2 * root / (2 * np.pi) * (np.sqrt(1 - cosine**2) + (np.pi - angle) * cosine)
        theta = 2 * slope * theta + k
    return theta


def case_infinite(rounds: int) -> None:
    x = torch.randn(1000, 784, generator=_generator(), dtype=torch.float64).numpy()
    network = WideNetwork(widths=(784, 512, 512, 512, 512, 10), activation="relu")
    ours = infinite_width_kernels(network, x, parameterization="ntk").ntk
    plain = plain_infinite(x, 5)
    print(f"\nagrees with the plain recursion to {np.abs(ours - plain).max() / plain.max():.1e}")
    model, batch = perceptron([784, 512, 512, 10]), torch.randn(1000, 784, generator=_generator())
    found = measure(
        {
            "gradient": gradient(model, batch),
            "plain NumPy recursion": lambda: plain_infinite(x, 5),
            "kobai infinite_width_kernels": lambda: infinite_width_kernels(
                network, x, parameterization="ntk"
            ),
        },
        rounds, set(),
    )  # fmt: skip
    show("infinite width, depth 5, ReLU, N = 1,000", found, "plain NumPy recursion", "0.050 s")


def case_step(rounds: int) -> None:
    widths = [784, 700, 600, 10]
    model, x = perceptron(widths), torch.randn(200, 784, generator=_generator())
    y = torch.randn(200, 10, generator=_generator())
    objective = Problem(model, "gaussian", train=(x, y)).objective(chunk=200)
    optimizer = NaturalGradient(model, "gaussian", lr=1e-3, damping=1e-3)
    found = measure(
        {
            "gradient": gradient(model, x),
            "kobai ntk": lambda: ntk(objective),
            "exact natural-gradient step": lambda: optimizer.step(objective),
        },
        rounds, set(),
    )  # fmt: skip
    size = sum(p.numel() for p in model.parameters())
    show(f"natural gradient, P = {size:,}, N = 200, C = 10", found, "", "16 gradients")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


CASES: dict[str, Callable[[int], None]] = {
    "mlp": case_mlp,
    "mlp-1000": case_mlp_1000,
    "cnn": case_cnn,
    "infinite": case_infinite,
    "step": case_step,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        CASES[name](arguments.rounds)


if __name__ == "__main__":
    main()
