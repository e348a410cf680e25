"""`kobai landscape`: planes of runs and of any model, with proof, page and files."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kobai.cli import main
from kobai.cli.landscape import flags, verb
from kobai.results import Check, Line, MinimumProof, Plane, Volume, load, load_all

SMALL = ["--data", "blobs", "--limit", "60", "--dtype", "float64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "compare"
    flags = ["--model.widths", "6", "--optimizers", "sgd,adam", "--seeds", "1", "--epochs", "2"]
    small = ["--curvature.eigenvalues", "1", "--landscape.grid", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kobai.cli.training.compare.write_figures", lambda folder: [])
        assert main(["compare", *SMALL, *flags, *small, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def unseen(monkeypatch):
    """No static figures, which take longer than the landscapes."""
    monkeypatch.setattr(verb, "write_figures", lambda folder: [])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A model of the user's own, with checkpoints of both kinds."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n"
        "def factory(**ignored):\n"
        "    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    return tmp_path


@pytest.mark.slow
def test_between_runs_with_true_minimum_page_and_files(run, tmp_path, capsys):
    out = tmp_path / "out"
    code = main(
        ["landscape", str(run), "--directions", "between", "--grid", "9x7", "--budget", "60s",
         "--true-minimum", "soft", "--fields", "loss,accuracy,curvature_min,curvature_max",
         "--splits", "test", "--check", "--export", "csv,vtp,stl,pdf", "--out", str(out), "--json"]
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "about" in said.err  # how long it will take, before it starts
    json.loads(said.out)
    found = load_all(out)
    plane, true = found["plane_between"], found["plane_between_true-minimum"]
    assert plane.fields["loss"].shape == (9, 7)
    assert {t.label for t in plane.trajectories} == {"sgd-s0", "adam-s0"}
    assert {"test_loss", "test_accuracy", "curvature_max"} <= set(plane.fields)
    np.testing.assert_array_equal(plane.a, true.a)
    proof = found["minimum"]
    assert isinstance(proof, MinimumProof)
    assert proof.holds
    assert true.fields["loss"].min() >= 0
    for name in ("plane_between.csv", "plane_between_true-minimum.stl"):
        assert (out / "export" / name).is_file()
    for name in ("plane_between_panels.png", "plane_between_convexity.svg",
                 "plane_between_contour.pdf"):  # fmt: skip
        assert (out / "figures" / name).is_file()
    page = (out / "report.html").read_text()
    for words in ("True minimum · ", "Convexity · ", "Every condition of a minimum holds"):
        assert words in page
    assert not (out / "blocks").exists()


@pytest.mark.parametrize(
    ("directions", "grid", "kind"),
    [("random", "9", Line), ("pca", "4x3", Plane), ("hessian", "3x3", Plane),
     ("gradient", "3x3x2", Volume)],
)  # fmt: skip
def test_every_kind_of_direction_and_number_of_them(run, unseen, tmp_path, directions, grid, kind):
    out = tmp_path / "out"
    flags = ["--directions", directions, "--grid", grid, "--label", "adam-s0", "--check"]
    assert main(["landscape", str(run), *flags, "--out", str(out)]) == 0
    results = [r for r in load_all(out).values() if isinstance(r, Line | Plane | Volume)]
    assert [type(result) for result in results] == [kind]
    assert all(check.passed for check in results[0].checks)


def test_a_model_of_ones_own_with_its_checkpoints(own, unseen, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5)) for _ in range(2)]
    torch.save(nets[0].double().state_dict(), own / "first.pt")
    torch.save({"model": nets[1].double().state_dict(), "step": 3}, own / "second.pt")
    files = [str(own / name) for name in ("first.pt", "second.pt")]
    flags = ["--model", "mine:factory", "--checkpoint", *files, "--directions", "between"]
    out = own / "out"
    assert main(["landscape", *SMALL, *flags, "--grid", "5", "--out", str(out)]) == 0
    line = load(out, "line_between")
    assert line.points == {"first": 0.0, "second": 1.0}
    torch.save({"model": nets[0]}, own / "pickled.pt")  # a whole module could run code
    capsys.readouterr()
    bad = ["--model", "mine:factory", "--checkpoint", str(own / "pickled.pt")]
    assert main(["landscape", *SMALL, *bad, "--out", str(own / "no")]) == 2
    assert "not a checkpoint of tensors" in capsys.readouterr().err


def test_a_failed_check_gives_exit_code_1_if_asked(run, unseen, tmp_path, monkeypatch, capsys):
    def failing(*args, **kwargs):
        return Check(name="orientation", passed=False, value=1.0, tolerance=0.0)

    monkeypatch.setattr("kobai.landscape.checks.values.orientation", failing)
    flags = ["landscape", str(run), "--grid", "3x3", "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    assert main([*flags, "--resume", "--check"]) == 1
    assert "self-checks failed: plane random, around sgd-s0: orientation" in capsys.readouterr().err


def test_an_interrupt_keeps_blocks_and_goes_on(run, unseen, tmp_path, monkeypatch, capsys):
    out, asked = tmp_path / "out", []
    monkeypatch.setattr(verb.Stop, "__call__", lambda self: asked.append(1) or len(asked) > 2)
    flags = ["landscape", str(run), "--grid", "13x11", "--out", str(out)]
    assert main(flags) == 130
    assert "--resume" in capsys.readouterr().err
    assert list((out / "blocks" / "plane_random").glob("*.npy"))
    assert not (out / "plane_random.json").exists()
    monkeypatch.undo()
    assert main([*flags, "--resume"]) == 0
    assert np.isfinite(load(out, "plane_random").fields["loss"]).all()


def test_the_plan_computes_nothing(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["landscape", str(run), "--plan", "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["nodes"] == 51 * 51
    assert told["seconds"] > 0
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--grid", "5x"], "--grid"),
        (["--grid", "2x2x2x2"], "--grid"),
        (["--range=1:-1"], "--range"),
        (["--range=-1:1,0:1,0:1"], "--range"),
        (["--fields", "loss,depth"], "--fields depth"),
        (["--fields", "slope_c"], "--fields slope_c"),
        (["--budget", "soon"], "--budget"),
        (["--tol", "2"], "--tol"),
        (["--splits", "tset"], "--splits tset"),
        (["--export", "stl", "--grid", "9"], "for planes"),
        (["--export", "obj"], "--export"),
        (["--range=-1:1", "--source-grid"], "exclude each other"),
        (["--label", "nobody"], "nobody"),
        (["--directions", "between", "--grid", "3x3x3"], "between"),
        (["--checkpoint", "nowhere.pt"], "not both"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(run, tmp_path, capsys, flags, words):
    assert main(["landscape", str(run), *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ranges_and_durations_are_read_as_written():
    assert [flags.parse_duration(t) for t in ("60", "60s", "2min", "1.5h")] == [
        60,
        60,
        120,
        5400,
    ]
    (a,) = flags.parse_ranges("0:2", [5])
    np.testing.assert_allclose(a, [0, 0.5, 1, 1.5, 2])
    a, b = flags.parse_ranges("-1:1,0:3", [3, 4])
    assert (a[1], b[0], b[-1]) == (0.0, 0.0, 3.0)
