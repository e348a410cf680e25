"""`kobai compare --suite deep-learning-book` as a person calls it, small."""

import json

import pytest

from kobai.cli import main

SMALL = [
    "compare", "--suite", "deep-learning-book", "--seeds", "1", "--limit", "100", "--problems",
    "softmax,rosenbrock", "--optimizers", "momentum,lbfgs,newton", "--budget.steps", "3",
    "--budget.gradients", "2", "--budget.seconds", "0.001",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("runs") / "suite"
    assert main([*SMALL, "--out", str(target)]) == 0
    return target


def test_the_folder_holds_runs_tables_profiles_and_a_page(folder):
    names = (
        "runs_softmax_momentum", "table_steps", "table_gradient-evaluations", "table_CPU-seconds",
        "figure_profiles_networks_tuned_minibatches", "summary",
    )  # fmt: skip
    for name in names:
        assert (folder / f"{name}.json").is_file(), name
    assert (folder / "figures" / "figure_profiles_surfaces_default_all-data.png").is_file()
    page = (folder / "report.html").read_text()
    assert "Equal budgets: 3 steps" in page
    assert "it is hard to name one best algorithm" in page


@pytest.mark.slow
def test_resuming_repeats_nothing_and_prints_the_same_tables(folder, capsys):
    before = (folder / "runs_softmax_momentum.json").stat().st_mtime_ns
    assert main([*SMALL, "--out", str(folder), "--resume", "--json"]) == 0
    assert (folder / "runs_softmax_momentum.json").stat().st_mtime_ns == before
    told = json.loads(capsys.readouterr().out)
    assert [t.get("unit") for t in told] == [
        "steps", "gradient evaluations", "CPU seconds", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizers", "rprop"], "unknown optimizer"),
        (["--problems", "banana"], "unknown problem"),
        (["--seeds", "0"], "--seeds"),
        (["--optimizers", "sgd,sgd"], "given twice"),
        (["--budget.steps", "0"], "--budget.steps must be positive"),
    ],
)
def test_wrong_use_says_what(flags, message, tmp_path, capsys):
    arguments = ["compare", "--suite", "deep-learning-book", "--out", str(tmp_path / "x"), *flags]
    try:
        code = main(arguments)
    except SystemExit as refused:
        code = refused.code
    assert code == 2
    assert message in "".join(capsys.readouterr())
    assert not (tmp_path / "x").exists()


def test_the_former_name_of_the_suite_is_understood(tmp_path, capsys):
    for flags in (["--suite", "chapter8"], ["--suite=chapter8"]):
        assert main(["compare", *flags, "--seeds", "0", "--out", str(tmp_path / "x")]) == 2
        assert "--seeds" in capsys.readouterr().err
