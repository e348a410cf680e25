"""`kobai reproduce`: exit codes, files, resumption."""

import json

import numpy as np
import pytest

from kobai.cli import main
from kobai.reproductions.wide_networks import EXPECTED, rate_depth

TINY = rate_depth.RateDepthSetting(
    depths=(4, 8),
    rates=tuple(np.geomspace(0.01, 0.3, 6).tolist()),
    seeds=1,
    steps=10,
    source="digits",
    side=8,
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(rate_depth.SETTINGS, "quick", TINY)


@pytest.fixture
def undrawn(monkeypatch):
    """No static figures, which take longer than the numbers."""
    monkeypatch.setattr("kobai.cli.reproduce.write_figures", lambda folder: [])


def reproduce(*words):
    return main(["reproduce", *map(str, words)])


def test_a_figure_with_its_files_tables_and_page(tmp_path, capsys):
    out = tmp_path / "run"
    assert reproduce("wide-networks", "--figure", "2", "--out", out) == 0
    shown = capsys.readouterr()
    rest = [c for c in EXPECTED if c.figure not in ("", "2")]
    assert f"not run: {len(rest)} claims of other figures" in " ".join(shown.out.split())
    for name in ("run.toml", "run.json", "figure_2.json", "figure_2_map.npz", "summary.json"):
        assert (out / name).is_file(), name
    for ending in ("png", "svg"):
        assert (out / "figures" / f"figure_2_map.{ending}").stat().st_size > 1000
    page = (out / "report.html").read_text()
    assert "Claims of the source" in page
    assert "Figure 2" in page


def test_resume_keeps_what_is_finished_and_json_is_json(undrawn, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert reproduce("wide-networks", "--figure", "2", "--out", out) == 0
    assert reproduce("wide-networks", "--figure", "2", "--out", out) == 2  # neither flag

    def never(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(rate_depth, "depth_map", never)
    capsys.readouterr()
    assert reproduce("wide-networks", "--figure", "2", "--out", out, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"] == "wide-networks"
    assert reproduce("wide-networks", "--seed", "1", "--out", out, "--resume") == 2


def test_an_interrupted_run_says_how_to_go_on(undrawn, tmp_path, capsys, monkeypatch):
    from kobai.cli import run_folder

    monkeypatch.setattr(run_folder.Stop, "__call__", lambda self: True)
    out = tmp_path / "run"
    assert reproduce("wide-networks", "--figure", "2", "--out", out) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(run_folder.Stop, "__call__", lambda self: False)
    assert reproduce("wide-networks", "--figure", "2", "--out", out, "--resume") == 0


def test_settings_come_back_from_run_toml(undrawn, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    assert reproduce("wide-networks", "--figure", "2", "--seed", "3", "--out", first) == 0
    config = first / "run.toml"
    assert reproduce("wide-networks", "--config", config, "--out", second) == 0
    one, two = ((f / "figure_2_map.npz").read_bytes() for f in (first, second))
    assert one == two


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["papers"],
        ["wide-networks", "--figure", "9"],
        ["wide-networks", "--scale", "huge"],
        ["wide-networks", "--seed", "-1"],
        ["wide-networks", "--threads", "0"],
    ],
)
def test_wrong_use_is_exit_code_2(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = reproduce(*words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert not (tmp_path / "runs").exists()


def test_help_names_the_sources(capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce("--help")
    assert stop.value.code == 0
    assert "wide-networks" in capsys.readouterr().out
