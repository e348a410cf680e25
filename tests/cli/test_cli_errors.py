"""Wrong use: one clear line, exit code 2, nothing half-written."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kobai.cli import VERBS, main
from kobai.cli.options import CompareOptions, from_values, options_of, parse, to_values

RUN = ["--data", "blobs", "--limit", "60", "--epochs", "1", "--seeds", "1"]


def refused(capsys, tmp_path: Path, *arguments: str, verb: str = "compare") -> str:
    """Run, expect exit code 2 and an untouched folder; the message."""
    target = tmp_path / "out"
    capsys.readouterr()
    try:
        code = main([verb, *RUN, "--out", str(target), *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert not target.exists(), "something was written before the mistake was noticed"
    error = capsys.readouterr().err.strip()
    assert error
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "minst"], "minst"),
        (["--model", "perceptron"], "perceptron"),
        (["--optimizers", "sgd,adamm"], "adamm"),
        (["--optimizers", "sgd,sgd"], "twice"),
        (["--optimizers", ","], "at least one"),
        (["--schedule", "exponential"], "exponential"),
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "ten"], "ten"),
        (["--batch-size", "-1"], "--batch-size"),
        (["--seeds", "0"], "--seeds"),
        (["--seed", "-1"], "--seed"),
        (["--threads", "0"], "--threads"),
        (["--sgd.lr", "0"], "lr"),
        (["--sgd.lr", "-0.1"], "lr"),
        (["--kfac.lr", "0"], "lr"),
        (["--kfac.damping", "-1"], "damping"),
        (["--model.widths", "0"], "width"),
        (["--validation", "1.5"], "validation"),
        (["--patience", "2"], "--validation"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "gpu"], "gpu"),
        (["--no-such-flag", "1"], "no-such-flag"),
        (["--data", "/nowhere/x.npz"], "x.npz"),
        (["--data", "folder:/nowhere"], "nowhere"),
        (["--data", "no_such_module:data"], "no_such_module"),
        (["--model", "no_such_module:net"], "no_such_module"),
        (["--config", "/nowhere/run.toml"], "run.toml"),
        (["--resume", "--fresh"], "exclude"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(capsys, tmp_path, arguments, told):
    assert told in refused(capsys, tmp_path, *arguments)


def test_mnist_without_files_says_what_to_put_where(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("KOBAI_DATA", str(tmp_path / "data"))
    # No proxy leads anywhere from here, so that fetching fails at once.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    error = refused(capsys, tmp_path, "--data", "mnist")
    assert "train-images-idx3-ubyte" in error
    assert str(tmp_path / "data") in error


def arrays(path: Path, **changes) -> Path:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 4)).astype(np.float32)
    values = {"x": x, "y": np.arange(30) % 3, **changes}
    np.savez(path, **values)
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"x": np.full((30, 4), np.nan, np.float32)}, "NaN"),
        ({"x": np.full((30, 4), np.inf, np.float32)}, "infinite"),
        ({"y": np.arange(29) % 3}, "29"),
        ({"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, np.int64)}, "no training examples"),
    ],
    ids=["nan", "inf", "lengths", "empty"],
)
def test_bad_arrays(capsys, tmp_path, changes, told):
    path = arrays(tmp_path / "bad.npz", **changes)
    assert told in refused(capsys, tmp_path, "--data", str(path))


def test_a_damaged_file(capsys, tmp_path):
    path = arrays(tmp_path / "cut.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert "cut.npz" in refused(capsys, tmp_path, "--data", str(path))


def test_a_model_of_the_wrong_width(capsys, tmp_path, monkeypatch):
    (tmp_path / "narrow_model.py").write_text(
        "import torch\ndef net(input_shape):\n    return torch.nn.Linear(input_shape[0], 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, tmp_path, "--model", "narrow_model:net")
    assert "2 outputs" in error


def test_a_model_without_trainable_parameters(capsys, tmp_path, monkeypatch):
    (tmp_path / "frozen_model.py").write_text(
        "import torch\n"
        "def net(input_shape, num_outputs):\n"
        "    return torch.nn.Linear(input_shape[0], num_outputs).requires_grad_(False)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert "no trainable parameters" in refused(capsys, tmp_path, "--model", "frozen_model:net")


def test_a_folder_with_foreign_files_is_left_alone(capsys, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    for flags in ([], ["--fresh"], ["--resume"]):
        assert main(["compare", *RUN, "--out", str(target), *flags]) == 2
        assert "not a run" in capsys.readouterr().err
    assert (target / "thesis.txt").read_text() == "years of work"


def test_fresh_deletes_only_what_kobai_wrote(tmp_path):
    target = tmp_path / "run"
    arguments = ["train", *RUN[:-2], "--optimizer", "sgd", "--out", str(target)]
    assert main(arguments) == 0
    (target / "notes.txt").write_text("mine")
    assert main([*arguments, "--fresh"]) == 0
    assert (target / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(capsys, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main(["compare", *RUN, "--out", str(locked / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_out_is_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["compare", *RUN, "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main(["compare", *RUN, "--out", str(tmp_path / "file" / "below")]) == 2


def test_a_damaged_checkpoint(capsys, tmp_path):
    target = tmp_path / "run"
    assert main(["train", *RUN[:-2], "--optimizer", "sgd", "--out", str(target)]) == 0
    path = next(target.glob("checkpoints/*/model.safetensors"))
    path.write_bytes(path.read_bytes()[:50])
    capsys.readouterr()
    assert main(["measure", str(target)]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_warns_and_uses_all(capsys, tmp_path, recwarn):
    target = tmp_path / "run"
    code = main(
        ["train", *RUN[:-2], "--optimizer", "sgd", "--batch-size", "1000", "--out", str(target)]
    )
    assert code == 0
    assert "--batch-size 1000 exceeds the 60" in capsys.readouterr().err


def test_verbs_and_help(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["conquer"]) == 2
    assert "conquer" in capsys.readouterr().err
    assert main(["--version"]) == 0
    for verb, flags in {
        "compare": ["--model.widths", "--kfac.lr", "--resume", "--fresh", "--json", "--seed"],
        "train": ["--optimizer", "--kfac.damping"],
        "measure": ["--matrix"],
        "report": ["run"],
        "data": ["list"],
    }.items():
        with pytest.raises(SystemExit) as stopped:
            main([verb, "--help"])
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        for flag in flags:
            assert flag.lower() in printed.lower(), f"{verb} {flag}"


def test_every_flag_says_its_default_and_what_it_is(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    for flag in ("--epochs", "--landscape.grid", "--curvature.examples", "--sgd.lr", "--kfac.lr"):
        following = text[text.index(flag) :][:400]
        assert "default" in following, flag


def test_every_optimizer_has_its_flags():
    from kobai.optim import CONFIGS

    options = parse(
        CompareOptions,
        ["--optimizers", ",".join(CONFIGS), "--ngd-layer.lr", "0.5", "--hessian-free.lr", "0.25"],
        verb="compare",
    )
    assert options.ngd_layer.lr == 0.5
    assert options.hessian_free.lr == 0.25
    again = options_of(CompareOptions, {"verb": "compare", **to_values(options)})
    assert again.ngd_layer == options.ngd_layer


def test_settings_round_trip():
    options = parse(
        CompareOptions,
        ["--model", "mlp", "--model.widths", "7", "5", "--optimizers", "sgd", "--sgd.lr", "0.5"],
        verb="compare",
    )
    again = options_of(CompareOptions, {"verb": "compare", **to_values(options)})
    assert to_values(again) == to_values(options)
    assert again.model_options.widths == (7, 5)
    assert again.sgd.lr == 0.5


def test_an_unknown_setting_in_a_file_is_refused():
    with pytest.raises(ValueError, match="colour"):
        from_values(CompareOptions, {"colour": "red"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run, for the verbs that take one."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = ["--data", "blobs", "--limit", "60", "--epochs", "1", "--model.widths", "4"]
    assert main(["train", *words, "--optimizer", "sgd", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("verb", ["measure", "landscape"])
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model", "cnn"], "--model"),
        (["--data", "spirals", "--limit", "9"], "--data, --limit"),
        (["--model.widths", "9"], "--model.*"),
        (["--label", "sgd-s7"], "sgd-s0"),
    ],
)
def test_a_run_brings_its_own_problem(trained, tmp_path, capsys, verb, flags, told):
    assert main([verb, str(trained), *flags, "--out", str(tmp_path / "x")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("verb", ["measure", "landscape"])
def test_a_folder_that_is_not_there_is_called_so(tmp_path, capsys, verb):
    assert main([verb, str(tmp_path / "nix"), "--out", str(tmp_path / "x")]) == 2
    assert "no such run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--grid", "1"], "2 nodes"),
        (["--grid", "0x5"], "2 nodes"),
        (["--splits", "exam"], "exam"),
        (["--grid", "9", "--directions", "between"], "two runs, got 1: sgd-s0"),
    ],
)
def test_a_landscape_that_cannot_be_drawn_claims_no_folder(trained, tmp_path, capsys, flags, told):
    assert main(["landscape", str(trained), *flags, "--out", str(tmp_path / "x")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_landscapes_and_measurements_do_not_record_a_problem_they_did_not_have(trained, tmp_path):
    words = ["--grid", "3", "--out", str(tmp_path / "l")]
    assert main(["landscape", str(trained), *words]) == 0
    assert main(["measure", str(trained), "--out", str(tmp_path / "m")]) == 0
    for name in ("l", "m"):
        told = (tmp_path / name / "run.toml").read_text()
        assert str(trained) in told
        assert "data =" not in told
        assert (tmp_path / name / "run.json").is_file()


def test_measurements_stay_apart(trained, tmp_path, capsys):
    out = ["--out", str(tmp_path / "m")]
    assert main(["measure", str(trained), *out]) == 0
    assert main(["measure", str(trained), "--matrix", "ggn", *out]) == 0  # adds to the first
    assert main(["measure", "--data", "blobs", "--limit", "60", *out]) == 2
    assert "another run or model" in capsys.readouterr().err
    assert main(["measure", "--data", "blobs", "--limit", "60", "--out", str(trained)]) == 2
    assert "a run of kobai train" in capsys.readouterr().err


def test_settings_of_another_verb_are_refused(trained, tmp_path, capsys):
    words = ["--config", str(trained / "run.toml"), "--out", str(tmp_path / "x")]
    assert main(["compare", *words]) == 2
    assert "settings of kobai train, which kobai compare cannot take" in capsys.readouterr().err


def test_settings_without_a_run_do_not_bar_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text('verb = "train"\n')
    words = ["--data", "blobs", "--limit", "60", "--epochs", "1", "--model.widths", "4"]
    assert main(["train", *words, "--optimizer", "sgd", "--out", str(folder)]) == 0


def test_damaged_results_are_left_out_and_named(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "figures")
    assert main(["measure", str(folder)]) == 0
    damaged = folder / "measure_hessian_sgd-s0.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    capsys.readouterr()
    assert main(["report", str(folder)]) == 1
    assert "left out" in capsys.readouterr().err
    assert (folder / "figures" / "curves.png").is_file()
    assert "measure_hessian_sgd-s0" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["measure", "x"], "the same command starts again"),
        (["compare", "--fresh", "--out", "a b"], "kobai compare --out 'a b' --resume"),
    ],
)
def test_a_stop_at_once_says_how_to_go_on(monkeypatch, capsys, words, told):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"kobai.cli.{VERBS[words[0]][0]}.main", stopped)
    assert main(words) == 130
    assert told in capsys.readouterr().err
