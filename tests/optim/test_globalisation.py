"""Every model of the objective with every way of trusting it, by the one keyword `search`."""

import copy
import itertools

import pytest
import torch

import cases
from kobai.curvature import Fisher, KroneckerStructure
from kobai.optim import (
    BFGS,
    CoordinateDescent,
    Exact,
    GaussNewton,
    HessianFree,
    LevenbergMarquardt,
    NaturalGradient,
    Newton,
    NonlinearCG,
    SaddleFreeNewton,
    SteepestDescent,
    StrongWolfe,
    TrustRegion,
)
from kobai.problem import SURFACES

RULE = LevenbergMarquardt(initial=0.1, raise_by=4.0, lower_by=1 / 3, noise=0.0)
SEARCHES = {
    "backtracking": "backtracking",
    "strong-wolfe": StrongWolfe(),
    "exact": Exact(),
    "trust-region": TrustRegion(),
    "dogleg": TrustRegion(subproblem="dogleg"),
    "levenberg-marquardt": RULE,
}
QUADRATIC = [Newton, SaddleFreeNewton, GaussNewton, HessianFree, NaturalGradient, BFGS]
LINES = [NonlinearCG, SteepestDescent, CoordinateDescent]
NEED_LIKELIHOOD = (GaussNewton, HessianFree, NaturalGradient)
PAIRS = [
    *itertools.product(QUADRATIC, SEARCHES),
    *itertools.product(LINES, ("backtracking", "strong-wolfe", "exact")),
]


def _make(kind, problem, **settings):
    if kind in NEED_LIKELIHOOD:
        return kind(problem.model, problem.likelihood, **settings)
    return kind(problem.model, **settings)


@pytest.mark.parametrize(
    ("kind", "search"), PAIRS, ids=lambda part: getattr(part, "__name__", part)
)
def test_every_pair_descends_and_is_copied_to_the_bit(kind, search):
    problem = cases.problem("mlp")
    optimizer = _make(kind, problem, search=SEARCHES[search])
    objective = problem.objective()
    losses = [float(optimizer.step(objective)) for _ in range(3)]
    twin, other = copy.deepcopy((problem, optimizer))
    assert repr(other) == repr(optimizer)
    for p, o in ((problem, optimizer), (twin, other)):
        losses.append(float(o.step(p.objective())))
    assert torch.equal(problem.space.theta(), twin.space.theta())
    assert losses[-1] == losses[-2] < losses[0]
    told = optimizer.diagnostics()
    assert told["steps"] == 4
    assert ("decisions" in told) == ("damping" in optimizer.param_groups[0])


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("search", [TrustRegion(), RULE], ids=["region", "damping"])
def test_directions_without_a_quadratic_model_take_line_searches_only(kind, search):
    with pytest.raises(
        ValueError, match=f"{kind.__name__} has no quadratic model for a {type(search).__name__}"
    ):
        kind(cases.problem("mlp").model, search=search)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search": RULE, "damping": 0.1}, "leave damping out"),
        ({"search": TrustRegion(), "damping": RULE}, "trust region"),
        ({"search": TrustRegion(), "momentum": 0.9}, "leave out"),
        ({"search": "exact", "kl_bound": 0.1}, "leave out"),
    ],
)
def test_pairs_that_exclude_each_other_are_refused(settings, words):
    problem = cases.problem("mlp")
    with pytest.raises(ValueError, match=words):
        NaturalGradient(problem.model, problem.likelihood, **settings)


def test_a_rule_as_search_is_the_rule_as_damping():
    first, second = cases.problem("mlp"), cases.problem("mlp")
    one, two = Newton(first.model, search=RULE), Newton(second.model, damping=RULE)
    for _ in range(4):
        one.step(first.objective())
        two.step(second.objective())
    assert torch.equal(first.space.theta(), second.space.theta())
    assert one.diagnostics() == two.diagnostics()


@pytest.mark.parametrize("search", ["trust-region", "dogleg", "levenberg-marquardt"])
def test_bfgs_solves_rosenbrock_without_a_line_search(search):
    surface = SURFACES["rosenbrock"]()
    objective = surface.objective()
    optimizer = BFGS(objective.space.module, search=SEARCHES[search], iterations=300, tol=1e-8)
    optimizer.step(objective)
    assert optimizer.diagnostics()["status"] == "stationary"
    assert surface.distance(objective.theta()) < 1e-6


def test_natural_gradient_takes_a_structure_object():
    """The step is that of the dense matrix of the same structure."""
    problem = cases.problem("mlp")
    risk, structure = problem.objective(), KroneckerStructure("reduce")
    before, gradient = risk.theta(), risk.grad(risk.theta())
    matrix = Fisher(risk, structure).dense() + 0.1 * torch.eye(len(before)).double()
    NaturalGradient(
        problem.model, problem.likelihood, structure=structure, damping=0.1, damping_form="exact"
    ).step(risk)
    expected = before - torch.linalg.solve(matrix, gradient)
    torch.testing.assert_close(risk.theta(), expected, rtol=1e-7, atol=1e-9)
