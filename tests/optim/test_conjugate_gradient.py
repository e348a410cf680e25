"""Steepest descent and nonlinear conjugate gradients: closed forms, SciPy, and the laws."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

import cases
from kobai.curvature import Hessian
from kobai.linalg import conjugate_gradient
from kobai.optim import NonlinearCG, SteepestDescent
from kobai.optim.line_search import Constant, Exact, StrongWolfe
from kobai.optim.second_order.base import Displacement
from kobai.optim.second_order.conjugate_gradient import BETAS, beta_of
from kobai.problem import SURFACES, Analytic, surfaces
from laws import optimizers as laws

KINDS = [SteepestDescent, NonlinearCG]
SMOOTH = [name for name in SURFACES if name != "ackley"]


def _make(kind, **settings):
    return lambda model, likelihood: kind(model, **settings)


def _shifted(surface, shift):
    return Analytic(lambda theta: surface.function(theta - shift), surface.start)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("search", ["backtracking", "strong-wolfe", "exact"])
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
def test_law(law, search, kind):
    law(_make(kind, search=search), cases.problem("mlp"))


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters_stay(kind):
    problem = cases.problem("frozen")
    before = {n: p.clone() for n, p in problem.model.named_parameters()}
    optimizer = kind(problem.model)
    for _ in range(3):
        optimizer.step(problem.objective())
    for name, parameter in problem.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("kind", KINDS)
def test_closures_go_the_same_way_as_objectives(kind):
    first, second = cases.problem("mlp"), cases.problem("mlp")
    one, two = kind(first.model), kind(second.model)
    objective = second.objective()
    for _ in range(4):
        returned = []

        def closure(returned=returned):
            assert torch.is_grad_enabled()
            returned.append(objective())
            return returned[-1]

        value = one.step(first.objective())
        assert two.step(closure) is returned[0]
        assert float(value) == pytest.approx(float(returned[0]), rel=1e-14)
        torch.testing.assert_close(first.space.theta(), second.space.theta())
    a, b = one.diagnostics(), two.diagnostics()
    assert a["gradients"] + a["values"] == b["gradients"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_asked_is_refused(kind):
    problem, other = cases.problem("mlp"), cases.problem("mlp")
    optimizer = kind(problem.model)
    with pytest.raises(TypeError, match=r"problem\.objective"):
        optimizer.step()
    with pytest.raises(ValueError, match="another model"):
        optimizer.step(other.objective())
    with pytest.raises(ValueError, match="one"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    for wrong in ({"iterations": 0}, {"tol": -1.0}, {"lr": 0.0}, {"search": "golden"}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            kind(problem.model, **wrong)


def test_impossible_settings_of_conjugate_gradients_are_refused():
    model = cases.problem("mlp").model
    for wrong in ({"beta": "x"}, {"restart_every": 0}, {"restart_above": 0.0}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            NonlinearCG(model, **wrong)


# Quadratics


@pytest.mark.parametrize("beta", BETAS)
def test_all_variants_are_linear_conjugate_gradients_on_a_quadratic(beta, generator):
    """Iterate by iterate the solver of kobai.linalg; done after as many steps as eigenvalues."""
    surface = surfaces.quadratic(100.0, 8, generator=generator)
    objective = surface.objective()
    hessian = Hessian(objective).dense()
    oracle = conjugate_gradient(
        Hessian(objective), -objective.grad(surface.start), tol=1e-12, keep="all"
    )
    optimizer = NonlinearCG(objective.space.module, beta=beta, search="exact")
    for iterate in oracle.iterates[:8]:
        optimizer.step(objective)
        torch.testing.assert_close(objective.theta(), surface.start + iterate, rtol=1e-7, atol=1e-7)
    assert float((hessian @ objective.theta()).norm()) < 1e-8 * float(
        (hessian @ surface.start).norm()
    )
    found = optimizer.diagnostics()
    assert found["gradients"] == 2 * 8
    assert found["products"] == 8


def test_directions_of_steepest_descent_are_orthogonal_and_contract_at_kantorovichs_rate():
    """From the worst start the error falls by exactly ((κ − 1)/(κ + 1))² a step."""
    kappa = 25.0
    surface = surfaces.quadratic(kappa)
    objective = surface.objective(torch.tensor([kappa, 1.0]).double())
    optimizer = SteepestDescent(objective.space.module, search="exact")
    gradients, values = [], []
    for _ in range(6):
        values.append(float(optimizer.step(objective)))
        gradients.append(objective.space.module.theta.grad.clone())
    for g, h in itertools.pairwise(gradients):
        assert abs(float(g @ h)) < 1e-12 * float(g.norm() * h.norm())
    rates = np.divide(values[1:], values[:-1])
    np.testing.assert_allclose(rates, ((kappa - 1) / (kappa + 1)) ** 2, rtol=1e-10)


@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_conjugate_gradients_stay_below_chebyshevs_bound(condition, generator):
    surface = surfaces.quadratic(condition, 60, generator=generator)
    objective = surface.objective()
    optimizer = NonlinearCG(objective.space.module, search="exact")
    start = float(objective.value(surface.start))
    root = condition**0.5
    for k in range(1, 25):
        optimizer.step(objective)
        bound = 4 * ((root - 1) / (root + 1)) ** (2 * k) * start
        assert float(objective.value(objective.theta())) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("beta", BETAS)
def test_formulas_for_beta(beta):
    """Worked by hand: g = (2, 0), g⁺ = (1, 3), p = (−1, 1)."""
    by_hand = {
        "fletcher-reeves": 10 / 4,
        "polak-ribiere": (1 * -1 + 9) / 4,
        "polak-ribiere+": 8 / 4,
        "hestenes-stiefel": 8 / 4,
        "dai-yuan": 10 / 4,
    }
    move = Displacement(
        direction=torch.tensor([-1.0, 1.0]).double(),
        step=0.5,
        before=torch.tensor([2.0, 0.0]).double(),
        after=torch.tensor([1.0, 3.0]).double(),
    )
    assert beta_of(beta, move) == pytest.approx(by_hand[beta])
    back = Displacement(
        direction=-move.before, step=1.0, before=move.before, after=0.5 * move.before
    )
    assert beta_of("polak-ribiere+", back) == 0.0
    assert beta_of("polak-ribiere", back) < 0.0


# Surfaces


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("beta", BETAS)
def test_conjugate_gradients_end_where_the_gradient_vanishes(beta, name):
    surface = SURFACES[name]()
    objective = surface.objective()
    optimizer = NonlinearCG(objective.space.module, beta=beta, iterations=500, tol=1e-6)
    optimizer.step(objective)
    assert optimizer.diagnostics()["status"] == "stationary"
    assert float(objective.grad(objective.theta()).abs().max()) <= 1e-6
    if surface.unimodal:
        assert surface.distance(objective.theta()) < 1e-4


@pytest.mark.parametrize("name", [n for n in SMOOTH if n != "rosenbrock"])
def test_steepest_descent_ends_where_the_gradient_vanishes(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    SteepestDescent(objective.space.module, iterations=2000, tol=1e-6).step(objective)
    assert float(objective.grad(objective.theta()).abs().max()) <= 1e-6
    if surface.unimodal:
        assert surface.distance(objective.theta()) < 1e-4


@pytest.mark.parametrize("name", ["rosenbrock", "beale", "himmelblau", "monkey-saddle"])
def test_as_few_gradients_as_scipy(name):
    """SciPy's conjugate gradients are Polak-Ribière+ with a Wolfe search, as these are."""
    surface = SURFACES[name]()
    objective = surface.objective()
    optimizer = NonlinearCG(objective.space.module, iterations=500, tol=1e-6)
    optimizer.step(objective)
    theirs = scipy.optimize.minimize(
        lambda x: float(surface.function(torch.as_tensor(x))),
        surface.start.numpy(),
        jac=lambda x: surface.objective().grad(torch.as_tensor(x)).numpy(),
        method="CG",
        options={"gtol": 1e-6},
    )
    assert surface.distance(objective.theta()) == pytest.approx(
        surface.distance(torch.as_tensor(theirs.x)), abs=1e-5
    )
    assert optimizer.diagnostics()["gradients"] <= 1.8 * theirs.njev


def test_one_step_of_many_iterations_is_many_steps_of_one():
    surface = SURFACES["rosenbrock"]()
    a, b = surface.objective(), surface.objective()
    one = NonlinearCG(a.space.module, iterations=10)
    many = NonlinearCG(b.space.module)
    one.step(a)
    for _ in range(10):
        many.step(b)
    assert torch.equal(a.theta(), b.theta())
    assert one.diagnostics()["gradients"] < many.diagnostics()["gradients"]


# Restarts, minibatches, endings


def test_restarts_are_periodic_or_where_gradients_overlap():
    objective = SURFACES["rosenbrock"]().objective()
    periodic = NonlinearCG(objective.space.module, restart_every=5)
    for k in range(1, 16):
        periodic.step(objective)
        assert periodic.diagnostics()["restarts"] == k // 5
    objective = SURFACES["rosenbrock"]().objective()
    never = NonlinearCG(objective.space.module, restart_every=10**6, search=Exact())
    powell = NonlinearCG(
        objective.space.module, restart_every=10**6, restart_above=1e-9, search=StrongWolfe()
    )
    never.step(objective)
    powell.step(objective)
    assert never.diagnostics()["restarts"] == 0
    assert powell.diagnostics()["restarts"] == 1


def test_a_step_asks_only_its_own_minibatch():
    """β comes from two gradients of one batch: the direction is −g of the new one plus β p."""
    problem = cases.problem("mlp")
    g = torch.Generator().manual_seed(0)
    first, second = list(problem.minibatches(4, generator=g))[:2]
    optimizer = NonlinearCG(problem.model)
    risk = problem.objective(first)
    before = risk.grad(risk.theta())
    start = risk.theta()
    optimizer.step(risk)
    after = risk.grad(risk.theta())
    step = optimizer.diagnostics()["step"]
    move = Displacement(
        direction=(risk.theta() - start) / step, step=step, before=before, after=after
    )
    kept = beta_of("polak-ribiere+", move) * move.direction
    other = problem.objective(second)
    start, fresh = other.theta(), other.grad(other.theta())
    optimizer.step(other)
    moved = (other.theta() - start) / optimizer.diagnostics()["step"]
    torch.testing.assert_close(moved, kept - fresh, rtol=1e-9, atol=1e-12)


def test_minima_and_breakdowns_move_nothing():
    quadratic = surfaces.quadratic().objective(torch.zeros(2).double())
    optimizer = NonlinearCG(quadratic.space.module)
    optimizer.step(quadratic)
    assert optimizer.diagnostics()["status"] == "stationary"
    broken = Analytic(lambda theta: (theta.sum() - 2).sqrt(), torch.zeros(2).double())
    for kind in KINDS:
        optimizer = kind(broken.space.module)
        assert torch.isnan(optimizer.step(broken))
        found = optimizer.diagnostics()
        assert (found["status"], found["skipped_steps"]) == ("non-finite", 1)
        assert torch.equal(broken.theta(), torch.zeros(2).double())


def test_constant_search_is_gradient_descent():
    """Torch's SGD as the oracle, bit by bit."""
    first, second = cases.problem("mlp"), cases.problem("mlp")
    ours = SteepestDescent(first.model, lr=0.1, search=Constant())
    theirs = torch.optim.SGD(second.model.parameters(), lr=0.1)
    for _ in range(5):
        ours.step(first.objective())
        theirs.step(second.objective())
    torch.testing.assert_close(first.space.theta(), second.space.theta(), rtol=1e-14, atol=1e-14)
