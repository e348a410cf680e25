"""Blurred objectives against closed forms, and what blurring is for."""

import math

import pytest
import torch

import cases
from kobai.curvature import Hessian
from kobai.optim import BFGS
from kobai.problem import SURFACES, Analytic, surfaces
from kobai.training import Blurred, minimize_by_continuation


@pytest.mark.parametrize("sampling", ["gaussian", "cubature"])
def test_quadratics_are_exact(sampling, generator):
    """The gradient is that of J; with cubature the value is J + ½σ² tr H."""
    surface = surfaces.quadratic(30.0, 5, generator=generator)
    objective = surface.objective()
    blurred = Blurred(objective, 0.7, pairs=10, sampling=sampling, generator=generator)
    theta = torch.randn(5, generator=generator).double()
    value, gradient = blurred.value_and_grad(theta)
    torch.testing.assert_close(gradient, objective.grad(theta))
    expected = float(objective.value(theta)) + 0.5 * 0.49 * float(
        Hessian(objective).dense().trace()
    )
    if sampling == "cubature":
        assert float(value) == pytest.approx(expected, rel=1e-12)
        # Rotated axes have the second moments of the normal law exactly.
        moments = blurred.draws.T @ blurred.draws / 10
        torch.testing.assert_close(moments, torch.eye(5).double(), atol=1e-12, rtol=0)
    assert float(blurred.value(theta)) == pytest.approx(float(value), rel=1e-12)


def test_ripples_fade_as_their_fourier_factor(generator):
    """E cos 2π(θ + σε) = exp(−2π²σ²) cos 2πθ, within four standard errors of 2,000 pairs."""
    sigma, pairs = 0.2, 2000
    wave = Analytic(lambda theta: torch.cos(2 * math.pi * theta[0]), torch.tensor([0.1]).double())
    blurred = Blurred(wave, sigma, pairs=pairs, generator=generator)
    theta = wave.theta()
    samples = torch.cos(2 * math.pi * (theta + sigma * blurred.draws)).squeeze(1)
    mirrored = torch.cos(2 * math.pi * (theta - sigma * blurred.draws)).squeeze(1)
    error = float(((samples + mirrored) / 2).std()) / math.sqrt(pairs)
    expected = math.exp(-2 * math.pi**2 * sigma**2) * math.cos(2 * math.pi * 0.1)
    assert float(blurred.value(theta)) == pytest.approx(expected, abs=4 * error)
    assert error < 0.02


def test_no_blur_is_the_objective_and_draws_are_kept(generator):
    problem = cases.problem("mlp")
    risk = problem.objective()
    theta = risk.theta()
    blurred = Blurred(risk, 0.1, pairs=2, generator=generator)
    assert torch.equal(blurred.at(0.0).value(theta), risk.value(theta))
    assert blurred.at(0.3).draws is blurred.draws
    again = torch.stack(
        [risk.grad(theta + s * 0.1 * d) for d in blurred.draws for s in (1, -1)]
    ).mean(0)
    torch.testing.assert_close(blurred.grad(theta), again)
    # As a closure it leaves the same gradient on the module.
    assert float(blurred()) == pytest.approx(float(blurred.value(theta)))
    left = torch.cat([p.grad.reshape(-1) for p in problem.model.parameters()])
    torch.testing.assert_close(left, again)
    assert torch.equal(risk.theta(), theta)


def test_continuation_finds_the_minimum_among_egg_cups(generator):
    """BFGS alone ends in a cup near the start; blurred by 0.6 the bowl is all that is left."""
    surface = SURFACES["rastrigin"]()
    plain = surface.objective()
    BFGS(plain.space.module, iterations=100, tol=1e-8).step(plain)
    assert surface.distance(plain.theta()) > 1.0
    objective = surface.objective()
    stages = minimize_by_continuation(
        objective,
        lambda module: BFGS(module, iterations=50, tol=1e-8),
        (0.6, 0.4, 0.2, 0.1, 0.0),
        steps=1,
        pairs=64,
        generator=generator,
    )
    assert surface.distance(objective.theta()) < 1e-6
    assert stages.thetas.shape == (5, 2)
    assert stages.blurred[-1] == stages.values[-1] < 1e-10
    assert stages.values[0] >= stages.values[-1]


@pytest.mark.parametrize(
    "wrong",
    [{"sigma": -1.0}, {"pairs": 0}, {"pairs": 3, "sampling": "cubature"}, {"sampling": "grid"}],
)
def test_impossible_settings_are_refused(wrong, generator):
    objective = SURFACES["rastrigin"]().objective()
    with pytest.raises(Exception, match=r"sigma|pairs|sampling"):
        Blurred(objective, **({"sigma": 0.1} | wrong), generator=generator)
    for sigmas in ((), (0.1, 0.1), (0.1, 0.2)):
        with pytest.raises(ValueError, match="sigma"):
            minimize_by_continuation(objective, BFGS, sigmas, steps=1, generator=generator)
