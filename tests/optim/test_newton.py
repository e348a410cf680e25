"""Newton and saddle-free Newton: closed forms, saddles, SciPy, and the laws."""

import itertools

import pytest
import scipy.optimize
import torch

import cases
from kobai.curvature import Hessian
from kobai.optim import LevenbergMarquardt, Newton, SaddleFreeNewton, TrustRegion
from kobai.optim.second_order.saddle_free import krylov_spectrum
from kobai.problem import SURFACES, Analytic, WeightedSum, surfaces
from laws import optimizers as laws

SMOOTH = [name for name in SURFACES if name != "ackley"]
MAKERS = {
    "newton": lambda model: Newton(model),
    "newton-cg": lambda model: Newton(model, solver="cg"),
    "newton-wolfe": lambda model: Newton(model, search="strong-wolfe"),
    "steihaug": lambda model: Newton(model, damping=0.0, search=TrustRegion()),
    "dogleg": lambda model: Newton(model, damping=0.0, search=TrustRegion(subproblem="dogleg")),
    "saddle-free": lambda model: SaddleFreeNewton(model),
    "saddle-free-krylov": lambda model: SaddleFreeNewton(model, dense_limit=0, subspace=20),
}


def _descends(make, problem):
    laws.descends(make, problem, steps=10)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "law",
    [
        _descends,
        laws.resumes_to_the_bit,
        laws.survives_copies,
        laws.obeys_schedulers,
        laws.covers_the_parameters,
    ],
    ids=lambda law: law.__name__,
)
def test_law(law, name):
    law(lambda model, likelihood: MAKERS[name](model), cases.problem("single"))


@pytest.mark.parametrize("name", MAKERS)
def test_frozen_parameters_stay_and_the_gradient_is_left(name):
    problem = cases.problem("single")
    problem.model[0].weight.requires_grad_(False)
    before = {n: p.clone() for n, p in problem.model.named_parameters()}
    optimizer = MAKERS[name](problem.model)
    expected = problem.objective().grad(problem.objective().theta())
    optimizer.step(problem.objective())
    left = [p.grad for p in problem.model.parameters() if p.requires_grad]
    torch.testing.assert_close(torch.cat([g.reshape(-1) for g in left]), expected)
    for n, parameter in problem.model.named_parameters():
        assert torch.equal(parameter, before[n]) != parameter.requires_grad, n


@pytest.mark.parametrize("kind", [Newton, SaddleFreeNewton])
def test_what_has_no_hessian_is_refused(kind):
    problem, other = cases.problem("mlp"), cases.problem("mlp")
    optimizer = kind(problem.model)
    with pytest.raises(TypeError, match=r"problem\.objective"):
        optimizer.step(lambda: problem.objective()())
    with pytest.raises(ValueError, match="another model"):
        optimizer.step(other.objective())
    with pytest.raises(ValueError, match="one"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="noise"):
        kind(problem.model, damping=LevenbergMarquardt())
    with pytest.raises(ValueError, match="max_trials"):
        kind(problem.model, max_trials=0)


def test_settings_that_exclude_each_other_are_refused():
    model = cases.problem("mlp").model
    with pytest.raises(ValueError, match="trust region"):
        Newton(model, damping=LevenbergMarquardt(noise=0.0), search=TrustRegion())
    with pytest.raises(ValueError, match="leave damping out"):
        Newton(model, damping=0.1, search=LevenbergMarquardt(noise=0.0))
    with pytest.raises(Exception, match="solver"):
        Newton(model, solver="qr")
    with pytest.raises(ValueError, match="subspace"):
        SaddleFreeNewton(model, subspace=0)


# Quadratics


@pytest.mark.parametrize("solver", ["cholesky", "cg", "minres"])
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_one_step_solves_a_quadratic(condition, solver, generator):
    surface = surfaces.quadratic(condition, 6, generator=generator)
    objective = surface.objective()
    Newton(objective.space.module, damping=0.0, solver=solver, tol=1e-13).step(objective)
    assert surface.distance(objective.theta()) < 1e-8


def test_one_step_of_saddle_free_newton_solves_a_convex_quadratic(generator):
    surface = surfaces.quadratic(1e3, 6, generator=generator)
    for limit in (0, 500):
        objective = surface.objective()
        SaddleFreeNewton(objective.space.module, damping=0.0, dense_limit=limit).step(objective)
        assert surface.distance(objective.theta()) < 1e-9


@pytest.mark.parametrize("name", ["newton", "saddle-free"])
def test_a_damped_step_is_the_formula(name):
    """θ − η (H + α)⁻¹ g and θ − η (|H| + α)⁻¹ g with torch's own eigenvectors."""
    problem = cases.problem("single")
    risk = problem.objective()
    theta, gradient = risk.theta(), risk.grad(risk.theta())
    values, vectors = torch.linalg.eigh(Hessian(risk).dense())
    shown = values + 0.3 if name == "newton" else values.abs() + 0.3
    expected = theta - 0.7 * vectors @ ((vectors.T @ gradient) / shown)
    kind = Newton if name == "newton" else SaddleFreeNewton
    kind(problem.model, lr=0.7, damping=0.3).step(risk)
    torch.testing.assert_close(risk.theta(), expected)


def test_solvers_agree_on_an_indefinite_matrix():
    """A fixed damping too small: all solve the system as it is, wherever it leads."""
    problem = cases.problem("single")
    risk = problem.objective()
    hessian = Hessian(risk).dense()
    smallest = float(torch.linalg.eigvalsh(hessian)[0])
    assert smallest < -1e-3
    ended = []
    for solver in ("cholesky", "minres"):
        twin = cases.problem("single")
        optimizer = Newton(
            twin.model, damping=-0.5 * smallest, solver=solver, tol=1e-12, max_iterations=500
        )
        optimizer.step(twin.objective())
        ended.append(twin.space.theta())
    torch.testing.assert_close(ended[0], ended[1], rtol=1e-6, atol=1e-6)


def test_the_krylov_space_of_everything_has_all_eigenvalues(generator):
    surface = surfaces.quadratic(100.0, 7, generator=generator)
    objective = surface.objective()
    hessian = Hessian(objective)
    values, vectors = krylov_spectrum(hessian, surface.start, 7, generator=generator)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(hessian.dense()))
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(7).double(), atol=1e-12, rtol=0)
    few, basis = krylov_spectrum(hessian, surface.start, 3, generator=generator)
    assert (len(few), basis.shape) == (3, (7, 3))
    # The start lies in the space.
    torch.testing.assert_close(basis @ (basis.T @ surface.start), surface.start)


# Surfaces


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "newton-cg"])
@pytest.mark.parametrize("surface", SMOOTH)
def test_they_end_where_the_gradient_vanishes_and_the_curvature_does_not_fall(surface, name):
    known = SURFACES[surface]()
    objective = known.objective()
    optimizer = MAKERS[name](objective.space.module)
    for _ in range(60):
        optimizer.step(objective)
        if float(objective.grad(objective.theta()).abs().max()) <= 1e-6:
            break
    theta = objective.theta()
    assert float(objective.grad(theta).abs().max()) <= 1e-6
    assert float(torch.linalg.eigvalsh(Hessian(objective).dense())[0]) > 0
    if known.unimodal:
        assert known.distance(theta) < 1e-5


@pytest.mark.parametrize("name", ["saddle", "monkey-saddle"])
def test_newton_is_attracted_to_the_saddle_that_saddle_free_newton_leaves(name):
    surface = SURFACES[name]()
    ended = {}
    for kind in (Newton, SaddleFreeNewton):
        objective = surface.objective()
        pure = {"damping": 0.0} if kind is Newton else {}
        optimizer = kind(objective.space.module, **pure)
        for _ in range(25):
            optimizer.step(objective)
        ended[kind] = objective.theta()
    assert float(ended[Newton].norm()) < 1e-6
    assert surface.distance(ended[SaddleFreeNewton]) < 1e-5


def test_saddle_free_steps_leave_a_saddle_exponentially_and_gradient_descent_at_its_curvature():
    """Along curvature −μ a pure step doubles the distance; gradient descent grows it by 1 + ημ."""
    mu = 1e-3
    objective = Analytic(lambda theta: -0.5 * mu * theta.square().sum(), torch.full((1,), 1e-6))
    optimizer = SaddleFreeNewton(objective.space.module, damping=0.0)
    for k in range(1, 6):
        optimizer.step(objective)
        assert float(objective.theta()) == pytest.approx(1e-6 * 2**k, rel=1e-5)
    assert optimizer.diagnostics()["negative"] == 1


@pytest.mark.parametrize("name", ["rosenbrock", "beale", "himmelblau", "monkey-saddle"])
def test_the_trust_region_takes_about_as_many_steps_as_scipys(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    optimizer = Newton(objective.space.module, damping=0.0, search=TrustRegion(), max_trials=1)
    count = 0
    while float(objective.grad(objective.theta()).norm()) > 1e-8:
        optimizer.step(objective)
        count += 1
        assert count < 100
    plain = surface.objective()
    theirs = scipy.optimize.minimize(
        lambda x: float(surface.function(torch.as_tensor(x))),
        surface.start.numpy(),
        jac=lambda x: plain.grad(torch.as_tensor(x)).numpy(),
        hess=lambda x: Hessian(plain, torch.as_tensor(x)).dense().numpy(),
        method="trust-ncg",
        options={"gtol": 1e-8},
    )
    assert surface.distance(objective.theta()) == pytest.approx(
        surface.distance(torch.as_tensor(theirs.x)), abs=1e-6
    )
    assert count <= 1.5 * theirs.nit


# Networks


def test_large_networks_go_without_the_matrix():
    """The truncated solve with all its iterations is the dense one."""
    a, b = cases.problem("regression"), cases.problem("regression")
    dense = Newton(a.model, damping=5.0, solver="cholesky")
    free = Newton(b.model, damping=5.0, dense_limit=0, tol=1e-12, max_iterations=500)
    for _ in range(3):
        dense.step(a.objective())
        free.step(b.objective())
    torch.testing.assert_close(a.space.theta(), b.space.theta(), rtol=1e-7, atol=1e-9)
    assert free.diagnostics()["solve_iterations"] > 0
    assert free.diagnostics()["unconverged_solves"] == 0


def test_logistic_regression_in_a_handful_of_steps():
    """A ridge makes it strictly convex; the last steps converge quadratically."""
    problem = cases.problem("single")
    for parameter in list(problem.model.parameters())[:2]:
        parameter.requires_grad_(False)
    penalty = Analytic(lambda theta: 0.05 * theta @ theta, problem.model)
    objective = WeightedSum([(1.0, problem.objective()), (1.0, penalty)])
    optimizer = Newton(problem.model, damping=0.0)
    norms = []
    for _ in range(7):
        optimizer.step(objective)
        norms.append(float(objective.grad(objective.theta()).norm()))
    assert norms[-1] < 1e-12
    assert any(0 < b < 10 * a**2 < 0.1 for a, b in itertools.pairwise(norms))


def test_breakdowns_are_statuses():
    broken = Analytic(lambda theta: (theta.sum() - 2).sqrt(), torch.zeros(2).double())
    flat = Analytic(lambda theta: theta.sum(), torch.zeros(2).double())
    for kind in (Newton, SaddleFreeNewton):
        optimizer = kind(broken.space.module)
        assert torch.isnan(optimizer.step(broken))
        assert optimizer.diagnostics()["skipped_steps"] == 1
        # A flat valley without curvature: damping alone gives the step a length.
        before = float(flat.value(flat.theta()))
        kind(flat.space.module, damping=1.0).step(flat)
        assert float(flat.value(flat.theta())) == pytest.approx(before - 2.0)
    still = Newton(flat.space.module, damping=0.0)
    still.step(flat)
    assert still.diagnostics()["skipped_steps"] == 1


def test_a_search_refuses_to_go_uphill():
    """At the top of a hill the pure direction leads to the summit."""
    objective = Analytic(lambda theta: torch.cos(theta).sum(), torch.tensor([0.25]).double())
    optimizer = Newton(objective.space.module, damping=0.0, search="backtracking")
    optimizer.step(objective)
    assert optimizer.diagnostics()["ascent_steps"] == 1
    assert float(objective.theta()) == 0.25
