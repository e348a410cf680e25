"""K-FAC's ways of inverting, and factors in double precision beside a model in single."""

import copy
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

import cases
from kobai.optim import EKFAC, KFAC
from tolerances import assert_close

SETTINGS = {"lr": 0.05, "damping": 0.05, "inverse_every": 2, "statistics_every": 1}


def run(problem, optimizer, steps):
    for _ in range(steps):
        optimizer.step(problem.objective())
    return problem.space.theta()


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("method", ["eigh", "newton-schulz"])
def test_steps_are_those_of_cholesky(method, name):
    one, other = cases.problem(name), cases.problem(name)
    optimizer = KFAC(one.model, one.likelihood, inverse=method, **SETTINGS)
    theta = run(one, optimizer, 5)
    expected = run(other, KFAC(other.model, other.likelihood, **SETTINGS), 5)
    assert_close(theta, expected, 1e-6)
    found = optimizer.diagnostics()
    assert found["inversions"] >= 3
    assert found["inversions_cholesky"] == found["inversions_failed"] == 0


def single():
    """A network in single precision whose inputs are nearly all alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 3))
    x = 100 + torch.randn(64, 20, generator=generator)
    return net, x, torch.randint(0, 3, (64,), generator=generator)


def stepped(net, x, y, optimizer, count=1):
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def test_what_newton_schulz_leaves_to_cholesky_is_counted():
    net, x, y = single()
    optimizer = KFAC(net, lr=0.01, damping=1e-7, inverse="newton-schulz")
    stepped(net, x, y, optimizer)
    assert optimizer.diagnostics()["inversions_cholesky"] >= 1
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_factors_in_float64_are_those_of_numpy_and_so_are_their_inverses():
    net, x, y = single()
    optimizer = KFAC(net, lr=0.01, damping=1e-4, factor_dtype=torch.float64)
    stepped(net, x, y, optimizer)
    entry = optimizer.state_dict()["state"][0]
    a, b = entry["input_factor"][0], entry["output_factor"][0]
    assert a.dtype == b.dtype == torch.float64
    assert entry["momentum_buffer"].dtype == entry["input_inverse"].dtype == torch.float32
    rows = np.concatenate([x.double().numpy(), np.ones((64, 1))], 1)
    np.testing.assert_allclose(a.numpy(), rows.T @ rows / 64, rtol=1e-13)
    pi = math.sqrt(a.trace() / len(a) / (b.trace() / len(b)))
    expected = scipy.linalg.inv(a.numpy() + pi * 1e-2 * np.eye(len(a)))
    found = entry["input_inverse"][0].double().numpy()
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    # In single precision the average itself is not this near.
    plain_net, _, _ = single()
    plain = KFAC(plain_net, lr=0.01, damping=1e-4)
    stepped(plain_net, x, y, plain)
    own = plain.state_dict()["state"][0]["input_factor"][0]
    assert own.dtype == torch.float32
    assert np.abs(own.double().numpy() - a.numpy()).max() > 1e-9 * float(a.abs().max())


@pytest.mark.parametrize(
    "settings",
    [
        {"inverse": "newton-schulz"},
        {"factor_dtype": torch.float64},
        {"inverse": "newton-schulz", "factor_dtype": torch.float64},
    ],
)
def test_resumed_runs_are_equal_to_the_bit(settings):
    net, x, y = single()
    optimizer = KFAC(net, **settings)
    stepped(net, x / 100, y, optimizer, 4)
    twin = copy.deepcopy(net)
    other = KFAC(twin, **settings)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(net, x / 100, y, optimizer, 4)
    stepped(twin, x / 100, y, other, 4)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    again = copy.deepcopy(optimizer)
    assert (again.inverse, again.factor_dtype) == (optimizer.inverse, optimizer.factor_dtype)


def test_ekfac_keeps_double_factors_and_single_bases():
    net, x, y = single()
    optimizer = EKFAC(net, factor_dtype=torch.float64)
    stepped(net, x / 100, y, optimizer, 3)
    entry = optimizer.state_dict()["state"][0]
    assert entry["input_factor"].dtype == torch.float64
    basis = entry["input_basis"][0]
    assert basis.dtype == torch.float32
    turned = basis.double().T @ entry["input_factor"][0] @ basis.double()
    off = turned - torch.diag(turned.diagonal())
    assert float(off.abs().max()) < 0.2 * float(turned.max())
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_other_ways_are_refused():
    net, _, _ = single()
    with pytest.raises(Exception, match="inverse"):
        KFAC(net, inverse="lu")
    with pytest.raises(ValueError, match="eigenvectors in place of inverses"):
        EKFAC(net, inverse="eigh")
    with pytest.raises(Exception, match="factor_dtype"):
        KFAC(net, factor_dtype=torch.bfloat16)
