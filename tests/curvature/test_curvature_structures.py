"""Laws of single structures: function-space isotropy, the chain's inverse, the ladder, rates."""

import itertools
import math

import jaxtyping
import pytest
import torch
from test_curvature_matrices import dense_hessian, dense_jacobian
from torch import nn

import cases
from kobai import Problem
from kobai.curvature import (
    GGN,
    EKFACStructure,
    Fisher,
    Hessian,
    KroneckerStructure,
    adam_diagonal,
    critical_learning_rate,
    exactness,
)
from kobai.curvature.fisher import STRUCTURES
from kobai.linalg import Dense
from tolerances import assert_close


def wide(depth, width=24, n=4, outputs=1):
    """A network wide enough that every layer alone fits all outputs."""
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        sizes = [6] + [width] * (depth - 1) + [outputs]
        layers = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.Tanh()]
        net = nn.Sequential(*layers[:-1]).double()
        data = (torch.randn(n, 6).double(), torch.randn(n, outputs).double())
    return Problem(net, "gaussian", train=data).objective()


def function_space(objective, structure, damping, form="exact"):
    """J (M + λ)⁻¹ Jᵀ / N: what a preconditioned step does to the outputs."""
    matrix = dense_jacobian(objective, objective.theta())
    operator = Fisher(objective, structure)
    return matrix @ operator.solve(matrix.T, damping, form) / objective.size


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 6, 7])
def test_tridiagonal_is_isotropic_in_function_space(depth):
    """α = ⌈L/3⌉, also at L = 5 where Σ is singular; 1 at L = 2, where it is the exact one."""
    kernel = function_space(wide(depth), "tridiagonal", 1e-7)
    alpha = math.ceil(depth / 3)
    assert_close(kernel, alpha * torch.eye(len(kernel), dtype=torch.float64), 1e-2)


@pytest.mark.parametrize(("structure", "alpha"), [("full", 1), ("layer", 3), ("chain", 1)])
def test_isotropy_of_the_definite_structures(structure, alpha):
    kernel = function_space(wide(3, outputs=2), structure, 1e-7)
    assert_close(kernel, alpha * torch.eye(len(kernel), dtype=torch.float64), 1e-3)


def test_kfac_with_equally_damped_factors_has_its_line():
    """α = N (L − 1) + 1 where the factors have full rank (N ≤ fan-in + 1, C N ≤ width)."""
    objective = wide(3)
    kernel = function_space(objective, "kronecker", 1e-9, "each")
    assert_close(kernel / (objective.size * 2 + 1), torch.eye(4, dtype=torch.float64), 1e-3)


def test_tridiagonal_is_indefinite_from_three_layers_on():
    assert Fisher(wide(2), "tridiagonal").operator.positive_semidefinite
    three = Fisher(wide(3, width=5), "tridiagonal")
    assert not three.positive_semidefinite
    values = torch.linalg.eigvalsh(three.dense())
    assert float(values[0]) < -1e-3 * float(values[-1])
    assert three.power(-0.5, 1e-6).status == "indefinite"


def test_tridiagonal_solves_on_both_sides_agree(generator):
    """More rows than parameters: a dense P × P system; fewer: one over the rows."""
    for n in (3, 60):
        objective = wide(3, width=4, n=n)
        operator = Fisher(objective, "tridiagonal")
        vector = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
        residual = operator @ operator.solve(vector, 0.05) + 0.05 * operator.solve(vector, 0.05)
        assert_close(residual, vector, 1e-9)


@pytest.mark.parametrize("n", [3, 30])
def test_damped_chain_has_a_tridiagonal_inverse_and_the_damped_blocks(n):
    objective = wide(4, width=3, n=n)
    operator = Fisher(objective, "chain")
    size = operator.shape[0]
    damped = Fisher(objective).dense() + 0.1 * torch.eye(size, dtype=torch.float64)
    found = operator.inverse(0.1, "each")
    inverse = found.dense()
    assert found.status == "ok"
    assert_close(inverse, inverse.T)
    matrix = torch.linalg.inv(inverse)
    spans = [block.indices for block in objective.space.blocks("layer")]
    for i, rows in enumerate(spans):
        for j, columns in enumerate(spans):
            place = (rows[:, None], columns)
            if abs(i - j) <= 1:
                assert_close(matrix[place], damped[place], 1e-9)
            else:
                assert_close(inverse[place], torch.zeros_like(inverse[place]), 1e-10)
    assert float(torch.linalg.eigvalsh(inverse)[0]) > 0
    assert abs(found.log_determinant - float(torch.linalg.slogdet(matrix)[1])) < 1e-8
    assert_close(operator.inverse(0.1, "pi").dense(), inverse)


def test_undamped_structures_use_the_jitter_ladder_or_refuse():
    operator = Fisher(wide(3), "chain")
    with pytest.raises(ValueError, match="positive damping"):
        operator.inverse(0.0, "each")
    assert operator.inverse(0.0).status == "singular"


def test_too_large_dense_systems_are_refused(monkeypatch):
    from kobai.curvature.structures import coupled_layers

    monkeypatch.setattr(coupled_layers, "LARGEST_SYSTEM", 3)
    operator = Fisher(wide(3))
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    with pytest.raises(ValueError, match="dense system of 4 rows"):
        operator.inverse(0.1)


def test_the_ladder_orders_what_theory_orders():
    objective = cases.objective("mlp")
    ladder = exactness(objective, damping=1e-2)
    rungs = {rung.structure: rung for rung in ladder.rungs}
    assert set(rungs) == set(STRUCTURES)
    assert rungs["full"].frobenius_error < 1e-12
    assert abs(rungs["full"].cosine - 1) < 1e-10
    assert abs(rungs["full"].kl_ratio - 1) < 1e-8
    # Nested sets of entries.
    assert rungs["tridiagonal"].frobenius_error < rungs["layer"].frobenius_error
    assert rungs["layer"].frobenius_error < rungs["unit"].frobenius_error
    assert rungs["unit"].frobenius_error < rungs["diagonal"].frobenius_error
    assert rungs["ekfac"].frobenius_error < rungs["kronecker"].frobenius_error
    exact, gradient = Fisher(objective).dense(), objective.grad(objective.theta())
    damped = exact + 1e-2 * torch.eye(len(exact), dtype=torch.float64)
    best = torch.linalg.solve(damped, gradient)
    other = Fisher(objective, "diagonal").solve(gradient, 1e-2)
    ratio = ((other @ exact @ other) / (best @ exact @ best)).sqrt()
    assert abs(rungs["diagonal"].kl_ratio - float(ratio)) < 1e-8
    text = str(ladder)
    assert "ekfac" in text
    assert "cosine" in text


def test_the_ladder_takes_structures_with_settings_and_refuses_large_networks():
    ladder = exactness(
        cases.objective("segmentation"), [KroneckerStructure("reduce"), EKFACStructure()]
    )
    assert [rung.structure for rung in ladder.rungs] == ["KroneckerStructure", "EKFACStructure"]
    with torch.random.fork_rng():
        net = nn.Linear(80, 80)
        data = (torch.randn(2, 80), torch.randn(2, 80))
    with pytest.raises(ValueError, match="small copy"):
        exactness(Problem(net, "gaussian", train=data).objective())
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="sharing"):
        KroneckerStructure("mean")


QUADRATIC = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))


def grows(step):
    """Whether an iteration started at the sharpest direction grows over many steps."""
    theta = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for _ in range(1000):
        theta = step(theta)
    return float(theta.abs().max()) > 1.0


def torch_step(make):
    """Steps of a torch optimizer on the quadratic."""

    def run(rate):
        parameter = nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
        optimizer = make([parameter], rate)

        def step(_):
            parameter.grad = QUADRATIC @ parameter.detach()
            optimizer.step()
            return parameter.detach().clone()

        return grows(step)

    return run


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({}, lambda p, lr: torch.optim.SGD(p, lr)),
        ({"momentum": 0.6}, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.6)),
        (
            {"momentum": 0.6, "nesterov": True},
            lambda p, lr: torch.optim.SGD(p, lr, momentum=0.6, nesterov=True),
        ),
        # An averaged gradient is heavy ball with dampening.
        (
            {"adam_beta1": 0.6},
            lambda p, lr: torch.optim.SGD(p, lr, momentum=0.6, dampening=0.6),
        ),
    ],
)
def test_the_rules_bound_torchs_own_optimizers(settings, make):
    rate = critical_learning_rate(Dense(QUADRATIC), **settings).value
    run = torch_step(make)
    assert not run(0.99 * rate)
    assert run(1.01 * rate)


def test_critical_rate_of_a_network_has_an_error_bar():
    objective = cases.objective("mlp")
    values = torch.linalg.eigvalsh(dense_hessian(objective, objective.theta()))
    found = critical_learning_rate(objective, tol=1e-3)
    assert found.status == "converged"
    assert abs(found.value - 2 / float(values[-1])) <= found.error + 1e-12
    assert found.error <= 2e-3 * found.value
    assert "2/λ_max" in str(found)
    gauss = critical_learning_rate(objective, gauss_newton=True)
    highest = float(torch.linalg.eigvalsh(GGN(objective).dense())[-1])
    assert abs(gauss.value * highest / 2 - 1) < 1e-3


@pytest.mark.parametrize("structure", ["full", "layer", "unit", "kronecker", "ekfac", "diagonal"])
def test_preconditioned_rate_is_that_of_the_generalised_eigenproblem(structure):
    objective = cases.objective("mlp")
    hessian = Hessian(objective).dense()
    fisher = Fisher(objective, structure)
    damped = fisher.dense() + 0.05 * torch.eye(len(hessian), dtype=torch.float64)
    expected = torch.linalg.eigvals(torch.linalg.solve(damped, hessian)).real.max()
    found = critical_learning_rate(objective, preconditioner=fisher, damping=0.05, tol=1e-6)
    assert found.status == "converged"
    assert abs(found.eigenvalue / float(expected) - 1) < 1e-5
    assert "P⁻¹H" in found.rule


def test_adams_rate_from_its_own_second_moments():
    problem = cases.problem("mlp")
    objective = problem.objective()
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=1e-3, betas=(0.9, 0.99))
    with pytest.raises(ValueError, match="no second moment"):
        adam_diagonal(optimizer, problem.space)
    for _ in range(3):
        optimizer.step(objective)
    entries = adam_diagonal(optimizer, problem.space)
    before = objective.theta()
    found = critical_learning_rate(objective, preconditioner=entries, adam_beta1=0.9, tol=1e-5)
    root = entries.rsqrt()
    similar = root[:, None] * Hessian(objective).dense() * root
    expected = (2 + 1.8) / 0.1 / float(torch.linalg.eigvalsh(similar)[-1])
    assert abs(found.value / expected - 1) < 1e-4
    # What Adam itself divides by: its next step without a new gradient's influence on the scale.
    assert torch.equal(objective.theta(), before)


def test_wrong_and_hopeless_requests():
    matrix = Dense(QUADRATIC)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        critical_learning_rate(matrix, 1.0)
    with pytest.raises(ValueError, match="momentum of its own"):
        critical_learning_rate(matrix, 0.5, adam_beta1=0.9)
    with pytest.raises(ValueError, match="positive entries"):
        critical_learning_rate(matrix, preconditioner=torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="has shape"):
        critical_learning_rate(matrix, preconditioner=Dense(QUADRATIC[:2, :2]))
    flat = critical_learning_rate(Dense(-QUADRATIC))
    assert flat.status == "flat"
    assert flat.value == math.inf
    bent = critical_learning_rate(
        cases.objective("norms"), preconditioner=Fisher(cases.objective("norms"), "tridiagonal"),
        damping=1e-6,
    )  # fmt: skip
    assert bent.status == "preconditioner indefinite"
    assert math.isnan(bent.value)
