"""A study: many trials of one task, proposed by a sampler, shared by workers, never lost.

A trial counts when it is complete or pruned. Trials of workers that died, or were stopped, are
failed and queued again with the same values; they count once. Everything a trial brings is in the
storage, so that any worker, on any machine that reaches it, can go on and write the report.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from kobai.optim.domains import Choice, Domain, Fixed, Integer, Log, When
from kobai.results import Trials
from kobai.studies.batched_trials import reason_not_to_batch, run_batched, run_trials
from kobai.studies.scores import ranking
from kobai.studies.search import (
    PrunerName,
    SamplerName,
    check_space,
    make_pruner,
    make_sampler,
    suggest,
)
from kobai.studies.setting import look_of
from kobai.studies.storage import close_storage, open_storage
from kobai.studies.trial import MEASURES, Task, TrialOutcome, run_trial
from kobai.studies.workers import WORKER, WorkerClaims, queue_again, was_requeued, worker_claims

POLL_SECONDS = 0.5

_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
_CLAIMED = (*_COUNTED, TrialState.RUNNING, TrialState.WAITING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study searches."""

    trials: int = 50
    """Trials of the study (count); those that diverge count, too."""
    seeds_per_trial: int = 1
    """Seeds every trial is trained with; its score is their mean (count)."""
    metric: str = "validation_accuracy"
    """What is scored at the end of training: train_, validation_ or test_ with loss or accuracy."""
    sampler: SamplerName = "tpe"
    """How trials are proposed; grid has five points along an interval."""
    pruner: PrunerName = "none"
    """How hopeless trials are ended early; none trains every one to its end."""
    together: int = 0
    """Trials trained as one computation (count); 0: 100 on a GPU and 8 on a CPU (about twice as
    fast there) where the task allows it."""
    storage: str | None = None
    """Where trials are kept: None for a journal in the folder, the path of a journal,
    sqlite:///FILE or postgresql://USER@HOST/BASE."""
    name: str = "study"
    """Name of the study in the storage."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("seeds_per_trial", 1), ("together", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.metric not in MEASURES:
            raise ValueError(f"unknown metric {self.metric!r}; choose from {', '.join(MEASURES)}")


class Study:
    """A study in its folder; several processes may hold one each.

    Args:
        task: What trials have in common.
        space: Hyperparameter → domain.
        options: How to search.
        folder: The study's folder; made if it is not there.
        seed: Seed of the sampler.

    Raises:
        ValueError: If the space does not fit the task, the storage cannot be opened, or holds a
            study of this name for another task.
    """

    def __init__(
        self,
        task: Task,
        space: Mapping[str, Domain],
        options: StudyOptions,
        folder: Path,
        *,
        seed: int = 0,
    ) -> None:
        check_space(space)
        unknown = sorted(set(space) - task.fields())
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: nothing of that name to search for {task.entry.name}; "
                f"choose from {', '.join(sorted(task.fields()))}"
            )
        self.task, self.space, self.options, self.folder = task, dict(space), options, folder
        self.seed = seed
        self._at_once: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = open_storage(options.storage, folder)
        self._study = optuna.create_study(
            study_name=options.name,
            storage=self._storage,
            direction="maximize" if task.maximise else "minimize",
            pruner=make_pruner(options.pruner),
            load_if_exists=True,
        )
        self._agree()

    def _agree(self) -> None:
        """Refuse to mix this study with another one of its name."""
        mine = _identity(self.task, self.space, self.options, self.seed)
        there = self._study.user_attrs.get("kobai")
        if there is None:
            self._study.set_user_attr("kobai", mine)
            there = mine
        if there != mine:
            changed = [key for key in mine if mine.get(key) != there.get(key)]
            raise ValueError(
                f"the storage holds another study named {self.options.name!r}: "
                + "; ".join(f"{key} is {there.get(key)} there, {mine[key]} here" for key in changed)
                + "; choose another name or folder"
            )

    def work(
        self,
        *,
        worker: int = 0,
        stop: Callable[[], bool] | None = None,
        finished: Callable[[int, TrialOutcome], None] | None = None,
    ) -> bool:
        """Run trials until the study has as many as were asked for.

        Args:
            worker: Number of this worker among those that run together; samplers draw by it.
            stop: Asked before every training step; when true the trial at hand is queued again.
            finished: Told the number of trials that are done and the outcome of each own one.

        Returns:
            Whether the study is complete; False if it was stopped.
        """
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        here = worker_claims(self._study, self.folder, name)
        try:
            while True:
                here.reap(self._study)
                if self.done() >= self.options.trials:
                    return True
                if stop is not None and stop():
                    return False
                claimed = self._claim_some(here, name, worker)
                if not claimed:
                    time.sleep(POLL_SECONDS)
                    continue
                with contextlib.ExitStack() as working:
                    for trial in claimed:
                        working.enter_context(here.working(trial))
                    if len(claimed) > 1:
                        results = self._run_together(claimed, stop)
                    else:
                        results = [self._run(claimed[0], stop)]
                for result in results:
                    if result is not None and finished is not None:
                        finished(self.done(), result)
                if None in results:
                    return False
        finally:
            here.close()

    def close(self) -> None:
        """Close the connections to the storage; the study cannot be used afterwards."""
        close_storage(self._storage)

    def done(self) -> int:
        """Trials that count."""
        return len(self._study.get_trials(deepcopy=False, states=_COUNTED))

    def at_once(self) -> int:
        """How many trials a worker trains as one computation: 1 where their task does not allow it.

        Raises:
            ValueError: If more were asked for and the task does not allow it.
        """
        wanted = self.options.together
        if wanted == 1 or self.options.pruner != "none":
            return 1
        reason = reason_not_to_batch(self.task, list(self.space))
        if reason and wanted:
            raise ValueError(f"together={wanted}: these trials go one by one, for {reason}")
        automatic = 100 if self.task.setting.device.type == "cuda" else 8
        return 1 if reason else wanted or automatic

    def _claim_some(self, here: WorkerClaims, name: str, worker: int) -> list[optuna.Trial]:
        """The next trials, as many as are trained together."""
        if self._at_once is None:
            self._at_once = self.at_once()
        claimed = []
        while len(claimed) < self._at_once:
            trial = self._claim(here, name, worker)
            if trial is None:
                break
            claimed.append(trial)
        return claimed

    def _claim(self, here: WorkerClaims, name: str, worker: int) -> optuna.Trial | None:
        """The next trial, marked as one's own; None while others work on the last ones."""
        with here.claiming():
            trials = self._study.get_trials(deepcopy=False)
            claimed = [trial for trial in trials if trial.state in _CLAIMED]
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if len(claimed) >= self.options.trials and not waiting:
                return None
            self._study.sampler = make_sampler(
                self.options.sampler,
                self.space,
                seed=self.seed,
                asked=len(claimed) - waiting,
                worker=worker,
            )
            with warnings.catch_warnings():
                # Optuna expects its own loop to send the heartbeats; here `WorkerClaims` does.
                warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
                trial = self._study.ask()
            trial.set_user_attr(WORKER, name)
        # Without a common lock two workers may have asked for the last one.
        earlier = [
            other
            for other in self._study.get_trials(deepcopy=False)
            if other.state in _CLAIMED and other.number < trial.number
        ]
        if len(earlier) >= self.options.trials:
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        return trial

    def _run(self, trial: optuna.Trial, stop: Callable[[], bool] | None) -> TrialOutcome | None:
        """Train a trial and tell the storage; None if it was stopped."""
        values = suggest(trial, self.space)

        def report(step: int, value: float) -> None:
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        pruning = self.options.pruner != "none"
        try:
            result = run_trial(self.task, values, report=report if pruning else None, stop=stop)
        except optuna.TrialPruned:
            trial.set_user_attr("outcome", {"state": "pruned"})
            self._study.tell(trial, state=TrialState.PRUNED)
            last = list(trial._cached_frozen_trial.intermediate_values.values())
            value = last[-1] if last else self.task.worst
            return TrialOutcome(
                state="pruned", value=value, final={}, seconds=[], epoch=[], curve=[]
            )
        return self._tell(trial, result)

    def _run_together(
        self, trials: list[optuna.Trial], stop: Callable[[], bool] | None
    ) -> list[TrialOutcome | None]:
        """Train several trials as one computation and tell the storage; None if stopped."""
        values = [suggest(trial, self.space) for trial in trials]
        results = run_batched(self.task, values, stop=stop)
        return [self._tell(trial, one) for trial, one in zip(trials, results, strict=True)]

    def _tell(self, trial: optuna.Trial, result: TrialOutcome) -> TrialOutcome | None:
        """Tell the storage how a trial ended; one that was stopped is queued again."""
        if result.state == "interrupted":
            queue_again(self._study, self._study.get_trials(deepcopy=False)[trial.number])
            return None
        trial.set_user_attr("outcome", dataclasses.asdict(result))
        self._study.tell(trial, result.value)
        return result

    def trials(self) -> Trials:
        """Everything there is so far, in the order in which trials were begun."""
        every = self._study.get_trials(deepcopy=False)
        return tabulate_trials(
            [trial for trial in every if trial.state in _COUNTED],
            self.task,
            self.space,
            self.options,
            requeued=sum(was_requeued(trial) for trial in every),
        )

    def rerun(
        self,
        *,
        settings: int,
        seeds: tuple[int, ...],
        stop: Callable[[], bool] | None = None,
        finished: Callable[[int, TrialOutcome], None] | None = None,
    ) -> list[tuple[int, list[TrialOutcome]]] | None:
        """Train the best settings again with seeds that the search has not seen.

        A search keeps what was lucky: the mean of its best trials promises more than the same
        settings give again. Every run is kept in the storage as it ends and never repeated.

        Args:
            settings: How many of the best complete trials.
            seeds: New seeds.
            stop: Asked before every training step.
            finished: Told the number of runs that are done and each new outcome.

        Returns:
            Trial number → one outcome a seed, the best trial first; None if it was stopped.

        Raises:
            ValueError: If a seed was used in the search.
        """
        if set(seeds) & set(self.task.seeds):
            raise ValueError(f"seeds {seeds} overlap with those of the search, {self.task.seeds}")
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        value = np.array([trial.value for trial in complete], dtype=np.float64)
        order = ranking(value, maximise=self.task.maximise)[:settings]
        chosen = [complete[int(position)] for position in order]
        done = 0
        at_once = 1 if reason_not_to_batch(self.task, list(self.space)) else max(1, len(chosen))
        for seed in seeds:
            task = dataclasses.replace(self.task, seeds=(seed,))
            missing = [t for t in chosen if self._rerun(t.number, seed) is None]
            done += len(chosen) - len(missing)
            for first in range(0, len(missing), at_once):
                some = missing[first : first + at_once]
                values = [suggest(optuna.trial.FixedTrial(t.params), self.space) for t in some]
                found = run_trials(task, values, stop=stop)
                if any(outcome.state == "interrupted" for outcome in found):
                    return None
                for trial, outcome in zip(some, found, strict=True):
                    key = _rerun_key(trial.number, seed)
                    self._study.set_user_attr(key, dataclasses.asdict(outcome))
                    done += 1
                    if finished is not None:
                        finished(done, outcome)
        kept = [[self._rerun(trial.number, seed) for seed in seeds] for trial in chosen]
        return [
            (trial.number, [outcome for outcome in row if outcome is not None])
            for trial, row in zip(chosen, kept, strict=True)
        ]

    def _rerun(self, number: int, seed: int) -> TrialOutcome | None:
        """A trial with a new seed, if it was made."""
        known = self._study.user_attrs.get(_rerun_key(number, seed))
        return None if known is None else TrialOutcome(**known)

    def importance(self) -> dict[str, float]:
        """Share of the score's variance that each hyperparameter explains; empty with few trials.

        Source: Hutter, Hoos and Leyton-Brown 2014, An efficient approach for assessing
        hyperparameter importance (fANOVA), as Optuna computes it.
        """
        good = [
            trial
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if trial.value is not None and math.isfinite(trial.value)
        ]
        if len(good) < 8 or len({trial.value for trial in good}) < 2:
            return {}
        finite = optuna.create_study(direction=self._study.direction)
        finite.add_trials(good)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(finite, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}


def _rerun_key(number: int, seed: int) -> str:
    return f"rerun-{number}-{seed}"


def _identity(
    task: Task, space: Mapping[str, Domain], options: StudyOptions, seed: int
) -> dict[str, Any]:
    """What two workers must agree on, as plain text."""
    setting = task.setting
    return {
        "data": f"{setting.splits.name}: {setting.splits.describe()}",
        "model": f"{setting.model} {setting.model_options!r}",
        "validation": str(setting.validation),
        "optimizer": f"{task.entry.name} {task.config!r}",
        "schedule": repr(task.schedule),
        "training": repr(task.training),
        "seeds": json.dumps(list(task.seeds)),
        "metric": task.metric,
        "space": json.dumps({name: str(domain) for name, domain in space.items()}),
        "sampler": options.sampler,
        "pruner": options.pruner,
        "seed": str(seed),
    }


def tabulate_trials(
    trials: list[FrozenTrial],
    task: Task,
    space: Mapping[str, Domain],
    options: StudyOptions,
    *,
    requeued: int,
) -> Trials:
    """Put trials that are complete or pruned into one table."""
    outcomes = [trial.user_attrs.get("outcome", {}) for trial in trials]
    count, seeds = len(trials), len(task.seeds)
    records = max((len(o.get("epoch", [])) for o in outcomes), default=0)
    longest = max((o.get("epoch", []) for o in outcomes), key=len, default=[])
    curve = np.full((count, seeds, records), np.nan)
    seconds = np.full((count, seeds), np.nan)
    measures = [name for name in MEASURES if any(name in o.get("final", {}) for o in outcomes)]
    final = {name: np.full((count, seeds), np.nan) for name in measures}
    for row, found in enumerate(outcomes):
        for column, values in enumerate(found.get("curve", [])):
            curve[row, column, : len(values)] = _numbers(values)
        seconds[row, : len(found.get("seconds", []))] = found.get("seconds", [])
        for name, values in found.get("final", {}).items():
            final[name][row, : len(values)] = _numbers(values)
    parameters, categories = _parameters(trials, space)
    value = [task.worst if trial.value is None else trial.value for trial in trials]
    return Trials(
        label=options.name,
        optimizer=task.entry.name,
        look=look_of(task.entry),
        metric=task.metric,
        maximise=task.maximise,
        budget=options.trials,
        number=np.array([trial.number for trial in trials], dtype=np.int64),
        state=tuple(found.get("state", "pruned") for found in outcomes),
        value=np.array(value, dtype=np.float64),
        parameters=parameters,
        categories=categories,
        log=tuple(name for name, domain in space.items() if _is_log(domain)),
        final=final,
        seconds=seconds,
        epoch=np.array(longest, dtype=np.float64),
        curve=curve,
        requeued=requeued,
    )


def _parameters(
    trials: list[FrozenTrial], space: Mapping[str, Domain]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    parameters: dict[str, np.ndarray] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name, domain in space.items():
        inner = domain.domain if isinstance(domain, When) else domain
        if isinstance(inner, Fixed):
            continue
        found = [trial.params.get(name) for trial in trials]
        if isinstance(inner, Choice):
            categories[name] = tuple(map(str, inner.values))
            found = [
                None if v is None and None not in inner.values else inner.values.index(v)
                for v in found
            ]
        parameters[name] = np.array(_numbers(found), dtype=np.float64)
    return parameters, categories


def _is_log(domain: Domain) -> bool:
    inner = domain.domain if isinstance(domain, When) else domain
    return isinstance(inner, Log) or (isinstance(inner, Integer) and inner.log)


def _numbers(values: list[Any]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
