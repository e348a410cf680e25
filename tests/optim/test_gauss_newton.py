"""Levenberg-Marquardt, Hessian-free optimization and the damping rules they share."""

import itertools
import math

import pytest
import torch
from torch import nn

import cases
from kobai.curvature import GGN
from kobai.optim import CONFIGS, GaussNewton, HessianFree, LevenbergMarquardt, build
from kobai.optim.damping import ReductionRatio, reduction_ratio
from kobai.optim.second_order.examples import example_losses, example_model
from kobai.problem import Problem
from laws import optimizers as laws


def _descends(make, problem):
    laws.descends(make, problem, steps=10)


@pytest.mark.parametrize("kind", [GaussNewton, HessianFree])
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
def test_law(law, kind):
    law(kind, cases.problem("mlp"))


@pytest.mark.parametrize("name", ["ngd", "ngd-kronecker"])
def test_minibatches_by_name_descend(name):
    problem = cases.problem("mlp")
    optimizer = build(name, problem.model, problem.likelihood)
    before = float(problem.objective()())
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        for batch in problem.minibatches(4, generator=g):
            optimizer.step(problem.objective(batch))
    assert float(problem.objective()()) < before


def test_every_name_has_settings_that_refuse_nonsense():
    for name in CONFIGS:
        if name.startswith("ngd") or name in ("gauss-newton", "hessian-free"):
            with pytest.raises(ValueError, match="damping"):
                CONFIGS[name](damping=-1.0)


# The ratio and its noise


def _ratio(value, error=0.0):
    return ReductionRatio(actual=-value, predicted=-1.0, value=value, error=error)


@pytest.mark.parametrize(
    ("value", "error", "action"),
    [
        (0.1, 0.0, "raised"),
        (0.1, 0.1, "raised"),
        (0.1, 0.2, "noise"),
        (0.5, 5.0, "kept"),
        (0.9, 0.0, "lowered"),
        (0.9, 0.2, "noise"),
        (-math.inf, 0.0, "raised"),
        (math.nan, 0.0, "kept"),
    ],
)
def test_rule_changes_the_damping_only_beyond_doubt(value, error, action):
    following, found = LevenbergMarquardt().decide(0.6, _ratio(value, error))
    assert found == action
    assert following == pytest.approx({"raised": 0.9, "lowered": 0.4}.get(action, 0.6))


def test_rule_stays_within_its_bounds():
    rule = LevenbergMarquardt(initial=1.0, minimum=0.9, maximum=1.1)
    assert rule.decide(1.0, _ratio(0.9)) == (0.9, "lowered")
    assert rule.decide(0.9, _ratio(0.9)) == (0.9, "bound")
    assert rule.decide(1.0, _ratio(0.0)) == (1.1, "raised")
    assert rule.decide(1.1, _ratio(0.0)) == (1.1, "bound")


def test_standard_error_of_the_ratio_is_that_of_resampled_batches(generator):
    """Delta method against the spread over 4,000 independent batches of 200 examples."""
    draws = torch.randn(4000, 200, 2, generator=generator).double()
    model = -1.0 + 0.5 * draws[..., 0]
    change = 0.6 * model + 0.8 * draws[..., 1]
    ratios = [
        reduction_ratio(torch.zeros(200).double(), c, m, 200.0)
        for c, m in zip(change, model, strict=True)
    ]
    values = torch.tensor([r.value for r in ratios])
    errors = torch.tensor([r.error for r in ratios])
    # The standard error of a spread over n batches is 1/√(2n) = 1.1 %.
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.05)
    assert float(values.mean()) == pytest.approx(0.6, abs=0.01)


def test_model_that_is_right_for_every_example_has_no_error():
    model = -torch.tensor([1.0, 5.0, 0.1]).double()
    found = reduction_ratio(torch.ones(3).double(), 1 + 0.5 * model, model, 3.0)
    assert found.value == pytest.approx(0.5)
    assert found.error < 1e-12


def test_model_of_examples_adds_up_to_gradient_and_gauss_newton_matrix(generator):
    problem = cases.problem("mlp")
    risk, theta = problem.objective(chunk=4), problem.space.theta()
    step = torch.randn(theta.shape, generator=generator).double()
    found = example_model(risk, theta, step)
    assert found.slope == pytest.approx(float(risk.grad(theta) @ step))
    assert found.length == pytest.approx(float(step @ (GGN(risk) @ step)))
    assert float(found.losses.sum()) / risk.weight == pytest.approx(float(risk.value(theta)))
    torch.testing.assert_close(example_losses(risk, theta), found.losses)


# Levenberg-Marquardt


class _Rosenbrock(nn.Module):
    """½‖f‖² is Rosenbrock's function: f = (10 (b − a²), 1 − a)."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([-1.2, 1.0]).double())

    def forward(self, x):
        a, b = self.point
        return torch.stack([10 * (b - a**2), 1 - a]).expand(len(x), 2)


def _rosenbrock():
    one = torch.ones(1, 1).double()
    return Problem(_Rosenbrock(), "gaussian", train=(one, torch.zeros(1, 2).double()))


def test_levenberg_marquardt_rejects_steps_and_solves_rosenbrock():
    problem = _rosenbrock()
    optimizer = GaussNewton(
        problem.model,
        "gaussian",
        damping=LevenbergMarquardt(initial=1e-6, raise_by=4.0, lower_by=1 / 3, noise=0.0),
    )
    losses = [float(optimizer.step(problem.objective())) for _ in range(40)]
    assert all(b <= a for a, b in itertools.pairwise(losses))
    told = optimizer.diagnostics()
    assert told["rejected_trials"] > 0
    assert any(d["action"] == "rejected" and d["next"] > d["damping"] for d in told["decisions"])
    torch.testing.assert_close(problem.model.point.detach(), torch.ones(2).double())


def test_fixed_damping_makes_every_finite_step():
    problem = _rosenbrock()
    optimizer = GaussNewton(problem.model, "gaussian", damping=1e-6)
    losses = [float(optimizer.step(problem.objective())) for _ in range(5)]
    assert max(losses) > losses[0]
    assert optimizer.diagnostics()["rejected_trials"] == 0


@pytest.mark.parametrize("kind", [GaussNewton, HessianFree])
def test_steps_to_nowhere_are_counted_not_made(kind):
    problem = cases.problem("regression")
    with torch.no_grad():
        problem.model[2].weight[0, 0] = math.inf
    before = problem.space.theta()
    optimizer = kind(problem.model, problem.likelihood)
    optimizer.step(problem.objective())
    assert torch.equal(problem.space.theta(), before)
    assert optimizer.diagnostics()["skipped_steps"] == 1
    with pytest.raises(TypeError, match=r"problem\.objective"):
        optimizer.step(lambda: torch.zeros(()))


# Hessian-free


def test_enough_iterations_give_the_gauss_newton_step():
    problem, twin = cases.problem("mlp"), cases.problem("mlp")
    before = problem.space.theta()
    HessianFree(
        problem.model, problem.likelihood, damping=1.0, progress=0.0, max_iterations=500
    ).step(problem.objective())
    GaussNewton(twin.model, twin.likelihood, damping=1.0).step(twin.objective())
    torch.testing.assert_close(
        problem.space.theta() - before, twin.space.theta() - before, rtol=1e-5, atol=1e-7
    )


def _deep(generator):
    """A tanh network of five layers of four units, poorly scaled at the start."""
    layers = []
    for _ in range(4):
        layers += [nn.utils.skip_init(nn.Linear, 4, 4), nn.Tanh()]
    model = nn.Sequential(*layers, nn.utils.skip_init(nn.Linear, 4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator).double())
    x = torch.randn(40, 4, generator=generator).double()
    y = torch.stack([(torch.sin(3 * x[:, 0]) * x[:, 1] > 0).double(), torch.sin(4 * x[:, 2])], 1)
    return Problem(model, "gaussian", train=(x, y))


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_hessian_free_beats_undamped_conjugate_gradients_at_equal_products(seed):
    """300 products with the Gauss-Newton matrix each, both with the line search."""
    ends = []
    for settings in ({}, {"damping": 0.0, "warm_start": 0.0}):
        problem = _deep(torch.Generator().manual_seed(seed))
        optimizer = HessianFree(problem.model, "gaussian", max_iterations=100, **settings)
        while optimizer.diagnostics()["cg_iterations"] < 300:
            optimizer.step(problem.objective())
        ends.append(float(problem.objective()()))
    assert ends[0] < ends[1]


def test_an_earlier_iterate_is_taken_where_its_loss_is_lower():
    problem = _deep(torch.Generator().manual_seed(1))
    optimizer = HessianFree(problem.model, "gaussian", damping=1e-6)
    for _ in range(5):
        optimizer.step(problem.objective())
    assert optimizer.diagnostics()["backtracked_steps"] > 0


def test_diagonal_preconditioner_descends():
    laws.descends(
        lambda m, lik: HessianFree(m, lik, preconditioner="diagonal"),
        cases.problem("mlp"),
        steps=10,
    )
