"""What a K-FAC step costs, in steps of plain SGD with momentum on the same network and batch.

Kinds of steps are timed apart, in process CPU seconds, alternating with the step of SGD: one that
only preconditions, one that gathers statistics as well, one that also inverts. Their medians are
combined: "10/100" = (90 preconditioning + 9 gathering + 1 inverting) / 100, and "1/10" = (9
gathering + 1 inverting) / 10. Learning rate and damping are numbers: what automatic control adds is
its own business.

    OMP_NUM_THREADS=1 KOBAI_DATA=... python benchmarks/kfac.py [--cases mlp-256 ae-256 …]
        [--optimizers kfac kfac-all kfac-gradient ekfac kfac-float32 kfac-bf16] [--quick]
        [--labels sampled observed] [--device cuda] [--bf16]

Cases: "mlp", six linear layers 784-100×5-10; "classifier", 784-512-512-10 with ReLU; "ae", the
autoencoder 784-1000-500-250-30-250-500-1000-784; "resnet", ResNet-20 on images of CIFAR-10's size;
"transformer", d = 128, 4 layers, 32 tokens; "resnet50" and "gpt2" (124 M parameters) for
accelerators. "kfac-all" sums statistics over all examples, "kfac-gradient" makes no step from
the rows of a gradient. Numbers after the dash are batches. Inputs are random: no cost depends on
them.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai.models.resnet import ResNet, ResNetConfig
from kobai.optim import EKFAC, KFAC
from kobai.optim.kfac import gradient_rows, refresh
from kobai.optim.kfac.settings import INVERSE_DENSITY

TARGETS = {
    "mlp-256": (1.45, 2.4),
    "mlp-2048": (1.18, 2.2),
    "ae-256": (2.2, 3.0),
    "ae-2048": (1.22, 1.8),
    "resnet-256": (1.2, 2.6),
    "transformer-256": (1.08, 1.6),
}
"""To reach: 10/100 and 1/10."""

PEERS = {
    "mlp-256": (1.60, 3.35),
    "mlp-2048": (1.29, 3.0),
    "ae-256": (2.68, 3.8),
    "ae-2048": (1.25, 2.3),
    "resnet-256": (1.43, 5.3),
    "transformer-256": (1.13, 2.1),
}
"""Best K-FAC packages measured, the empirical Fisher where that is cheaper."""


KINDS = ("precondition", "gather", "invert")
"""Kinds of steps, which come in turns."""

FIRST = 2
"""Steps that invert before the turns begin."""


def kind_of(step: int) -> str:
    """Name the kind of a step by its number."""
    return "invert" if step < FIRST else KINDS[(step - FIRST) % len(KINDS)]


def due(step: int, last: int | None, every: int, density: int) -> bool:
    """Say whether statistics or inverses are due, in place of K-FAC's own intervals."""
    del last, every
    kind = kind_of(step)
    return kind == "invert" if density == INVERSE_DENSITY else kind != "precondition"


PRODUCTS = {"kfac-bf16": torch.bfloat16, "kfac-float32": torch.float32}
"""Optimizers with a precision of products of their own; the others choose by the processor."""


class Block(nn.Module):
    """A transformer block with linear layers for all projections."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Tokens(nn.Module):
    """Embedding, blocks, an output for every token."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads, True) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.place(places))))


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(inplace=True), nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )  # fmt: skip
        plain = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if plain else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return F.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            layers.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def chain(sizes: list[int], activation: type[nn.Module] | None) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers.append(nn.Linear(a, b))
        if activation is not None:
            layers.append(activation())
    return nn.Sequential(*(layers if activation is None else layers[:-1]))


AUTOENCODER = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]

Loss = Callable[[nn.Module], Tensor]


def case(name: str) -> tuple[Callable[[], nn.Module], str, Tensor, Tensor]:
    """How to make the network, its likelihood, and a batch."""
    kind, _, number = name.partition("-")
    batch = int(number)
    generator = torch.Generator().manual_seed(0)

    def images(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    def classes(count: int, *shape: int) -> Tensor:
        return torch.randint(0, count, (batch, *shape), generator=generator)

    if kind == "mlp":
        make = lambda: chain([784] + [100] * 5 + [10], None)  # noqa: E731
        return make, "categorical", images(784), classes(10)
    if kind == "classifier":
        make = lambda: chain([784, 512, 512, 10], nn.ReLU)  # noqa: E731
        return make, "categorical", images(784), classes(10)
    if kind == "ae":
        x = images(784)
        return lambda: chain(AUTOENCODER, nn.Sigmoid), "bernoulli", x, x.round()
    if kind == "resnet":
        make = lambda: ResNet(  # noqa: E731
            ResNetConfig(), input_shape=(3, 32, 32), num_outputs=10, generator=generator
        )
        return make, "categorical", images(3, 32, 32), classes(10)
    if kind == "transformer":
        return lambda: Tokens(64, 128, 4, 4, 32), "tokens", classes(64, 32), classes(64, 32)
    if kind == "resnet50":
        return resnet50, "categorical", images(3, 224, 224), classes(1000)
    if kind == "gpt2":
        make = lambda: Tokens(50257, 768, 12, 12, 1024)  # noqa: E731
        return make, "tokens", classes(50257, 1024), classes(50257, 1024)
    raise ValueError(f"unknown case {name!r}")


def loss_of(likelihood: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if likelihood == "bernoulli":
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")
        return loss / len(targets)
    if likelihood == "tokens":
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    return F.cross_entropy(outputs, targets)


class Stepper:
    """A network with an optimizer whose kinds of steps come in turns."""

    def __init__(self, name: str, optimizer: str, labels: str, device: str, bf16: bool) -> None:
        make, self.likelihood, x, y = case(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = make().to(device)
        self.x, self.y = x.to(device), y.to(device)
        self.cuda, self.bf16 = device.startswith("cuda"), bf16
        if optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                self.model.parameters(), lr=1e-4, momentum=0.9
            )
            return
        kind = EKFAC if optimizer == "ekfac" else KFAC
        likelihood: str | nn.Module = self.likelihood
        if self.likelihood == "tokens":
            from kobai.problem import Categorical

            likelihood = Categorical(axis=-1, reduction="terms")  # pyright: ignore
        self.optimizer = kind(
            self.model, likelihood, lr=1e-4, damping=0.03, kl_bound=None,
            labels=labels, generator=torch.Generator(device).manual_seed(0),
            product_dtype=PRODUCTS.get(optimizer),
            statistics_examples="all" if optimizer == "kfac-all" else "auto",
        )  # fmt: skip
        if optimizer == "kfac-gradient":
            with mock.patch.object(gradient_rows, "has_rows", return_value=False):
                self.optimizer.state_dict()  # makes the blocks
        for _ in range(FIRST):
            self.step()

    def step(self) -> float:
        """Seconds of the next step."""
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter() if self.cuda else time.process_time()
        self.optimizer.zero_grad()
        precision = (
            torch.autocast("cuda" if self.cuda else "cpu", dtype=torch.bfloat16)
            if self.bf16
            else contextlib.nullcontext()
        )
        with precision:
            loss = loss_of(self.likelihood, self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        if self.cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() if self.cuda else time.process_time()) - start


def measure(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    rounds = 5 if options.quick else 15
    if name.split("-")[0] in ("resnet", "transformer", "resnet50", "gpt2") or name == "ae-2048":
        rounds = 3 if options.quick else 5
    plain = Stepper(name, "sgd", "", options.device, options.bf16)
    others = {
        (optimizer, labels): Stepper(name, optimizer, labels, options.device, options.bf16)
        for optimizer in options.optimizers
        for labels in options.labels
    }
    times: dict[tuple[str, ...], list[float]] = {}
    for _ in range(2):
        plain.step()
    for _ in range(rounds):
        for key, stepper in others.items():
            for kind in KINDS:
                times.setdefault(("sgd",), []).append(plain.step())
                times.setdefault((*key, kind), []).append(stepper.step())
    unit = statistics.median(times["sgd",])
    rows = []
    for optimizer, labels in others:
        pre, gather, inverse = (
            statistics.median(times[optimizer, labels, kind]) / unit for kind in KINDS
        )
        rows.append(
            {
                "case": name,
                "optimizer": optimizer,
                "labels": labels,
                "sgd_ms": 1e3 * unit,
                "precondition": pre,
                "gather": gather,
                "invert": inverse,
                "10/100": (90 * pre + 9 * gather + inverse) / 100,
                "1/10": (9 * gather + inverse) / 10,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(TARGETS))
    parser.add_argument("--optimizers", nargs="+", default=["kfac"])
    parser.add_argument("--labels", nargs="+", default=["sampled"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", help="write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    refresh.due = due
    rows: list[dict[str, object]] = []
    print(
        f"{'case':16}{'optimizer':14}{'labels':10}{'SGD ms':>8}{'pre':>7}{'gather':>8}{'invert':>8}"
        f"{'10/100':>8}{'1/10':>7}   to reach, best peer"
    )
    for name in options.cases:
        for row in measure(name, options):
            rows.append(row)
            print(
                f"{name:16}{row['optimizer']:14}{row['labels']:10}{row['sgd_ms']:8.2f}"
                f"{row['precondition']:7.2f}{row['gather']:8.2f}{row['invert']:8.2f}"
                f"{row['10/100']:8.2f}{row['1/10']:7.2f}   {TARGETS.get(name, '')} "
                f"{PEERS.get(name, '')}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
