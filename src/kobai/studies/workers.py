"""Tell trials that a worker is working on from those whose worker is gone.

A trial that nobody works on any more is failed in the storage and queued again with the same
values, exactly once, whoever notices it first.
"""

import abc
import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import final

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from kobai.studies.file_lock import lock
from kobai.studies.storage import HEARTBEAT_SECONDS, Lease, is_alive

WORKER = "worker"
REQUEUED = "requeued"
"""User attributes: whose a trial is; and the number of the trial it was queued again for."""


class WorkerClaims(abc.ABC):
    """A worker's way to claim trials, to be seen alive, and to find the trials of the dead."""

    @abc.abstractmethod
    def claiming(self) -> contextlib.AbstractContextManager[None]:
        """Open while a trial is asked for and marked as one's own."""

    @abc.abstractmethod
    def working(self, trial: optuna.Trial) -> contextlib.AbstractContextManager[None]:
        """Open while one works on a trial."""

    @abc.abstractmethod
    def reap(self, study: optuna.Study) -> int:
        """Queue the trials of dead workers again; how many."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up this worker's place, so that its trials count as nobody's."""


def worker_claims(study: optuna.Study, folder: Path, worker: str) -> WorkerClaims:
    """Choose what suits a study's storage: heartbeats of a database, else leases in its folder.

    Args:
        study: The study.
        folder: Its folder.
        worker: Name of this worker, unique in the study.
    """
    storage = study._storage
    backend = getattr(storage, "_backend", storage)  # databases are wrapped in a cache
    if isinstance(backend, RDBStorage):
        return _Heartbeats(backend, worker)
    return _Leases(folder, worker)


def queue_again(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Fail a trial that nobody works on and queue its values; False if somebody else did."""
    try:
        if not study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
            return False
    except UpdateFinishedTrialError:
        return False
    study.enqueue_trial(trial.params, user_attrs={REQUEUED: trial.number})
    return True


@final
class _Leases(WorkerClaims):
    """For journals: every claim is made under one lock, every worker holds a lease."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder = folder / "workers"
        self._lease = Lease(self._folder, worker)
        self._claims = self._folder / ".claims"
        self._worker = worker

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        held = os.open(self._claims, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            lock(held)
            yield
        finally:
            os.close(held)

    @contextlib.contextmanager
    def working(self, trial: optuna.Trial) -> Iterator[None]:
        yield

    def reap(self, study: optuna.Study) -> int:
        # Within the lock no living worker has a trial that does not carry its name yet.
        with self.claiming():
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            lost = [
                trial
                for trial in running
                if trial.user_attrs.get(WORKER) != self._worker
                and not is_alive(self._folder, trial.user_attrs.get(WORKER, ""))
            ]
            return sum(queue_again(study, trial) for trial in lost)

    def close(self) -> None:
        self._lease.close()


@final
class _Heartbeats(WorkerClaims):
    """For databases: a thread tells the storage now and then that the trial is being worked on."""

    def __init__(self, storage: RDBStorage, worker: str) -> None:
        self._storage = storage
        self._worker = worker

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def working(self, trial: optuna.Trial) -> Iterator[None]:
        ended = threading.Event()
        self._storage.record_heartbeat(trial._trial_id)

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                self._storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def reap(self, study: optuna.Study) -> int:
        before = _count_requeued(study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        # A worker that died between asking and its first heartbeat left no beat to miss.
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            began = trial.datetime_start
            if WORKER in trial.user_attrs or began is None:
                continue
            if time.time() - began.timestamp() > 6 * HEARTBEAT_SECONDS:
                queue_again(study, trial)
        return _count_requeued(study) - before

    def close(self) -> None:
        pass


def _count_requeued(study: optuna.Study) -> int:
    return sum(was_requeued(trial) for trial in study.get_trials(deepcopy=False))


def was_requeued(trial: FrozenTrial) -> bool:
    """Whether a trial stands in for one that was lost."""
    return REQUEUED in trial.user_attrs or "failed_trial" in trial.system_attrs
