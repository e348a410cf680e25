"""Names of the command line: classes, settings, and a minibatch run of each with its defaults."""

import dataclasses
import math

import pytest
import torch

import cases
from kobai.optim import (
    BFGS,
    CONFIGS,
    OPTIMIZERS,
    BFGSConfig,
    CoordinateDescent,
    Newton,
    NewtonConfig,
    NonlinearCG,
    SaddleFreeNewton,
    SteepestDescent,
    TrustRegion,
    build,
    default_space,
)
from kobai.optim.line_search import Exact
from kobai.problem import Problem
from kobai.training import train
from laws import optimizers as laws

CLASSES = {
    "newton": Newton,
    "saddle-free-newton": SaddleFreeNewton,
    "bfgs": BFGS,
    "lbfgs": torch.optim.LBFGS,
    "nonlinear-cg": NonlinearCG,
    "steepest-descent": SteepestDescent,
    "coordinate-descent": CoordinateDescent,
}


def test_every_name_has_its_class_and_search_space():
    on_all_data = {name for name, entry in OPTIMIZERS.items() if entry.on_all_data}
    assert set(CLASSES) == on_all_data <= set(CONFIGS)
    for name, kind in CLASSES.items():
        assert isinstance(build(name, cases.problem("mlp").model), kind)
        assert default_space(name)


@pytest.mark.parametrize("name", CLASSES)
def test_settings_are_frozen_documented_and_checked(name):
    config = CONFIGS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert config.__doc__
    for wrong in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(Exception, match=rf"--{name}\.lr must be positive"):
            CONFIGS[name](lr=wrong)
    fields = {f.name for f in dataclasses.fields(config)}
    for field in fields & {"search", "beta", "blocks", "order"}:
        with pytest.raises(Exception, match=field):
            CONFIGS[name](**{field: "zigzag"})
    if "damping" in fields:
        with pytest.raises(Exception, match="damping must be non-negative"):
            CONFIGS[name](damping=-1.0)


def test_settings_reach_the_optimizer():
    model = cases.problem("mlp").model
    assert build("bfgs", model, config=BFGSConfig(search="exact")).search == Exact()
    trusted = NewtonConfig(search="trust-region", damping=0.0)
    assert build("newton", model, config=trusted).search == TrustRegion()
    with pytest.raises(ValueError, match="trust-region"):
        NewtonConfig(search="trust-region")
    with pytest.raises(TypeError, match="NewtonConfig"):
        build("newton", model, config=BFGSConfig())


def _curved_classes():
    """Two classes cut by a parabola, noisy, 256 examples; a network of 42 parameters."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(256, 3, generator=source, dtype=torch.float64)
    noise = 0.3 * torch.randn(256, generator=source, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        ).double()
    return Problem(model, "categorical", train=(x, (x[:, 0] + x[:, 1] ** 2 + noise > 0.5).long()))


@pytest.mark.parametrize("name", CLASSES)
def test_a_minibatch_run_with_the_defaults_learns(name):
    problem = _curved_classes()
    history = train(
        problem,
        build(name, problem.model),
        epochs=5,
        batch_size=64,
        evaluate_every=5,
        generator=torch.Generator().manual_seed(0),
    )
    assert history.status == "finished"
    assert history.train_loss[-1] < 0.7 * history.train_loss[0]


@pytest.mark.parametrize(
    "law",
    [laws.descends, laws.resumes_to_the_bit, laws.covers_the_parameters],
    ids=lambda law: law.__name__,
)
def test_laws_of_torchs_lbfgs_by_name(law):
    law(lambda model, likelihood: build("lbfgs", model, likelihood), cases.problem("mlp"))


SETTINGS = {
    "newton": [{}, {"damping": 0.1, "search": "strong-wolfe"},
               {"damping": 0.0, "search": "trust-region"}, {"damping": 0.1}],
    "saddle-free-newton": [{}],
    "bfgs": [{}, {"search": "backtracking"}],
    "nonlinear-cg": [{}, {"search": "exact"}],
    "steepest-descent": [{}],
    "coordinate-descent": [{}, {"blocks": "unit"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"), [(name, s) for name, several in SETTINGS.items() for s in several]
)
def test_every_evaluation_is_counted(name, settings, monkeypatch):
    laws.counts_what_it_asks(
        lambda model, likelihood: build(name, model, likelihood, CONFIGS[name](**settings)),
        cases.problem("mlp"),
        monkeypatch,
    )
