"""Local and global minima by Table 1: each network trained until it stands still at zero, or not.

A training that is finished is kept in the folder (its record beside its model), and one that was
stopped goes on from its last epoch.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from kobai import seeds
from kobai.landscape import classify
from kobai.landscape.solutions import PATIENCE, PLATEAU, ZERO
from kobai.problem import Problem
from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.true_minimum.networks import NETWORKS, OPEN, Bench, bench, parameters
from kobai.results import (
    Finding,
    History,
    ResultError,
    Solution,
    SolutionTable,
    Verdict,
    load,
    save,
)
from kobai.studies import Interrupted
from kobai.training import Checkpoint, load_model, train

Report = Callable[[str], None]
Stop = Callable[[], bool]


@final
class _Watch:
    """Sees every record of a run, and says when the training loss stands still at zero."""

    def __init__(self, patience: int, zero: float, change: float) -> None:
        self.patience, self.zero, self.change = patience, zero, change
        self.losses: list[float] = []

    def begin(self, label: str, *, step: int, total: int) -> None:
        """Nothing to do."""

    def step(self, step: int, *, loss: float) -> None:
        """Nothing to do."""

    def record(self, step: int, row: dict[str, float]) -> None:
        """Keep the training loss."""
        self.losses.append(row["train_loss"])

    def end(self, status: str, note: str) -> None:
        """Nothing to do."""

    @property
    def done(self) -> bool:
        """Whether a global minimum was reached, by the rule of `classify`."""
        tail = self.losses[-self.patience - 1 :]
        if len(tail) <= self.patience or tail[-1] > self.zero:
            return False
        return bool(np.all(np.abs(np.diff(tail)) <= self.change))


def solve(
    place: Bench, folder: Path, network: str, seed: int, report: Report, stop: Stop
) -> tuple[Problem, History]:
    """Train one network until it stands still at zero or its budget ends.

    Args:
        place: Data and sizes.
        folder: Where runs are kept.
        network: Which network.
        seed: Of its initial weights and the order of the images.
        report: Called with a line.
        stop: Asked before every step.

    Returns:
        The problem, its model trained and in evaluation mode, and the record.

    Raises:
        kobai.studies.Interrupted: If `stop` said so; the run is saved.
    """
    label = f"{network}-{seed}"
    problem = place.problem(network, seed)
    where = folder / "checkpoints" / label
    try:
        history = load(folder, f"history_{label}")
        load_model(where, problem.model)
    except (ResultError, ValueError):
        history = None
    if history is None:
        setting = place.setting
        watch = _Watch(patience=PATIENCE, zero=ZERO, change=PLATEAU * place.chance)
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=setting.rate)
        history = train(
            problem,
            optimizer,
            generator=seeds.generator(seed, f"order {network}"),
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            label=label,
            name=network,
            seed=seed,
            checkpoint=Checkpoint(
                folder=where, every=_every(setting.epochs), resume=True, max_snapshots=20
            ),
            progress=watch,
            stop=lambda: watch.done or stop(),
        )
        if history.status == "interrupted":
            if not watch.done:
                raise Interrupted
            history = dataclasses.replace(
                history, status="finished", note="ended where the loss stood still at zero"
            )
        save(history, folder, f"history_{label}")
        found = solution(history, place)
        report(
            f"  {label}: {found.kind}, loss {found.final_loss:.3g} after {found.epochs:g} epochs, "
            f"{history.seconds[-1]:.0f} s of training"
        )
    problem.model.eval()
    return problem, history


def _every(epochs: int) -> float:
    """Epochs between checkpoints: about twenty in a run."""
    return max(1.0, epochs / 20)


def solution(history: History, place: Bench) -> Solution:
    """The class of a run, the test split as the source's validation split."""
    return classify(history, chance=place.chance)


def figure_solutions(config: Any, folder: Path, report: Report, stop: Stop) -> FigureOutcome:
    """Epochs to local and global minima of the three networks, over seeds."""
    place = bench(config)
    names, runs, accuracy, size = [], [], {name: [] for name in NETWORKS}, {}
    for network in NETWORKS:
        for k in range(place.setting.seeds):
            if stop():
                raise Interrupted
            problem, history = solve(place, folder, network, config.seed + k, report, stop)
            names.append(NETWORKS[network])
            runs.append(solution(history, place))
            accuracy[network].append(float(history.test_accuracy[-1]))
            size[network] = parameters(problem.model)
    table = SolutionTable(
        label=place.describe(), names=tuple(names), runs=tuple(runs), chance=place.chance
    )
    findings, verdicts = judge(
        table, accuracy, 0 if place.splits.test is None else len(place.splits.test[0])
    )
    counts = ", ".join(f"{NETWORKS[n]} {count:,} parameters" for n, count in size.items())
    return FigureOutcome(
        results={"table": table},
        findings=findings,
        verdicts=verdicts,
        note=f"{place.describe()}; {counts}; Adam {place.setting.rate:g}, at most "
        f"{place.setting.epochs} epochs. T_{{i+1}} ≈ T_i: within {100 * PLATEAU:g} % of a "
        f"constant's loss for {PATIENCE} epochs in a row; ≈ 0: at most {ZERO:g} nats. The source's "
        "text once speaks of the validation loss for a global minimum; its Table 1 decides here. "
        f"{OPEN}",
    )


def epochs_to(table: SolutionTable, network: str, kind: str) -> tuple[float, int, int]:
    """Median epochs over the runs that reached a class; how many did, of how many.

    A local minimum that is no better than a constant prediction does not count.
    """
    runs = [r for n, r in zip(table.names, table.runs, strict=True) if n == network]
    field = {"LM": "local_epoch", "GM": "global_epoch"}[kind]
    reached = [
        getattr(r, field) for r in runs if math.isfinite(getattr(r, field)) and not r.trivial
    ]
    return (float(np.median(reached)) if reached else math.nan), len(reached), len(runs)


def judge(
    table: SolutionTable, accuracy: dict[str, list[float]], tested: int
) -> tuple[list[Finding], list[Verdict]]:
    """Findings and verdicts on the claims about epochs and performance.

    Args:
        table: The runs.
        accuracy: Test accuracies of every network's runs.
        tested: Images they were measured on.
    """
    epochs = {
        (name, kind): epochs_to(table, name, kind) for name in NETWORKS.values()
        for kind in ("LM", "GM")
    }  # fmt: skip
    budget = {n: r.epochs for n, r in zip(table.names, table.runs, strict=True)}
    findings = [
        Finding(claim=key, what=f"epochs to {kind}, {name}", measured=epochs[name, kind][0])
        for kind, key in (("LM", "lm-resnet"), ("GM", "gm"))
        for name in NETWORKS.values()
    ]

    def said(name: str, kind: str) -> str:
        median, reached, runs = epochs[name, kind]
        if reached:
            return f"{name} {median:g} ({reached} of {runs} runs)"
        trivial = any(r.trivial for n, r in zip(table.names, table.runs, strict=True) if n == name)
        why = ", stuck at a constant prediction" if trivial else ""
        return f"{name} not reached in the budget of {budget[name]:g}{why}"

    def longer(slow: str, quick: str, kind: str, factor: float) -> str:
        """Whether the slow one needs `factor` times the epochs, within a tenth if that is 2."""
        first, second = epochs[slow, kind][0], epochs[quick, kind][0]
        if math.isnan(second):
            return "does not hold"
        if math.isnan(first):  # never, while the other one did: longer in any case
            return "holds in part" if factor > 1 else "holds"
        ratio = first / second
        if factor > 1:
            return "holds" if ratio >= 0.9 * factor else (
                "holds in part" if ratio > 1 else "does not hold"
            )  # fmt: skip
        return "holds" if ratio > 1 else "does not hold"

    dnn, cnn, resnet = NETWORKS.values()
    both = {longer(dnn, other, "GM", 2.0) for other in (cnn, resnet)}
    gm = both.pop() if len(both) == 1 else "holds in part"
    faster = [longer(cnn, resnet, kind, 1.0) for kind in ("LM", "GM")]
    means = {NETWORKS[n]: float(np.nanmean(values)) for n, values in accuracy.items()}
    findings += [
        Finding(claim="performance", what=f"test accuracy, {name}", measured=value)
        for name, value in means.items()
    ]
    # A difference within its standard error, of independent test answers, is no order.
    error = math.sqrt(sum(v * (1 - v) for v in means.values()) * 2 / 3 / max(tested, 1))
    steps = means[resnet] - means[cnn], means[cnn] - means[dnn]
    won, lost = (sum(sign * step > error for step in steps) for sign in (1, -1))
    verdicts = [
        Verdict(
            claim="lm-resnet", verdict=longer(dnn, resnet, "LM", 2.0),
            because=f"epochs to LM: {said(dnn, 'LM')}, {said(resnet, 'LM')}",
        ),
        Verdict(
            claim="lm-cnn", verdict=longer(dnn, cnn, "LM", 1.0),
            because=f"epochs to LM: {said(dnn, 'LM')}, {said(cnn, 'LM')}",
        ),
        Verdict(
            claim="gm", verdict=gm,
            because="epochs to GM: " + ", ".join(said(n, "GM") for n in (dnn, cnn, resnet)),
        ),
        Verdict(
            claim="resnet-cnn",
            verdict=faster[0] if len(set(faster)) == 1 else "holds in part",
            because=f"epochs to LM: {said(resnet, 'LM')}, {said(cnn, 'LM')}; to GM: "
            f"{said(resnet, 'GM')}, {said(cnn, 'GM')}",
        ),
        Verdict(
            claim="performance",
            verdict="holds" if won == 2 else "does not hold" if lost == 2 else "holds in part",
            because="test accuracy: "
            + ", ".join(f"{name} {100 * value:.1f} %" for name, value in means.items())
            + f" of {tested:,} images (a difference has a standard error of {100 * error:.1f} %)",
        ),
    ]  # fmt: skip
    return findings, verdicts
