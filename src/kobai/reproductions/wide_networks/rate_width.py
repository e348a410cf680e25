"""Figure 1: which learning rates train a network of which width, with and without normalisation.

Source: R. Karakida, report, Figure 1, after Karakida, Akaho and Amari, 1906.02926: full-batch
gradient descent, a teacher's outputs as targets, random inputs.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai import seeds
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.wide_networks.averages import (
    exponent,
    geometric_mean,
    standard_error,
)
from kobai.reproductions.wide_networks.spectra import dual, module_of, top_eigenvalues
from kobai.reproductions.wide_networks.stacked import (
    OutputNormalization,
    descend,
    draw,
    normalize,
)
from kobai.results import Finding, RateMap, Verdict
from kobai.studies import Interrupted
from kobai.theory import WideNetwork, fisher_statistics

PANELS: dict[OutputNormalization, str] = {
    "none": "no normalisation",
    "mean": "mean subtraction, last layer",
    "batch": "BatchNorm, last layer",
    "layer": "LayerNorm, last layer",
}
EARLY = 20
"""Steps within which instability must show: later the curvature is no longer the initial one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateWidthSetting:
    """Networks of widths (M, M, M, C) on N = `share` · M examples."""

    widths: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: int
    steps: int
    outputs: int = 10
    share: float = 0.5
    activation: str = "relu"
    weight_variance: float = 2.0
    bias_variance: float = 0.1
    hidden_widths: tuple[int, ...] = (64, 128, 256)
    panels: tuple[OutputNormalization, ...] = ("none", "mean", "batch", "layer")

    def network(self, width: int) -> WideNetwork:
        """What theory needs to know of the network of a width."""
        return WideNetwork(
            widths=(width, width, width, self.outputs),
            activation=self.activation,
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
        )

    def examples(self, width: int) -> int:
        """N."""
        return max(round(self.share * width), 4)


def _spaced(low: float, high: float, count: int) -> tuple[int, ...]:
    return tuple(round(v) for v in np.geomspace(low, high, count))


SETTINGS = {
    "quick": RateWidthSetting(
        widths=_spaced(32, 512, 12),
        rates=tuple(np.geomspace(10**-2.8, 10**0.8, 16).tolist()),
        seeds=3,
        steps=30,
    ),
    "full": RateWidthSetting(
        widths=_spaced(32, 640, 13),
        rates=tuple(np.geomspace(10**-2.9, 10**0.8, 20).tolist()),
        seeds=3,
        steps=30,
        hidden_widths=(64, 128, 256, 512),
    ),
}


def figure_1(
    config: Any, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """The heat maps and what stands beside them; see `learning_rate_map`."""
    del folder
    setting = SETTINGS[config.scale]
    result, tops = learning_rate_map(setting, seed=config.seed, report=report, stop=stop)
    hidden = hidden_batch_norm(setting, seed=config.seed)
    findings, verdicts = judge(setting, result, tops, hidden)
    return FigureOutcome(
        results={"map": result},
        findings=findings,
        verdicts=verdicts,
        note=f"relu, L = 3, M₀ = M, C = {setting.outputs}, N = {setting.share} M random inputs, a "
        "random teacher's standardised outputs as targets; the source shows deep "
        "networks without naming the data. For normalisation over the batch theory gives bounds, "
        "drawn dashed.",
    )


def learning_rate_map(
    setting: RateWidthSetting,
    *,
    seed: int,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> tuple[RateMap, np.ndarray]:
    """Train every cell; all learning rates and seeds of a width are one batched computation.

    Args:
        setting: Widths, rates, seeds.
        seed: First seed.
        report: Called with a line a width.
        stop: Asked between widths.

    Returns:
        The map, and (K, S, seeds) measured λ_max over theory's, NaN where there is none: the mean
        over the C largest where theory has C equal ones, else the largest.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    shape = (len(setting.panels), len(setting.widths))
    loss = np.empty((*shape, len(setting.rates), setting.seeds))
    rise = np.empty_like(loss)
    theory = np.full((*shape, setting.seeds), np.nan)
    measured = np.full_like(theory, np.nan)
    for j, width in enumerate(setting.widths):
        network, n = setting.network(width), setting.examples(width)
        streams = [seeds.generator(seed + s, f"figure 1 width {width}") for s in _each(setting)]
        start = draw(network, generators=streams, dtype=torch.float32)
        teacher = draw(network, generators=streams, dtype=torch.float32)
        x = torch.stack([torch.randn(n, width, generator=g) for g in streams])
        cells = torch.arange(setting.seeds).repeat_interleave(len(setting.rates))
        rates = torch.tensor(setting.rates).repeat(setting.seeds)
        with torch.no_grad():
            # Centred, so that a constant network explains nothing: all must learn differences.
            raw = normalize(teacher(x), "batch")
        for i, kind in enumerate(setting.panels):
            if stop():
                raise Interrupted
            target = normalize(raw, kind) if kind == "layer" else raw
            found = descend(
                start.select(cells), x[cells], target[cells], rates,
                steps=setting.steps, normalization=kind,
            ).losses.double()  # fmt: skip
            grid = (found / found[:, :1]).reshape(setting.seeds, len(setting.rates), -1)
            loss[i, j] = grid[:, :, -1].T.numpy()
            rise[i, j] = steepest(grid[:, :, : EARLY + 1]).T.numpy()
            for s in _each(setting):
                module = module_of(start, s)
                measured[i, j, s] = _top(module, x[s], kind, setting.outputs)
                if kind != "layer" or s == 0:
                    # Of LayerNorm a dense problem of C N rows: one seed.
                    theory[i, j, s] = _predicted(network, module, x[s], kind)
        report(f"  width {width}: {len(cells)} networks of {network.parameters:,} parameters")
    bounds = np.full((*shape, 2), np.nan)
    for j, width in enumerate(setting.widths):
        for i, kind in enumerate(setting.panels):
            if kind in ("mean", "batch"):
                said = fisher_statistics(
                    setting.network(width), setting.examples(width), normalization=kind
                )
                bounds[i, j] = 2 / said.upper, 2 / said.lower
    result = RateMap(
        title="Figure 1: loss after training over learning rate and width",
        size_name="width M",
        loss_name=f"loss after {setting.steps} steps / before",
        panels=tuple(PANELS[kind] for kind in setting.panels),
        rates=np.array(setting.rates), sizes=np.array(setting.widths, dtype=float),
        loss=loss, rise=rise,
        theory=2 / _known_mean(theory), lower=bounds[..., 0], upper=bounds[..., 1],
        measured=2 / measured.mean(2), steps=setting.steps,
    )  # fmt: skip
    return result, measured / theory


def steepest(losses: Float[Tensor, "*cells T"]) -> Float[Tensor, "*cells"]:
    """Largest ratio of a loss to the one before; infinite where a loss is not finite.

    Args:
        losses: Along the last axis.

    Returns:
        One ratio a cell.
    """
    ratio = losses[..., 1:] / losses[..., :-1]
    return torch.where(ratio.isfinite(), ratio, torch.inf).amax(-1)


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values along the last axis; NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _each(setting: RateWidthSetting) -> range:
    return range(setting.seeds)


def _top(module: nn.Module, x: Tensor, kind: OutputNormalization, outputs: int) -> float:
    """Measured λ_max; of C equal ones in theory the mean, for the largest of C draws is biased."""
    count = outputs if kind == "none" else 1
    return float(top_eigenvalues(dual(module, x, normalization=kind), count).mean())


def _predicted(
    network: WideNetwork, module: nn.Module, x: Tensor, kind: OutputNormalization
) -> float:
    """λ_max from theory; NaN for normalisations over the batch, which have bounds only."""
    if kind == "layer":
        with torch.no_grad():
            f = module(x).double().numpy()
        return fisher_statistics(network, len(x), normalization="layer", outputs=f).largest
    return fisher_statistics(network, len(x), normalization=kind).largest


def hidden_batch_norm(setting: RateWidthSetting, *, seed: int) -> dict[int, tuple[float, float]]:
    """λ_max with BatchNorm in the hidden layers only, and the bound theory gives.

    Args:
        setting: Widths and law.
        seed: Of the network.

    Returns:
        Width → (measured mean of the two outlying eigenvalues of C = 2 outputs, lower bound).
    """
    found = {}
    for width in setting.hidden_widths:
        g = seeds.generator(seed, f"hidden batch norm {width}")
        plain = setting.network(width)
        network = dataclasses.replace(
            plain, widths=(*plain.widths[:-1], 2), hidden_normalization="batch"
        )
        stack = draw(network, generators=[g], dtype=torch.float64)
        x = torch.randn(30, width, generator=g, dtype=torch.float64)

        def outputs(*tensors: Tensor, x: Tensor = x, layers: int = network.depth) -> Tensor:
            h = x
            for i in range(layers):
                u = h @ tensors[i].T + tensors[layers + i]
                if i == layers - 1:
                    return u
                u = u - u.mean(0)
                h = torch.relu(u / u.square().mean(0).sqrt())
            return h

        tensors = tuple(t[0] for t in stack.tensors)
        rows = torch.func.jacrev(outputs, argnums=tuple(range(len(tensors))), chunk_size=10)(
            *tensors
        )
        gram = torch.zeros(60, 60, dtype=torch.float64)
        for part in rows:
            flat = part.reshape(60, -1)
            gram += flat @ flat.T / 30
        values = torch.linalg.eigvalsh(gram)
        said = fisher_statistics(network, 30)
        found[width] = (float(values[-2:].mean()), said.lower)
    return found


def judge(
    setting: RateWidthSetting,
    result: RateMap,
    tops: np.ndarray,
    hidden: dict[int, tuple[float, float]],
) -> tuple[list[Finding], list[Verdict]]:
    """Numbers and verdicts of figure 1."""
    findings: list[Finding] = []
    edges, widths = result.largest_rate(), result.sizes
    wide = widths >= min(64, widths[-2])
    slopes: dict[str, float] = {}
    steady: dict[str, float] = {}
    overs: dict[str, float] = {}
    claims = {"none": "rate-line", "layer": "layer-norm"}
    for i, kind in enumerate(setting.panels):
        claim, name = claims.get(kind, "rate-normalized"), PANELS[kind]
        if kind in ("mean", "batch"):
            what, predicted = f"λ_max over its lower bound (bulk mean), {name}", np.nan
            ratio = (result.upper[i] / result.measured[i])[wide]
        else:
            what, predicted = f"λ_max at random initialisation over theory's, {name}", 1.0
            ratio = tops[i][wide].reshape(-1)
        findings.append(
            Finding(
                claim=claim,
                what=what,
                measured=float(_known_mean(ratio)),
                predicted=predicted,
                error=standard_error(ratio),
            )
        )
        over = (edges[i] / result.measured[i][:, None])[wide].reshape(-1)
        overs[kind] = geometric_mean(over)
        findings.append(
            Finding(
                claim=claim,
                what=f"largest rate at which every early step lowers the loss over 2/λ_max, {name}",
                measured=overs[kind],
                predicted=1.0,
                error=standard_error(over),
            )
        )
        steady[kind] = exponent(widths[wide], result.measured[i][wide])
        line = result.theory[i] if np.isfinite(result.theory[i]).any() else result.upper[i]
        findings.append(
            Finding(
                claim=claim,
                what=f"exponent of 2/λ_max in the width, {name}",
                measured=steady[kind],
                predicted=exponent(widths[wide], line[wide]),
            )
        )
        # Behind BatchNorm the loss is bounded and such an edge need not exist.
        slopes[kind] = exponent(widths[wide], geometric_mean(edges[i][wide], axis=1))
        best = result.rates[_typical(result.loss[i]).argmin(1)]
        findings.append(
            Finding(
                claim=claim,
                what=f"rate of the least final loss, widest over narrowest network, {name}",
                measured=float(best[-1] / best[0]),
            )
        )
    small, large = min(hidden), max(hidden)
    for width, (top, bound) in hidden.items():
        findings.append(
            Finding(
                claim="last-layer-enough",
                what=f"λ_max over the lower bound, BatchNorm in hidden layers only, M = {width}",
                measured=top,
                predicted=bound,
            )
        )
    grown = hidden[large][0] / hidden[small][0]
    step = f"{grown:.1f} times from M = {small} to {large}"
    top = findings[0].measured
    verdicts = [
        Verdict(
            claim="rate-line",
            verdict=_holds(
                0.6 < overs["none"] < 1.7 and 0.8 < top < 1.25 and slopes["none"] < -0.7
            ),
            because=f"λ_max is {top:.2f} times theory's, every early step lowers the loss up to "
            f"{overs['none']:.2f} · 2/λ_max (grid step {result.rates[1] / result.rates[0]:.2f}), "
            f"and that rate falls as M^{slopes['none']:.2f}",
        ),
        Verdict(
            claim="rate-normalized",
            verdict=_holds(
                max(abs(steady["mean"]), abs(steady["batch"]), abs(slopes["mean"])) < 0.3
            ),
            because=f"2/λ_max goes as M^{steady['mean']:.2f} under mean subtraction and "
            f"M^{steady['batch']:.2f} under BatchNorm (M^{steady['none']:.2f} without), the "
            f"largest rate that lowers the loss at every early step as M^{slopes['mean']:.2f} "
            f"(M^{slopes['none']:.2f}); N is proportional to M",
        ),
        Verdict(
            claim="last-layer-enough",
            verdict=_holds(abs(steady["batch"]) < 0.3 and grown > 0.6 * large / small),
            because=f"BatchNorm in the last layer only: 2/λ_max goes as M^{steady['batch']:.2f}; "
            f"in hidden layers only λ_max still grows {step}",
        ),
        Verdict(
            claim="layer-norm",
            verdict=_holds(steady["layer"] < -0.7),
            because=f"with LayerNorm 2/λ_max still falls as M^{steady['layer']:.2f}, the largest "
            f"rate that lowers the loss at every early step as M^{slopes['layer']:.2f}; larger "
            "rates end low too, since normalised outputs are bounded",
        ),
    ]
    return findings, verdicts


def _typical(loss: np.ndarray) -> np.ndarray:
    """Median over seeds, infinite where most diverged."""
    return np.median(loss, axis=-1)


def _holds(condition: bool | np.bool_) -> str:
    return "holds" if condition else "does not hold"
