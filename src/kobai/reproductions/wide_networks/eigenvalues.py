"""Figure 4: eigenvalue statistics against width, regression and softmax, and normalisation.

Source: R. Karakida, report, task 1, after Karakida, Akaho and Amari, 1806.01316, 1906.02926 and
1910.05992: random networks, random inputs.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from kobai import seeds
from kobai.reproductions.wide_networks.averages import exponent, standard_error
from kobai.reproductions.wide_networks.spectra import dual, module_of
from kobai.reproductions.wide_networks.stacked import draw
from kobai.results import Finding, SpectrumPanels, Verdict, WidthScan
from kobai.studies import Interrupted
from kobai.theory import FisherStatistics, WideNetwork, fisher_statistics

QUANTITIES = ("mean eigenvalue", "second moment", "λ_max", "gap below the outliers")
GROUPS = (
    "regression",
    "softmax",
    "regression, mean subtracted",
    "softmax, mean subtracted",
    "tangent kernel",
    "tangent kernel, mean subtracted",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EigenvalueSetting:
    """Random networks of widths (M, M, M, C) on N random inputs."""

    widths: tuple[int, ...]
    seeds: int
    examples: int = 100
    outputs: int = 5
    activation: str = "relu"
    weight_variance: float = 2.0
    bias_variance: float = 0.1

    def network(self, width: int) -> WideNetwork:
        """What theory needs to know of the network of a width."""
        return WideNetwork(
            widths=(width, width, width, self.outputs),
            activation=self.activation,
            weight_variance=self.weight_variance,
            bias_variance=self.bias_variance,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Spectra:
    """Spectra of one network, by group, ascending, with theory's where there is one."""

    values: dict[str, np.ndarray]
    said: dict[str, FisherStatistics]
    parameters: int


def one_network(network: WideNetwork, examples: int, *, generator: torch.Generator) -> Spectra:
    """All spectra of one random network.

    Args:
        network: Its law.
        examples: N random inputs.
        generator: Draws the network, then the inputs.

    Returns:
        Eigenvalues of every group of `GROUPS`. Of the tangent kernel, NTK parameterisation, those
        of J Jᵀ/N.
    """
    stack = draw(network, generators=[generator], dtype=torch.float64)
    x = torch.randn(examples, network.widths[0], generator=generator, dtype=torch.float64)
    module = module_of(stack, 0)
    with torch.no_grad():
        f = module(x).numpy()
    matrix = dual(module, x)
    variances = float(network.weight_variance), float(network.bias_variance)
    tangent = dual(module_of(stack, 0, variances=variances), x)
    values = {}
    for name, plain in (("regression", matrix), ("tangent kernel", tangent)):
        values[name] = _nonzero(plain)
        values[f"{name}, mean subtracted"] = _nonzero(_centred(plain))
    factor = softmax_factor(f)
    values["softmax"] = _nonzero(_through(factor, matrix))
    values["softmax, mean subtracted"] = _nonzero(
        _through(softmax_factor(f - f.mean(0)), _centred(matrix))
    )
    said = {
        "regression": fisher_statistics(network, examples),
        "softmax": fisher_statistics(network, examples, loss="categorical", outputs=f),
        "regression, mean subtracted": fisher_statistics(network, examples, normalization="mean"),
    }
    return Spectra(values=values, said=said, parameters=network.parameters)


def softmax_factor(f: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C C"]:
    """B with B Bᵀ = diag g − g gᵀ, g the softmax of each row: diag(√g)(I − √g √gᵀ).

    Args:
        f: Logits.

    Returns:
        One factor an example.
    """
    g = np.exp(f - f.max(1, keepdims=True))
    root = np.sqrt(g / g.sum(1, keepdims=True))
    return root[:, :, None] * (np.eye(f.shape[1]) - root[:, :, None] * root[:, None, :])


def _through(factor: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """B_nᵀ K(n, m) B_m, outputs before examples."""
    half = np.einsum("nka,knlm->anlm", factor, matrix, optimize=True)
    return np.einsum("anlm,mlb->anbm", half, factor, optimize=True)


def _centred(matrix: np.ndarray) -> np.ndarray:
    centred = matrix - matrix.mean(1, keepdims=True)
    return centred - centred.mean(3, keepdims=True)


def _nonzero(matrix: np.ndarray) -> np.ndarray:
    rows = matrix.shape[0] * matrix.shape[1]
    values = np.linalg.eigvalsh(matrix.reshape(rows, rows))
    return np.maximum(values, 0.0)


def eigenvalue_scan(
    setting: EigenvalueSetting,
    *,
    seed: int,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> tuple[WidthScan, SpectrumPanels, dict[str, np.ndarray]]:
    """Measure every width and seed.

    Args:
        setting: Widths, seeds.
        seed: First seed.
        report: Called with a line a width.
        stop: Asked between networks.

    Returns:
        The scan, the spectra of the first network of the largest width, and the outliers' relative
        spreads by group: (S, seeds) standard deviation over mean of the C largest (C − 1 for
        softmax).

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    shape = (len(GROUPS), len(QUANTITIES), len(setting.widths), setting.seeds)
    measured, predicted = np.full(shape, np.nan), np.full(shape, np.nan)
    spread = {name: np.full(shape[2:], np.nan) for name in GROUPS[:2]}
    shown: Spectra | None = None
    for j, width in enumerate(setting.widths):
        for s in range(setting.seeds):
            if stop():
                raise Interrupted
            g = seeds.generator(seed + s, f"figure 4 width {width}")
            found = one_network(setting.network(width), setting.examples, generator=g)
            for i, name in enumerate(GROUPS):
                outliers = setting.outputs - name.startswith("softmax")
                values = found.values[name]
                top = values[-outliers:]
                kernel = name.startswith("tangent")
                # Of the regression's C equal outliers the mean: the largest draw is biased.
                largest = float(top[-1] if name.startswith("softmax") else top.mean())
                if "subtracted" in name:
                    largest = float(values[-1])
                measured[i, :, j, s] = (
                    np.nan if kernel else values.sum() / found.parameters,
                    np.nan if kernel else (values**2).sum() / found.parameters,
                    largest,
                    values[-outliers] / values[-outliers - 1],
                )
                if name in found.said:
                    said = found.said[name]
                    predicted[i, :3, j, s] = said.mean, said.second_moment, said.largest
                if name in spread:
                    spread[name][j, s] = top.std() / top.mean()
            if s == 0:
                shown = found
        report(f"  width {width}: {setting.seeds} networks")
    assert shown is not None
    scan = WidthScan(
        title="Figure 4: eigenvalues of the Fisher matrix of random networks against width",
        groups=GROUPS, quantities=QUANTITIES, widths=np.array(setting.widths, dtype=float),
        measured=measured, predicted=predicted.mean(3),
    )  # fmt: skip
    return scan, _panels(setting, shown), spread


def _panels(setting: EigenvalueSetting, shown: Spectra) -> SpectrumPanels:
    c, width = setting.outputs, setting.widths[-1]
    names = GROUPS[:4]
    predicted = {
        "regression": np.array([shown.said["regression"].largest]),
        "softmax": shown.said["softmax"].eigenvalues[-(c - 1) :],
    }
    notes = {
        "regression": f"{c} outliers",
        "softmax": f"{c - 1} outliers of different size",
        "regression, mean subtracted": "no outliers",
        "softmax, mean subtracted": "no outliers",
    }
    # What a projection removes is zero: one output under softmax, one example under centring.
    count = {
        name: (c - name.startswith("softmax")) * (setting.examples - ("subtracted" in name))
        for name in names
    }
    return SpectrumPanels(
        title=f"Figure 4: non-zero eigenvalues of the Fisher matrix, M = {width}, C = {c}",
        eigenvalues={name: shown.values[name][-count[name] :] for name in names},
        predicted=predicted,
        notes=notes,
    )


def judge_spectra(
    setting: EigenvalueSetting, scan: WidthScan, spread: dict[str, np.ndarray]
) -> tuple[list[Finding], list[Verdict]]:
    """Numbers and verdicts on spectra."""
    findings: list[Finding] = []
    mean, error = scan.mean, scan.error
    last = len(scan.widths) - 1
    width = int(scan.widths[last])
    for g, name in enumerate(GROUPS[:2]):
        for q, quantity in enumerate(QUANTITIES[:3]):
            findings.append(
                Finding(
                    claim="outliers",
                    what=f"{quantity}, {name}, M = {width}",
                    measured=float(mean[g, q, last]),
                    predicted=float(scan.predicted[g, q, last]),
                    error=float(error[g, q, last]),
                )
            )
    gap = {name: float(mean[g, 3, last]) for g, name in enumerate(GROUPS)}
    gap_error = {name: float(error[g, 3, last]) for g, name in enumerate(GROUPS)}
    for name in GROUPS:
        claim = "normalization-scale" if "subtracted" in name else "outliers"
        if name.startswith("tangent"):
            claim = "normalization-scale"
        findings.append(
            Finding(
                claim=claim,
                what=f"least outlier over the next eigenvalue, {name}, M = {width}",
                measured=gap[name],
                error=gap_error[name],
            )
        )
    slopes = {name: exponent(scan.widths, mean[g, 2]) for g, name in enumerate(GROUPS[:2])}
    for name, slope in slopes.items():
        findings.append(
            Finding(
                claim="outliers",
                what=f"exponent of λ_max in the width, {name}",
                measured=slope,
                predicted=1.0,
            )
        )
    relative = {name: values[last] for name, values in spread.items()}
    for name, values in relative.items():
        findings.append(
            Finding(
                claim="softmax-spread",
                what=f"standard deviation over mean of the outliers, {name}, M = {width}",
                measured=float(values.mean()),
                error=standard_error(values),
                predicted=0.0 if name == "regression" else np.nan,
            )
        )
    ratios = np.array([f.ratio for f in findings[:6]])
    normalized = max(gap[name] for name in GROUPS if "subtracted" in name)
    plain = min(gap[name] for name in GROUPS if "subtracted" not in name)
    factor = relative["softmax"].mean() / relative["regression"].mean()
    verdicts = [
        Verdict(
            claim="outliers",
            # Softmax outputs add up to 1: one direction an example carries nothing, hence C − 1.
            verdict="holds in part"
            if min(gap["regression"], gap["softmax"]) > 1.25
            and np.abs(ratios - 1).max() < 0.2
            and all(abs(slope - 1) < 0.15 for slope in slopes.values())
            else "does not hold",
            because=f"C = {setting.outputs} outliers stand {gap['regression']:.1f} times above the "
            f"rest in regression, C − 1 stand {gap['softmax']:.1f} times above in softmax "
            f"(M = {width}); λ_max goes as M^{slopes['regression']:.2f} and "
            f"M^{slopes['softmax']:.2f}; mean, second moment and λ_max are "
            f"{ratios.min():.2f}–{ratios.max():.2f} times theory's",
        ),
        Verdict(
            claim="softmax-spread",
            verdict=_holds(factor > 1.5),
            because=f"the outliers' relative spread is {relative['softmax'].mean():.2f} under "
            f"softmax against {relative['regression'].mean():.2f} in regression",
        ),
        Verdict(
            claim="normalization-scale",
            verdict=_holds(normalized < 1.25 < plain),
            because=f"after mean subtraction the gap is at most {normalized:.2f} (regression, "
            f"softmax, tangent kernel); before it is at least {plain:.1f}",
        ),
    ]
    return findings, verdicts


def _holds(condition: bool | np.bool_) -> str:
    return "holds" if condition else "does not hold"
