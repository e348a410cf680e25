"""Test surfaces: minima are where they are said to be, and what is unimodal has no other."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from kobai.curvature import Hessian
from kobai.problem import SURFACES, Surface, surfaces

SMOOTH = [name for name in SURFACES if name != "ackley"]


@pytest.mark.parametrize("name", SURFACES)
def test_value_at_the_minima(name):
    surface = SURFACES[name]()
    assert isinstance(surface, Surface)
    assert surface.name == name
    objective = surface.objective()
    for place in surface.minima:
        assert float(objective.value(place)) == pytest.approx(surface.minimum, abs=1e-12)
        assert surface.distance(place) == 0.0


@pytest.mark.parametrize("name", SMOOTH)
def test_minima_are_stationary_with_positive_curvature(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    for place in surface.minima:
        hessian = Hessian(objective, place).dense()
        scale = float(hessian.abs().max())
        assert float(objective.grad(place).norm()) < 1e-13 * max(1.0, scale)
        assert float(torch.linalg.eigvalsh(hessian)[0]) > 0


@pytest.mark.parametrize("name", SURFACES)
def test_scipy_finds_nothing_lower(name):
    """Nelder-Mead, which knows no gradients, from a grid of starts."""
    surface = SURFACES[name]()
    low, high = surface.extent
    lowest = math.inf
    for start in np.random.default_rng(0).uniform(low, high, size=(12, 2)):
        found = scipy.optimize.minimize(
            lambda x: float(surface.function(torch.as_tensor(x))), start, method="Nelder-Mead"
        )
        lowest = min(lowest, found.fun)
    assert lowest >= surface.minimum - 1e-9


@pytest.mark.parametrize("name", [n for n in SURFACES if SURFACES[n]().unimodal])
def test_gradient_vanishes_only_at_the_minimum_of_a_unimodal_surface(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    axis = torch.linspace(*surface.extent, 41, dtype=torch.float64)
    for point in torch.cartesian_prod(axis, axis):
        if surface.distance(point) > 0.05:
            assert float(objective.grad(point).norm()) > 1e-8


def test_quadratics_have_the_condition_asked_for(generator):
    for surface in (
        surfaces.quadratic(1e4, 7),
        surfaces.quadratic(1e4, 7, generator=generator),
    ):
        values = torch.linalg.eigvalsh(Hessian(surface.objective()).dense())
        assert float(values[0]) == pytest.approx(1.0)
        assert float(values[-1]) == pytest.approx(1e4)


def test_monkey_saddle_and_saddle_have_theirs_at_the_origin():
    origin = torch.zeros(2, dtype=torch.float64)
    monkey = surfaces.monkey_saddle().objective()
    assert float(monkey.grad(origin).norm()) == 0.0
    assert float(Hessian(monkey, origin).dense().abs().max()) == 0.0
    plain = Hessian(surfaces.saddle().objective(), origin).dense()
    torch.testing.assert_close(plain, torch.diag(torch.tensor([1.0, -1.0]).double()))


def test_the_wall_of_the_cliff_is_steep_and_the_plain_flat():
    steep = surfaces.cliff().objective().grad(torch.zeros(2).double())
    assert float(steep.norm()) == pytest.approx(10 / (4 * 0.02), rel=1e-2)
    flat = surfaces.plateau().objective().grad(torch.tensor([6.0, 0.0]).double())
    assert float(flat.norm()) == pytest.approx(6 * math.exp(-18.0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: surfaces.quadratic(0.5),
        lambda: surfaces.quadratic(2.0, 0),
        lambda: surfaces.rosenbrock(1),
        lambda: surfaces.cliff(width=0.5),
        lambda: surfaces.cliff(height=-1.0),
    ],
)
def test_impossible_surfaces_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()
