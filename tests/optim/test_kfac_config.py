"""K-FAC's settings on their way from the command line to a file and back."""

import math
import tomllib

import pytest
import tomli_w
import torch
import tyro

from kobai.cli.options import from_values, to_values
from kobai.optim import EKFAC, KFAC, KFACConfig, LevenbergMarquardt, build
from kobai.optim.kfac import KFACSettings


def network():
    return torch.nn.utils.skip_init(torch.nn.Linear, 3, 2)


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
    net = network()
    optimizer = build("kfac", net, config=config)
    assert optimizer.inverse == "newton-schulz"
    assert optimizer.factor_dtype == "float64"
    assert optimizer.settings.precision == torch.float64
    with pytest.raises(ValueError, match="eigenvectors in place of inverses"):
        build("ekfac", net, config=config)


def test_one_class_holds_the_settings_under_both_names():
    assert KFACConfig is KFACSettings
    optimizer = KFAC(network(), lr=0.1, inverse_every=7)
    assert optimizer.settings == KFACSettings(lr=0.1, inverse_every=7)
    assert (optimizer.inverse_every, optimizer.labels) == (7, "sampled")
    assert not hasattr(optimizer, "no_such_setting")


@pytest.mark.parametrize(
    ("given", "word", "meant"),
    [
        (torch.float64, "float64", torch.float64),
        ("float32", "float32", torch.float32),
        (None, "parameters", None),
        ("parameters", "parameters", None),
    ],
)
def test_precisions_are_words_or_those_of_torch(given, word, meant):
    own = KFAC(network(), factor_dtype=given, product_dtype=given).settings
    assert (own.factor_dtype, own.product_dtype) == (word, word)
    assert (own.precision, own.product_precision) == (meant, meant)
    assert there_and_back(own) == own


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"factor_dtype": "bfloat16"}, "lose what an update adds"),
        ({"structure": "full"}, "kobai.optim.NaturalGradient takes every structure"),
        ({"structure": "layer", "inverse": "eigh"}, "for structure='kronecker'"),
        ({"structure": "unit", "product_dtype": "float16"}, "for structure='kronecker'"),
        ({"product_dtype": "int8"}, "floating-point"),
    ],
)
def test_words_that_stand_for_nothing_are_refused_with_the_way_out(values, match):
    settings = KFACSettings()
    for name, value in values.items():
        object.__setattr__(settings, name, value)  # past the checks of types, which tests have on
    with pytest.raises(ValueError, match=match):
        settings.__post_init__()


def test_what_is_no_setting_is_refused_with_those_that_are():
    with pytest.raises(TypeError, match=r"no setting momentun; choose from .*momentum"):
        KFAC(network(), momentun=0.9)


def test_rules_and_schedules_are_kept_as_they_are():
    rule = LevenbergMarquardt(initial=0.3)
    optimizer = KFAC(network(), damping=rule)
    assert optimizer.settings.damping is rule
    assert optimizer.param_groups[0]["damping"] == 0.3


def test_what_is_printed_is_what_was_set():
    text = repr(EKFAC(network(), lr=0.25, kl_bound=0.5))
    assert text.startswith("EKFAC(lr=0.25")
    assert "(automatic: damping)" in text
    assert "kl_bound=0.5" in text
