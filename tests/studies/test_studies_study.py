"""A study ends with its trials: whoever dies, whatever storage, however often it is taken up."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from kobai import data, models, optim
from kobai.optim import Choice, Fixed, Linear, Log, When
from kobai.results import load, save
from kobai.studies import Setting, Study, StudyOptions, StudyTraining, Task, run_trial, summarise
from kobai.studies.storage import ProcessLock, open_storage
from kobai.studies.workers import queue_again
from kobai.training import LinearDecay

SPACE = {"lr": Log(1e-3, 10.0), "momentum": Linear(0.0, 0.95)}


@pytest.fixture(scope="module")
def setting() -> Setting:
    splits = data.load("blobs", limit=(60, 20))
    mlp = models.FAMILIES["mlp"](widths=(4,))
    return Setting(splits=splits, model="mlp", model_options=mlp, validation=0.2)


def task(setting: Setting, **changes) -> Task:
    chosen = {
        "setting": setting,
        "optimizer": "momentum",
        "config": optim.CONFIGS["momentum"](),
        "schedule": None,
        "training": StudyTraining(epochs=2, batch_size=16, evaluate_every=1.0),
        "metric": "validation_loss",
    }
    return Task(**{**chosen, **changes})


def study(setting: Setting, folder: Path, trials: int = 6, space=None, **changes) -> Study:
    options = {
        k: changes.pop(k) for k in ("sampler", "pruner", "storage", "together") if k in changes
    }
    return Study(
        task(setting, **changes),
        SPACE if space is None else space,
        StudyOptions(trials=trials, **{"together": 1, **options}),
        folder,
    )


def table(one: Study) -> np.ndarray:
    trials = one.trials()
    return np.column_stack([trials.value, *trials.parameters.values()])


def test_a_study_runs_to_its_budget_and_no_further(setting, tmp_path):
    one = study(setting, tmp_path)
    seen = []
    assert one.work(finished=lambda done, outcome: seen.append((done, outcome.value)))
    assert [done for done, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert one.work(finished=lambda *_: pytest.fail("a trial beyond the budget"))
    trials = one.trials()
    assert trials.value.tolist() == [value for _, value in seen]
    assert trials.curve.shape == (6, 1, 3)
    np.testing.assert_array_equal(trials.curve[:, 0, -1], trials.final["validation_loss"][:, 0])
    save(trials, tmp_path, "trials")
    assert load(tmp_path, "trials").parameters["lr"].tolist() == trials.parameters["lr"].tolist()


@pytest.mark.parametrize("sampler", ["tpe", "random", "quasi-random", "cmaes", "grid"])
def test_taken_up_again_it_goes_on_as_if_never_stopped(setting, tmp_path, sampler):
    whole = study(setting, tmp_path / "whole", trials=14, sampler=sampler)
    assert whole.work()
    part = study(setting, tmp_path / "part", trials=5, sampler=sampler)
    assert part.work()
    rest = study(setting, tmp_path / "part", trials=14, sampler=sampler)
    assert rest.work()
    np.testing.assert_array_equal(table(rest), table(whole))


def test_storages_agree(setting, tmp_path):
    one = study(setting, tmp_path / "journal", trials=12)
    two = study(setting, tmp_path / "sqlite", trials=12, storage=f"sqlite:///{tmp_path}/study.db")
    assert one.work()
    assert two.work()
    np.testing.assert_array_equal(table(one), table(two))


def test_an_interrupted_trial_is_queued_again_with_its_values(setting, tmp_path):
    whole = study(setting, tmp_path / "whole")
    whole.work()
    part = study(setting, tmp_path / "part")
    calls = iter(range(1000))
    # Every optimizer step asks once: the third trial is cut off in its middle.
    assert not part.work(stop=lambda: next(calls) > 2 * 9 + 4)
    assert 0 < part.done() < 6
    assert part.work()
    assert part.trials().requeued == 1
    np.testing.assert_array_equal(table(part), table(whole))


def test_trials_trained_together_end_with_the_same_budget(setting, tmp_path):
    one = study(setting, tmp_path, trials=7, together=3)
    assert one.at_once() == 3
    assert one.work()
    trials = one.trials()
    assert len(trials.value) == 7
    # The values are those of training each by itself (float32: up to rounding).
    values = {name: float(v[4]) for name, v in trials.parameters.items()}
    alone = run_trial(one.task, values)
    assert trials.value[4] == pytest.approx(alone.value, rel=1e-3)


def test_trials_that_cannot_go_together_say_why(setting, tmp_path):
    one = study(setting, tmp_path, optimizer="adam", config=optim.CONFIGS["adam"](),
                space={"lr": Log(1e-4, 1e-2)}, together=4)  # fmt: skip
    with pytest.raises(ValueError, match="no stacked form"):
        one.work()


def test_trials_that_diverge_count_with_the_worst_score(setting, tmp_path):
    one = study(
        setting, tmp_path, trials=4, optimizer="sgd", config=optim.CONFIGS["sgd"](),
        space={"lr": Log(1e9, 1e10)},
    )  # fmt: skip
    assert one.work()
    trials = one.trials()
    assert set(trials.state) == {"diverged"}
    assert np.all(np.isinf(trials.value))
    assert summarise(trials, k=2).states == {"diverged": 4}
    assert one.importance() == {}


def test_a_scheduled_and_conditional_space(setting, tmp_path):
    space = {
        "lr": Log(1e-2, 1.0),
        "momentum": Choice((0.0, 0.9)),
        "weight_decay": When("momentum", (0.9,), Log(1e-5, 1e-2)),
        "schedule.final_fraction": Linear(0.0, 1.0),
        "training.batch_size": Choice((8, 16)),
    }
    one = study(setting, tmp_path, trials=12, space=space, schedule=LinearDecay())
    assert one.work()
    trials = one.trials()
    searched = np.isfinite(trials.parameters["weight_decay"])
    np.testing.assert_array_equal(searched, trials.parameters["momentum"] == 1)
    assert trials.categories["training.batch_size"] == ("8", "16")
    assert trials.log == ("lr", "weight_decay")


def test_pruned_trials_count(setting, tmp_path):
    one = study(setting, tmp_path, trials=14, pruner="median",
                training=StudyTraining(epochs=4, batch_size=16, evaluate_every=0.5))  # fmt: skip
    assert one.work()
    trials = one.trials()
    assert len(trials.value) == 14
    assert "pruned" in trials.state


def test_new_seeds_are_trained_once_and_kept(setting, tmp_path):
    one = study(setting, tmp_path)
    one.work()
    again = one.rerun(settings=2, seeds=(1, 2))
    assert again is not None
    assert [len(outcomes) for _, outcomes in again] == [2, 2]
    best = int(one.trials().number[np.argmin(one.trials().value)])
    assert again[0][0] == best
    second = study(setting, tmp_path).rerun(settings=2, seeds=(1, 2), stop=lambda: True)
    assert second == again
    with pytest.raises(ValueError, match="overlap"):
        one.rerun(settings=1, seeds=(0,))


def test_another_study_of_the_same_name_is_refused(setting, tmp_path):
    study(setting, tmp_path)
    with pytest.raises(ValueError, match=r"another study named 'study'.*optimizer"):
        study(setting, tmp_path, optimizer="sgd", config=optim.CONFIGS["sgd"](),
              space={"lr": Log(1e-3, 1.0)})  # fmt: skip
    with pytest.raises(ValueError, match="space"):
        study(setting, tmp_path, space={"lr": Log(1e-3, 1.0)})


def test_two_studies_share_a_journal(setting, tmp_path):
    journal = str(tmp_path / "both.log")
    every = []
    for name in ("one", "two"):
        options = StudyOptions(trials=3, storage=journal, name=name)
        every.append(Study(task(setting), SPACE, options, tmp_path / name, seed=len(every)))
    for one in every:
        assert one.work()
    assert [len(one.trials().value) for one in every] == [3, 3]
    assert not np.array_equal(table(every[0]), table(every[1]))


def test_unknown_settings_are_refused(setting, tmp_path):
    with pytest.raises(ValueError, match="nothing of that name"):
        study(setting, tmp_path, space={"learning_rate": Log(1e-3, 1.0)})
    with pytest.raises(ValueError, match="nothing to search"):
        study(setting, tmp_path, space={"lr": Fixed(0.1)})
    with pytest.raises(ValueError, match="unknown metric"):
        StudyOptions(metric="accuracy")
    with pytest.raises(ValueError, match="cannot be opened"):
        study(setting, tmp_path, storage=f"sqlite:///{tmp_path}/no/such/folder/study.db")


def test_a_lost_trial_is_queued_exactly_once(setting, tmp_path):
    one = study(setting, tmp_path)
    one._study.ask({"lr": optuna.distributions.FloatDistribution(1e-3, 10.0, log=True)})
    (lost,) = one._study.get_trials()
    assert queue_again(one._study, lost)
    assert not queue_again(study(setting, tmp_path)._study, lost)
    assert [trial.state.name for trial in one._study.get_trials()] == ["FAIL", "WAITING"]


def test_a_torn_line_is_cut_off_before_the_next_is_written(tmp_path):
    storage = open_storage(None, tmp_path)
    optuna.create_study(study_name="a", storage=storage)
    journal = tmp_path / "study.log"
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b'{"op_code":0,"worker')  # killed in the middle of a line
    again = open_storage(None, tmp_path)
    optuna.create_study(study_name="b", storage=again)
    assert journal.read_bytes().startswith(whole + b'{"op_code"')
    names = optuna.get_all_study_names(open_storage(None, tmp_path))
    assert sorted(names) == ["a", "b"]


def test_a_lock_is_not_given_back_by_those_who_do_not_hold_it(tmp_path):
    (tmp_path / "study.log").touch()
    with pytest.raises(RuntimeError, match="not held"):
        ProcessLock(tmp_path / "study.log").release()


COMMAND = [
    sys.executable, "-m", "kobai", "tune", "--data", "blobs", "--limit", "60", "--model.widths",
    "4", "--optimizer", "momentum", "--study.metric", "train_loss", "--study.trials", "40",
    "--epochs", "60", "--batch-size", "8", "--workers", "2", "--rerun", "0", "--threads", "1",
]  # fmt: skip


@pytest.mark.slow
def test_killed_workers_lose_nothing(tmp_path):
    """Kill −9 twice in a study of 40 trials: it still ends with 40, each once."""
    folder = tmp_path / "study"
    command = [*COMMAND, "--out", str(folder)]
    rng = np.random.default_rng(0)
    for _ in range(2):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        journal = folder / "study.log"
        seen = journal.stat().st_size if journal.exists() else 0
        limit = time.monotonic() + 120
        while time.monotonic() < limit:  # until trials are being finished
            if journal.exists() and journal.stat().st_size > seen + 6000:
                break
            time.sleep(0.05)
        time.sleep(float(rng.uniform(0.0, 0.5)))
        assert process.poll() is None, "the study was over before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    trials = load(folder, "trials")
    assert len(trials.value) == 40
    pairs = set(zip(*(v.tolist() for v in trials.parameters.values()), strict=True))
    assert len(pairs) == 40
    assert trials.requeued >= 1
