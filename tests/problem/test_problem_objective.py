"""Objectives as functions of θ: against the module itself, against torch, whole against chunks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
from kobai.problem import (
    Analytic,
    Batch,
    Bernoulli,
    Categorical,
    EmpiricalRisk,
    Gaussian,
    Problem,
    WeightedSum,
    output_tensor,
    pure,
)
from tolerances import assert_close


def module_gradient(objective) -> torch.Tensor:
    """What a backward pass left in the module, in the order of θ."""
    named = dict(objective.space.module.named_parameters())
    grads = [named[name].grad for name in objective.space.names]
    return torch.cat([g.reshape(-1) for g in grads])


@pytest.mark.parametrize("name", cases.CASES)
def test_value_and_gradient_are_the_modules_own(name):
    objective = cases.objective(name, chunk=4)
    theta = objective.theta()
    value, gradient = objective.value_and_grad(theta)
    loss = objective()
    assert_close(value, loss, 1e-13)
    assert_close(objective.value(theta), value, 1e-13)
    assert_close(gradient, module_gradient(objective), 1e-12)
    assert torch.equal(objective.grad(theta), gradient)
    assert not any(t.requires_grad for t in (value, gradient, loss))


@pytest.mark.parametrize("name", cases.CASES)
def test_value_elsewhere_is_the_moved_modules(name, generator):
    objective = cases.objective(name)
    theta = objective.theta()
    theta = theta + 0.1 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
    value, gradient = objective.value_and_grad(theta)
    objective.space.assign(theta)
    assert_close(objective(), value, 1e-13)
    assert_close(module_gradient(objective), gradient, 1e-12)


@pytest.mark.parametrize("name", cases.CASES)
def test_gradient_is_that_of_torchs_transform(name):
    objective = cases.objective(name)
    with pure(objective.model):
        expected = torch.func.grad(cases.dense_loss(objective))(objective.theta())
    assert_close(objective.grad(objective.theta()), expected, 1e-12)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("mlp", F.cross_entropy),
        ("soft", F.cross_entropy),
        ("smoothed", nn.CrossEntropyLoss(label_smoothing=0.1)),
        ("segmentation", nn.CrossEntropyLoss()),
        ("transformer", lambda f, y: F.cross_entropy(f.flatten(0, 1), y.flatten())),
        ("mean-squared", F.mse_loss),
        ("regression", lambda f, y: 0.5 * F.mse_loss(f, y, reduction="sum") / len(y)),
        (
            "binary",
            lambda f, y: F.binary_cross_entropy_with_logits(f, y, reduction="sum") / len(y),
        ),
    ],
)
def test_value_is_torchs_loss(name, loss):
    objective = cases.objective(name)
    (batch,) = objective.batches
    with torch.no_grad():
        expected = loss(objective.model(batch.inputs), batch.targets)
    assert_close(objective.value(objective.theta()), expected, 1e-13)


@pytest.mark.parametrize(
    ("name", "chunk"), [*[(name, 4) for name in cases.CASES], ("transformer", 1), ("mlp", 1)]
)
def test_chunks_add_up_to_the_whole(name, chunk):
    whole, cut = cases.objective(name), cases.objective(name, chunk=chunk)
    assert len(cut.batches) == -(-whole.size // chunk)
    theta = whole.theta()
    assert (cut.size, cut.weight) == (whole.size, whole.weight)
    assert_close(cut.value(theta), whole.value(theta), 1e-13)
    assert_close(cut.grad(theta), whole.grad(theta), 1e-13)
    assert_close(cut.outputs(theta), whole.outputs(theta), 1e-13)
    assert_close(sum(cut.differentiable(theta)), whole.value(theta), 1e-13)
    assert cut.metrics() == pytest.approx(whole.metrics(), rel=1e-12, nan_ok=True)
    assert_close(cut(), whole(), 1e-13)


@pytest.mark.parametrize("name", ["mlp", "transformer", "keywords"])
def test_shares_of_batches_add_up(name):
    objective = cases.objective(name, chunk=2)
    theta = objective.theta()
    with torch.no_grad(), pure(objective.model):
        shares = [objective.risk(theta, batch) for batch in objective.batches]
        outputs = [objective.forward(theta, batch) for batch in objective.batches]
    assert_close(sum(shares), objective.value(theta), 1e-14)
    assert torch.equal(torch.cat(outputs), objective.outputs(theta))


@pytest.mark.parametrize("name", cases.CASES)
def test_metrics_are_loss_and_share_of_right_terms(name):
    objective = cases.objective(name, chunk=3)
    theta = objective.theta()
    found = objective.metrics(theta)
    assert found["loss"] == pytest.approx(float(objective.value(theta)), rel=1e-12)
    outputs = objective.outputs(theta)
    targets = torch.cat([batch.targets for batch in objective.batches])
    if isinstance(objective.likelihood, Gaussian):
        assert math.isnan(found["accuracy"])
        return
    if isinstance(objective.likelihood, Bernoulli):
        expected = ((outputs > 0) == (targets > 0.5)).double().mean()
    else:
        axis = objective.likelihood.axis
        labels = targets.argmax(axis) if targets.is_floating_point() else targets
        kept = labels != -100
        expected = (outputs.argmax(axis) == labels)[kept].double().mean()
    assert found["accuracy"] == pytest.approx(float(expected), rel=1e-12)


def test_a_share_follows_the_point_it_is_asked_at():
    objective = cases.objective("mlp")
    theta = objective.theta().requires_grad_()
    (share,) = objective.differentiable(theta)
    (gradient,) = torch.autograd.grad(share, theta)
    assert_close(gradient, objective.grad(theta.detach()), 1e-14)


def test_gradients_come_under_no_grad_as_well():
    objective = cases.objective("mlp")
    expected = objective.grad(objective.theta())
    with torch.no_grad():
        assert torch.equal(objective.grad(objective.theta()), expected)
        objective()
        assert_close(module_gradient(objective), expected, 1e-14)
        assert not torch.is_grad_enabled()


def test_everything_ignored_is_refused():
    objective = cases.objective("transformer")
    (batch,) = objective.batches
    empty = Batch(batch.inputs, torch.full_like(batch.targets, -100))
    risk = EmpiricalRisk(objective.model, Categorical(reduction="terms"), [empty])
    with pytest.raises(ValueError, match="every term of the data is ignored"):
        risk.value(risk.theta())


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        EmpiricalRisk(cases.objective("mlp").model, Categorical(), [])


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 2, 2)
        nn.init.ones_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, x):
        with torch.no_grad():
            return self.linear(x)


def test_outputs_without_a_gradient_are_refused():
    batch = Batch(torch.ones(3, 2), torch.ones(3, 2))
    objective = EmpiricalRisk(Detached(), Gaussian(), [batch])
    assert float(objective.value(objective.theta())) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="no gradient flows"):
        objective.grad(objective.theta())


def test_ridge_on_a_network():
    risk = cases.objective("frozen", chunk=4)
    penalty = Analytic(lambda t: 0.5 * t @ t, risk.model)
    assert penalty.space.names == risk.space.names
    total = WeightedSum([(1.0, risk), (0.3, penalty)])
    theta = risk.theta()
    value, gradient = total.value_and_grad(theta)
    assert_close(value, risk.value(theta) + 0.15 * theta @ theta, 1e-13)
    assert_close(total.value(theta), value, 1e-14)
    assert_close(gradient, risk.grad(theta) + 0.3 * theta, 1e-13)
    assert_close(total(), value, 1e-13)
    assert_close(module_gradient(total), gradient, 1e-13)
    assert all(p.grad is None for p in risk.model.parameters() if not p.requires_grad)


def test_sums_of_sums_and_negative_weights():
    first, second = cases.objective("mlp"), cases.objective("mlp")
    second = EmpiricalRisk(first.model, Categorical(label_smoothing=0.5), second.batches)
    inner = WeightedSum([(2.0, first), (-0.5, second)])
    outer = WeightedSum([(3.0, inner), (1.0, first)])
    theta = first.theta()
    expected = 7.0 * first.grad(theta) - 1.5 * second.grad(theta)
    assert_close(outer.grad(theta), expected, 1e-13)
    outer()
    assert_close(module_gradient(outer), expected, 1e-13)
    assert_close(sum(outer.differentiable(theta)), outer.value(theta), 1e-14)


def test_sums_of_what_does_not_belong_together_are_refused():
    risk = cases.objective("mlp")
    with pytest.raises(ValueError, match="at least one"):
        WeightedSum([])
    with pytest.raises(ValueError, match="must belong to one module"):
        WeightedSum([(1.0, risk), (1.0, cases.objective("mlp"))])
    with pytest.raises(ValueError, match=r"Analytic\(function, model\)"):
        WeightedSum([(1.0, risk), (1.0, Analytic(lambda t: t.sum(), risk.theta()))])
    risk.model[0].weight.requires_grad_(False)
    fewer = Analytic(lambda t: t.sum(), risk.model)
    with pytest.raises(ValueError, match="same trainable parameters"):
        WeightedSum([(1.0, risk), (1.0, fewer)])


def rosenbrock(t):
    return (1 - t[0]) ** 2 + 100 * (t[1] - t[0] ** 2) ** 2


def test_a_formula():
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    formula = Analytic(rosenbrock, start)
    value, gradient = formula.value_and_grad(start)
    assert float(value) == pytest.approx(24.2)
    assert gradient.tolist() == pytest.approx([-215.6, -88.0])  # ∇f at the usual start
    assert_close(formula(), value, 1e-14)
    assert_close(module_gradient(formula), gradient, 1e-14)
    formula.space.assign(torch.ones(2, dtype=torch.float64))
    assert float(formula()) == 0.0
    assert start.tolist() == [-1.2, 1.0]


def test_a_constant_formula_has_gradient_zero():
    start = torch.ones(3, dtype=torch.float64)
    for function in (lambda t: t.new_tensor(2.0), lambda t: (t.detach() ** 2).sum()):
        formula = Analytic(function, start)
        assert torch.equal(formula.grad(start), torch.zeros(3, dtype=torch.float64))
        formula()
        assert torch.equal(module_gradient(formula), torch.zeros(3, dtype=torch.float64))


def test_formulas_that_are_none_are_refused():
    start = torch.ones(3)
    with pytest.raises(ValueError, match=r"return a scalar, got shape \(3,\)"):
        Analytic(lambda t: t, start)
    with pytest.raises(TypeError, match="scalar tensor, got float"):
        Analytic(lambda t: float(t.sum()), start)
    with pytest.raises(ValueError, match=r"vector \(P,\), got shape \(1, 3\)"):
        Analytic(lambda t: t.sum(), torch.ones(1, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
    ],
    ids=["sgd", "adam", "lbfgs"],
)
@pytest.mark.parametrize("name", ["mlp", "frozen", "tied"])
def test_an_objective_is_a_closure_of_torchs_optimizers(make, name):
    """Against the loop one would write, from the same start."""
    ours, theirs = cases.objective(name), cases.objective(name)
    optimizer, other = make(ours.model.parameters()), make(theirs.model.parameters())
    (batch,) = theirs.batches
    loss = F.cross_entropy if name != "tied" else lambda f, y: 2.0 * F.mse_loss(f, y)

    def closure():
        other.zero_grad()
        value = loss(theirs.model(batch.inputs), batch.targets)
        value.backward()
        return value

    before = float(ours.value(ours.theta()))
    for _ in range(5):
        first, second = optimizer.step(ours), other.step(closure)
        assert_close(torch.as_tensor(first), torch.as_tensor(second).detach(), 1e-10)
    assert_close(ours.theta(), theirs.theta(), 1e-10)
    assert float(ours.value(ours.theta())) < before


def test_an_objective_on_a_sum_can_be_minimised():
    risk = cases.objective("regression")
    total = WeightedSum([(1.0, risk), (1e-2, Analytic(lambda t: t @ t, risk.model))])
    optimizer = torch.optim.LBFGS(
        risk.model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )
    optimizer.step(total)
    assert float(total.grad(total.theta()).norm()) < 1e-4


def test_freezing_after_the_problem_was_made_is_seen():
    problem = cases.problem("mlp")
    assert problem.objective().space is problem.objective().space
    problem.model[0].weight.requires_grad_(False)
    objective = problem.objective(next(iter(problem.objective().batches)))
    assert objective.space.dimension == problem.space.dimension == 79 - 30
    assert isinstance(problem, Problem)


@pytest.mark.parametrize(
    "returned",
    [
        torch.ones(2),
        {"logits": torch.ones(2), "loss": torch.ones(())},
        {"hidden": torch.ones(2), "ids": torch.ones(2).long()},
        (torch.ones(2), torch.ones(2).long()),
        [torch.ones(2), None],
    ],
)
def test_the_one_tensor_of_outputs_is_found(returned):
    assert torch.equal(output_tensor(returned), torch.ones(2))


@pytest.mark.parametrize(
    "returned", [None, 3.0, {}, (torch.ones(2), torch.ones(2)), {"ids": torch.ones(2).long()}]
)
def test_unclear_outputs_are_refused(returned):
    with pytest.raises(TypeError, match="must return one tensor"):
        output_tensor(returned)
