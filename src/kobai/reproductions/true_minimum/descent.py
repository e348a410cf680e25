"""The source's open question: can descent reach a true minimum whose place is known?"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kobai import seeds
from kobai.landscape import (
    TrueMinimum,
    connect,
    critical_points,
    evaluate_plane,
    joint_directions,
    moving_frame,
    random_directions,
)
from kobai.problem import EmpiricalRisk
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.true_minimum.landscape import minimum_of
from kobai.reproductions.true_minimum.networks import NETWORKS, OPEN, Bench, bench
from kobai.results import (
    Descent,
    Descents,
    Finding,
    ResultError,
    Verdict,
    load,
    save,
)
from kobai.studies import Interrupted

Report = Callable[[str], None]
Stop = Callable[[], bool]

ZERO = 0.01
"""Loss above the floor up to which a true minimum counts as reached (nats)."""

RECORDS = 20
"""Records a run, and at most so many points of its path."""

FAR, NEAR = "far", "near"

GROUPS = {FAR: "paths from initial weights, and θ*", NEAR: "paths that begin near θ*"}
"""Titles of the two planes."""


@dataclasses.dataclass(frozen=True, eq=False)
class DescentStart:
    """Where a run begins and how it goes on.

    Attributes:
        label: Name of the run.
        theta: θ_0.
        optimizer: "adam" or "sgd".
        rate: First learning rate.
        group: Picture its path is drawn in: "far", "near", or none.
    """

    label: str
    theta: Tensor
    optimizer: str = "adam"
    rate: float = 0.01
    group: str = ""


def starts(place: Bench, network: str, found: TrueMinimum) -> list[DescentStart]:
    """The initial weights θ* came from, others, and points ever farther from θ*."""
    seed, setting = place.config.seed, place.setting
    rate = setting.rate
    same = place.problem(network, seed).space.theta()
    made = [DescentStart("same start", same, rate=rate, group=FAR)]
    for k in range(1, setting.others + 1):
        other = place.problem(network, seed + 1000 + k).space.theta()
        made.append(DescentStart(f"other start {k}", other, rate=rate, group=FAR))
    delta = random_directions(
        found.problem.space, found.theta, count=1, exclude=(),
        generator=seeds.generator(seed, f"away {network}"),
    ).vectors[:, 0]  # fmt: skip
    for r in setting.radii:
        made.append(DescentStart(f"θ* + {r:g} δ", found.theta + r * delta, rate=rate, group=NEAR))
    # Whether the method or its step is to blame: a tenth of the rate, and plain descent at a rate
    # that is safe around θ*.
    small, safe = rate / 10, 1.0 / found.proof.eigenvalue_max
    middle = sorted(setting.radii)[(len(setting.radii) - 1) // 2]
    for label, theta in (
        ("same start", same),
        (f"θ* + {middle:g} δ", found.theta + middle * delta),
    ):
        made.append(DescentStart(f"{label}, Adam {small:g}", theta, rate=small))
        made.append(DescentStart(f"{label}, gradient descent", theta, "sgd", rate=safe))
    return made


def descend(
    found: TrueMinimum,
    start: DescentStart,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    stop: Stop,
) -> tuple[Descent, list[Tensor]]:
    """Train on the relabelled data from one start, and look at it from θ*.

    The model stays in evaluation mode: batch normalisation keeps the averages it had at θ*, so that
    the function descended on is the one whose minimum θ* is. The learning rate falls to zero along
    a cosine, so that its noise does not set the floor.

    Args:
        found: The true minimum.
        start: Where to begin.
        epochs: Passes over the relabelled data.
        batch_size: Examples a step.
        generator: Draws the order of the examples.
        stop: Asked after every epoch.

    Returns:
        The run, and points of its path.

    Raises:
        kobai.studies.Interrupted: If `stop` said so.
    """
    problem, star = found.problem, found.theta
    space, whole = problem.space, problem.objective()
    unseen = None if problem.test is None else problem.objective(split="test")
    expected = _probabilities(whole, star)
    length = float(star.double().norm())
    space.assign(start.theta)
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if start.optimizer == "adam":
        optimizer = torch.optim.Adam(parameters, lr=start.rate)
    else:
        optimizer = torch.optim.SGD(parameters, lr=start.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    advance: Callable[[EmpiricalRisk], object] = optimizer.step  # type: ignore[assignment]
    rows, path, status = [], [], "finished"
    every = max(1, epochs // RECORDS)
    for epoch in range(epochs + 1):
        if epoch % every == 0 or epoch == epochs:
            theta = space.theta()
            loss = float(whole.value(theta))
            rows.append(
                (
                    float(epoch),
                    loss,
                    math.nan if unseen is None else float(unseen.value(theta)),
                    float((theta - star).double().norm()) / length,
                    _distance(_probabilities(whole, theta), expected),
                )
            )
            path.append(theta.cpu())
            if not math.isfinite(loss) or loss > 1e4:
                status = "diverged"
                break
        if epoch < epochs:
            if stop():
                raise Interrupted
            for batch in problem.minibatches(batch_size, generator=generator):
                advance(problem.objective(batch))
            schedule.step()
    problem.model.zero_grad(set_to_none=True)
    end = space.theta()
    columns = np.array(rows).T
    run = Descent(
        label=start.label,
        optimizer=start.optimizer,
        radius=rows[0][3],
        epoch=columns[0],
        loss=columns[1],
        test_loss=columns[2],
        distance=columns[3],
        function=columns[4],
        gradient_norm=float(whole.grad(end).double().norm()),
        status=status,
    )
    return run, path


def _probabilities(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    return torch.softmax(risk.outputs(theta).double(), 1)


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).square().mean().sqrt())


Pictures = dict[str, Any]


def network_descents(
    place: Bench, folder: Path, network: str, report: Report, stop: Stop
) -> tuple[Descents, Pictures]:
    """All runs towards one network's true minimum, and the planes that hold it and their paths."""
    found = minimum_of(place, folder, network, report, stop)
    setting, seed = place.setting, place.config.seed
    objective = found.problem.objective()
    runs: list[Descent] = []
    paths: dict[str, dict[str, list[Tensor]]] = {FAR: {}, NEAR: {}}
    for start in starts(place, network, found):
        run, path = descend(
            found,
            start,
            epochs=setting.descent_epochs,
            batch_size=setting.batch_size,
            generator=seeds.generator(seed, f"order {network} {start.label}"),
            stop=stop,
        )
        runs.append(run)
        report(
            f"  {NETWORKS[network]}, {run.label}: loss {run.loss[0]:.3g} → {run.loss[-1]:.2g}, "
            f"distance {run.distance[0]:.2g} → {run.distance[-1]:.2g} ({run.status})"
        )
        if start.group and run.status == "finished":
            paths[start.group][run.label] = path
    found.problem.space.assign(found.theta)
    pictures = _pictures(place, network, found, objective, paths, stop)
    found.problem.space.assign(found.theta)
    note = (
        f"Adam {setting.rate:g} (gradient descent: 1/λ_max(θ*) = "
        f"{1 / found.proof.eigenvalue_max:.3g}), minibatches of {setting.batch_size}, "
        f"{setting.descent_epochs} epochs, cosine schedule to 0, {objective.size:,} examples"
    )
    return Descents(label=NETWORKS[network], runs=tuple(runs), zero=ZERO, note=note), pictures


def _pictures(
    place: Bench,
    network: str,
    found: TrueMinimum,
    objective: EmpiricalRisk,
    paths: Mapping[str, Mapping[str, list[Tensor]]],
    stop: Stop,
) -> Pictures:
    """Planes through θ* with the paths, critical points on the far one, a curve, a moving frame."""
    seed, name, setting = place.config.seed, NETWORKS[network], place.setting
    draw = seeds.generator(seed, f"pictures {network}")
    made: Pictures = {}
    for group, runs in paths.items():
        if not runs:
            continue
        directions = joint_directions(found.theta, runs, label="θ*")
        plane = evaluate_plane(
            objective, directions, a=setting.nodes, b=setting.nodes, fields=("loss",),
            trajectories=runs, label=f"{name}: {GROUPS[group]}", stop=stop,
        )  # fmt: skip
        if "stopped after" in plane.note:
            raise Interrupted
        # Every run in a style of its own: they differ by start, not by optimizer.
        plane = dataclasses.replace(
            plane,
            trajectories=tuple(
                dataclasses.replace(path, optimizer=path.label) for path in plane.trajectories
            ),
        )
        made[f"{network}_{group}"] = plane
        if group == FAR:
            made[f"{network}_critical"] = critical_points(
                plane, objective, directions, max_points=4, max_products=setting.products,
                generator=draw,
            )  # fmt: skip
    same = paths[FAR].get("same start")
    if same is not None:
        end = same[-1].to(found.theta)
        made[f"{network}_connection"] = connect(
            objective, found.theta, end, steps=setting.curve_steps, resolution=17,
            label=f"{name}: θ* to the end of descent from its own start", generator=draw,
        ).connection  # fmt: skip
        made[f"{network}_frames"] = moving_frame(
            objective, [theta.to(found.theta) for theta in same], count=4, nodes=9,
            label=f"{name}, same start", generator=draw,
        )  # fmt: skip
    return made


def figure_descent(config: Any, folder: Path, report: Report, stop: Stop) -> FigureOutcome:
    """Every network's runs; a network that is finished is kept."""
    place = bench(config)
    results: dict[str, Any] = {}
    every: list[Descents] = []
    for network in place.setting.descent_networks:
        try:
            descents = load(folder / "parts", f"descents_{network}")
            names = [f"{network}_{end}" for end in (FAR, NEAR, "critical", "connection", "frames")]
            pictures = {}
            for name in names:
                try:
                    pictures[name] = load(folder / "parts", f"descent_{name}")
                except ResultError:
                    continue
        except ResultError:
            descents, pictures = network_descents(place, folder, network, report, stop)
            for name, picture in pictures.items():
                save(picture, folder / "parts", f"descent_{name}")
            save(descents, folder / "parts", f"descents_{network}")
        every.append(descents)
        results[network] = descents
        results |= pictures
    findings, verdicts = judge(every)
    return FigureOutcome(
        results=results,
        findings=findings,
        verdicts=verdicts,
        note=f"{every[0].note}. Runs keep the averages of batch normalisation of θ*. Reached: loss "
        f"at most {ZERO:g} nats above its floor. {OPEN}",
    )


def _reached(run: Descent, zero: float) -> bool:
    return run.status == "finished" and float(run.loss[-1]) <= zero


def _share(runs: list[Descent], zero: float) -> str:
    """How many of some runs reached the floor, with the last loss and distance of each."""
    told = ", ".join(f"{r.label} {r.loss[-1]:.1e} at {r.distance[-1]:.2g}" for r in runs)
    return f"{sum(_reached(r, zero) for r in runs)} of {len(runs)} runs ({told})"


def judge(every: list[Descents]) -> tuple[list[Finding], list[Verdict]]:
    """Whether runs from afar got to the floor, and whether they found θ* itself."""
    findings, told, outcomes = [], [], []
    for descents in every:
        for run in descents.runs:
            findings.append(
                Finding(claim="unreachable", what=f"{descents.label}, {run.label}: last loss",
                        measured=float(run.loss[-1]), predicted=0.0)
            )  # fmt: skip
            findings.append(
                Finding(claim="unreachable", what=f"{descents.label}, {run.label}: last distance",
                        measured=float(run.distance[-1]), predicted=0.0)
            )  # fmt: skip
        far = [run for run in descents.runs if "start" in run.label]
        near = [run for run in descents.runs if run not in far]
        outcomes += [_reached(run, descents.zero) for run in far]
        nearest = min((float(run.distance[-1]) for run in far), default=math.nan)
        told.append(
            f"{descents.label}: {_share(far, descents.zero)} from initial weights reach the floor, "
            f"and none of them comes nearer to θ* than {nearest:.2g} of its length; "
            f"{_share(near, descents.zero)} from θ* + r δ do"
        )
    verdict = "does not hold" if all(outcomes) else (
        "holds in part" if any(outcomes) else "holds"
    )  # fmt: skip
    return findings, [Verdict(claim="unreachable", verdict=verdict, because="; ".join(told))]
