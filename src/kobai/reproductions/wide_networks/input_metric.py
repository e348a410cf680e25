"""Figure 4, second part: the metric on the inputs, its outliers, and what they mean.

Source: R. Karakida, report, task 3-2, after 1910.05992. A = (1/N) Σ_n Σ_k ∇ₓf_k ∇ₓf_kᵀ; along its
top C directions a push of the inputs changes the outputs most.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kobai import data, seeds
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.wide_networks import eigenvalues
from kobai.reproductions.wide_networks.averages import standard_error
from kobai.reproductions.wide_networks.spectra import module_of
from kobai.reproductions.wide_networks.stacked import draw
from kobai.results import Finding, InputResponse, Verdict, WidthScan
from kobai.studies import Interrupted
from kobai.theory import WideNetwork, feature_metric

TIMES = ("before training", "after training")
DIRECTIONS = ("top C directions", "random directions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputMetricSetting:
    """Spectra, the scan of the metric over widths, and a network trained on pictures."""

    spectra: eigenvalues.EigenvalueSetting
    widths: tuple[int, ...]
    seeds: int
    width: int
    examples: int
    epochs: int
    source: str
    outputs: int = 3
    sizes: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)


SETTINGS = {
    "quick": InputMetricSetting(
        spectra=eigenvalues.EigenvalueSetting(widths=(64, 128, 256, 512), seeds=5, examples=80),
        widths=(64, 128, 256, 512),
        seeds=3,
        width=256,
        examples=600,
        epochs=20,
        source="mnist",
    ),
    "full": InputMetricSetting(
        spectra=eigenvalues.EigenvalueSetting(widths=(64, 128, 256, 512, 1024), seeds=10),
        widths=(64, 128, 256, 512, 1024),
        seeds=5,
        width=512,
        examples=5000,
        epochs=10,
        source="mnist",
    ),
}


def figure_4(
    config: Any, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Spectra against width, histograms, the metric on the inputs."""
    del folder
    setting = SETTINGS[config.scale]
    scan, panels, spread = eigenvalues.eigenvalue_scan(
        setting.spectra, seed=config.seed, report=report, stop=stop
    )
    findings, verdicts = eigenvalues.judge_spectra(setting.spectra, scan, spread)
    metric = metric_scan(setting, seed=config.seed, stop=stop)
    report("  pushing inputs before and after training")
    response = push(setting, seed=config.seed, stop=stop)
    more, judged = judge(setting, metric, response)
    return FigureOutcome(
        results={
            "statistics": scan,
            "spectra": panels,
            "input_metric": metric,
            "response": response,
        },
        findings=[*findings, *more],
        verdicts=[*verdicts, *judged],
        note=f"relu, L = 3, σ_w² = 2, σ_b² = 0.1, M₀ = M, C = {setting.spectra.outputs}, "
        f"N = {setting.spectra.examples} random inputs; the response on {setting.source}, "
        f"M = {setting.width}.",
    )


def input_metric(
    module: nn.Module, x: Float[Tensor, "N d"]
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues, ascending, and eigenvectors (columns) of A.

    Args:
        module: A network without batch statistics.
        x: Inputs.

    Returns:
        Both, in float64. Cost: C backward passes.
    """
    at = x.detach().requires_grad_()
    f = module(at)
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for k in range(f.shape[1]):
        (g,) = torch.autograd.grad(f[:, k].sum(), at, retain_graph=True)
        g = g.double()
        total += g.T @ g / len(x)
    values, vectors = torch.linalg.eigh(total)
    return values, vectors


def metric_scan(setting: InputMetricSetting, *, seed: int, stop: Callable[[], bool]) -> WidthScan:
    """Mean eigenvalue, outliers and the gap below them, against width, with M_0 = M.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    shape = (1, 3, len(setting.widths), setting.seeds)
    measured, predicted = np.full(shape, np.nan), np.full(shape[:3], np.nan)
    base, n, c = setting.spectra, setting.spectra.examples, setting.outputs
    for j, width in enumerate(setting.widths):
        network = WideNetwork(
            widths=(width, width, width, c), activation=base.activation,
            weight_variance=base.weight_variance, bias_variance=base.bias_variance,
        )  # fmt: skip
        said = feature_metric(network, n)
        predicted[0, :2, j] = said.mean, said.largest
        for s in range(setting.seeds):
            if stop():
                raise Interrupted
            g = seeds.generator(seed + s, f"input metric width {width}")
            stack = draw(network, generators=[g], dtype=torch.float64)
            x = torch.randn(n, width, generator=g, dtype=torch.float64)
            values = input_metric(module_of(stack, 0), x)[0].numpy()
            measured[0, :, j, s] = (
                values.mean(), values[-c:].mean(), values[-c] / values[-c - 1],
            )  # fmt: skip
    return WidthScan(
        title="Figure 4: metric on the inputs of random networks against width",
        groups=(f"regression, C = {c}",),
        quantities=("mean eigenvalue", "mean of the top C", "gap below the outliers"),
        widths=np.array(setting.widths, dtype=float),
        measured=measured,
        predicted=predicted,
    )


def push(setting: InputMetricSetting, *, seed: int, stop: Callable[[], bool]) -> InputResponse:
    """Push the inputs of a network along the metric's top directions and along random ones.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    base = setting.spectra
    splits = data.load(setting.source, limit=setting.examples)
    x, labels = splits.train
    x = x.flatten(1).float()
    x = (x - x.mean()) / x.std()
    classes, width = splits.num_classes or int(labels.max()) + 1, setting.width
    network = WideNetwork(
        widths=(x.shape[1], width, width, classes), activation=base.activation,
        weight_variance=base.weight_variance, bias_variance=base.bias_variance,
    )  # fmt: skip
    length = float(x.norm(dim=1).mean())
    sizes = np.array(setting.sizes)
    shape = (len(TIMES), len(DIRECTIONS), len(sizes), setting.seeds)
    change, predicted, flips = (np.empty(shape) for _ in range(3))
    spectrum = np.empty((len(TIMES), x.shape[1], setting.seeds))
    for s in range(setting.seeds):
        g = seeds.generator(seed + s, "input response")
        module = module_of(draw(network, generators=[g], dtype=torch.float32), 0)
        for t in range(len(TIMES)):
            if stop():
                raise Interrupted
            if t:
                _fit(module, x, labels, epochs=setting.epochs, generator=g)
            values, vectors = input_metric(module, x)
            spectrum[t, :, s] = values.numpy()
            top = vectors[:, -classes:].float()
            chance = torch.randn(x.shape[1], classes, generator=g)
            for d, directions in enumerate((top, chance / chance.norm(dim=0))):
                slope = directions.double().T @ (vectors * values) @ vectors.T
                first = float((slope.T * directions.double()).sum() / classes)
                predicted[t, d, :, s] = sizes * length * first**0.5
                for e, size in enumerate(sizes):
                    change[t, d, e, s], flips[t, d, e, s] = _moved(
                        module, x, directions, float(size) * length
                    )
    return InputResponse(
        title=f"Figure 4: change of the outputs when inputs are pushed, {setting.source}, "
        f"M = {width}",
        times=TIMES, directions=DIRECTIONS, sizes=sizes, change=change, predicted=predicted,
        flips=flips, spectrum=np.maximum(spectrum, 0.0), outputs=classes,
    )  # fmt: skip


@torch.no_grad()
def _moved(module: nn.Module, x: Tensor, directions: Tensor, size: float) -> tuple[float, float]:
    """Root mean square change and share of other answers, over inputs, directions, signs."""
    f = module(x)
    squares, other = 0.0, 0.0
    for column in range(directions.shape[1]):
        for sign in (1.0, -1.0):
            after = module(x + sign * size * directions[:, column])
            squares += float((after - f).double().square().sum(1).mean())
            other += float((after.argmax(1) != f.argmax(1)).double().mean())
    count = 2 * directions.shape[1]
    return (squares / count) ** 0.5, other / count


def _fit(
    module: nn.Module, x: Tensor, labels: Tensor, *, epochs: int, generator: torch.Generator
) -> None:
    """Cross-entropy by SGD with momentum, batches of 50."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.005, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(50):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), labels[rows]).backward()
            optimizer.step()


def judge(
    setting: InputMetricSetting, metric: WidthScan, response: InputResponse
) -> tuple[list[Finding], list[Verdict]]:
    """Numbers and verdicts on the metric."""
    mean, error = metric.mean, metric.error
    width = int(metric.widths[-1])
    findings = [
        Finding(
            claim="input-outliers", what=f"{name} of the input metric, M = {width}",
            measured=float(mean[0, q, -1]), predicted=float(metric.predicted[0, q, -1]),
            error=float(error[0, q, -1]),
        )
        for q, name in enumerate(metric.quantities)
    ]  # fmt: skip
    pushed = response.sizes[2]
    factors = []
    for t, time in enumerate(response.times):
        ratio = response.change[t, 0, 2] / response.change[t, 1, 2]
        factors.append(float(ratio.mean()))
        findings.append(
            Finding(
                claim="input-directions",
                what=f"change along the top {response.outputs} directions over random ones, push "
                f"{pushed:g} ‖x‖, {time}",
                measured=factors[-1],
                predicted=float((response.predicted[t, 0, 2] / response.predicted[t, 1, 2]).mean()),
                error=standard_error(ratio),
            )
        )
    gap, ratio = float(mean[0, 2, -1]), findings[1].ratio
    flips = response.flips.mean(3)
    return findings, [
        Verdict(
            claim="input-outliers",
            verdict="holds" if gap > 2 and abs(ratio - 1) < 0.15 else "does not hold",
            because=f"exactly C = {setting.outputs} eigenvalues stand {gap:.1f} times above the "
            f"next, at {ratio:.2f} of theory's value (M = {width})",
        ),
        Verdict(
            claim="input-directions",
            verdict="holds" if min(factors) > 2 else "does not hold",
            because=f"a push of {pushed:g} ‖x‖ along the top {response.outputs} directions changes "
            f"the outputs {factors[0]:.1f} times as much as a random one before training and "
            f"{factors[1]:.1f} times after; answers change for {100 * flips[1, 0, 2]:.1f} % "
            f"against {100 * flips[1, 1, 2]:.1f} % after training",
        ),
    ]
