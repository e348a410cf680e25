"""Several optimizers on one problem: train each over seeds, measure its end, draw the landscape.

Every finished piece is saved at once under its own name, so an interrupted comparison goes on where
it stopped and repeats nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kobai import landscape, seeds
from kobai.curvature import measure
from kobai.optim.entry import OptimizerEntry
from kobai.optim.registry import entry_of
from kobai.problem import Batch, EmpiricalRisk, Problem
from kobai.problem.examples import TensorExamples
from kobai.results import (
    Comparison,
    ComparisonRow,
    History,
    Plane,
    Spectrum,
    aggregate,
    load,
    result_names,
    save,
)
from kobai.studies.setting import Setting, StudyTraining, look_of
from kobai.training import BatchSchedule, Checkpoint, Progress, Schedule, snapshots
from kobai.training import load_model as load_trained

SHARE = 0.95
"""The target of `steps_to_95`: this share of the best accuracy of any run of the comparison."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvatureOptions:
    """What is measured at the end of every run."""

    examples: int = 2000
    """Training examples the Hessian is measured on (count; the first ones, the same for all)."""
    eigenvalues: int = 5
    """Largest eigenvalues to find (count)."""
    trace_tolerance: float = 0.05
    """Standard error of the trace to stop at (share of the trace)."""
    max_products: int = 150
    """Budget of Hessian-vector products, for the eigenvalues and again for the trace (count)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeOptions:
    """The planes drawn at the end."""

    grid: int = 25
    """Points along each axis of a plane (count)."""
    examples: int = 2000
    """Training examples the loss surface is evaluated on (count; the first ones)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run: an optimizer, by its name or an entry of your own, with its settings and a seed."""

    optimizer: str | OptimizerEntry
    config: Any
    seed: int

    @property
    def entry(self) -> OptimizerEntry:
        """The optimizer."""
        return entry_of(self.optimizer)

    @property
    def label(self) -> str:
        """Name of the run, such as "kfac-s0"."""
        return f"{self.entry.name}-s{self.seed}"


class Interrupted(Exception):
    """The comparison was asked to stop; everything finished is saved."""


def train_run(
    setting: Setting,
    spec: RunSpec,
    training: StudyTraining,
    folder: Path,
    *,
    schedule: Schedule | None = None,
    batch_schedule: BatchSchedule | None = None,
    resume: bool,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> History:
    """Train one run and save its record as ``run_LABEL`` and its checkpoints below ``checkpoints``.

    A run that is already saved as finished, early-stopped or diverged is loaded instead when
    resuming; one that was interrupted goes on from its checkpoint.
    """
    name = f"run_{spec.label}"
    if resume and name in result_names(folder):
        done = load(folder, name)
        if done.status != "interrupted":
            return done
    history = setting.train(
        spec.optimizer,
        spec.config,
        training,
        seed=spec.seed,
        batch_schedule=batch_schedule,
        schedule=schedule,
        label=spec.label,
        checkpoint=Checkpoint(
            folder=checkpoint_folder(folder, spec.label), resume=resume, max_snapshots=20
        ),
        progress=progress,
        stop=stop,
    )
    save(history, folder, name)
    return history


def checkpoint_folder(folder: Path, label: str) -> Path:
    """Where a run of a run folder keeps its checkpoints."""
    return folder / "checkpoints" / label


def load_model(setting: Setting, spec: RunSpec, folder: Path) -> Problem:
    """The problem of a finished run, its model as the run left it, in eval mode.

    Raises:
        ValueError: If the checkpoint is missing or damaged.
    """
    problem = setting.problem(spec.seed)
    load_trained(checkpoint_folder(folder, spec.label), problem.model)
    problem.model.eval()
    return problem


def head_of(problem: Problem, count: int) -> EmpiricalRisk:
    """The objective over the first `count` training examples (all, if there are fewer)."""
    examples = problem.train
    if count >= examples.size:
        return problem.objective()
    if isinstance(examples, TensorExamples):
        batch = examples.all.take(slice(0, count))
    else:
        batch: Batch = next(iter(examples.batches(count)))
    chunk = max(batch_size(problem), 1)
    return EmpiricalRisk(problem.model, problem.likelihood, tuple(batch.chunks(chunk)))


def batch_size(problem: Problem) -> int:
    """Examples of the problem's own chunks, which keep memory bounded."""
    return next(iter(problem.objective().batches)).size


def measure_run(
    setting: Setting, spec: RunSpec, options: CurvatureOptions, folder: Path, *, resume: bool
) -> Spectrum:
    """Measure the Hessian where a run ended and save it as ``spectrum_LABEL``."""
    name = f"spectrum_{spec.label}"
    if resume and name in result_names(folder):
        return load(folder, name)
    problem = load_model(setting, spec, folder)
    spectrum = measure(
        head_of(problem, options.examples),
        k=options.eigenvalues,
        trace_tolerance=options.trace_tolerance,
        max_products=options.max_products,
        label=spec.label,
        optimizer=spec.entry.name,
        seed=spec.seed,
        generator=seeds.generator(spec.seed, "probes"),
    )
    spectrum = dataclasses.replace(spectrum, look=look_of(spec.entry))
    save(spectrum, folder, name)
    return spectrum


def draw_planes(
    setting: Setting,
    specs: list[RunSpec],
    options: LandscapeOptions,
    folder: Path,
    *,
    resume: bool,
    stop: Callable[[], bool] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Plane]:
    """Draw the plane through the runs' ends with their trajectories, and a random one.

    Args:
        setting: The problem; all runs share its loss.
        specs: One run an optimizer, the best first; the random plane is through its end.
        options: Grid and examples.
        folder: Run folder; planes are saved as ``plane_between`` and ``plane_random``.
        resume: Load planes that are already there.
        stop: Asked between points; when true `Interrupted` is raised.
        report: Told what happens.
    """
    ends: dict[str, Tensor] = {}
    paths: dict[str, list[Tensor]] = {}
    problem = load_model(setting, specs[0], folder)
    for spec in specs:
        ends[spec.label] = load_model(setting, spec, folder).space.theta()
        paths[spec.label] = [
            theta.to(ends[spec.label])
            for theta in snapshots(checkpoint_folder(folder, spec.label))[1]
        ]
    objective = head_of(problem, options.examples)
    planes = []
    kinds = ["random"] if len(specs) == 1 else ["between", "random"]
    for kind in kinds:
        name = f"plane_{kind}"
        if resume and name in result_names(folder):
            planes.append(load(folder, name))
            continue
        report(f"drawing the {kind} plane, {options.grid} x {options.grid} points")
        generator = seeds.generator(specs[0].seed, f"plane-{kind}")
        if kind == "between":
            directions = landscape.between_directions(ends, space=objective, generator=generator)
        else:
            directions = landscape.random_directions(
                objective, ends[specs[0].label], generator=generator
            )
        plane = landscape.evaluate_plane(
            objective,
            directions,
            a=options.grid,
            b=options.grid,
            trajectories=paths if kind == "between" else None,
            stop=stop,
        )
        if stop is not None and stop():
            raise Interrupted
        looks = {spec.entry.name: look_of(spec.entry) for spec in specs}
        plane = dataclasses.replace(plane, looks=looks)
        save(plane, folder, name)
        planes.append(plane)
    return planes


def tabulate(
    setting: Setting,
    histories: Iterable[History],
    spectra: Mapping[str, Spectrum],
    *,
    title: str,
    model: str,
    note: str = "",
) -> Comparison:
    """Sum runs up over their seeds: final losses and accuracies, speed, curvature.

    Args:
        setting: Names the data and the model.
        histories: All runs.
        spectra: Curvature by run label.
        title: What was compared.
        model: How to call the model.
        note: Anything worth saying about all rows.
    """
    histories = list(histories)
    column = "test_accuracy" if setting.splits.test is not None else "train_accuracy"
    every = np.concatenate([getattr(history, column) for history in histories])
    best = np.nanmax(every) if np.isfinite(every).any() else np.nan
    rows = []
    for optimizer in dict.fromkeys(history.optimizer for history in histories):
        runs = [history for history in histories if history.optimizer == optimizer]
        statuses: dict[str, int] = {}
        for run in runs:
            statuses[run.status] = statuses.get(run.status, 0) + 1
        found = [spectra[run.label] for run in runs if run.label in spectra]

        def last(name: str, runs: list[History] = runs):
            # A diverged run has no final value; it shows in the status and in the count.
            return aggregate(
                float(getattr(run, name)[-1]) if run.status != "diverged" else float("nan")
                for run in runs
            )

        rows.append(
            ComparisonRow(
                optimizer=optimizer,
                seeds=len(runs),
                statuses=statuses,
                train_loss=last("train_loss"),
                train_accuracy=last("train_accuracy"),
                test_loss=last("test_loss"),
                test_accuracy=last("test_accuracy"),
                seconds_per_epoch=aggregate(_seconds_per_epoch(run) for run in runs),
                steps_to_95=aggregate(_steps_to(run, column, SHARE * best) for run in runs),
                lambda_max=aggregate(
                    float(s.eigenvalues[-1]) if len(s.eigenvalues) else float("nan") for s in found
                ),
                trace=aggregate(s.trace for s in found),
                look=runs[0].look,
            )
        )
    parameters = next((s.dimension for s in spectra.values()), None)
    return Comparison(
        title=title,
        data=setting.splits.name,
        model=model,
        parameters=setting.problem(0).space.dimension if parameters is None else parameters,
        rows=tuple(rows),
        note=note,
    )


def _seconds_per_epoch(run: History) -> float:
    return float(run.seconds[-1] / run.epoch[-1]) if run.epoch[-1] > 0 else float("nan")


def _steps_to(run: History, column: str, target: float) -> float:
    """Steps at the first evaluation that reached the target; NaN if none did."""
    reached = np.flatnonzero(getattr(run, column) >= target)
    return float(run.step[reached[0]]) if len(reached) else float("nan")


def best_first(specs: list[RunSpec], histories: Mapping[str, History], seed: int) -> list[RunSpec]:
    """The runs of one seed that did not diverge, the lowest training loss first."""
    ended = [
        spec for spec in specs if spec.seed == seed and histories[spec.label].status != "diverged"
    ]
    return sorted(ended, key=lambda spec: float(histories[spec.label].train_loss[-1]))
