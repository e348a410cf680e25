"""One trial: a setting of the hyperparameters, trained with one or several seeds."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kobai.optim.domains import Value
from kobai.optim.entry import OptimizerEntry
from kobai.optim.registry import entry_of
from kobai.results import History
from kobai.studies.setting import Setting, StudyTraining
from kobai.training import Schedule

MEASURES = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What every trial of a study has in common.

    Attributes:
        setting: Data and model.
        optimizer: Name of the optimizer, or an entry of your own.
        config: Its settings, of which a trial replaces those that are searched.
        schedule: Learning-rate schedule; its fields can be searched as ``schedule.FIELD``.
        training: How long and how to train; its fields can be searched as ``training.FIELD``.
        seeds: Seeds of every trial.
        metric: What is scored, one of `MEASURES`; its mean over seeds at the end.
    """

    setting: Setting
    optimizer: str | OptimizerEntry
    config: Any
    schedule: Schedule | None
    training: StudyTraining
    seeds: tuple[int, ...] = (0,)
    metric: str = "train_accuracy"

    @property
    def entry(self) -> OptimizerEntry:
        """The optimizer."""
        return entry_of(self.optimizer)

    @property
    def maximise(self) -> bool:
        """Whether more of the metric is better."""
        return self.metric.endswith("accuracy")

    @property
    def worst(self) -> float:
        """The score of a trial that diverged or failed."""
        return 0.0 if self.maximise else math.inf

    def fields(self) -> frozenset[str]:
        """Names that a search space may use."""
        names = {f.name for f in dataclasses.fields(self.config)}
        if self.schedule is not None:
            fields = dataclasses.fields(self.schedule)  # pyright: ignore[reportArgumentType]
            names |= {f"schedule.{f.name}" for f in fields}
        names |= {f"training.{f.name}" for f in dataclasses.fields(self.training)}
        return frozenset(names)

    def configured(self, values: Mapping[str, Value]) -> tuple[Any, Schedule | None, Any]:
        """Optimizer settings, schedule and training options with a trial's values in them.

        Raises:
            ValueError: If a value is out of its range or a name is unknown.
        """
        parts: dict[str, dict[str, Value]] = {"": {}, "schedule": {}, "training": {}}
        for name, value in values.items():
            owner, _, field = name.rpartition(".")
            if name not in self.fields():
                raise ValueError(
                    f"{name} is nothing to search for {self.entry.name}; choose from "
                    f"{', '.join(sorted(self.fields()))}"
                )
            parts[owner][field] = value
        schedule: Any = self.schedule
        if parts["schedule"]:
            schedule = dataclasses.replace(schedule, **parts["schedule"])
        return (
            dataclasses.replace(self.config, **parts[""]),
            schedule,
            dataclasses.replace(self.training, **parts["training"]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a trial ended; plain values that any storage can hold.

    Attributes:
        state: ``finished``, ``diverged``, ``failed``, or ``interrupted``.
        value: The score: mean of the metric over seeds at the end, or the worst there is.
        final: Measure → one value a seed at the end; None where it is not finite.
        seconds: Training time of each seed, in seconds.
        epoch: Epochs of the records.
        curve: For each seed the metric at the records; None where it is not finite.
        note: What went wrong, if anything.
    """

    state: str
    value: float
    final: dict[str, list[float | None]]
    seconds: list[float]
    epoch: list[float]
    curve: list[list[float | None]]
    note: str = ""


def run_trial(
    task: Task,
    values: Mapping[str, Value],
    *,
    report: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrialOutcome:
    """Train a setting with every seed of the task.

    Nothing is written. A run that diverges scores the worst value; so does one in which the
    optimizer gives up with an error about numbers or memory (``RuntimeError``), which is kept in
    the note.

    Args:
        task: What trials have in common.
        values: The trial's hyperparameters.
        report: Told the metric at every record of the first seed, for pruning; what it raises
            ends the trial.
        stop: Asked before every step; when true the outcome is ``interrupted``.

    Raises:
        ValueError: If a value is out of its range.
    """
    config, schedule, options = task.configured(values)
    histories: list[History] = []
    failure = ""
    for position, seed in enumerate(task.seeds):
        watch = None if report is None or position else _Reporter(task.metric, report)
        try:
            histories.append(
                task.setting.train(
                    task.entry,
                    config,
                    options,
                    seed=seed,
                    schedule=schedule,
                    progress=watch,
                    stop=stop,
                )
            )
        except RuntimeError as error:
            failure = f"seed {seed}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            break
        if histories[-1].status == "interrupted":
            break
    return outcome(task, histories, failure)


def outcome(task: Task, histories: list[History], failure: str = "") -> TrialOutcome:
    """Sum the runs of a trial up; see `run_trial`."""
    statuses = [history.status for history in histories]
    state = "finished"
    if failure:
        state = "failed"
    elif "interrupted" in statuses:
        state = "interrupted"
    elif "diverged" in statuses:
        state = "diverged"
    final = {
        name: [_finite(getattr(h, name)[-1]) for h in histories]
        for name in MEASURES
        if any(np.isfinite(getattr(h, name)).any() for h in histories)
    }
    score = final.get(task.metric, [])
    good = state == "finished" and score and None not in score
    notes = [failure, *(h.note for h in histories if h.status == "diverged")]
    longest = max((h.epoch for h in histories), key=len, default=np.empty(0))
    return TrialOutcome(
        state=state if good or state != "finished" else "diverged",
        value=float(np.mean([v for v in score if v is not None])) if good else task.worst,
        final=final,
        seconds=[float(h.seconds[-1]) for h in histories],
        epoch=[float(e) for e in longest],
        curve=[[_finite(v) for v in getattr(h, task.metric)] for h in histories],
        note="; ".join(filter(None, notes)),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class _Reporter:
    """Passes the metric of every record on; a `Progress` that draws nothing."""

    def __init__(self, metric: str, report: Callable[[int, float], None]) -> None:
        self._metric, self._report, self._count = metric, report, 0

    def begin(self, label: str, *, step: int, total: int) -> None:
        """Nothing to do."""

    def step(self, step: int, *, loss: float) -> None:
        """Nothing to do."""

    def record(self, step: int, row: dict[str, float]) -> None:
        """Pass the metric on."""
        if step and math.isfinite(row[self._metric]):
            self._count += 1
            self._report(self._count, float(row[self._metric]))

    def end(self, status: str, note: str) -> None:
        """Nothing to do."""
