"""What a skip does to K-FAC's factors: condition numbers against depth and batch size."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kobai import seeds
from kobai.curvature import Fisher
from kobai.problem import Batch, EmpiricalRisk
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.skip_connections.cells import setting
from kobai.reproductions.skip_connections.config import Config
from kobai.results import Finding, Panel, Panels, Series, Verdict
from kobai.studies import Interrupted
from kobai.theory import expected_factors

NETWORKS = ("plain", "skips")
_SEEDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """Spectra of one layer's Kronecker factors.

    Attributes:
        inputs: Condition number of A on its range.
        outputs: Condition number of B on its range.
        least: Smallest eigenvalue of A there.
        top: Largest eigenvalue of A.
    """

    inputs: float
    outputs: float
    least: float
    top: float


def factors(config: Config, network: str, seed: int, batch: int) -> list[tuple[Tensor, Tensor]]:
    """A and B of every layer at initialisation, on the first examples of the data, in float64."""
    where = dataclasses.replace(setting(config, network), dtype=torch.float64)
    problem = where.problem(seed)
    order = torch.randperm(problem.train.size, generator=seeds.generator(seed, "batch"))
    whole = next(iter(problem.train.batches(problem.train.size)))
    chosen: Batch = whole.take(order[: min(batch, problem.train.size)])
    problem.model.eval()
    risk = EmpiricalRisk(problem.model, problem.likelihood, (chosen,))
    matrix = Fisher(risk, structure="kronecker").operator
    found = []
    for block in matrix.blocks:  # pyright: ignore[reportAttributeAccessIssue]
        if hasattr(block, "left"):
            found.append((block.right, block.left))
    return found


def conditions(inputs: Tensor, outputs: Tensor, *, ranks: tuple[int, int]) -> Conditions:
    """Condition numbers of a layer's factors, λ₁/λ_r.

    Args:
        inputs: A.
        outputs: B.
        ranks: r of A, which cannot exceed the rank of the data's covariance in a linear network,
            and of B, which cannot exceed that of the output Hessian, C − 1 for softmax.
    """
    a, b = (
        torch.linalg.eigvalsh(matrix).numpy()[-min(rank, len(matrix)) :]
        for matrix, rank in zip((inputs, outputs), ranks, strict=True)
    )
    # Below this an eigenvalue is rounding.
    least_a, least_b = (max(float(x[0]), 1e-16 * float(x[-1])) for x in (a, b))
    return Conditions(
        inputs=float(a[-1]) / least_a,
        outputs=float(b[-1]) / least_b,
        least=least_a,
        top=float(a[-1]),
    )


def worth(plain: Conditions, skips: Conditions) -> float:
    """ρ for which the plain network's A + ρI has the condition number of the one with skips.

    (λ_max + ρ)/(λ_min + ρ) = κ gives ρ = (λ_max − κ λ_min)/(κ − 1); 0 if it is better already.
    """
    return max((plain.top - skips.inputs * plain.least) / (skips.inputs - 1), 0.0)


def figure_mechanism(
    config: Config, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Factors by layer, by depth and by batch size; the two identities of section 3."""
    del folder
    small, large = config.batch_sizes
    by_layer: dict[tuple[str, int], list[list[Conditions]]] = {}
    for network in NETWORKS:
        for batch in (small, large):
            report(f"factors of {network} networks, batch {batch}")
            by_layer[network, batch] = [
                _all_conditions(factors(config, network, seed, batch))
                for seed in range(config.seed, config.seed + _SEEDS)
            ]
            if stop():
                raise Interrupted
    depths = (3, 6, 12, 24) if config.scale == "quick" else (3, 6, 12, 24, 50)
    by_depth: dict[str, list[list[Conditions]]] = {name: [] for name in NETWORKS}
    for depth in depths:
        report(f"factors at depth {depth}")
        deeper = dataclasses.replace(config, depth=depth)
        for network in NETWORKS:
            by_depth[network].append(
                [
                    # The input of the last square layer: what depth has made of the data.
                    _all_conditions(factors(deeper, network, seed, large))[-2]
                    for seed in range(config.seed, config.seed + _SEEDS)
                ]
            )
        if stop():
            raise Interrupted
    panels = _layer_panels(by_layer, (small, large)) + _depth_panels(by_depth, depths)
    plain, skips = (_median(by_layer[n, large], -1, "inputs") for n in NETWORKS)
    damping = [
        worth(p[-2], s[-2])
        for p, s in zip(by_layer["plain", large], by_layer["skips", large], strict=True)
    ]
    scale = [p[-2].top for p in by_layer["plain", large]]
    shift = gradient_difference(config.seed)
    block, cross = block_difference(config.seed)
    predicted = float(expected_factors(2, 2, 1.0, np.eye(100), skips=True).cross)
    found = [
        Finding(
            claim="degenerate",
            what=f"condition number of A of the last layer, plain, batch {large} (median of 3)",
            measured=plain,
        ),
        Finding(
            claim="degenerate",
            what=f"the same with skips, batch {large}",
            measured=skips,
        ),
        Finding(
            claim="degenerate",
            what="damping of the plain A that gives the condition number of skips, as a share of "
            "its largest eigenvalue (layer before the last)",
            measured=float(np.median(np.array(damping) / np.array(scale))),
        ),
        Finding(
            claim="gradient",
            what="largest difference of ∂f/∂W₂ between f_s and f at the same hidden layer",
            measured=shift,
            predicted=0.0,
        ),
        Finding(
            claim="added-term",
            what="relative Frobenius error of W M Wᵀ + M against the exact (W + I) M (W + I)ᵀ",
            measured=block,
        ),
        Finding(
            claim="added-term",
            what="relative size of the terms left out, W M + M Wᵀ (M = I, s = 1)",
            measured=cross,
            predicted=predicted,
        ),
    ]
    better = plain > skips
    return FigureOutcome(
        results={
            "factors": Panels(
                label="factors",
                title="Kronecker factors at initialisation, with and without skips",
                panels=tuple(panels),
                note="Medians over three networks.",
            )
        },
        findings=found,
        verdicts=[
            Verdict(
                claim="gradient",
                verdict="holds" if shift == 0.0 else "does not hold",
                because=f"largest difference {shift:.1g}",
            ),
            Verdict(
                claim="added-term",
                verdict="holds in part",
                because=f"x xᵀ is added, but so are W x xᵀ + x xᵀ Wᵀ, which the source leaves "
                f"out and which are {100 * cross:.0f} % of the rest in Frobenius norm (they "
                "vanish only in the mean over W)",
            ),
            Verdict(
                claim="degenerate",
                verdict="holds" if better else "does not hold",
                because=f"condition number of the last layer's input factor {plain:.3g} plain, "
                f"{skips:.3g} with skips",
            ),
        ],
        note=f"Networks at initialisation ({config.data_name}, width 100), Fisher matrix with the "
        f"expectation over labels; batches {small} and {large}; depths {depths}.",
    )


def _all_conditions(found: list[tuple[Tensor, Tensor]]) -> list[Conditions]:
    """Conditions of every layer, with the ranks that the data and the outputs allow."""
    data = int(torch.linalg.matrix_rank(found[0][0], hermitian=True))
    classes = len(found[-1][1])
    return [conditions(a, b, ranks=(data, classes - 1)) for a, b in found]


def _median(table: list[list[Conditions]], layer: int, name: str) -> float:
    return float(np.median([getattr(row[layer], name) for row in table]))


def _layer_panels(
    table: dict[tuple[str, int], list[list[Conditions]]], batches: tuple[int, int]
) -> list[Panel]:
    panels = []
    for name, title in (("inputs", "input factor A"), ("outputs", "output factor B")):
        series = []
        for network in NETWORKS:
            for batch in batches:
                rows = table[network, batch]
                # A of the first layer is the data's own covariance: the same for both.
                layers = range(1, len(rows[0]))
                series.append(
                    Series(
                        label=f"{network}, batch {batch}",
                        x=np.array([layer + 1 for layer in layers], dtype=float),
                        y=np.array([_median(rows, layer, name) for layer in layers]),
                        kind="both",
                    )
                )
        panels.append(
            Panel(
                title=title, x_label="layer", y_label="condition number", series=tuple(series),
                log_y=True,
            )
        )  # fmt: skip
    return panels


def _depth_panels(table: dict[str, list[list[Conditions]]], depths: tuple[int, ...]) -> list[Panel]:
    panels = []
    for name, title, unit in (
        ("inputs", "input factor A before the last layer", "condition number"),
        ("least", "its smallest eigenvalue", "eigenvalue"),
    ):
        series = tuple(
            Series(
                label=network,
                x=np.array(depths, dtype=float),
                y=np.array(
                    [float(np.median([getattr(c, name) for c in row])) for row in table[network]]
                ),
                kind="both",
            )
            for network in NETWORKS
        )
        panels.append(
            Panel(
                title=title, x_label="layers", y_label=unit, series=series, log_x=True, log_y=True
            )
        )
    return panels


def gradient_difference(seed: int) -> float:
    """Largest difference of ∂f/∂W₂ between f_s = W₂W₁x + W₁x and f = W₂W₁x, by autograd."""
    generator = seeds.generator(seed, "gradient")

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second, x, direction = draw(5, 7), draw(5, 5), draw(7), draw(5)
    found = []
    for skip in (False, True):
        weight = second.clone().requires_grad_()
        hidden = first @ x
        output = weight @ hidden + (hidden if skip else 0.0)
        (gradient,) = torch.autograd.grad(output @ direction, weight)
        found.append(gradient)
    return float((found[0] - found[1]).abs().max())


def block_difference(seed: int) -> tuple[float, float]:
    """How far the source's W M Wᵀ + M is from (W + I) M (W + I)ᵀ with M = I, W_ij ~ N(0, 1/n).

    Returns:
        The relative error against the exact block, and the size of the terms left out relative to
        the terms kept.
    """
    n = 100
    w = torch.randn(n, n, generator=seeds.generator(seed, "block"), dtype=torch.float64) / n**0.5
    identity = torch.eye(n, dtype=torch.float64)
    exact = (w + identity) @ (w + identity).T
    kept = w @ w.T + identity
    left_out = w + w.T
    return (
        float((exact - kept).norm() / exact.norm()),
        float(left_out.norm() / kept.norm()),
    )
