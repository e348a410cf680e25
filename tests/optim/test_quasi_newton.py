"""BFGS: the secant equation, its reduction to conjugate gradients, SciPy, and the laws."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from kobai.curvature import Hessian
from kobai.optim import BFGS, NonlinearCG
from kobai.optim.second_order.quasi_newton import bfgs_update
from kobai.problem import SURFACES, Analytic, Problem, WeightedSum, surfaces
from laws import optimizers as laws

SMOOTH = [name for name in SURFACES if name != "ackley"]


@pytest.mark.parametrize("search", ["strong-wolfe", "backtracking", "exact"])
@pytest.mark.parametrize(
    "law",
    [
        laws.descends,
        laws.resumes_to_the_bit,
        laws.survives_copies,
        laws.obeys_schedulers,
        laws.covers_the_parameters,
    ],
    ids=lambda law: law.__name__,
)
def test_law(law, search):
    law(lambda model, likelihood: BFGS(model, search=search), cases.problem("mlp"))


def test_frozen_parameters_stay_and_freezing_later_starts_anew():
    problem = cases.problem("frozen")
    before = {n: p.clone() for n, p in problem.model.named_parameters()}
    optimizer = BFGS(problem.model)
    for _ in range(3):
        optimizer.step(problem.objective())
    for name, parameter in problem.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    size = len(optimizer.inverse_hessian)
    problem.model[0].bias.requires_grad_(False)
    optimizer.step(problem.objective())
    assert len(optimizer.inverse_hessian) == size - problem.model[0].bias.numel()


def test_a_matrix_too_large_is_refused():
    with torch.random.fork_rng():
        model = torch.nn.Linear(200, 200)
    with pytest.raises(ValueError, match="lbfgs"):
        BFGS(model)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 8))
def test_an_update_keeps_symmetry_definiteness_and_the_secant_equation(seed, size):
    """M⁺ y = s, and M⁺ is the inverse of the direct update of M⁻¹ [N&W 6.19]."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g, dtype=torch.float64)
    inverse = root @ root.T + torch.eye(size).double()
    inverse = (inverse + inverse.T) / 2  # not every processor's product is symmetric to the bit
    s = torch.randn(size, generator=g, dtype=torch.float64)
    y = torch.randn(size, generator=g, dtype=torch.float64)
    y = y if float(s @ y) > 0 else -y
    if float(s @ y) < 1e-2 * float(s.norm() * y.norm()):
        return
    updated = bfgs_update(inverse, s, y)
    assert torch.equal(updated, updated.T)
    torch.testing.assert_close(updated @ y, s, rtol=1e-8, atol=1e-8)
    direct = torch.linalg.inv(inverse)
    image = direct @ s
    direct = direct - torch.outer(image, image) / (s @ image) + torch.outer(y, y) / (s @ y)
    torch.testing.assert_close(torch.linalg.inv(direct), updated, rtol=1e-6, atol=1e-6)
    assert float(torch.linalg.eigvalsh(updated)[0]) > 0


@pytest.mark.parametrize("scaled", [True, False])
def test_with_exact_steps_on_a_quadratic_it_is_conjugate_gradients(scaled, generator):
    """Same iterates; ends in as many steps as parameters with M = H⁻¹ [N&W, Theorem 6.4]."""
    surface = surfaces.quadratic(50.0, 6, generator=generator)
    a, b = surface.objective(), surface.objective()
    bfgs = BFGS(a.space.module, search="exact", scale_first=scaled)
    cg = NonlinearCG(b.space.module, search="exact")
    for _ in range(6):
        bfgs.step(a)
        cg.step(b)
        torch.testing.assert_close(a.theta(), b.theta(), rtol=1e-6, atol=1e-8)
    assert float(a.grad(a.theta()).norm()) < 1e-8
    inverse = torch.linalg.inv(Hessian(a).dense())
    torch.testing.assert_close(bfgs.inverse_hessian, inverse, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SMOOTH)
def test_it_ends_where_the_gradient_vanishes(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    optimizer = BFGS(objective.space.module, iterations=200, tol=1e-7)
    optimizer.step(objective)
    assert optimizer.diagnostics()["status"] == "stationary"
    assert float(objective.grad(objective.theta()).abs().max()) <= 1e-7
    if surface.unimodal:
        assert surface.distance(objective.theta()) < 1e-5
    if optimizer.inverse_hessian is not None:
        assert float(torch.linalg.eigvalsh(optimizer.inverse_hessian)[0]) > 0


@pytest.mark.parametrize("name", ["rosenbrock", "beale", "himmelblau", "monkey-saddle"])
def test_about_as_many_gradients_as_scipy(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    optimizer = BFGS(objective.space.module, iterations=200, tol=1e-6)
    optimizer.step(objective)
    theirs = scipy.optimize.minimize(
        lambda x: float(surface.function(torch.as_tensor(x))),
        surface.start.numpy(),
        jac=lambda x: surface.objective().grad(torch.as_tensor(x)).numpy(),
        method="BFGS",
        options={"gtol": 1e-6},
    )
    assert surface.distance(objective.theta()) == pytest.approx(
        surface.distance(torch.as_tensor(theirs.x)), abs=1e-5
    )
    assert optimizer.diagnostics()["gradients"] <= 1.5 * theirs.njev


def test_logistic_regression_agrees_with_scipy(generator):
    """A convex problem with data: one minimum, found by both."""
    x = torch.randn(60, 4, generator=generator).double()
    y = (x[:, 0] + 0.5 * torch.randn(60, generator=generator).double() > 0).long()
    with torch.random.fork_rng():
        model = torch.nn.Linear(4, 2).double()
    problem = Problem(model, "categorical", train=(x, y))
    risk = problem.objective()
    start = risk.theta()

    def ridge(theta):
        return float(risk.value(theta)) + 0.5e-2 * float(theta @ theta)

    theirs = scipy.optimize.minimize(
        lambda v: ridge(torch.as_tensor(v)),
        start.numpy(),
        jac=lambda v: (risk.grad(torch.as_tensor(v)) + 1e-2 * torch.as_tensor(v)).numpy(),
        method="BFGS",
        options={"gtol": 1e-9},
    )
    penalty = Analytic(lambda theta: 0.5 * theta @ theta, model)
    objective = WeightedSum([(1.0, risk), (1e-2, penalty)])
    BFGS(model, iterations=200, tol=1e-9).step(objective)
    np.testing.assert_allclose(risk.theta().numpy(), theirs.x, atol=1e-7)


def test_moves_without_positive_curvature_update_nothing():
    """Beyond the inflection of cos the gradient falls along the step."""
    objective = Analytic(lambda theta: torch.cos(theta[0]), torch.tensor([0.3]).double())
    optimizer = BFGS(objective.space.module, search="constant", lr=0.1)
    optimizer.step(objective)
    found = optimizer.diagnostics()
    assert found["skipped_updates"] == 1
    assert optimizer.inverse_hessian is None


def test_updates_use_one_minibatch_each():
    """y is the change of the gradient of the batch that made the step, not across batches."""
    problem = cases.problem("mlp")
    g = torch.Generator().manual_seed(0)
    optimizer = BFGS(problem.model)
    for batch in problem.minibatches(4, generator=g):
        risk = problem.objective(batch)
        start = risk.theta()
        optimizer.step(risk)
        s = risk.theta() - start
        y = risk.grad(risk.theta()) - risk.grad(start)
        torch.testing.assert_close(optimizer.inverse_hessian @ y, s, rtol=1e-6, atol=1e-9)
