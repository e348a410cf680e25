"""The same study in a real PostgreSQL server, which the test starts as an ordinary user."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from kobai import data, models, optim
from kobai.optim import Linear, Log
from kobai.studies import Setting, Study, StudyOptions, StudyTraining, Task
from kobai.studies.storage import HEARTBEAT_SECONDS

pytestmark = pytest.mark.slow


def _programs() -> Path:
    """Where initdb and postgres are; skips where there are none."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: install kobai[postgresql]")
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    pytest.skip("no PostgreSQL server on this machine")


@pytest.fixture(scope="module")
def server():
    """A fresh server on a socket; its URL."""
    programs = _programs()
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "nobody"
        try:
            identity = pwd.getpwnam(user)
        except KeyError:
            pytest.skip("running as root and there is no user nobody to run PostgreSQL as")
    with tempfile.TemporaryDirectory(prefix="kobai-pg-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        base, socket = folder / "base", folder / "socket"
        socket.mkdir()
        if user:
            for place in (folder, socket):
                os.chown(place, identity.pw_uid, identity.pw_gid)
        options = {"user": user, "cwd": folder, "env": {**os.environ, "HOME": name}}
        made = subprocess.run(
            [programs / "initdb", "-D", base, "-U", "kobai", "-A", "trust", "--no-sync"],
            capture_output=True, text=True, check=False, **options,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"no PostgreSQL cluster can be made here: {made.stderr.strip()[-200:]}")
        log = (folder / "log").open("w")
        process = subprocess.Popen(
            [programs / "postgres", "-D", base, "-k", socket, "-c", "listen_addresses="],
            stdout=log, stderr=log, **options,
        )  # fmt: skip
        try:
            limit = time.monotonic() + 60
            while not list(socket.glob(".s.PGSQL.*[0-9]")):
                if process.poll() is not None or time.monotonic() > limit:
                    pytest.skip("the PostgreSQL server does not start here")
                time.sleep(0.1)
            time.sleep(1.0)
            yield f"postgresql://kobai@/postgres?host={socket}"
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown; SIGTERM waits for the clients
            process.wait(timeout=30)
            log.close()


def _study(folder: Path, storage: str | None, *, trials: int = 12, name: str = "study") -> Study:
    splits = data.load("blobs", limit=(60, 20))
    setting = Setting(splits=splits, model="mlp", model_options=models.FAMILIES["mlp"](widths=(4,)))
    task = Task(
        setting=setting,
        optimizer="momentum",
        config=optim.CONFIGS["momentum"](),
        schedule=None,
        training=StudyTraining(epochs=2, batch_size=16),
        metric="train_loss",
    )
    space = {"lr": Log(1e-3, 10.0), "momentum": Linear(0.0, 0.95)}
    return Study(
        task, space, StudyOptions(trials=trials, storage=storage, name=name, together=1), folder
    )


def test_it_gives_what_a_journal_gives(server, tmp_path):
    tables = []
    for storage in (None, server):
        one = _study(tmp_path / str(storage is None), storage)
        assert one.work()
        trials = one.trials()
        one.close()
        tables.append(np.column_stack([trials.value, *trials.parameters.values()]))
    np.testing.assert_array_equal(tables[0], tables[1])


def test_a_silent_worker_is_found_by_its_missing_heartbeat(server, tmp_path):
    one = _study(tmp_path, server, trials=3, name="silent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = one._study.ask()
    storage = one._study._storage
    backend = getattr(storage, "_backend", storage)
    backend.record_heartbeat(trial._trial_id)
    time.sleep(6 * HEARTBEAT_SECONDS + 2)
    assert one.work()
    trials = one.trials()
    one.close()
    assert len(trials.value) == 3
    assert trials.requeued == 1
