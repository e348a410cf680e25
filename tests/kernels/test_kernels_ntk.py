"""The tangent kernel against dense Jacobians of torch.func, whatever the method."""

import jaxtyping
import pytest
import torch
from torch import nn

from cases import CASES, objective, problem
from kobai import Problem
from kobai.kernels import TangentKernel, ntk, ntk_plan
from kobai.problem import pure
from tolerances import assert_close


def dense_jacobian(risk, theta=None):
    """(N C, P) by reverse mode, one row at a time (vectorised rules of fused layers are wrong)."""
    theta = risk.theta() if theta is None else theta

    def outputs(theta):
        return torch.cat([risk.forward(theta, batch).flatten() for batch in risk.batches])

    with pure(risk.model, coupled=risk.coupled):
        return torch.func.jacrev(outputs, chunk_size=1)(theta)


def dense_kernel(risk, other=None):
    jacobian = dense_jacobian(risk)
    second = jacobian if other is None else dense_jacobian(other)
    count = len(second) // (risk if other is None else other).size
    return (jacobian @ second.T).view(risk.size, count, -1, count)


@pytest.mark.parametrize("method", ["layers", "jacobian", "products"])
@pytest.mark.parametrize("name", CASES)
def test_every_method_is_the_dense_jacobian(name, method):
    risk = objective(name)
    assert_close(ntk(risk, method=method), dense_kernel(risk))


def _halves(name):
    """A case's first and last examples as points of their own."""
    whole = problem(name)
    batch = next(iter(whole.objective().batches))
    cut = batch.size // 2
    first, last = batch.take(slice(0, cut)), batch.take(slice(cut, None))
    return whole.objective(), first, last


@pytest.mark.parametrize("method", ["layers", "jacobian", "products"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "transformer", "keywords"])
def test_blocks_between_points(name, method):
    risk, first, last = _halves(name)
    whole = dense_kernel(risk)
    cut = first.size
    between = ntk(risk, first, last, method=method)
    assert_close(between, whole[:cut, :, cut:])
    assert_close(ntk(risk, last.inputs, method=method), whole[cut:, :, cut:])
    assert_close(ntk(risk, x2=last, method=method), whole[:, :, cut:])


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("method", ["layers", "jacobian", "products"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gru", "transformer", "norms"])
def test_trace_and_diagonal_are_parts_of_the_whole(name, method, coupled):
    risk = problem(name).objective(coupled=coupled)
    if coupled and method == "jacobian":
        with pytest.raises(ValueError, match="coupled"):
            ntk(risk, method=method)
        return
    whole = dense_kernel(risk)
    equal = torch.stack([whole[:, k, :, k] for k in range(whole.shape[1])], 2)
    assert_close(ntk(risk, outputs="diagonal", method=method), equal)
    assert_close(ntk(risk, outputs="trace", method=method), equal.sum(2))


@pytest.mark.parametrize("method", ["layers", "jacobian"])
@pytest.mark.parametrize("outputs", ["full", "trace", "diagonal"])
def test_layers_add_up(outputs, method):
    risk = objective("norms")
    layers = ntk(risk, blocks="layer", outputs=outputs, method=method)
    assert list(layers) == ["0", "1", "3", "4", "5"]
    assert_close(sum(layers.values()), ntk(risk, outputs=outputs))
    jacobian = dense_jacobian(risk)[:, :30]
    if outputs == "full":
        assert_close(layers["0"].flatten(2).flatten(0, 1), jacobian @ jacobian.T)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("method", ["layers", "jacobian"])
def test_chunks_and_blocks_change_nothing(name, method, monkeypatch):
    whole = dense_kernel(objective(name))
    risk = objective(name, 2)
    assert_close(ntk(risk, method=method), whole)
    monkeypatch.setattr("kobai.kernels.plan.LEAST_WORKSPACE", 0)
    monkeypatch.setattr("kobai.curvature.rows.outer_products._WORKSPACE", 200)
    monkeypatch.setattr("kobai.curvature.rows.outer_products._CACHED", 20)
    plan = ntk_plan(risk, method=method, memory=2 * whole.nbytes)
    assert plan.block < risk.size
    assert_close(ntk(risk, method=method, memory=2 * whole.nbytes), whole)
    assert_close(ntk(risk, x2=risk, method=method, memory=2 * whole.nbytes), whole)


def test_plan_says_what_it_chose(caplog):
    risk = objective("mlp")
    with caplog.at_level("INFO", logger="kobai.kernels"):
        ntk(risk)
    plan = ntk_plan(risk)
    assert str(plan) in caplog.text
    assert plan.method == min(plan.multiplications, key=plan.multiplications.get)
    assert set(plan.multiplications) == {"layers", "jacobian", "products"}
    assert ntk_plan(objective("lstm"), method="jacobian").reason == "as asked"


def test_operator_multiplies_what_is_not_stored(generator):
    risk, first, last = _halves("cnn")
    whole = dense_kernel(risk).flatten(2).flatten(0, 1)
    columns = torch.randn(len(whole), 3, generator=generator, dtype=torch.float64)
    kernel = TangentKernel(risk)
    assert kernel.symmetric
    assert_close(kernel @ columns, whole @ columns)
    between = TangentKernel(risk, first, last)
    cut = first.size * 3
    assert_close(between @ columns[cut:], whole[:cut, cut:] @ columns[cut:])
    assert_close(between.T @ columns[:cut], whole[cut:, :cut] @ columns[:cut])


def test_another_point_in_parameter_space():
    risk = objective("regression")
    theta = risk.theta() * 0.5
    jacobian = dense_jacobian(risk, theta)
    assert_close(ntk(risk, theta=theta).flatten(2).flatten(0, 1), jacobian @ jacobian.T)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"outputs": "sum"}, "outputs"),
        ({"blocks": "unit"}, "blocks"),
        ({"method": "magic"}, "method"),
        ({"method": "products", "blocks": "layer"}, "sum over layers"),
        ({"memory": 100}, "TangentKernel"),
    ],
)
def test_wrong_settings(settings, match):
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=match):
        ntk(objective("mlp"), **settings)


def test_wrong_points():
    with pytest.raises(ValueError, match="one module"):
        ntk(objective("mlp"), x2=objective("mlp"))
    with pytest.raises(ValueError, match="coupled"):
        ntk(problem("mlp").objective(coupled=True), x2=torch.zeros(2, 5).double())
    with pytest.raises(TypeError, match="EmpiricalRisk"):
        ntk(lambda theta: theta)


class _Switched(nn.Module):
    """A linear layer whose weight is also used behind its back once a flag says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, 4, 4, dtype=torch.float64)
        self.hidden = False
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(2))

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        return h @ self.layer.weight.T if self.hidden else h


def test_a_model_that_changed_since_the_last_call_is_seen():
    model = _Switched()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    risk = Problem(model, "gaussian", train=(x, torch.zeros_like(x))).objective()
    before = ntk(risk)
    assert_close(before, dense_kernel(risk))
    model.hidden = True
    assert_close(ntk(risk), dense_kernel(risk))
    assert not torch.allclose(ntk(risk), before)
