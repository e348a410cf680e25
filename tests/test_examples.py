"""The examples run, and do what they say."""

import importlib.util
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "kfac_in_your_loop",
        "landscape_of_your_model",
    }


def test_kfac_in_your_loop(capsys):
    final = example("kfac_in_your_loop").main()
    assert final["kfac"] > 0.9
    assert "kfac epoch 5" in capsys.readouterr().out


def test_landscape_of_your_model(tmp_path, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = example("landscape_of_your_model").main(tmp_path)
    assert picture.stat().st_size > 10_000
    assert "FAILED" not in capsys.readouterr().out
