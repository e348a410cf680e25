"""Initial scales: what a minibatch shows, raising what vanishes, and searching."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import cases
from kobai import Problem
from kobai.results import Trials
from kobai.training import (
    raise_vanishing,
    scale_weights,
    search_initial_scales,
    signals,
    weight_names,
)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _chain(depth, width, gain, *, seed=0):
    """A deep tanh net whose weights are `gain` times what keeps a variance of 1."""
    source = _generator(seed)
    with torch.device("meta"):
        layers = [m for _ in range(depth) for m in (nn.Linear(width, width), nn.Tanh())]
        model = nn.Sequential(*layers, nn.Linear(width, 3))
    model = model.to_empty(device="cpu").double()
    with torch.no_grad():
        for p in model.parameters():
            spread = gain / math.sqrt(p.shape[-1]) if p.ndim == 2 else 0.0
            p.copy_(spread * torch.randn(p.shape, generator=source, dtype=p.dtype))
    x = torch.randn(64, width, generator=source, dtype=torch.float64)
    y = torch.randint(3, (64,), generator=source)
    return Problem(model, "categorical", train=(x, y))


def test_signals_are_those_of_a_backward_pass_by_hand():
    problem = _chain(2, 10, 1.0)
    model, batch = problem.model, problem.train.first(64)
    first = model[0](batch.inputs)
    second = model[2](first.tanh())
    last = model[4](second.tanh())
    states = (first, second, last)
    for state in states:
        state.retain_grad()
    nn.functional.cross_entropy(last, batch.targets).backward()
    found = signals(problem, batch)
    assert found.layers == ("0", "2", "4")
    for name, state in zip(found.layers, states, strict=True):
        assert found.activations[name] == pytest.approx(float(state.detach().std()))
        assert found.gradients[name] == pytest.approx(float(state.grad.std()))
    wide = signals(problem, batch, statistic="range").activations["0"]
    assert wide == pytest.approx(float(first.detach().max() - first.detach().min()))


def test_scales_multiply_weights_and_leave_biases():
    problem = _chain(1, 5, 1.0)
    with torch.no_grad():
        problem.model[0].bias.fill_(2.0)
    before = {n: p.clone() for n, p in problem.model.named_parameters()}
    scale_weights(problem.model, {"0.weight": 3.0})
    for name, p in problem.model.named_parameters():
        assert torch.equal(p, before[name] * (3.0 if name == "0.weight" else 1.0))
    with pytest.raises(ValueError, match="no trainable weight matrices"):
        scale_weights(problem.model, {"0.bias": 2.0})
    with pytest.raises(ValueError, match="positive"):
        scale_weights(problem.model, {"0.weight": 0.0})


def test_vanishing_activations_are_raised_from_the_first_layer_on():
    problem = _chain(12, 40, 0.2)
    batch = problem.train.first(64)
    made = raise_vanishing(problem, batch)
    assert made.status == "done"
    assert made.before.activations["22"] < 1e-6
    assert min(made.after.activations.values()) >= 0.5
    # Each layer is linear in its weights, so one raise each is enough, and none comes twice.
    assert made.rounds == 13
    assert all(scale > 1 for scale in made.scales.values())
    assert made.after.gradients["0"] > 1e3 * made.before.gradients["0"]


def test_a_network_that_is_well_scaled_is_left_alone():
    problem = _chain(3, 40, 1.5)
    before = problem.space.theta()
    made = raise_vanishing(problem, problem.train.first(64))
    assert (made.status, made.rounds, set(made.scales.values())) == ("done", 0, {1.0})
    assert torch.equal(before, problem.space.theta())


def test_dead_layers_are_named_by_the_status():
    problem = _chain(2, 10, 1.0)
    with torch.no_grad():
        problem.model[2].weight.zero_()
    assert raise_vanishing(problem, problem.train.first(64)).status == "dead"


@pytest.mark.parametrize("case", ["cnn", "lstm", "transformer", "norms"])
def test_every_kind_of_model_can_be_raised(case):
    problem = cases.problem(case)
    scale_weights(problem.model, dict.fromkeys(weight_names(problem.model), 0.1))
    made = raise_vanishing(problem, problem.train.first(16), max_rounds=60)
    assert made.rounds > 0
    spreads = made.after.activations
    assert made.status == "max-rounds" or min(spreads.values()) >= 0.5


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_ends_at_the_start_of_its_best_trial(sampler):
    problem = _chain(6, 16, 0.3)
    theta = problem.space.theta()
    found = search_initial_scales(
        problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), trials=8, steps=20,
        batch_size=16, sampler=sampler, generator=_generator(),
    )  # fmt: skip
    assert isinstance(found, Trials)
    assert found.parameters.keys() == set(weight_names(problem.model))
    assert all(v[0] == 1.0 for v in found.parameters.values())
    best = int(found.value.argmin())
    assert found.value[best] < found.value[0]
    expected = _chain(6, 16, 0.3)
    assert torch.equal(theta, expected.space.theta())
    scale_weights(expected.model, {n: v[best] for n, v in found.parameters.items()})
    assert torch.equal(problem.space.theta(), expected.space.theta())


def test_the_same_generator_gives_the_same_search():
    values = [
        search_initial_scales(
            _chain(2, 8, 0.3), lambda m: torch.optim.Adam(m.parameters(), lr=0.01), trials=5,
            steps=5, generator=_generator(4),
        ).value
        for _ in range(2)
    ]  # fmt: skip
    assert np.array_equal(*values)


def test_diverging_trials_score_infinity_and_are_not_chosen():
    problem = _chain(2, 8, 1.0)
    found = search_initial_scales(
        problem, lambda m: torch.optim.SGD(m.parameters(), lr=1e6), trials=3, steps=20,
        generator=_generator(),
    )  # fmt: skip
    assert "diverged" in found.state
    assert bool(problem.space.theta().isfinite().all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trials": 0}, "at least 1"),
        ({"low": 2.0, "high": 1.0}, "low < high"),
    ],
)
def test_wrong_searches_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        search_initial_scales(
            _chain(1, 4, 1.0), lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
            generator=_generator(), **wrong,
        )  # fmt: skip
