"""Subproblems of trust regions against the exact solution, and the rule for the radius."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kobai.linalg import Dense
from kobai.optim.trust_region import TrustRegion, dogleg, steihaug


def _draw(seed, size, *, definite):
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=g, dtype=torch.float64)
    matrix = matrix @ matrix.T + 0.1 * torch.eye(size) if definite else matrix + matrix.T
    return matrix, torch.randn(size, generator=g, dtype=torch.float64)


def _model(matrix, gradient, p):
    return float(gradient @ p + 0.5 * p @ matrix @ p)


def _exact(matrix, gradient, radius):
    """The global minimiser on the ball, from the secular equation in the eigenbasis."""
    values, vectors = torch.linalg.eigh(matrix)
    inside = vectors.T @ gradient
    if float(values[0]) > 0 and float((inside / values).norm()) <= radius:
        return -vectors @ (inside / values)

    def length(shift):
        return float((inside / (values + shift)).norm()) - radius

    low = max(0.0, -float(values[0])) + 1e-12
    high = low + float(gradient.norm()) / radius + float(values.abs().max())
    shift = scipy.optimize.brentq(length, low, high, xtol=1e-14)
    return -vectors @ (inside / (values + shift))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 6),
    radius=st.floats(1e-2, 1e2),
    definite=st.booleans(),
)
def test_steps_lie_between_the_cauchy_point_and_the_exact_minimiser(seed, size, radius, definite):
    matrix, gradient = _draw(seed, size, definite=definite)
    exact = _model(matrix, gradient, _exact(matrix, gradient, radius))
    norm, bend = float(gradient.norm()), float(gradient @ matrix @ gradient)
    length = min(radius / norm, norm**2 / bend if bend > 0 else math.inf)
    cauchy = _model(matrix, gradient, -length * gradient)
    slack = 1e-9 * (1 + abs(exact))
    found = [steihaug(Dense(matrix, symmetric=True), gradient, radius, tol=1e-12)]
    if definite:
        found.append(dogleg(matrix, gradient, radius))
    for step in found:
        assert step.predicted == pytest.approx(_model(matrix, gradient, step.step), abs=slack)
        assert exact - slack <= step.predicted <= cauchy + slack
        assert float(step.step.norm()) <= radius * (1 + 1e-10)
        assert step.on_boundary == (float(step.step.norm()) >= radius * (1 - 1e-10))


def test_inside_the_ball_both_are_newtons_step():
    matrix, gradient = _draw(0, 5, definite=True)
    newton = -torch.linalg.solve(matrix, gradient)
    for found in (
        steihaug(Dense(matrix, symmetric=True), gradient, 1e3, tol=1e-13),
        dogleg(matrix, gradient, 1e3),
    ):
        torch.testing.assert_close(found.step, newton, rtol=1e-8, atol=1e-8)
        assert (found.status, found.on_boundary) == ("ok", False)


def test_negative_curvature_is_followed_to_the_boundary_on_the_better_side():
    matrix = torch.diag(torch.tensor([1.0, -2.0]).double())
    gradient = torch.tensor([1.0, 0.5]).double()
    found = steihaug(Dense(matrix, symmetric=True), gradient, 3.0)
    assert found.status == "negative-curvature"
    assert float(found.step.norm()) == pytest.approx(3.0)
    # By hand: the first step is (-5/2, -5/4), the next direction (1, 1).
    first, ones = torch.tensor([-2.5, -1.25]).double(), torch.ones(2).double()
    crossings = np.roots([2.0, -7.5, float(first @ first) - 9.0])
    models = [_model(matrix, gradient, first + float(t) * ones) for t in crossings]
    assert found.predicted == pytest.approx(min(models))
    assert min(models) < max(models) - 1
    refused = dogleg(matrix, gradient, 3.0)
    assert refused.status == "indefinite"
    assert refused.predicted < 0


def test_no_gradient_no_step():
    zero = torch.zeros(2).double()
    for found in (
        steihaug(Dense(torch.eye(2).double(), symmetric=True), zero, 1.0),
        dogleg(torch.eye(2).double(), zero, 1.0),
    ):
        assert not bool(found.step.any())
        assert found.predicted == 0.0


def test_the_radius_follows_the_ratio():
    region = TrustRegion(initial=1.0, maximum=3.0)
    assert region.update(1.0, 0.1, length=0.8, on_boundary=False) == pytest.approx(0.2)
    assert region.update(1.0, -math.inf, length=1.0, on_boundary=True) == 0.25
    assert region.update(1.0, math.nan, length=1.0, on_boundary=True) == 0.25
    assert region.update(1.0, 0.5, length=1.0, on_boundary=True) == 1.0
    assert region.update(1.0, 0.9, length=0.5, on_boundary=False) == 1.0
    assert region.update(1.0, 0.9, length=1.0, on_boundary=True) == 2.0
    assert region.update(2.0, 0.9, length=2.0, on_boundary=True) == 3.0


@pytest.mark.parametrize(
    "wrong",
    [{"initial": 0.0}, {"initial": 2.0, "maximum": 1.0}, {"accept": 0.5}, {"subproblem": "x"}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(Exception, match=r"initial|accept|subproblem"):
        TrustRegion(**wrong)
    with pytest.raises(ValueError, match="radius"):
        dogleg(torch.eye(2).double(), torch.ones(2).double(), 0.0)
