"""Figure 1: what the loss looks like around a true minimum of each network, in numbers as well."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kobai import seeds
from kobai.landscape import (
    TrueMinimum,
    evaluate_ensemble,
    evaluate_plane,
    median_smoothness,
    random_directions,
    true_minimum,
)
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.true_minimum.networks import NETWORKS, OPEN, Bench, bench
from kobai.reproductions.true_minimum.solutions import solve
from kobai.results import (
    Ensemble,
    Finding,
    MinimumProof,
    Plane,
    PlanePanels,
    ResultError,
    ShapeTable,
    Verdict,
    load,
    save,
)
from kobai.studies import Interrupted

Report = Callable[[str], None]
Stop = Callable[[], bool]

EPSILON = 0.1
"""Height of the sublevel set that counts as low loss (nats)."""

RAYS = 4
"""Random rays on which the range of a network's planes is found."""

SHOWN = (1e-3, 10.0)
"""Losses that the panels tell apart (nats); below and above them, colour stands still."""


def minimum_of(
    place: Bench,
    folder: Path,
    network: str,
    report: Report,
    stop: Stop,
    *,
    targets: str = "soft",
    curvature: bool = True,
) -> TrueMinimum:
    """The true minimum of the first training of a network.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """  # fmt: skip
    problem, _ = solve(place, folder, network, place.config.seed, report, stop)
    return true_minimum(
        place.measured(problem), "hard" if targets == "hard" else "soft", curvature=curvature,
        max_products=place.setting.products, label=f"{NETWORKS[network]}, {targets} targets",
        generator=seeds.generator(place.config.seed, f"proof {network}"),
    )  # fmt: skip


def figure_landscape(config: Any, folder: Path, report: Report, stop: Stop) -> FigureOutcome:
    """Proofs, six panels on two kinds of grid, and measures over random planes."""
    place = bench(config)
    proofs: dict[str, dict[str, MinimumProof]] = {}
    planes: dict[str, dict[str, Plane]] = {}
    shapes: dict[str, dict[str, Ensemble]] = {}
    for network, name in NETWORKS.items():
        parts = {
            "proof": lambda n=network: minimum_of(place, folder, n, report, stop).proof,
            "proof_hard": lambda n=network: _hard(place, folder, n, report, stop).proof,
            "plane": lambda n=network: _plane(place, folder, n, report, stop),
            "plane_source": lambda n=network: _source_plane(place, folder, n, report, stop),
            "planes": lambda n=network: _ensemble(place, folder, n, "filter", report, stop),
            "planes_global": lambda n=network: _ensemble(place, folder, n, "global", report, stop),
        }
        made = {}
        for part, make in parts.items():
            if stop():
                raise Interrupted
            made[part] = _kept(folder, f"part_{network}_{part}", make)
            report(f"  {name}: {part.replace('_', ' ')}")
        proofs[network] = {"soft": made["proof"], "hard": made["proof_hard"]}
        planes[network] = {"centred": made["plane"], "source": made["plane_source"]}
        shapes[network] = {"filter": made["planes"], "global": made["planes_global"]}
    titles = tuple(NETWORKS.values())

    def panels(kind: str, label: str) -> PlanePanels:
        return PlanePanels(
            label=label, planes=tuple(planes[n][kind] for n in NETWORKS), titles=titles,
            low=SHOWN[0], high=SHOWN[1],
        )  # fmt: skip

    def table(norm: str, label: str) -> ShapeTable:
        return ShapeTable(label=label, rows=tuple(shapes[n][norm] for n in NETWORKS))

    findings, verdicts = judge(proofs, shapes)
    count, nodes = place.setting.ensemble
    return FigureOutcome(
        results={
            "panels": panels("centred", "loss above its floor around θ*, filter-normalised"),
            "panels_source": panels("source", "the same on the source's grid (Algorithm 2)"),
            "shape": table("filter", "filter-normalised planes"),
            "shape_global": table("global", "planes of unit directions, as in Algorithm 2"),
            **{f"{network}_proof": proof["soft"] for network, proof in proofs.items()},
        },
        findings=findings,
        verdicts=verdicts,
        note=f"{place.describe()}; landscapes on {place.measured_examples:,} training images; "
        f"loss in nats above the mean entropy of the targets; {count} planes of "
        f"{nodes} × {nodes} nodes a network and norm, as far out as the loss stays "
        f"below {place.chance:.3g}; ε = {EPSILON:g}. Algorithm 2 as printed steps from a corner "
        f"at θ* in unit steps of δ/‖δ‖, K = {place.setting.nodes} here. {OPEN}",
    )


def _kept(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """A part that was made before, or is made and kept now."""
    try:
        return load(folder / "parts", name)
    except ResultError:
        made = make()
        save(made, folder / "parts", name)
        return made


def _hard(place: Bench, folder: Path, network: str, report: Report, stop: Stop) -> TrueMinimum:
    """The contrast: argmax labels, as a sparse cross-entropy takes them; first order only."""
    return minimum_of(place, folder, network, report, stop, targets="hard", curvature=False)


def _plane(place: Bench, folder: Path, network: str, report: Report, stop: Stop) -> Plane:
    """Filter-normalised, centred: the picture that networks can be compared by."""
    found = minimum_of(place, folder, network, report, stop, curvature=False)
    objective = found.problem.objective()
    directions = random_directions(
        objective, found.theta, generator=seeds.generator(place.config.seed, f"plane {network}"),
        origin_label="θ*",
    )  # fmt: skip
    axis = np.linspace(-1, 1, place.setting.nodes)
    axis[place.setting.nodes // 2] = 0.0
    return _complete(
        evaluate_plane(
            objective, directions, a=axis, b=axis, fields=("loss", "accuracy"),
            label=NETWORKS[network], stop=stop,
        )
    )  # fmt: skip


def _source_plane(place: Bench, folder: Path, network: str, report: Report, stop: Stop) -> Plane:
    """Algorithm 2 as printed: unit directions of all parameters, unit steps from a corner at θ*."""
    found = minimum_of(place, folder, network, report, stop, curvature=False)
    objective = found.problem.objective()
    directions = random_directions(
        objective, found.theta, norm="global", exclude=(), origin_label="θ*",
        generator=seeds.generator(place.config.seed, f"source plane {network}"),
    )  # fmt: skip
    axis = np.arange(place.setting.nodes, dtype=float)
    return _complete(
        evaluate_plane(
            objective, directions, a=axis, b=axis, fields=("loss",),
            label=f"{NETWORKS[network]}, source's grid", stop=stop,
        )
    )  # fmt: skip


def _complete(plane: Plane) -> Plane:
    if "stopped after" in plane.note:
        raise Interrupted
    return plane


def _ensemble(
    place: Bench, folder: Path, network: str, norm: str, report: Report, stop: Stop
) -> Ensemble:
    """Random planes of one law, as far out as the loss stays below that of a constant."""
    found = minimum_of(place, folder, network, report, stop, curvature=False)
    count, nodes = place.setting.ensemble
    half = _reach(place, found, norm, network)
    axis = np.linspace(-half, half, nodes)
    axis[nodes // 2] = 0.0
    ensemble = evaluate_ensemble(
        found.problem.objective(), found.theta, count=count, a=axis, b=axis,
        norm="filter" if norm == "filter" else "global",
        exclude=("bias", "norm") if norm == "filter" else (), epsilon=EPSILON,
        label=NETWORKS[network], stop=stop,
        generator=seeds.generator(place.config.seed, f"planes {norm} {network}"),
    )  # fmt: skip
    if len(ensemble.values) < count:
        raise Interrupted
    return ensemble


def _reach(place: Bench, found: TrueMinimum, norm: str, network: str) -> float:
    """Where the loss, averaged over random rays, first reaches that of a constant prediction.

    So far out a basin is compared with another one; beyond, where losses of some networks explode,
    every measure would be that of the corners.
    """
    objective = found.problem.objective()
    draw = seeds.generator(place.config.seed, f"reach {norm} {network}")
    rays = [
        random_directions(
            objective, found.theta, count=1, norm="filter" if norm == "filter" else "global",
            exclude=("bias", "norm") if norm == "filter" else (), generator=draw,
        ).vectors[:, 0]
        for _ in range(RAYS)
    ]  # fmt: skip
    length = float(found.theta.double().norm()) / float(rays[0].double().norm())

    def high(half: float) -> bool:
        losses = [float(objective.value(found.theta + half * ray)) for ray in rays]
        return not math.isfinite(sum(losses)) or float(np.mean(losses)) >= place.chance

    low, top = 0.0, length / 64
    while not high(top) and top < 16 * length:
        low, top = top, 1.5 * top
    for _ in range(6):
        middle = (low + top) / 2
        low, top = (low, middle) if high(middle) else (middle, top)
    return top


def judge(
    proofs: dict[str, dict[str, MinimumProof]], shapes: dict[str, dict[str, Ensemble]]
) -> tuple[list[Finding], list[Verdict]]:
    """Findings and verdicts on the claims about true minima and their surroundings."""
    soft = {NETWORKS[n]: p["soft"] for n, p in proofs.items()}
    hard = {NETWORKS[n]: p["hard"] for n, p in proofs.items()}
    findings = []
    for name in soft:
        findings += [
            Finding(claim="optimal", what=f"‖∇L(θ*)‖, soft targets, {name}",
                    measured=soft[name].gradient_norm, predicted=0.0),
            Finding(claim="optimal", what=f"‖∇L(θ*)‖, hard targets, {name}",
                    measured=hard[name].gradient_norm),
            Finding(claim="optimal", what=f"L(θ*), hard targets, {name}",
                    measured=hard[name].loss, predicted=0.0),
        ]  # fmt: skip
    exact = all(proof.holds for proof in soft.values())
    near = all(proof.loss <= 0.01 for proof in hard.values())
    optimal = Verdict(
        claim="optimal",
        verdict=("holds" if near else "holds in part") if exact else "does not hold",
        because="with the outputs themselves as targets "
        + ("every" if exact else "not every")
        + " network is a minimum to rounding (largest ‖∇L‖ "
        f"{max(p.gradient_norm for p in soft.values()):.1e}), the cross-entropy above its floor is "
        "zero and the floor is the outputs' entropy "
        f"({', '.join(f'{n} {p.floor:.2g}' for n, p in soft.items())}); with argmax labels, as a "
        "sparse cross-entropy takes, the loss is "
        f"{', '.join(f'{n} {p.loss:.2g}' for n, p in hard.items())} and ‖∇L‖ "
        f"{', '.join(f'{p.gradient_norm:.2g}' for p in hard.values())}",
    )
    verdicts = [optimal]
    medians = {
        norm: {NETWORKS[n]: median_smoothness(s[norm]) for n, s in shapes.items()}
        for norm in ("filter", "global")
    }
    dnn, _, resnet = NETWORKS.values()
    for norm, row in medians.items():
        for measure, key in (("roughness", "smooth"), ("relative_steepness", "sharp"),
                             ("asymmetry", "sharp"), ("relative_radius", "wide")):  # fmt: skip
            findings += [
                Finding(claim=key, what=f"{measure.replace('_', ' ')}, {norm} norm, {name}",
                        measured=getattr(entry, measure))
                for name, entry in row.items()
            ]  # fmt: skip

    def tests(wanted: list[tuple[str, str, str]]) -> tuple[str, str]:
        """Each (measure, network, extreme) under both norms; the verdict and its numbers."""
        outcomes, told = [], []
        for norm, row in medians.items():
            for measure, name, extreme in wanted:
                values = {n: getattr(entry, measure) for n, entry in row.items()}
                pick = min if extreme == "least" else max
                best = pick(values, key=lambda n, v=values: v[n] if math.isfinite(v[n]) else 0.0)
                outcomes.append(best == name)
                numbers = ", ".join(f"{n} {v:.3g}" for n, v in values.items())
                told.append(f"{measure.replace('_', ' ')} ({norm} norm): {numbers}")
        verdict = "holds" if all(outcomes) else (
            "holds in part" if any(outcomes) else "does not hold"
        )  # fmt: skip
        return verdict, "; ".join(dict.fromkeys(told))

    for key, wanted in (
        ("smooth", [("roughness", resnet, "least"), ("relative_steepness", resnet, "least")]),
        ("sharp", [("relative_steepness", dnn, "most"), ("asymmetry", dnn, "most")]),
        ("wide", [("relative_radius", resnet, "most"), ("relative_radius", dnn, "least")]),
    ):
        verdict, because = tests(wanted)
        verdicts.append(Verdict(claim=key, verdict=verdict, because=because))
    return findings, verdicts
