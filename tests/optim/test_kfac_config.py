"""K-FAC's settings on their way from the command line to a file and back."""

import math
import tomllib

import pytest
import tomli_w
import torch
import tyro

from kobai.cli.options import from_values, to_values
from kobai.optim import KFACConfig, build


def there_and_back(config):
    return from_values(KFACConfig, tomllib.loads(tomli_w.dumps(to_values(config))))


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "auto"), (["--kl-bound", "none"], math.inf), (["--kl-bound", "0.2"], 0.2)],
)
def test_the_bound_on_a_step_survives_the_command_line_and_a_file(words, expected):
    config = tyro.cli(KFACConfig, args=words)
    assert config.kl_bound == expected
    assert there_and_back(config) == config


def test_a_file_that_leaves_the_bound_out_means_the_default():
    assert from_values(KFACConfig, {"lr": 0.1}).kl_bound == "auto"


def test_none_is_no_bound():
    with torch.random.fork_rng():
        net = torch.nn.Linear(3, 2).double()
        x, y = torch.randn(4, 3).double(), torch.randint(0, 2, (4,))
    optimizer = build("kfac", net, config=KFACConfig(lr=1e3, damping=0.1, kl_bound="none"))
    torch.nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    found = optimizer.diagnostics()
    assert found["kl"] > 1
    assert found["bounded_steps"] == 0
    assert found["step_scale"] == 1


@pytest.mark.parametrize("bad", ["never", 0.0, -1.0, math.nan])
def test_other_bounds_are_refused(bad):
    with pytest.raises(Exception, match="kl_bound"):
        KFACConfig(kl_bound=bad)


def test_ways_of_inverting_survive_the_command_line_and_a_file():
    words = ["--inverse", "newton-schulz", "--factor-dtype", "float64"]
    config = tyro.cli(KFACConfig, args=words)
    assert there_and_back(config) == config
    net = torch.nn.utils.skip_init(torch.nn.Linear, 3, 2)
    optimizer = build("kfac", net, config=config)
    assert optimizer.inverse == "newton-schulz"
    assert optimizer.factor_dtype == torch.float64
    with pytest.raises(ValueError, match="eigenvectors in place of inverses"):
        build("ekfac", net, config=config)
