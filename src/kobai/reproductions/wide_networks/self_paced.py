"""Figure 5: few examples with augmentation never, always and self-paced, and kernel regression.

Source: R. Karakida, report, task 3-1, after Takase, Karakida and Asoh 2021; kernel regression is
what the report first planned for few data.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kobai import data, models, seeds
from kobai.linalg.factor import cholesky
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.wide_networks.averages import standard_error
from kobai.results import Finding, SampleSizes, Verdict
from kobai.studies import Interrupted
from kobai.theory import WideNetwork, infinite_width_kernels
from kobai.training import Augmentation, Compose, Rotate, SelfPacedAugmentation, Shift

MODES: dict[str, float] = {"never": np.inf, "always": -1.0, "self-paced": 0.0}
"""Kind of augmentation → threshold; of self-paced the setting's own stands."""
KERNELS = ("ntk", "nngp")
METHODS = (
    *(f"CNN, augmented {name}" if name != "self-paced" else "CNN, self-paced" for name in MODES),
    "tangent kernel regression",
    "Gaussian process (NNGP kernel)",
)
_STRETCHES = 20
_ROWS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfPacedSetting:
    """Subsets of MNIST, a small convolutional network, Adam with a decaying rate."""

    sizes: tuple[int, ...]
    seeds: int
    steps: int
    test: int | None
    batch: int = 50
    channels: tuple[int, ...] = (8, 16)
    rate: float = 3e-3
    threshold: float = 0.1
    ridge: float = 1e-4
    augmentation: Augmentation = Compose((Rotate(degrees=15.0), Shift(pixels=2)))


SETTINGS = {
    "quick": SelfPacedSetting(sizes=(100, 300, 1000), seeds=3, steps=400, test=2000),
    "full": SelfPacedSetting(sizes=(100, 300, 1000, 3000, 10_000), seeds=3, steps=400, test=None),
}


def figure_5(
    config: Any, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Test error against the number of examples, by kind of augmentation."""
    del folder
    setting = SETTINGS[config.scale]
    result = learning_curves(setting, seed=config.seed, report=report, stop=stop)
    findings, verdicts = judge(result)
    return FigureOutcome(
        results={"sizes": result},
        findings=findings,
        verdicts=verdicts,
        note=f"MNIST subsets, even over the classes; CNN with {setting.channels} channels, Adam "
        f"{setting.rate:g} falling to 0 over {setting.steps} steps of {setting.batch} examples; "
        f"rotations up to 15° and shifts up to 2 pixels; τ = {setting.threshold:g} (the paper's "
        "values are not known to us). Kernels of a relu network with 3 layers, ridge "
        f"{setting.ridge:g} of the mean diagonal. The source's experiment used other data.",
    )


def learning_curves(
    setting: SelfPacedSetting,
    *,
    seed: int,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> SampleSizes:
    """Train and regress on every size and seed.

    Args:
        setting: Sizes, network, augmentation.
        seed: First seed.
        report: Called with a line a size.
        stop: Asked between runs.

    Returns:
        Test errors and augmented shares.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    error = np.full((len(METHODS), len(setting.sizes), setting.seeds), np.nan)
    selected = np.full((len(setting.sizes), _STRETCHES, setting.seeds), np.nan)
    for j, size in enumerate(setting.sizes):
        for s in range(setting.seeds):
            g = seeds.generator(seed + s, f"figure 5 size {size}")
            # The whole of a limit of None; a number of test examples else.
            test = setting.test or 10_000
            splits = data.load("mnist", generator=g, limit=(size, test))
            assert splits.test is not None
            train, held = splits.train, splits.test
            for k, (name, threshold) in enumerate(MODES.items()):
                if stop():
                    raise Interrupted
                tau = setting.threshold if name == "self-paced" else threshold
                wrong, shares = train_augmented(
                    setting, train, held, threshold=tau, seed=seed + s, name=f"figure 5 {size}"
                )
                error[k, j, s] = wrong
                if name == "self-paced":
                    pieces = np.array_split(np.array(shares), _STRETCHES)
                    selected[j, :, s] = [piece.mean() for piece in pieces]
            if stop():
                raise Interrupted
            error[len(MODES) :, j, s] = regress(train, held, ridge=setting.ridge)
        shown = ", ".join(f"{100 * value:.1f}" for value in error[:, j].mean(1))
        report(f"  {size} examples: test errors {shown} %")
    return SampleSizes(
        title="Figure 5: MNIST with few examples",
        methods=METHODS, sizes=np.array(setting.sizes, dtype=float), error=error,
        selected=selected, threshold=setting.threshold,
    )  # fmt: skip


def train_augmented(
    setting: SelfPacedSetting,
    train: tuple[Float[Tensor, "N 1 height width"], Int[Tensor, " N"]],
    test: tuple[Float[Tensor, "K 1 height width"], Int[Tensor, " K"]],
    *,
    threshold: float,
    seed: int,
    name: str,
) -> tuple[float, list[float]]:
    """Train one network; initialisation and order are the same for every threshold.

    Args:
        setting: Network, steps, augmentation.
        train: Pictures and labels.
        test: Others.
        threshold: τ: infinite for never, negative for always.
        seed: Of initialisation, order and augmentation.
        name: Of their streams.

    Returns:
        Test error and the augmented share of every step.
    """
    x, y = train
    model = models.build(
        models.CNNConfig(channels=setting.channels),
        input_shape=x.shape[1:], num_outputs=10, generator=seeds.generator(seed, f"{name} init"),
    )  # fmt: skip
    order = seeds.generator(seed, f"{name} order")
    draws = seeds.generator(seed, f"{name} augmentation")
    augment = SelfPacedAugmentation(setting.augmentation, model, threshold=threshold)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate)
    rows = torch.empty(0, dtype=torch.int64)
    for step in range(setting.steps):
        if len(rows) < min(setting.batch, len(x)):
            rows = torch.randperm(len(x), generator=order)
        chosen, rows = rows[: setting.batch], rows[setting.batch :]
        a, b = augment(x[chosen], y[chosen], generator=draws)
        for group in optimizer.param_groups:
            group["lr"] = setting.rate * (1 - step / setting.steps)
        optimizer.zero_grad()
        F.cross_entropy(model(a), b).backward()
        optimizer.step()
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in test[0].split(_ROWS)])
    return float((answers != test[1]).double().mean()), augment.selected


def regress(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, ridge: float
) -> list[float]:
    """Test errors of regression on the classes with the two infinite-width kernels.

    Args:
        train: Pictures and labels.
        test: Others.
        ridge: Share of the mean diagonal that is added to it.

    Returns:
        Shares of wrong answers, of the tangent kernel and of the covariance of the outputs (a
        Gaussian process' mean). Cost: 2 N³/3 multiplications, 24 N² bytes; kernels are made by
        blocks of rows.
    """
    network = WideNetwork(widths=(784, 1, 1, 10), bias_variance=0.1)

    def flat(pictures: Tensor) -> np.ndarray:
        x = pictures.flatten(1).double()
        return (x / x.square().mean(1, keepdim=True).sqrt()).numpy()

    x, held = flat(train[0]), flat(test[0])

    def rows(points: np.ndarray) -> Iterator[tuple[slice, list[Tensor]]]:
        for start in range(0, len(points), _ROWS):
            part = slice(start, start + _ROWS)
            found = infinite_width_kernels(network, points[part], x, parameterization="ntk")
            yield part, [torch.from_numpy(getattr(found, kind).copy()) for kind in KERNELS]

    kernels = [torch.empty(len(x), len(x), dtype=torch.float64) for _ in KERNELS]
    for part, found in rows(x):
        for kernel, own in zip(kernels, found, strict=True):
            kernel[part] = own
    targets = F.one_hot(train[1], 10).double() - 0.1
    weights = []
    while kernels:
        # Let go of one by one: each is as large as its factor.
        kernel = kernels.pop(0)
        factor = cholesky(kernel, damping=ridge * float(kernel.diagonal().mean()))
        weights.append(factor.solve(targets))
    wrong = [0] * len(KERNELS)
    for part, found in rows(held):
        for k, (own, solved) in enumerate(zip(found, weights, strict=True)):
            wrong[k] += int(((own @ solved).argmax(1) != test[1][part]).sum())
    return [count / len(held) for count in wrong]


def judge(result: SampleSizes) -> tuple[list[Finding], list[Verdict]]:
    """Numbers and verdicts of figure 5."""
    claims = ("small-data", "augmentation", "self-paced", "small-data", "small-data")
    mean = result.error.mean(2)
    count = result.error.shape[2]
    findings = []
    for k, name in enumerate(result.methods):
        for j, size in enumerate(result.sizes):
            values = result.error[k, j]
            findings.append(
                Finding(
                    claim=claims[k],
                    what=f"test error, {name}, {size:,.0f} examples",
                    measured=float(values.mean()),
                    error=standard_error(values),
                )
            )
    never, always, paced = mean[0], mean[1], mean[2]
    falling = bool((np.diff(mean, axis=1) < 0).all())
    gain = never / always
    # Seeds share data, initialisation and order: the difference is tested, not the two means.
    gap = result.error[1] - result.error[2]
    error = gap.std(1, ddof=1) / count**0.5 if count > 1 else np.full(len(gap), np.nan)
    better = gap.mean(1) > 2 * error
    worse = gap.mean(1) < -2 * error

    def listed(values: np.ndarray) -> str:
        return ", ".join(
            f"{100 * value:.1f} % at {size:,.0f}"
            for value, size in zip(values, result.sizes, strict=True)
        )

    verdicts = [
        Verdict(
            claim="small-data",
            verdict="holds" if falling else "does not hold",
            because=f"without augmentation {listed(never)}; tangent kernel {listed(mean[3])}",
        ),
        Verdict(
            claim="augmentation",
            verdict="holds" if gain[0] > 1.3 else "does not hold",
            because=f"always augmenting divides the error by {gain[0]:.1f} at "
            f"{result.sizes[0]:,.0f} examples and by {gain[-1]:.1f} at {result.sizes[-1]:,.0f}",
        ),
        Verdict(
            claim="self-paced",
            verdict="holds" if better.all() else "holds in part" if better.any()
            else "does not hold",
            because=f"self-paced {listed(paced)} against always {listed(always)}; better by more "
            f"than two standard errors at {int(better.sum())}, worse at {int(worse.sum())} of "
            f"{len(gap)} sizes (τ = {result.threshold:g}, {count} seeds)",
        ),
    ]  # fmt: skip
    return findings, verdicts
