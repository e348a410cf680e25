"""Figure 2: which learning rates train how deep a network, one example a step.

Source: R. Karakida, report, Figure 2, after Hayase and Karakida, 2006.07814: hard-tanh networks
with orthogonal weights on the critical line; theory line η_c = 2/(M λ_max) ≈ 2/(M L q̂).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kobai import data, seeds
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.wide_networks.averages import (
    exponent,
    geometric_mean,
    standard_error,
)
from kobai.reproductions.wide_networks.online import (
    conditional_spectra,
    draw_orthogonal,
    learn_online,
)
from kobai.results import Finding, RateMap, Verdict
from kobai.studies import Interrupted
from kobai.theory import hard_tanh_critical_line, isometry_spectrum

_CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateDepthSetting:
    """Networks of L layers of M units, M also the number of inputs and outputs."""

    depths: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    steps: int
    source: Literal["digits", "mnist"]
    side: int
    variance: float = 0.1
    early: int = 20

    @property
    def width(self) -> int:
        """M: the pictures' pixels."""
        return self.side**2


SETTINGS = {
    "quick": RateDepthSetting(
        depths=(4, 6, 10, 16, 25, 40, 64, 100),
        rates=tuple(np.geomspace(10**-3.2, 10**-0.5, 16).tolist()),
        seeds=3,
        steps=250,
        source="digits",
        side=8,
    ),
    "full": RateDepthSetting(
        depths=(4, 8, 16, 32, 64, 128),
        rates=tuple(np.geomspace(10**-3.9, 10**-1.2, 16).tolist()),
        seeds=2,
        steps=250,
        source="mnist",
        side=14,
    ),
}


def figure_2(
    config: Any, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """The heat map over learning rate and depth."""
    del folder
    setting = SETTINGS[config.scale]
    result, findings, verdicts = depth_map(setting, seed=config.seed, report=report, stop=stop)
    return FigureOutcome(
        results={"map": result},
        findings=findings,
        verdicts=verdicts,
        note=f"hard-tanh, q = {setting.variance}, M = {setting.width} = pixels of {setting.source}"
        " = outputs, targets 10 orthogonal codes as long as the features, weights trained; the "
        "source does not name its data.",
    )


def pictures(
    setting: RateDepthSetting, *, level: float
) -> tuple[Float[Tensor, "N M"], Int[Tensor, " N"]]:
    """Standardised pictures, every one with mean square `level`; and their classes.

    Args:
        setting: Which data.
        level: q̂_0.

    Returns:
        Inputs in float32 and labels.
    """
    x, labels = data.load(setting.source).train
    x = x.reshape(len(x), 1, *x.shape[-2:]).float()
    if x.shape[-1] != setting.side:
        x = F.avg_pool2d(x, x.shape[-1] // setting.side)
    x = x.flatten(1)
    x = (x - x.mean(0)) / x.std(0).clamp_min(x.std(0).max() / 20)
    x = x - x.mean(1, keepdim=True)
    return x * (level / x.square().mean(1, keepdim=True)).sqrt(), labels


def depth_map(
    setting: RateDepthSetting,
    *,
    seed: int,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> tuple[RateMap, list[Finding], list[Verdict]]:
    """Learn every cell; all seeds of a depth and a learning rate are one batched computation.

    Args:
        setting: Depths, rates, data.
        seed: First seed.
        report: Called with a line a depth.
        stop: Asked between depths.

    Returns:
        The map, findings and verdicts.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    line = hard_tanh_critical_line(setting.variance)
    width, count = setting.width, setting.seeds
    inputs, labels = pictures(setting, level=line.feature)
    shape = (1, len(setting.depths))
    loss = np.empty((*shape, len(setting.rates), count))
    rise = np.empty_like(loss)
    theory, measured = np.empty(shape), np.empty(shape)
    tops, weights, atoms, gaussian = [], [], [], []
    for j, depth in enumerate(setting.depths):
        if stop():
            raise Interrupted
        streams = [seeds.generator(seed + s, f"figure 2 depth {depth}") for s in range(count)]
        start = draw_orthogonal(
            depth, width, weight_variance=line.weight_variance,
            bias_variance=line.bias_variance, activation="hard-tanh", generators=streams,
            dtype=torch.float32,
        )  # fmt: skip
        orders = [torch.randperm(len(inputs), generator=g) for g in streams]
        order = torch.stack(
            [o.repeat(-(-setting.steps // len(o)))[: setting.steps] for o in orders]
        )
        codes = torch.stack([_codes(width, line.feature, generator=g) for g in streams])
        x = inputs[order]
        y = torch.stack([codes[s][labels[order[s]]] for s in range(count)])
        said = isometry_spectrum(
            "hard-tanh", depth=depth, width=width, weight_variance=line.weight_variance,
            bias_variance=line.bias_variance, features=line.feature,
        )  # fmt: skip
        theory[0, j] = said.learning_rate
        values, levels = conditional_spectra(start, x[:, 0])
        measured[0, j] = 2 / (width * float(values[:, -1].mean()))
        own = [
            isometry_spectrum(
                "hard-tanh", depth=depth, width=width, weight_variance=line.weight_variance,
                bias_variance=line.bias_variance, features=levels[:, s].numpy(),
            ).largest
            for s in range(count)
        ]  # fmt: skip
        tops += (values[:, -1].numpy() / np.array(own)).tolist()
        share = (values > values[:, -1:] * (1 - 1e-4)).double().mean(1)
        weights += share.tolist()
        atoms += [said.atom] * count
        gaussian.append(_gaussian_top(setting, depth, line.weight_variance, x[:, 0], streams))
        cells = torch.arange(count)
        tail = max(1, setting.steps // 5)
        for i, rate in enumerate(setting.rates):
            # By rates: where one is too large all cells are lost early, and weights of fewer
            # networks stay nearer to the processor.
            if stop():
                raise Interrupted
            run = learn_online(
                start.select(cells), x, y, cells, torch.full((count,), rate), early=setting.early
            )
            found = run.losses.double()
            loss[0, j, i] = (found[:, -tail:].mean(1) / found[:, 0].mean()).numpy()
            rise[0, j, i] = run.ratios.amax(1).numpy()
        report(
            f"  depth {depth}: {count * len(setting.rates)} networks, {setting.steps} examples each"
        )
    result = RateMap(
        title="Figure 2: loss in online learning over learning rate and depth",
        size_name="depth L",
        loss_name=f"loss of the last {max(1, setting.steps // 5)} examples / of the first ones",
        panels=(f"hard-tanh, orthogonal, M = {width}",),
        rates=np.array(setting.rates), sizes=np.array(setting.depths, dtype=float),
        loss=loss, rise=rise, theory=theory, lower=np.full(shape, np.nan),
        upper=np.full(shape, np.nan), measured=measured, steps=setting.steps,
    )  # fmt: skip
    isometry = {"top": tops, "share": weights, "atom": atoms, "gaussian": gaussian}
    return result, *judge(result, isometry, line.feature)


def _codes(width: int, level: float, *, generator: torch.Generator) -> Float[Tensor, "K M"]:
    """Ten orthogonal targets, as long as the features."""
    q = torch.linalg.qr(torch.randn(width, _CLASSES, generator=generator))[0]
    return q.T * (width * level) ** 0.5


def _gaussian_top(
    setting: RateDepthSetting,
    depth: int,
    weight_variance: float,
    x: Float[Tensor, "K M"],
    generators: list[torch.Generator],
) -> float:
    """λ_max/(L q̂) of linear networks with Gaussian in place of orthogonal weights, mean."""
    width = setting.width
    values = []
    for s, g in enumerate(generators):
        h = torch.eye(width, dtype=torch.float64) * float(x[s].square().mean())
        level = float(x[s].square().mean())
        for _ in range(1, depth):
            w = torch.randn(width, width, generator=g, dtype=torch.float64) / width**0.5
            h = level * torch.eye(width, dtype=torch.float64) + w @ h @ w.T
        values.append(float(torch.linalg.eigvalsh(h)[-1]) / (depth * level))
    return float(np.mean(values))


def judge(
    result: RateMap, isometry: dict[str, list[float]], level: float
) -> tuple[list[Finding], list[Verdict]]:
    """Numbers and verdicts of figure 2.

    Args:
        result: The map.
        isometry: Measured and predicted spectra, by depth and seed.
        level: q̂.

    Returns:
        Findings and verdicts.
    """
    edges = result.largest_rate()[0]
    over = edges / result.theory[0][:, None]
    slope = exponent(result.sizes, geometric_mean(edges, axis=1))
    line = exponent(result.sizes, result.theory[0])
    step = result.rates[1] / result.rates[0]
    top, share = np.array(isometry["top"]), np.array(isometry["share"])
    atom, gaussian = np.array(isometry["atom"]), np.array(isometry["gaussian"])
    deepest = int(result.sizes[-1])
    final = np.median(result.loss[0], axis=2)
    best = result.rates[np.where(np.isfinite(final), final, np.inf).argmin(1)] / result.theory[0]

    middle = float(geometric_mean(over))
    findings = [
        Finding(
            claim="online-rate",
            what="largest rate at which every early step lowers its example's loss over the line",
            measured=middle, predicted=1.0, error=standard_error(over),
        ),
        Finding(
            claim="online-rate", what="exponent of that rate in the depth", measured=slope,
            predicted=line,
        ),
        Finding(
            claim="online-rate", what="rate with the least loss at the end over the line",
            measured=float(np.mean(best)), error=standard_error(best),
        ),
        Finding(
            claim="isometry-concentration",
            what="λ_max of one example's Fisher matrix over theory's, all depths",
            measured=float(top.mean()), predicted=1.0, error=standard_error(top),
        ),
        Finding(
            claim="isometry-concentration",
            what=f"share of eigenvalues at the largest, L = {deepest}",
            measured=float(share[-len(share) // len(result.sizes) :].mean()),
            predicted=float(atom[-1]),
        ),
        Finding(
            claim="isometry-concentration",
            what=f"Gaussian instead of orthogonal weights, linear: λ_max/(L q̂), L = {deepest}",
            measured=float(gaussian[-1]),
        ),
    ]  # fmt: skip
    verdicts = [
        Verdict(
            claim="online-rate",
            verdict="holds" if 1 / step < middle < step and abs(slope - line) < 0.15
            else "does not hold",
            because=f"each step lowers its example's loss up to {middle:.2f} times the "
            f"line (grid step {step:.2f}); the limit goes as L^{slope:.2f}, theory L^{line:.2f}",
        ),
        Verdict(
            claim="isometry-concentration",
            verdict="holds" if abs(top.mean() - 1) < 0.02 else "does not hold",
            because=f"λ_max is {top.mean():.4f} times theory's and at L = {deepest} "
            f"{100 * findings[4].measured:.0f} % of the eigenvalues sit on it (theory "
            f"{100 * findings[4].predicted:.0f} %); with Gaussian weights it is "
            f"{gaussian[-1]:.0f} times L q̂",
        ),
    ]  # fmt: skip
    return findings, verdicts
