"""Figure 3: natural gradients and their approximations in a wide network, beside function space.

Source: R. Karakida, report, Figure 3, after Karakida and Osawa, 2010.00879: f_t = y + (I − η K̄)ᵗ
(f_0 − y) with K̄ = J G⁻¹ Jᵀ/N, which is α I for isotropic approximations G.
"""

import copy
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
from kobai.kernels import KernelRegression, natural_kernel, ntk
from kobai.optim import NaturalGradient
from kobai.problem import EmpiricalRisk
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.wide_networks.averages import standard_error
from kobai.reproductions.wide_networks.invariance import METHODS, Method, invariance
from kobai.reproductions.wide_networks.spectra import module_of, objective_of
from kobai.reproductions.wide_networks.stacked import draw
from kobai.results import Finding, FunctionSpaceRuns, Invariance, Verdict
from kobai.studies import Interrupted
from kobai.theory import WideNetwork, natural_gradient_alpha

DAMPED = "K-FAC, damping 0.1"
RUNS: dict[str, tuple[Method | None, float]] = {
    "gradient descent": (None, 0.0),
    "exact": ("full", 1e-10),
    "layer-wise": ("layer", 1e-10),
    "tri-diagonal": ("tridiagonal", 1e-10),
    "unit-wise": ("unit", 1e-5),
    "K-FAC": ("kronecker", 1e-4),
    DAMPED: ("kronecker", 0.1),
    "entry-wise": ("diagonal", 1e-10),
}
"""Method → Fisher structure and damping ρ. Pictures have nearly equal features: unit-wise and
K-FAC, which invert what only one unit or one factor sees, need more of it, or their steps would
leave the lazy regime."""

APPROXIMATIONS = ("layer-wise", "tri-diagonal", "unit-wise", "K-FAC", DAMPED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaturalGradientSetting:
    """Networks (side², M, M, C) on N pictures; C = 1 tells odd from even digits by ±1."""

    width: int
    examples: int
    test: int
    side: int
    seeds: int
    factors: tuple[float, ...] = (1.0, 0.25)
    steps: int = 8
    activation: str = "tanh"
    weight_variance: float = 1.5
    bias_variance: float = 0.1

    @property
    def network(self) -> WideNetwork:
        """What theory needs to know."""
        return WideNetwork(
            widths=(self.side**2, self.width, self.width, 1),
            activation=self.activation,
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
        )


SETTINGS = {
    "quick": NaturalGradientSetting(width=256, examples=40, test=300, side=14, seeds=2),
    "full": NaturalGradientSetting(width=384, examples=60, test=1000, side=14, seeds=2),
}


def figure_3(
    config: Any, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Training by every method beside its prediction, and what coordinates do to each."""
    del folder
    setting = SETTINGS[config.scale]
    runs = train_all(setting, seed=config.seed, report=report, stop=stop)
    report("  changing coordinates")
    changes = invariance(seed=config.seed)
    findings, verdicts = judge(setting, runs, changes)
    return FigureOutcome(
        results={"runs": runs, "invariance": changes},
        findings=findings,
        verdicts=verdicts,
        note=f"tanh, L = 3, M = {setting.width}, C = 1, {setting.examples} MNIST pictures of "
        f"{setting.side} × {setting.side} pixels, odd against even digits; damping 1e-5 for "
        "unit-wise, 1e-4 and 0.1 for K-FAC, 1e-10 else, and α measured with it; plain gradient "
        "descent and the entry-wise gradient, which are not isotropic, at η = c/λ_max of their own "
        "kernels. Coordinates: a small network with a regular Fisher matrix.",
    )


def pictures(
    setting: NaturalGradientSetting, *, generator: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test pictures, each with mean square 1, and their ±1 targets.

    Args:
        setting: Sizes.
        generator: Draws the examples.

    Returns:
        Two pairs of float64 tensors (N, M_0), (N, 1).
    """
    splits = data.load("mnist", generator=generator, limit=(setting.examples, setting.test))
    assert splits.test is not None
    found = []
    for x, labels in (splits.train, splits.test):
        small = F.adaptive_avg_pool2d(x.double(), setting.side).flatten(1)
        small = small - small.mean(1, keepdim=True)
        small = small / small.square().mean(1, keepdim=True).sqrt()
        found.append((small, (2.0 * (labels % 2) - 1).unsqueeze(1).double()))
    return found[0], found[1]


def train_all(
    setting: NaturalGradientSetting,
    *,
    seed: int,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> FunctionSpaceRuns:
    """Train every method from one initial network a seed.

    Args:
        setting: Sizes and damping.
        seed: First seed.
        report: Called with a line a method and seed.
        stop: Asked between methods.

    Returns:
        Losses, predictions, test errors.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    k, count, factors = len(RUNS), setting.seeds, len(setting.factors)
    loss = np.full((factors, k, setting.steps + 1, count), np.nan)
    predicted = np.full_like(loss, np.nan)
    rates = np.full((factors, k, count), np.nan)
    alpha, spread, test, regression, distance = (np.full((k, count), np.nan) for _ in range(5))
    theory = np.full(k, np.nan)
    for s in range(count):
        g = seeds.generator(seed + s, "figure 3")
        train, held = pictures(setting, generator=g)
        start = module_of(draw(setting.network, generators=[g], dtype=torch.float64), 0)
        objective = objective_of(start, *train)
        with torch.no_grad():
            f0, f0_test = start(train[0]), start(held[0])
        for i, (name, (structure, damping)) in enumerate(RUNS.items()):
            if stop():
                raise Interrupted
            kernel, cross = kernels(objective, structure, held[0], damping)
            matrix = kernel.flatten(2).flatten(0, 1)
            middle = float(matrix.diagonal().mean())
            eye = torch.eye(len(matrix), dtype=matrix.dtype)
            spread[i, s] = float((matrix / middle - eye).norm() / len(matrix) ** 0.5)
            even = structure not in (None, "diagonal")
            alpha[i, s] = middle if even else float(torch.linalg.eigvalsh(matrix)[-1])
            if structure is not None and name != DAMPED:
                theory[i] = natural_gradient_alpha(
                    structure,
                    setting.network,
                    setting.examples,
                ).alpha
            fit = KernelRegression(kernel, train[1], initial=f0)
            for c, factor in enumerate(setting.factors):
                rate = factor / alpha[i, s]
                rates[c, i, s] = rate
                trained, loss[c, i, :, s] = run_method(
                    start, structure, *train, rate=rate, steps=setting.steps,
                    damping=damping,
                )  # fmt: skip
                outputs = fit.training(rate, np.arange(setting.steps + 1.0))
                predicted[c, i, :, s] = (
                    (outputs - train[1]).square().sum((1, 2)) / 2 / setting.examples
                )
                if c:
                    continue
                with torch.no_grad():
                    reached = trained(held[0])
                # Ridge-less regression is where t → ∞; a slow method is compared where it stands.
                limit = fit.training(rate, setting.steps, cross, initial=f0_test)
                test[i, s] = _wrong(reached, held[1])
                regression[i, s] = _wrong(limit, held[1])
                distance[i, s] = float((reached - limit).norm() / (limit - f0_test).norm())
            report(f"  {name}, seed {seed + s}: α = {alpha[i, s]:.4g}")
    return FunctionSpaceRuns(
        title=f"Figure 3: training a network of width {setting.width} on {setting.examples} "
        "examples",
        methods=tuple(RUNS), factors=np.array(setting.factors), loss=loss, predicted=predicted,
        learning_rates=rates, alpha=alpha, alpha_theory=theory, spread=spread, test_error=test,
        regression_error=regression, test_distance=distance,
    )  # fmt: skip


def kernels(
    objective: EmpiricalRisk, structure: Method | None, x: Float[Tensor, "K d"], damping: float
) -> tuple[Float[Tensor, "N C N C"], Float[Tensor, "K C N C"]]:
    """K̄ on the training points, and between other inputs and them.

    Args:
        objective: The network and its training examples.
        structure: Of the Fisher matrix; None for plain gradients.
        x: Other inputs.
        damping: Of the Fisher matrix.

    Returns:
        Both kernels, divided by N.
    """
    if not structure:
        n = objective.size
        return ntk(objective) / n, ntk(objective, x, objective.batches[0].inputs) / n  # pyright: ignore
    found = [
        natural_kernel(objective, structure, damping, points, damping_form="each")
        for points in (None, x)
    ]
    return found[0], found[1]


def run_method(
    start: nn.Module,
    structure: Method | None,
    x: Float[Tensor, "N d"],
    y: Float[Tensor, "N C"],
    *,
    rate: float,
    steps: int,
    damping: float,
) -> tuple[nn.Module, Float[np.ndarray, " T"]]:
    """Train a copy of a network by one method, in the space of parameters.

    Args:
        start: The network, left as it is.
        structure: Of the Fisher matrix; None for plain gradient descent.
        x: Inputs.
        y: Targets.
        rate: η.
        steps: T.
        damping: Of the Fisher matrix.

    Returns:
        The trained network and its T + 1 losses.
    """
    model = copy.deepcopy(start)
    objective = objective_of(model, x, y)
    losses = [float(objective.value(objective.theta()))]
    optimizer: Any = (
        NaturalGradient(
            model,
            "gaussian",
            structure=structure,
            lr=rate,
            damping=damping,
            damping_form="each",
        )
        if structure is not None
        else torch.optim.SGD(model.parameters(), lr=rate)
    )
    for _ in range(steps):
        optimizer.step(objective if structure is not None else objective.__call__)
        losses.append(float(objective.value(objective.theta())))
    return model, np.array(losses)


def _wrong(f: Tensor, y: Tensor) -> float:
    return float(((f > 0) != (y > 0)).double().mean())


def judge(
    setting: NaturalGradientSetting, runs: FunctionSpaceRuns, changes: Invariance
) -> tuple[list[Finding], list[Verdict]]:
    """Numbers and verdicts of figure 3."""
    index = {name: i for i, name in enumerate(runs.methods)}
    findings: list[Finding] = []

    def add(claim: str, what: str, values: np.ndarray, predicted: float = np.nan) -> float:
        mean = float(values.mean())
        findings.append(
            Finding(
                claim=claim,
                what=what,
                measured=mean,
                predicted=predicted,
                error=standard_error(values),
            )
        )
        return mean

    for name in ("exact", *APPROXIMATIONS):
        i = index[name]
        add("isotropy", f"α, {name}", runs.alpha[i], float(runs.alpha_theory[i]))
    spreads = {
        name: add("isotropy", f"‖K̄/α − I‖/‖I‖, {name}", runs.spread[index[name]], 0.0)
        for name in ("exact", *APPROXIMATIONS)
    }
    coarse = add("diagonal", "‖K̄/α − I‖/‖I‖, entry-wise", runs.spread[index["entry-wise"]])
    left = {
        name: add(
            "same-speed",
            f"residual after one step at η = 1/α over the first one, {name}",
            np.sqrt(runs.loss[0, index[name], 1] / runs.loss[0, index[name], 0]),
        )
        for name in ("exact", *APPROXIMATIONS)
    }
    c, t = len(runs.factors) - 1, 4
    factor = float(runs.factors[c])
    for name in ("exact", *APPROXIMATIONS):
        i = index[name]
        add(
            "function-space",
            f"residual after {t} steps at η = {factor:g}/α over the first one, {name}",
            np.sqrt(runs.loss[c, i, t] / runs.loss[c, i, 0]),
            float(np.sqrt(runs.predicted[c, i, t] / runs.predicted[c, i, 0]).mean()),
        )
    follow = np.array([f.ratio for f in findings if f.claim == "function-space"])
    slow = add(
        "descent-slow",
        f"residual after {setting.steps} steps over the first one, gradient descent",
        np.sqrt(runs.loss[0, 0, -1] / runs.loss[0, 0, 0]),
        float(np.sqrt(runs.predicted[0, 0, -1] / runs.predicted[0, 0, 0]).mean()),
    )
    for name, i in index.items():
        add(
            "regression",
            f"distance of test outputs from the kernel regression's, {name}",
            runs.test_distance[i],
        )
    near = {name: float(runs.test_distance[index[name]].mean()) for name in index}
    errors = {}
    for name, i in index.items():
        errors[name] = add(
            "generalization", f"test error, {name}", runs.test_error[i],
            float(runs.regression_error[i].mean()),
        )  # fmt: skip
    for name in ("exact", "layer-wise", "tri-diagonal", "unit-wise", "entry-wise"):
        findings.append(
            Finding(
                claim="invariance",
                what=f"change of a step by mixing all parameters, {name}",
                measured=float(changes.change[changes.methods.index(name), -1]),
                predicted=0.0 if name == "exact" else np.nan,
            )
        )
    whole = {name: float(changes.change[changes.methods.index(name), -1]) for name in METHODS}
    lost = [whole[name] for name in ("layer-wise", "tri-diagonal", "unit-wise")]
    mixed = changes.maps.index("inputs and outputs of layers")
    good = [errors[name] for name in ("exact", *APPROXIMATIONS) if name != "K-FAC"]
    apart = max(*good, errors["K-FAC"]) - min(good)
    worst = max(spreads.values())
    verdicts = [
        _verdict(
            "same-speed", max(left.values()) < 0.2,
            f"one step at η = 1/α leaves {100 * min(left.values()):.1f}–"
            f"{100 * max(left.values()):.1f} % of the residual in all of them "
            f"(M = {setting.width}; exact {100 * left['exact']:.1f} %)",
        ),
        _verdict(
            "isotropy", worst < 0.1,
            "spread around α I: " + ", ".join(f"{n} {s:.2g}" for n, s in spreads.items()),
            part=worst < 0.5,
        ),
        _verdict(
            "function-space", bool(np.abs(follow - 1).max() < 0.15),
            f"after {t} steps at η = {factor:g}/α the residual is {follow.min():.2f}–"
            f"{follow.max():.2f} times the predicted one",
            part=bool(np.median(np.abs(follow - 1)) < 0.15),
        ),
        _verdict(
            "descent-slow", slow > 3 * max(left.values()),
            f"gradient descent at its best constant rate keeps {100 * slow:.0f} % of the residual "
            f"after {setting.steps} steps",
        ),
        _verdict(
            "diagonal", coarse > 0.5,
            f"the entry-wise kernel is {coarse:.1f} away from α I in relative norm",
        ),
        _verdict(
            "regression", max(near[n] for n in ("exact", *APPROXIMATIONS)) < 0.25,
            "relative distance of test outputs from each method's own regression: "
            + ", ".join(f"{n} {near[n]:.2g}" for n in ("exact", *APPROXIMATIONS)),
            part=float(np.median([near[n] for n in ("exact", *APPROXIMATIONS)])) < 0.25,
        ),
        _verdict(
            "generalization", apart < 0.05,
            "test error " + ", ".join(f"{n} {100 * errors[n]:.1f} %" for n in errors),
            part=max(good) - min(good) < 0.1,
        ),
        _verdict(
            "invariance", whole["exact"] < 1e-6 and min(lost) > 0.05,
            f"mixing all parameters changes the exact step by {whole['exact']:.0e}, layer-wise by "
            f"{whole['layer-wise']:.2f}, tri-diagonal by {whole['tri-diagonal']:.2f}, unit-wise by "
            f"{whole['unit-wise']:.2f}, entry-wise by {whole['entry-wise']:.2f}; K-FAC keeps "
            "invariance under maps of layers' inputs and outputs "
            f"({changes.change[changes.methods.index('K-FAC'), mixed]:.0e}) and has no meaning in "
            "other coordinates",
        ),
    ]  # fmt: skip
    return findings, verdicts


def _verdict(
    claim: str, whole: bool | np.bool_, because: str, *, part: bool | np.bool_ = False
) -> Verdict:
    verdict = "holds" if whole else "holds in part" if part else "does not hold"
    return Verdict(claim=claim, verdict=verdict, because=because)
