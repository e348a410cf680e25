"""Coordinate descent: Gauss-Seidel, the chapter's two examples, and the laws."""

import numpy as np
import pytest
import sklearn.linear_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cases
from kobai.curvature import Hessian
from kobai.optim import CoordinateDescent
from kobai.optim.second_order.coordinate import lasso, soft_threshold
from kobai.problem import SURFACES, Analytic, ParameterSpace, surfaces
from laws import optimizers as laws


def _make(**settings):
    return lambda model, likelihood: CoordinateDescent(model, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"blocks": "layer"},
        {"blocks": "parameter", "order": "greedy"},
        {"blocks": "unit", "order": "random", "updates": 3},
        {"blocks": "coordinate", "order": "greedy", "updates": 5},
        {"blocks": "layer", "dense_limit": 1},
    ],
    ids=lambda s: f"{s['blocks']}-{s.get('order', 'cyclic')}-{s.get('dense_limit', '')}",
)
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
def test_law(law, settings):
    law(_make(**settings), cases.problem("mlp"))


def test_frozen_parameters_stay():
    problem = cases.problem("frozen")
    before = {n: p.clone() for n, p in problem.model.named_parameters()}
    optimizer = CoordinateDescent(problem.model, blocks="parameter", updates=None)
    optimizer.step(problem.objective())
    for name, parameter in problem.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_one_sweep_on_a_quadratic_is_gauss_seidel(generator):
    """θ ← θ − (D + L)⁻¹ (A θ), D and L the diagonal and lower part of A."""
    surface = surfaces.quadratic(30.0, 6, generator=generator)
    objective = surface.objective()
    matrix = Hessian(objective).dense()
    optimizer = CoordinateDescent(objective.space.module, updates=None)
    theta = surface.start
    for _ in range(4):
        theta = theta - torch.linalg.solve_triangular(
            matrix.tril(), (matrix @ theta).unsqueeze(1), upper=False
        ).squeeze(1)
        optimizer.step(objective)
        torch.testing.assert_close(objective.theta(), theta, rtol=1e-9, atol=1e-12)
    assert optimizer.diagnostics()["updates"] == 24


def test_over_relaxation_is_sor(generator):
    surface = surfaces.quadratic(30.0, 6, generator=generator)
    objective = surface.objective()
    matrix = Hessian(objective).dense()
    omega = 1.4
    CoordinateDescent(objective.space.module, lr=omega, updates=None).step(objective)
    lower = torch.diag(matrix.diagonal()) + omega * matrix.tril(-1)
    theta = surface.start - omega * torch.linalg.solve(lower, matrix @ surface.start)
    torch.testing.assert_close(objective.theta(), theta, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "blocks", ["coordinate", {"a": torch.tensor([0, 3]), "b": torch.tensor([1, 2])}]
)
def test_greedy_takes_the_block_with_the_largest_gradient(blocks, generator):
    surface = surfaces.quadratic(30.0, 4, generator=generator)
    objective = surface.objective()
    optimizer = CoordinateDescent(objective.space.module, blocks=blocks, order="greedy")
    for _ in range(5):
        gradient = objective.grad(objective.theta())
        optimizer.step(objective)
        if blocks == "coordinate":
            expected = str(int(gradient.abs().argmax()))
        else:
            expected = max(blocks, key=lambda b: float(gradient[blocks[b]].norm()))
        assert optimizer.diagnostics()["block"] == expected


@pytest.mark.parametrize("alpha", [1e-2, 0.1, 1.0])
def test_the_chapters_second_example_crawls_at_its_known_rate(alpha):
    """(x₁ − x₂)² + α (x₁² + x₂²): a sweep multiplies x₂ by 1/(1 + α)², slow as α → 0."""

    def function(theta):
        return (theta[0] - theta[1]) ** 2 + alpha * theta.square().sum()

    objective = Analytic(function, torch.tensor([1.0, 1.0]).double())
    optimizer = CoordinateDescent(objective.space.module, updates=2)
    second = 1.0
    for _ in range(10):
        optimizer.step(objective)
        assert float(objective.theta()[1]) == pytest.approx(second / (1 + alpha) ** 2, rel=1e-10)
        second = float(objective.theta()[1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), penalty=st.floats(0.01, 2.0))
def test_lasso_is_scikit_learns(seed, penalty):
    g = np.random.default_rng(seed)
    design, target = g.normal(size=(12, 4)), g.normal(size=12)
    theirs = sklearn.linear_model.Lasso(
        alpha=penalty / 12, fit_intercept=False, tol=1e-12, max_iter=100_000
    ).fit(design, target)
    ours = lasso(
        torch.as_tensor(design.T @ design),
        torch.as_tensor(design.T @ target).unsqueeze(1),
        penalty,
    )
    np.testing.assert_allclose(ours.squeeze(1).numpy(), theirs.coef_, atol=1e-7)


def test_soft_threshold():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])
    assert soft_threshold(x, 1.0).tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0]


class _Codes(nn.Module):
    """W (codes, features) and H (codes, examples)."""

    def __init__(self, codes, features, examples, generator):
        super().__init__()
        self.W = nn.Parameter(torch.randn(codes, features, generator=generator).double())
        self.H = nn.Parameter(torch.randn(codes, examples, generator=generator).double())


def test_the_chapters_sparse_coding_by_alternating_blocks(generator):
    """Σ|H| + Σ(X − WᵀH)², convex in W and in H but not in both: each block is solved exactly.

    A penalty μ‖W‖² is added: without one the infimum is not attained, since H/c and cW fit as well
    as H and W at a lower price.
    """
    mu = 0.1
    x = torch.randn(5, 40, generator=generator).double()
    model = _Codes(3, 5, 40, generator)

    def formula(theta):
        parts = objective_space.unflatten(theta)
        w, h = parts["W"], parts["H"]
        return h.abs().sum() + (x - w.T @ h).square().sum() + mu * w.square().sum()

    objective_space = ParameterSpace(model)
    objective = Analytic(formula, model)

    def best_w(theta):
        h = objective.space.unflatten(theta)["H"]
        return torch.linalg.solve(h @ h.T + mu * torch.eye(3).double(), h @ x.T)

    def best_h(theta):
        parts = objective.space.unflatten(theta)
        w = parts["W"]
        return lasso(2 * w @ w.T, 2 * w @ x, 1.0, start=parts["H"])

    optimizer = CoordinateDescent(
        model, blocks={"W": ["W"], "H": ["H"]}, minimizers={"W": best_w, "H": best_h}
    )
    values = [float(objective.value(objective.theta()))]
    for k in range(100):
        optimizer.step(objective)
        values.append(float(objective.value(objective.theta())))
        assert values[-1] <= values[-2] + 1e-10
        w, h = model.W.detach(), model.H.detach()
        residual = w.T @ h - x
        # Optimal in the block just solved: zero gradient in W; in H the conditions of the lasso.
        if k % 2 == 0:
            assert float((2 * h @ residual.T + 2 * mu * w).abs().max()) < 1e-8
        else:
            slope = 2 * w @ residual
            assert float((slope + h.sign())[h != 0].abs().max()) < 1e-6
            assert float(slope[h == 0].abs().max()) <= 1 + 1e-6
    assert values[-1] < 0.8 * values[1]
    assert 0.1 < float((h == 0).double().mean()) < 0.9


@pytest.mark.parametrize("name", [n for n in SURFACES if n not in ("ackley", "rosenbrock")])
def test_it_ends_where_the_gradient_vanishes(name):
    surface = SURFACES[name]()
    objective = surface.objective()
    optimizer = CoordinateDescent(objective.space.module, updates=2)
    for _ in range(300):
        optimizer.step(objective)
        if float(objective.grad(objective.theta()).abs().max()) <= 1e-6:
            break
    assert float(objective.grad(objective.theta()).abs().max()) <= 1e-6
    if surface.unimodal:
        assert surface.distance(objective.theta()) < 1e-4


def test_what_is_wrong_is_refused():
    problem = cases.problem("mlp")
    with pytest.raises(TypeError, match=r"problem\.objective"):
        CoordinateDescent(problem.model).step(lambda: problem.objective()())
    for wrong in (
        {"blocks": {"a": ["0.weight"]}},
        {"blocks": {"a": ["nothing"]}},
        {"blocks": "rows"},
        {"order": "zigzag"},
        {"updates": 0},
        {"minimizers": {"unknown": lambda theta: theta}},
    ):
        with pytest.raises(Exception, match=r"blocks?|order|updates"):
            CoordinateDescent(problem.model, **wrong)


def test_endings_are_statuses():
    broken = Analytic(lambda theta: (theta.sum() - 2).sqrt(), torch.zeros(2).double())
    optimizer = CoordinateDescent(broken.space.module)
    assert torch.isnan(optimizer.step(broken))
    assert optimizer.diagnostics()["skipped_steps"] == 1
    hill = Analytic(lambda theta: -theta.square().sum(), torch.ones(2).double())
    optimizer = CoordinateDescent(hill.space.module)
    optimizer.step(hill)
    assert optimizer.diagnostics()["gradient_updates"] == 1
    wrong = Analytic(lambda theta: theta.square().sum(), torch.ones(2).double())
    optimizer = CoordinateDescent(
        wrong.space.module, blocks={"all": ["theta"]}, minimizers={"all": lambda theta: 2 * theta}
    )
    optimizer.step(wrong)
    assert optimizer.diagnostics()["status"] == "no-decrease"
    assert torch.equal(wrong.theta(), torch.ones(2).double())
