"""What the README says is run: its Python example, and the verbs it lists."""

import re
from pathlib import Path

import torch

from kobai.cli import VERBS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs_and_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names: dict = {}
        exec(compile(code, "README.md", "exec"), names)
    metrics = names["problem"].objective(split="test").metrics()
    assert metrics["accuracy"] > 0.9
    assert len(names["top"].values) == 3
    assert "accuracy" in capsys.readouterr().out


def test_the_command_list_is_complete():
    assert set(re.findall(r"^\| `kobai (\w+)` \|", README, flags=re.MULTILINE)) == set(VERBS)


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
