"""Hessian, Gauss-Newton and Jacobian products against dense matrices by torch.func."""

import pytest
import torch
from torch import nn

import cases
from kobai.curvature import GGN, Hessian, Jacobian
from kobai.problem import Analytic, WeightedSum, pure
from tolerances import assert_close

# The oracle goes row by row in reverse mode: forward mode fails on recurrent layers, and torch's
# batching rules for the second derivative of LayerNorm and GroupNorm are wrong.


def jacobian(function):
    return torch.func.jacrev(function, chunk_size=1)


def dense_hessian(objective, theta):
    with pure(objective.model):
        return jacobian(jacobian(cases.dense_loss(objective)))(theta)


def dense_jacobian(objective, theta):
    def outputs(theta):
        return torch.cat([objective.forward(theta, b).flatten() for b in objective.batches])

    with pure(objective.model):
        return jacobian(outputs)(theta)


def dense_ggn(objective, theta):
    jacobian, start = dense_jacobian(objective, theta), 0
    total = torch.zeros(theta.numel(), theta.numel(), dtype=theta.dtype)
    for batch in objective.batches:
        with torch.no_grad():
            outputs = objective.forward(theta, batch)
        rows = jacobian[start : start + outputs.numel()]
        start += outputs.numel()

        def nll(f, outputs=outputs, batch=batch):
            return objective.likelihood.nll(f.view_as(outputs), batch.targets).sum()

        total += rows.T @ torch.func.hessian(nll)(outputs.flatten()) @ rows
    return total / objective.weight


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("keep", [True, False])
def test_hessian_equals_dense(name, keep):
    objective = cases.objective(name, chunk=4)
    theta = objective.theta()
    expected = dense_hessian(objective, theta)
    assert_close(Hessian(objective, keep=keep).dense(), expected)


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("keep", [True, False])
def test_ggn_equals_dense(name, keep):
    objective = cases.objective(name, chunk=4)
    expected = dense_ggn(objective, objective.theta())
    assert_close(GGN(objective, keep=keep).dense(), expected)


@pytest.mark.parametrize("name", cases.CASES)
def test_jacobian_and_its_transpose_equal_dense(name):
    objective = cases.objective(name, chunk=4)
    expected = dense_jacobian(objective, objective.theta())
    jacobian = Jacobian(objective)
    assert_close(jacobian.dense(), expected)
    assert_close(jacobian.T.dense(), expected.T)


@pytest.mark.parametrize("matrix", [Hessian, GGN])
@pytest.mark.parametrize("name", ["mlp", "resnet", "lstm", "transformer"])
def test_one_column_equals_a_block(matrix, name, generator):
    operator = matrix(cases.objective(name))
    columns = torch.randn(operator.shape[0], 3, generator=generator, dtype=torch.float64)
    singly = torch.stack([operator @ column for column in columns.T], dim=1)
    assert_close(operator @ columns, singly, 1e-12)


@pytest.mark.parametrize("matrix", [Hessian, GGN])
def test_chunks_add_up_to_the_whole(matrix):
    whole = matrix(cases.objective("mlp", chunk=9)).dense()
    assert_close(matrix(cases.objective("mlp", chunk=2), keep=False).dense(), whole, 1e-14)


def test_layers_torch_cannot_vectorise_are_multiplied_one_by_one():
    operator = Hessian(cases.objective("norms"), keep=True)
    operator.dense()
    assert operator._kept[0].vectorised is False
    operator = Hessian(cases.objective("mlp"), keep=True)
    operator.dense()
    assert operator._kept[0].vectorised is True


def test_elsewhere_than_at_the_module(generator):
    objective = cases.objective("mlp")
    theta = torch.randn(objective.space.dimension, generator=generator, dtype=torch.float64)
    before = objective.theta()
    assert_close(Hessian(objective, theta).dense(), dense_hessian(objective, theta))
    assert torch.equal(objective.theta(), before)


def test_the_point_is_fixed_when_the_module_moves_on():
    objective = cases.objective("mlp")
    operator = Hessian(objective, keep=False)
    expected = operator.dense()
    objective.space.assign(objective.theta() + 1.0)
    assert_close(operator.dense(), expected, 1e-14)


def test_hessian_is_gauss_newton_for_a_linear_model():
    """The model's own second derivative vanishes, so only the loss is curved."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
        from kobai import Problem

        objective = Problem(nn.Linear(3, 3).double(), "categorical", train=(x, y)).objective()
    assert_close(Hessian(objective).dense(), GGN(objective).dense(), 1e-14)


def test_hessian_of_a_formula_and_of_a_sum(generator):
    a = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    a = a + a.T
    quadratic = Analytic(lambda t: 0.5 * t @ a @ t, torch.ones(4, dtype=torch.float64))
    assert_close(Hessian(quadratic).dense(), a, 1e-14)
    risk = cases.objective("mlp")
    ridge = Analytic(lambda t: 0.5 * t @ t, risk.model)
    total = WeightedSum([(1.0, risk), (0.1, ridge)])
    expected = Hessian(risk).dense() + 0.1 * torch.eye(risk.space.dimension, dtype=torch.float64)
    assert_close(Hessian(total).dense(), expected, 1e-14)


def test_a_linear_formula_has_no_curvature():
    linear = Analytic(lambda t: t.sum(), torch.ones(3, dtype=torch.float64))
    assert_close(Hessian(linear).dense(), torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("matrix", [Hessian, GGN])
def test_to_scipy(matrix, generator):
    operator = matrix(cases.objective("mlp"))
    vector = torch.randn(operator.shape[0], generator=generator, dtype=torch.float64)
    assert_close(torch.from_numpy(operator.to_scipy() @ vector.numpy()), operator @ vector, 1e-14)


@pytest.mark.parametrize("matrix", [Hessian, GGN])
def test_refuses_active_dropout_and_train_mode_batch_norm_by_name(matrix):
    from kobai import Problem

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        objective = Problem(
            net.double(), "gaussian", train=(torch.randn(5, 3).double(), torch.randn(5, 2).double())
        ).objective()
    net.train()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\).*2 \(Dropout\)"):
        matrix(objective)
    net.eval()
    matrix(objective)


@pytest.mark.parametrize("matrix", [Hessian, GGN, Jacobian])
def test_wrong_theta_is_refused(matrix):
    with pytest.raises(ValueError, match="theta must have shape"):
        matrix(cases.objective("mlp"), torch.zeros(3, dtype=torch.float64))
