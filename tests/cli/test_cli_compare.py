"""The main job from data to report, as a person would call it; small enough to run in seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kobai.cli import main
from kobai.cli.tables import spell
from kobai.results import (
    Aggregate,
    Comparison,
    History,
    Plane,
    Provenance,
    Spectrum,
    load,
    load_all,
)

SMALL = [
    "--data", "blobs", "--limit", "120", "--model", "mlp", "--model.widths", "8",
    "--epochs", "3", "--batch-size", "40", "--landscape.grid", "5", "--seeds", "2",
]  # fmt: skip


def run(*arguments: str) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("runs") / "small"
    assert run("compare", *SMALL, "--optimizers", "sgd,adam,kfac", "--out", target) == 0
    return target


@pytest.fixture
def undrawn(monkeypatch):
    """No static figures, which take longer than these runs."""
    for verb in ("training.compare", "training.train", "measure.verb"):
        monkeypatch.setattr(f"kobai.cli.{verb}.write_figures", lambda folder: [])


def test_the_run_folder_holds_what_was_promised(folder):
    for name in ("run.toml", "run.json", "metrics.csv", "report.html", "comparison.json"):
        assert (folder / name).stat().st_size > 0, name
    results = load_all(folder)
    kinds = [type(result) for result in results.values()]
    assert kinds.count(History) == 6
    assert kinds.count(Spectrum) == 6
    assert kinds.count(Comparison) == kinds.count(Provenance) == 1
    assert kinds.count(Plane) == 2
    for kind in ("png", "svg"):
        names = {path.stem for path in (folder / "figures").glob(f"*.{kind}")}
        assert {"curves", "eigenvalues", "plane_between_contour", "plane_random_surface"} <= names


def test_every_run_ends_and_every_plane_proves_itself(folder):
    results = load_all(folder)
    for result in results.values():
        if isinstance(result, History):
            assert result.status == "finished"
            assert result.train_loss[-1] < result.train_loss[0]
        if isinstance(result, Plane):
            assert result.checks
            assert all(check.passed for check in result.checks), result.checks


def test_the_table_sums_up_the_runs(folder):
    results = load_all(folder)
    table = results["comparison"]
    assert [row.optimizer for row in table.rows] == ["sgd", "adam", "kfac"]
    for row in table.rows:
        ends = [
            r.test_accuracy[-1]
            for r in results.values()
            if isinstance(r, History) and r.optimizer == row.optimizer
        ]
        assert row.seeds == row.test_accuracy.count == 2
        assert row.test_accuracy.mean == pytest.approx(sum(ends) / 2)
        assert row.statuses == {"finished": 2}


@pytest.mark.slow
def test_the_settings_file_runs_again(folder, tmp_path, capsys):
    again = tmp_path / "again"
    assert run("compare", "--config", folder / "run.toml", "--out", again, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    first, second = load(folder, "comparison"), load(again, "comparison")
    assert [row["optimizer"] for row in printed["rows"]] == ["sgd", "adam", "kfac"]
    for one, two in zip(first.rows, second.rows, strict=True):
        assert one.test_loss == two.test_loss, "same seed, same numbers"
        assert one.trace == two.trace


def test_a_second_run_in_the_folder_must_say_what_it_wants(folder, undrawn, capsys):
    arguments = ["compare", *SMALL, "--optimizers", "sgd,adam,kfac", "--out", folder]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert "--resume" in message
    assert "--fresh" in message
    assert run(*arguments, "--resume") == 0
    after = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    changed = {path.name for path in before if before[path] != after[path]}
    assert not changed, f"resuming a finished comparison repeated {changed}"
    assert run(*arguments, "--resume", "--epochs", "4") == 2
    assert "epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_measure_and_report_of_a_comparison(folder, capsys):
    assert run("measure", folder, "--label", "kfac-s0", "--matrix", "ggn", "--json") == 0
    spectrum, rates = json.loads(capsys.readouterr().out)
    assert rates["rates"][0]["value"] == pytest.approx(2 / spectrum["eigenvalues"][-1])
    assert spectrum["matrix"] == "ggn"
    assert spectrum["label"] == "kfac-s0"
    assert min(spectrum["eigenvalues"]) >= -1e-6
    assert run("measure", folder, "--label", "lion-s0") == 2
    page = folder / "report.html"
    page.unlink()
    assert run("report", folder) == 0
    assert page.exists()


def test_ctrl_c_saves_and_says_how_to_go_on(undrawn, tmp_path, monkeypatch, capsys):
    """Interrupted in the middle and resumed, a run ends in the numbers of an uninterrupted one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = [
        "--data", "blobs", "--limit", "120", "--model.widths", "8", "--optimizers", "sgd",
        "--seeds", "1", "--epochs", "6", "--batch-size", "40", "--landscape.grid", "3",
    ]  # fmt: skip
    asked = []

    def ask(stop):
        asked.append(1)
        if len(asked) == 10:
            signal.raise_signal(signal.SIGINT)
        return stop.wanted

    monkeypatch.setattr("kobai.cli.run_folder.Stop.__call__", ask)
    assert run("compare", *common, "--out", broken) == 130
    assert "--resume" in "".join(capsys.readouterr())
    assert not (broken / "report.html").exists()
    with torch.random.fork_rng():  # resuming sets the global state to the saved one, as documented
        assert run("compare", *common, "--out", broken, "--resume") == 0
    assert run("compare", *common, "--out", whole) == 0
    one, two = load(whole, "run_sgd-s0"), load(broken, "run_sgd-s0")
    assert one.status == two.status == "finished"
    assert one.train_loss.tolist() == two.train_loss.tolist()
    assert one.step_loss.tolist() == two.step_loss.tolist()


@pytest.mark.slow
def test_ctrl_c_reaches_a_process_of_its_own(undrawn, tmp_path):
    """The same by the signal of another process, at whatever moment it comes."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    common = [
        "--data", "digits", "--optimizers", "sgd", "--seeds", "1", "--epochs", "40",
        "--landscape.grid", "3", "--threads", "1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "kobai", "compare", *common, "--out", str(broken)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(broken.glob("checkpoints/sgd-s0/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert not (broken / "report.html").exists()
    with torch.random.fork_rng():  # resuming sets the global state to the saved one, as documented
        assert run("compare", *common, "--out", broken, "--resume") == 0
    assert run("compare", *common, "--out", whole) == 0
    one, two = load(whole, "run_sgd-s0"), load(broken, "run_sgd-s0")
    assert one.status == two.status == "finished"
    assert one.train_loss.tolist() == two.train_loss.tolist()
    assert one.step_loss.tolist() == two.step_loss.tolist()


def test_divergence_is_kept_and_counted(undrawn, tmp_path):
    target = tmp_path / "run"
    code = run(
        "compare", *SMALL, "--optimizers", "sgd,momentum", "--momentum.lr", "1e12", "--out", target
    )
    assert code == 0
    rows = {row.optimizer: row for row in load(target, "comparison").rows}
    assert rows["momentum"].statuses == {"diverged": 2}
    assert rows["momentum"].test_loss.count == 0
    assert rows["sgd"].statuses == {"finished": 2}


def test_train_and_measure_one_run(undrawn, tmp_path, capsys):
    target = tmp_path / "run"
    data = ["--data", "teacher", "--limit", "100", "--model", "linear", "--model.widths", "10"]
    code = run("train", *data, "--optimizer", "kfac", "--epochs", "2", "--out", target)
    assert code == 0
    assert "test loss" in capsys.readouterr().out
    assert (target / "report.html").exists()
    assert run("measure", target) == 0
    assert "2/λ_max" in capsys.readouterr().out
    assert run("measure", *data, "--out", tmp_path / "fresh") == 0
    assert (tmp_path / "fresh" / "report.html").exists()


def test_models_and_data_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def net(input_shape, num_outputs):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(),\n"
        "                               torch.nn.Linear(input_shape[0], num_outputs))\n"
        "def data():\n"
        "    g = torch.Generator().manual_seed(0)\n"
        "    x = torch.randn(60, 4, generator=g)\n"
        "    return (x, (x[:, 0] > 0).long())\n"
    )
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [
            sys.executable, "-m", "kobai", "train", "--model", "mine:net", "--data", "mine:data",
            "--optimizer", "adam", "--epochs", "1", "--out", "out",
        ],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("numbers", "scale", "text"),
    [
        ((4.0, 0.0), 1, "4 ± 0"),
        ((133.0, float("nan")), 1, "133"),
        ((0.99, float("nan")), 100, "99.00"),
        ((1.04e-6, float("nan")), 1, "1.04e-06"),
        ((0.12345, 0.012), 1, "0.123 ± 0.012"),
    ],
)
def test_numbers_of_the_table_have_the_digits_they_deserve(numbers, scale, text):
    mean, sd = numbers
    assert spell(Aggregate(mean=mean, sd=sd, count=1), scale=scale) == text
