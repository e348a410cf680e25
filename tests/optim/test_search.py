"""Line searches on random functions of one variable: what they promise holds where they say so."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kobai.optim.line_search import (
    Backtracking,
    Constant,
    Exact,
    Line,
    StrongWolfe,
    as_search,
)

NUMBERS = st.floats(-3.0, 3.0, allow_nan=False)


def _function(a, b, w, c, far):
    """A bounded-below function of one variable with several minima; slope at 0 is made negative."""

    def f(x):
        return far * x**4 / (1 + x**2) + a * torch.sin(w * x) + b * torch.cos(c * x) + 0.1 * x

    return f


def _line(f, *, dtype=torch.float64, curvature=False):
    """The line through 0 downhill, and φ as a plain function."""

    def value_and_grad(theta):
        theta = theta.detach().requires_grad_()
        value = f(theta[0])
        return value.detach(), torch.autograd.grad(value, theta)[0]

    def bend(direction):
        theta = torch.zeros(1, dtype=dtype).requires_grad_()
        slope = torch.autograd.grad(f(theta[0]), theta, create_graph=True)[0]
        return float(torch.autograd.grad(slope @ direction, theta)[0] @ direction)

    origin = torch.zeros(1, dtype=dtype)
    value, gradient = value_and_grad(origin)
    direction = -gradient.sign()
    line = Line(
        value_and_grad,
        lambda theta: f(theta[0]),
        origin,
        direction,
        start=float(value),
        gradient=gradient,
        curvature=bend if curvature else None,
    )
    return line, lambda a: float(f((a * direction)[0]))


@settings(max_examples=200, deadline=None)
@given(a=NUMBERS, b=NUMBERS, w=NUMBERS, c=NUMBERS, first=st.floats(1e-3, 1e3))
@example(a=0.0, b=0.0, w=1.0, c=1.0, first=1e-6)
@pytest.mark.parametrize("c2", [0.9, 0.1])
def test_strong_wolfe_conditions_hold(c2, a, b, w, c, first):
    line, phi = _line(_function(a, b, w, c, 0.5))
    if -line.origin.slope < 1e-6:
        return
    found = StrongWolfe(curvature=c2).search(line, first)
    assert found.status == "ok"
    assert found.value == pytest.approx(phi(found.step), abs=1e-12)
    assert found.value <= line.origin.value + 1e-4 * found.step * line.origin.slope
    assert abs(found.slope) <= c2 * abs(line.origin.slope)
    step = 1e-6 * max(found.step, 1e-3)
    measured = (phi(found.step + step) - phi(found.step - step)) / (2 * step)
    assert found.slope == pytest.approx(measured, abs=1e-5 + 1e-8 / step)


@settings(max_examples=100, deadline=None)
@given(a=NUMBERS, b=NUMBERS, w=NUMBERS, c=NUMBERS, first=st.floats(1e-3, 1e3))
def test_backtracking_gives_a_sufficient_decrease(a, b, w, c, first):
    line, phi = _line(_function(a, b, w, c, 0.5))
    if -line.origin.slope < 1e-6:
        return
    found = Backtracking(sufficient=0.1).search(line, first)
    assert found.status == "ok"
    assert found.step <= first
    assert phi(found.step) <= line.origin.value + 0.1 * found.step * line.origin.slope


@settings(max_examples=100, deadline=None)
@given(a=NUMBERS, b=NUMBERS, w=NUMBERS, c=NUMBERS, first=st.floats(1e-3, 10.0), ask=st.booleans())
def test_exact_search_ends_where_the_slope_vanishes_below_the_start(a, b, w, c, first, ask):
    line, phi = _line(_function(a, b, w, c, 0.5), curvature=ask)
    if -line.origin.slope < 1e-4:
        return
    found = Exact().search(line, first)
    assert found.status in ("ok", "rounding")
    assert abs(found.slope) <= 1e-7 * max(1.0, abs(line.origin.slope))
    assert phi(found.step) <= line.origin.value


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_exact_search_on_a_parabola_is_one_product_and_one_gradient(scale):
    asked = []

    def value_and_grad(theta):
        asked.append(theta)
        return scale * (theta[0] - 3.0) ** 2, 2 * scale * (theta - 3.0)

    origin = torch.zeros(1, dtype=torch.float64)
    value, gradient = value_and_grad(origin)
    line = Line(
        value_and_grad,
        lambda theta: scale * (theta[0] - 3.0) ** 2,
        origin,
        -gradient,
        start=float(value),
        gradient=gradient,
        curvature=lambda p: float(2 * scale * (p @ p)),
    )
    found = Exact().search(line, 1.0)
    assert found.status == "ok"
    assert len(asked) == 2
    assert float(line.point(found.step)) == pytest.approx(3.0, rel=1e-15)


def test_strong_wolfe_needs_about_as_many_gradients_as_scipy():
    """SciPy's search on the same lines, from the same first step 1; counted together."""
    ours, theirs = 0, 0
    for seed in range(30):
        draw = torch.randn(4, generator=torch.Generator().manual_seed(seed)).double().tolist()
        f = _function(*draw, 0.5)
        line, phi = _line(f)
        counted = []
        ask = line.slope
        line.slope = lambda a, ask=ask, counted=counted: counted.append(a) or ask(a)
        found = StrongWolfe().search(line, 1.0)
        assert found.status == "ok"
        ours += len(counted)
        sign = float(line.direction)
        result = scipy.optimize.line_search(
            lambda x, phi=phi, sign=sign: phi(float(x[0]) * sign),
            lambda x, ask=ask, sign=sign: np.array([ask(float(x[0]) * sign).slope * sign]),
            np.array([0.0]),
            np.array([sign]),
        )
        theirs += max(result[1], result[2])
    assert ours <= 1.2 * theirs


def test_a_wall_of_infinities_is_stepped_back_from():
    def f(x):
        return torch.where(x > 2.0, torch.inf, (x - 1.0) ** 2)

    for search in (StrongWolfe(), Backtracking(), Exact()):
        line, phi = _line(f)
        found = search.search(line, 100.0)
        assert found.status in ("ok", "rounding")
        assert phi(found.step) < 1.0


def test_numerical_endings_are_statuses():
    line, _ = _line(lambda x: -x)
    assert StrongWolfe(longest=1e3).search(line, 1.0).status == "unbounded"
    assert Exact(longest=1e3).search(line, 1.0).status == "unbounded"
    nowhere, _ = _line(lambda x: torch.where(x > 0, torch.nan, -x))
    for search in (StrongWolfe(), Exact(), Constant()):
        found = search.search(nowhere, 1.0)
        assert (found.step, found.status) == (0.0, "non-finite")
    assert Backtracking(max_trials=3).search(nowhere, 1.0).status == "max-evaluations"


def test_rounding_is_told_apart():
    """Values that are off by two roundings hide the decrease; slopes show it."""
    line, _ = _line(lambda x: 1e12 + 2.5e-4 * (x != 0).double() + (x - 1.0) ** 2 * 1e-6)
    found = StrongWolfe(curvature=0.1).search(line, 0.5)
    assert found.status == "rounding"
    assert abs(found.slope) <= 0.1 * abs(line.origin.slope)


def test_constant_is_the_step_itself():
    line, phi = _line(lambda x: (x - 1.0) ** 2)
    found = Constant().search(line, 7.0)
    assert (found.step, found.value) == (7.0, phi(7.0))
    assert math.isnan(found.slope)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Backtracking(sufficient=0.0),
        lambda: Backtracking(shrink=(0.5, 0.1)),
        lambda: StrongWolfe(sufficient=0.9, curvature=0.1),
        lambda: StrongWolfe(max_trials=0),
        lambda: Exact(tol=0.0),
        lambda: Exact(longest=0.5),
        lambda: as_search("golden"),
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(Exception, match=r"must be|need|lies in|is a|fractions|golden"):
        wrong()
