"""Gaussian averages of activations: closed forms and series against quadrature, and their edges."""

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy import special

from kobai.theory import ACTIVATIONS, LeakyReLU, Smooth, activation, gaussian_average

NAMES = [*ACTIVATIONS]
PAIRS = [(1.0, 1.0, 0.3), (3.0, 3.0, 0.97), (0.5, 2.0, -0.8), (0.02, 4.0, 0.9), (2.0, 1.5, 0.0)]


def _average(function, a, c, b, kinks):
    """E[f(u) f(v)] by Gauss–Legendre on panels split at the kinks, v conditional on u."""
    x, w = leggauss(16)

    def panels(mean, sd, count):
        inside = [kink for kink in kinks if abs(kink - mean) < 11 * sd]
        edges = np.unique([*np.linspace(mean - 11 * sd, mean + 11 * sd, count), *inside])
        half = np.diff(edges)[:, None] / 2
        nodes = (edges[:-1] + edges[1:])[:, None] / 2 + half * x
        density = np.exp(-(((nodes - mean) / sd) ** 2) / 2) / (sd * np.sqrt(2 * np.pi))
        return nodes.ravel(), (half * w * density).ravel()

    total, rest = 0.0, np.sqrt(b - c * c / a)
    for u, weight in zip(*panels(0.0, np.sqrt(a), 23), strict=True):
        if weight > 1e-18:
            v, weights = panels(c * u / a, rest, 17)
            total += weight * function(np.array([u]))[0] * (weights @ function(v))
    return total


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("a", "b", "rho"), PAIRS)
def test_duals_are_the_averages_they_say(name, a, b, rho):
    phi, c = activation(name), rho * np.sqrt(a * b)
    value, slope = phi.duals(np.array(a), np.array(c), np.array(b))
    assert value == pytest.approx(_average(phi, a, c, b, phi.kinks), abs=1e-11)
    assert slope == pytest.approx(_average(phi.derivative, a, c, b, phi.kinks), abs=1e-11)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [0.05, 1.0, 7.0])
def test_diagonal_is_the_one_dimensional_average_and_the_limit_of_the_pair(name, q):
    phi, at = activation(name), np.array(q)
    value, slope = phi.diagonal(at)
    assert value == pytest.approx(gaussian_average(lambda u: phi(u) ** 2, q, phi.kinks), rel=1e-12)
    square = gaussian_average(lambda u: phi.derivative(u) ** 2, q, phi.kinks)
    assert slope == pytest.approx(square, rel=1e-12)
    pair = phi.duals(at, at, at)
    assert pair[0] == pytest.approx(value, abs=1e-11)
    # D of kinked functions has a square-root singularity at ρ = 1.
    assert pair[1] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_second_average_is_the_slope_of_the_first(name):
    """Price's theorem: D = ∂V/∂c."""
    phi = activation(name)
    a, b, c, step = np.array(1.3), np.array(0.8), np.linspace(-0.9, 0.9, 13), 1e-5
    up, down = phi.duals(a, c + step, b)[0], phi.duals(a, c - step, b)[0]
    np.testing.assert_allclose((up - down) / (2 * step), phi.duals(a, c, b)[1], atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_parallel_opposite_and_vanishing_inputs(name):
    phi = activation(name)
    a = np.array([2.0, 2.0, 2.0, 0.0, 0.0])
    b = np.array([2.0, 2.0, 2.0, 0.0, 1.5])
    # Rounding pushes covariances beyond their bound; they count as being on it.
    c = np.array([2.0, 2.0 * (1 + 1e-13), -2.0 * (1 + 1e-13), 0.0, 0.0])
    value, slope = phi.duals(a, c, b)
    assert np.isfinite(value).all()
    assert np.isfinite(slope).all()
    square = phi.diagonal(np.array(2.0))
    np.testing.assert_allclose(value[:2], square[0], rtol=1e-6)
    np.testing.assert_allclose(slope[:2], square[1], rtol=1e-6)
    assert value[2] == pytest.approx(gaussian_average(lambda u: phi(u) * phi(-u), 2.0, phi.kinks))
    np.testing.assert_allclose(value[3:], 0.0, atol=1e-15)  # φ(0) = 0 for all of these
    if name not in ("relu", "leaky-relu"):
        zero = phi.derivative(np.zeros(1))[0]
        assert slope[3] == pytest.approx(zero**2)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_broadcast_and_inputs_stay(name):
    phi = activation(name)
    a, b = np.linspace(0.5, 2, 5), np.linspace(0.6, 1, 7)
    c = 0.5 * np.sqrt(a[:, None] * b)
    kept = a.copy(), b.copy(), c.copy()
    value, slope = phi.duals(a[:, None], c, b[None, :])
    assert value.shape == slope.shape == (5, 7)
    one = phi.duals(a[3:4], c[3, 2:3], b[2:3])
    np.testing.assert_allclose([value[3, 2], slope[3, 2]], [one[0][0], one[1][0]], rtol=1e-12)
    for before, after in zip(kept, (a, b, c), strict=True):
        np.testing.assert_array_equal(before, after)


def test_leaky_relu_between_relu_and_linear():
    a, c, b = np.array(1.2), np.array(0.4), np.array(0.7)
    assert activation("relu").duals(a, c, b) == LeakyReLU(0.0).duals(a, c, b)
    np.testing.assert_allclose(LeakyReLU(1.0).duals(a, c, b), (0.4, 1.0), rtol=1e-14)


def test_series_of_tanh_states_its_accuracy():
    phi = activation("tanh")
    assert phi.accuracy(np.array([0.5, 3.0])) <= 1e-12
    at = np.array(40.0)
    stated = phi.accuracy(at) * (1 + 1e-6)  # at ρ = 1 the bound is reached
    assert 1e-12 < stated < 1e-4
    exact, series = phi.diagonal(at), phi.duals(at, at, at)
    assert abs(exact[0] - series[0]) <= stated
    assert abs(exact[1] - series[1]) <= stated


def test_ordinary_quadrature_is_the_trap_the_series_avoids():
    """Twenty Gauss–Hermite nodes miss E[φ'φ'] of tanh by more than 2 % at variance 3, ρ = .97."""
    x, w = np.polynomial.hermite_e.hermegauss(20)
    q, rho = 3.0, 0.97
    u = np.sqrt(q) * x[:, None] + 0 * x
    v = np.sqrt(q) * (rho * x[:, None] + np.sqrt(1 - rho**2) * x)
    phi = activation("tanh")
    coarse = np.sum(np.outer(w, w) * phi.derivative(u) * phi.derivative(v)) / (2 * np.pi)
    exact = float(phi.duals(np.array(q), np.array(rho * q), np.array(q))[1])
    assert abs(coarse / exact - 1) > 0.02


def test_a_function_of_the_users_own():
    sigmoid = Smooth(
        special.expit, lambda u: special.expit(u) * (1 - special.expit(u)), name="sigmoid"
    )
    a, c, b = 1.5, 0.6, 0.9
    value, slope = sigmoid.duals(np.array(a), np.array(c), np.array(b))
    assert value == pytest.approx(_average(sigmoid, a, c, b, ()), abs=1e-12)
    assert slope == pytest.approx(_average(sigmoid.derivative, a, c, b, ()), abs=1e-12)


def test_wrong_use():
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        activation("swish")
    with pytest.raises(ValueError, match="variance"):
        gaussian_average(np.tanh, -1.0)
    with pytest.raises(ValueError, match="slope"):
        LeakyReLU(float("nan"))
    assert activation("hard_tanh").name == "hard-tanh"
