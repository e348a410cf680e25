"""Where a study keeps its trials, and how it knows that a worker has died.

A journal file is the default: one append-only file that several processes may write. SQLite and
PostgreSQL go by URL. Two things are added to Optuna's journal: a lock that the operating system
releases when its holder is killed, and leases (below); databases have Optuna's own heartbeat.
"""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from kobai.studies.file_lock import lock, try_lock

JOURNAL = "study.log"

HEARTBEAT_SECONDS = 5
"""Interval at which a worker says to a database that it lives; it is dead after six of them."""


@final
class ProcessLock(BaseJournalFileLock):
    """A lock that the kernel takes back from a dead process, however it died.

    Optuna's own locks are files that a killed process leaves behind, and that others then wait half
    a minute for. Taking the lock also cuts off a last line that a killed writer left unfinished, so
    that the next line does not continue it.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self._journal = path
        self._path = path.with_name(path.name + ".lock")
        self._held: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        lock(self._held)
        _cut_torn_line(self._journal)
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._held is None:
            raise RuntimeError("the lock is not held")
        os.close(self._held)
        self._held = None


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if not end:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)


def open_storage(where: str | None, folder: Path) -> BaseStorage:
    """Open or create the storage of a study.

    Args:
        where: None for the journal in the study's folder, the path of another journal file, or a
            database URL such as ``sqlite:///study.db`` or ``postgresql://user@host/base``.
        folder: The study's folder, which exists.

    Returns:
        Optuna's storage; databases with a heartbeat, whose dead trials are queued again.

    Raises:
        ValueError: If the URL's driver is missing or the database cannot be reached.
    """
    if where is None or "://" not in where:
        path = (folder / JOURNAL if where is None else Path(where)).absolute()
        path.touch(exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=ProcessLock(path)))
    url = where
    if urlsplit(where).scheme in ("postgresql", "postgres"):
        # SQLAlchemy looks for psycopg2 unless told; the maintained driver is psycopg.
        url = "postgresql+psycopg://" + where.partition("://")[2]
    # Several processes write to one SQLite file; each waits for the others.
    patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return _database(url, patience)
    except ImportError as error:
        raise ValueError(
            f"{where}: the database driver is missing ({error}); for PostgreSQL install "
            "kobai[postgresql]"
        ) from None
    except Exception as error:  # SQLAlchemy's errors have no common public base here.
        reason = str(error).splitlines()[0]
        raise ValueError(f"{where}: the database cannot be opened ({reason})") from error


def _database(url: str, engine: dict[str, Any] | None) -> RDBStorage:
    return RDBStorage(
        url,
        engine_kwargs=engine,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=6 * HEARTBEAT_SECONDS,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )


def close_storage(storage: BaseStorage) -> None:
    """Close a database's connections; a journal has none."""
    storage.remove_session()
    backend = getattr(storage, "_backend", storage)  # databases are wrapped in a cache
    if isinstance(backend, RDBStorage):
        backend.engine.dispose()


@final
class Lease:
    """A worker's sign of life for journals: a file it keeps locked as long as it runs.

    The kernel releases the lock when the process ends, so that a trial whose worker cannot be found
    alive is known at once, without a clock. It works where the file system passes locks on, which
    local ones do.

    Args:
        folder: Where the leases of a study lie; made if it is not there.
        worker: The worker's name, unique in the study.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / worker
        self._held = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        lock(self._held)

    def close(self) -> None:
        """Give the lease back and take its file away."""
        with contextlib.suppress(PermissionError):  # Windows keeps files that are open
            self._path.unlink(missing_ok=True)
        os.close(self._held)


def is_alive(folder: Path, worker: str) -> bool:
    """Whether a worker still holds its lease.

    Args:
        folder: Where the leases of the study lie.
        worker: The worker's name.
    """
    try:
        found = os.open(folder / worker, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(found)
    finally:
        os.close(found)
