"""Objectives over the statistics of all examples at once."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kobai.models import BatchNorm, MeanSubtraction
from kobai.problem import Batch, EmpiricalRisk, Gaussian, Problem, pure
from kobai.problem import problem as problem_module
from tolerances import assert_close

EPS = 1e-5


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, 4),
            BatchNorm(4),
            nn.Tanh(),
            nn.Linear(4, 2),
            MeanSubtraction(2),
        ).double()
        for parameter in model[1].parameters():
            nn.init.normal_(parameter)
        return model


def data(size: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, generator=g, dtype=torch.float64)
    return x, torch.randn(size, 2, generator=g, dtype=torch.float64)


def objective(model: nn.Module, **options) -> EmpiricalRisk:
    return Problem(model, "gaussian", train=data()).objective(coupled=True, **options)


DATA = data()


def formula(theta: torch.Tensor) -> torch.Tensor:
    """The network above, written out; θ in the order of its parameters."""
    x, y = DATA
    w, b, scale, shift, v, c = theta.split([12, 4, 4, 4, 8, 2])
    h = x @ w.view(4, 3).T + b
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + EPS).sqrt()
    f = torch.tanh(h * scale + shift) @ v.view(2, 4).T + c
    return 0.5 * (f - f.mean(0) - y).square().sum() / len(x)


@pytest.mark.parametrize("training", [True, False])
def test_value_gradient_and_curvature_are_the_formulas(training, generator):
    risk = objective(network().train(training))
    theta = risk.theta()
    theta = theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    assert_close(risk.value(theta), formula(theta), 1e-13)
    assert_close(risk.grad(theta), torch.func.grad(formula)(theta), 1e-12)

    def ours(theta):
        return sum(risk.differentiable(theta))

    with pure(risk.model, coupled=True):
        hessian = torch.func.hessian(ours)(theta)
    assert_close(hessian, torch.func.hessian(formula)(theta), 1e-11)


def test_what_feeds_a_normalisation_has_no_gradient_along_its_shift():
    risk = objective(network())
    bias = risk.space.unflatten(risk.grad(risk.theta()))
    assert float(bias["0.bias"].abs().max()) < 1e-15
    assert float(bias["3.bias"].abs().max()) < 1e-15


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_settings_and_averages(training):
    model = network().train(training)
    risk = objective(model)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    for member in (risk.value, risk.grad, risk.outputs, risk.metrics):
        member(risk.theta())
    assert not model[1].coupled_batch
    assert not model[4].coupled_batch
    assert all(m.training == training for m in model.modules())
    for n, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[n])


def test_settings_come_back_after_a_failure_and_stay_what_the_user_chose():
    model = network()
    model[4].coupled_batch = True
    with contextlib.suppress(RuntimeError), pure(model, coupled=True):
        assert model[1].coupled_batch
        raise RuntimeError
    assert (model[1].coupled_batch, model[4].coupled_batch) == (False, True)


@pytest.mark.parametrize("training", [True, False])
def test_the_closure_is_the_same_function(training):
    model = network().train(training)
    risk = objective(model)
    value, gradient = risk.value_and_grad(risk.theta())
    averages = model[1].running_mean.clone()
    assert_close(risk(), value, 1e-13)
    assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), gradient, 1e-12)
    # Training moves the averages, as it does everywhere; evaluation never does.
    assert torch.equal(model[1].running_mean, averages) != training
    assert not model[1].coupled_batch


def test_without_coupling_training_mode_is_refused_and_evaluation_uses_averages():
    model = network()
    risk = Problem(model, "gaussian", train=data()).objective()
    with pytest.raises(ValueError, match=r"1 \(BatchNorm\).*coupled=True.*4 \(MeanSubtraction\)"):
        risk.value(risk.theta())
    model.eval()
    x, y = data()
    with torch.no_grad():
        h = F.batch_norm(model[0](x), torch.zeros(4).double(), torch.ones(4).double(),
                         model[1].weight, model[1].bias, eps=EPS)  # fmt: skip
        expected = 0.5 * (model[3](torch.tanh(h)) - y).square().sum() / 7
    assert_close(risk.value(risk.theta()), expected, 1e-13)
    assert float(expected) != pytest.approx(float(objective(model).value(risk.theta())))


def test_other_impurities_are_refused_as_ever():
    with torch.random.fork_rng():
        model = nn.Sequential(network(), nn.Dropout(0.5))
        stock = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    risk = objective(model)
    with pytest.raises(ValueError, match=r"1 \(Dropout\)"):
        risk.value(risk.theta())
    risk = objective(stock)
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\)"):
        risk.value(risk.theta())


def test_chunks_would_change_the_function_and_are_refused(monkeypatch):
    model = network()
    batch = Batch(*data())
    with pytest.raises(ValueError, match="all examples in one batch, got 3"):
        EmpiricalRisk(model, Gaussian(), list(batch.chunks(3)), coupled=True)
    with pytest.raises(ValueError, match="all 7 examples in one batch, got chunk=3"):
        objective(model, chunk=3)
    monkeypatch.setattr(problem_module, "MEMORY_BOUND", 1)
    assert len(objective(model).batches) == 1
    assert len(objective(model, chunk=7).batches) == 1


def test_one_example_has_no_statistics():
    x, y = data(1)
    risk = Problem(network(), "gaussian", train=(x, y)).objective(coupled=True)
    with pytest.raises(ValueError, match="two or more values per channel"):
        risk.value(risk.theta())


def test_a_single_batch_may_be_coupled():
    model = network()
    problem = Problem(model, "gaussian", train=data())
    risk = problem.objective(Batch(*data()), coupled=True)
    assert_close(risk.value(risk.theta()), formula(risk.theta()), 1e-13)
