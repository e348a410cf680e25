"""When a module is a function of θ; evaluating it leaves no trace; closures run it natively."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
from kobai.problem import (
    Batch,
    EmpiricalRisk,
    Gaussian,
    evaluation_mode,
    impurities,
    pure,
    require_pure,
)
from tolerances import assert_close


def build(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def risk(model: nn.Module, size: int = 6, chunk: int | None = None) -> EmpiricalRisk:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(size, 4, generator=g, dtype=torch.float64)
    batch = Batch(x, torch.randn(size, 4, generator=g, dtype=torch.float64))
    return EmpiricalRisk(model, Gaussian(), list(batch.chunks(chunk or size)))


def snapshot(model: nn.Module) -> dict:
    """Everything a caller could find changed."""
    return {
        "identity": [(n, id(p)) for n, p in model.named_parameters(remove_duplicate=False)],
        "values": [p.clone() for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "grads": [[id(p.grad), p.grad.clone()] for p in model.parameters() if p.grad is not None],
        "trainable": [p.requires_grad for p in model.parameters()],
        "buffers": [(n, id(b), b.clone(), b._version) for n, b in model.named_buffers()],
        "modes": [m.training for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "random": torch.get_rng_state(),
        "settings": [
            torch.is_grad_enabled(),
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ],
    }  # fmt: skip


def assert_same(before, after, path=""):
    assert type(before) is type(after), path
    if isinstance(before, dict):
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), path
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            assert_same(a, b, f"{path}/{i}")
    elif isinstance(before, torch.Tensor):
        assert torch.equal(before, after), path
    else:
        assert before == after, path


def evaluate(objective: EmpiricalRisk) -> None:
    theta = objective.theta() + 0.5
    objective.value(theta)
    objective.grad(theta)
    objective.value_and_grad(theta)
    objective.outputs(theta)
    objective.metrics(theta)
    objective.metrics()
    list(objective.differentiable(theta.requires_grad_()))


@pytest.mark.parametrize("name", cases.CASES)
def test_evaluation_leaves_no_trace(name):
    objective = cases.objective(name, chunk=4)
    objective()  # so that there are gradients to leave alone
    before = snapshot(objective.model)
    evaluate(objective)
    assert_same(before, snapshot(objective.model))


class Counting(nn.Module):
    """Writes to buffers whatever its mode; two modules share one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.linear = nn.Module(), nn.Linear(4, 4)
        shared = torch.zeros((), dtype=torch.float64)
        self.register_buffer("calls", shared)
        self.inner.register_buffer("calls", shared)

    def forward(self, x):
        self.calls.add_(1)
        assert self.inner.calls is self.calls  # sharing survives
        return self.linear(x) * self.calls


def test_buffers_that_a_module_writes_to_are_left_alone():
    model = build(Counting).eval()
    objective = risk(model, chunk=2)
    before = snapshot(model)
    evaluate(objective)
    assert_same(before, snapshot(model))
    expected = objective.value(objective.theta())
    assert torch.equal(objective.value(objective.theta()), expected)
    objective()
    assert float(model.calls) == 3.0  # natively, once a batch
    assert model.inner.calls is model.calls


def test_modes_of_all_submodules_are_left_alone():
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4))))
    model.train()
    model[1].eval()
    before = snapshot(model)
    evaluate(risk(model))
    assert_same(before, snapshot(model))
    with evaluation_mode(model):
        assert not any(m.training for m in model.modules())
    assert_same(before, snapshot(model))
    with contextlib.suppress(RuntimeError), evaluation_mode(model):
        raise RuntimeError
    assert_same(before, snapshot(model))


IMPURE = {
    "dropout": (lambda: nn.Dropout(0.5), r"1\.0 \(Dropout\)"),
    "dropout2d": (lambda: nn.Dropout2d(0.5), r"1\.0 \(Dropout2d\)"),
    "alpha": (lambda: nn.AlphaDropout(0.5), r"1\.0 \(AlphaDropout\)"),
    "rrelu": (lambda: nn.RReLU(), r"1\.0 \(RReLU\)"),
    "batchnorm": (lambda: nn.BatchNorm1d(4), r"1\.0 \(BatchNorm1d\).*batch statistics"),
    "syncbatchnorm": (lambda: nn.SyncBatchNorm(4), r"1\.0 \(SyncBatchNorm\)"),
    "lstm": (lambda: nn.LSTM(4, 4, num_layers=2, dropout=0.5), r"1\.0 \(LSTM\)"),
    "attention": (lambda: nn.MultiheadAttention(4, 2, dropout=0.5), r"1\.0 \(MultiheadAttention\)"),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 4), r"1\.0\.self_attn.*1\.0\.dropout1 "),
}


@pytest.mark.parametrize("name", IMPURE)
def test_noise_and_coupling_are_refused_by_name(name):
    make, message = IMPURE[name]
    model = build(lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential(make())))
    objective = risk(model)
    before = snapshot(model)
    for member in (objective.value, objective.grad, objective.outputs, objective.metrics):
        with pytest.raises(ValueError, match=message):
            member(objective.theta())
    with pytest.raises(ValueError, match="objective\\(\\) runs it natively"):
        require_pure(model)
    assert_same(before, snapshot(model))
    model.eval()
    assert impurities(model) == []


def single_layer_lstm():
    with pytest.warns(UserWarning, match="dropout"):
        return nn.LSTM(4, 4, dropout=0.5)


def without_flag():
    norm = nn.BatchNorm1d(4)
    norm.track_running_stats = False  # torch goes by the buffers, which are there
    return norm.eval()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Dropout(0.0),
        lambda: nn.InstanceNorm1d(4),
        lambda: nn.LayerNorm(4),
        lambda: nn.GroupNorm(2, 4),
        lambda: nn.LSTM(4, 4, num_layers=2),
        single_layer_lstm,
        lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0),
        lambda: nn.BatchNorm1d(4).eval(),
        without_flag,
    ],
)
def test_what_is_a_function_is_not_refused(make):
    assert impurities(build(lambda: nn.Sequential(make()))) == []


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_without_averages_couples_examples_in_every_mode(training):
    model = build(lambda: nn.BatchNorm1d(4, track_running_stats=False)).train(training)
    with pytest.raises(ValueError, match=r"\(root\) \(BatchNorm1d\)"):
        require_pure(model)


class Functional(nn.Module):
    """Noise that no submodule shows."""

    def __init__(self, noise) -> None:
        super().__init__()
        self.linear, self.noise = nn.Linear(4, 4), noise

    def forward(self, x):
        return self.noise(self.linear(x))


@pytest.mark.parametrize(
    "noise", [lambda x: F.dropout(x, 0.5, training=True), lambda x: x + torch.randn_like(x)]
)
def test_functional_noise_is_caught(noise):
    model = build(lambda: Functional(noise)).eval()
    objective = risk(model)
    before = snapshot(model)
    for member in (objective.value, objective.grad, objective.outputs, objective.metrics):
        with pytest.raises(ValueError, match="drew random numbers"):
            member(objective.theta())
    assert_same(before, snapshot(model))


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 4)

    def forward(self, x):
        self.recurrent(x)
        torch.rand(())
        raise RuntimeError("as a model may")


def test_a_model_that_fails_leaves_no_trace_either():
    model = build(Failing).eval()
    objective = risk(model)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="as a model may"):
        objective.value(objective.theta())
    after = snapshot(model)
    assert_same(before, after)
    own = list(model.recurrent.parameters())
    assert all(a is b for a, b in zip(model.recurrent._flat_weights, own, strict=True))


def test_settings_are_the_users_again_and_nest():
    model = cases.problem("lstm").model
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pure(model), pure(model):
            assert not torch.backends.mkldnn.enabled
        assert torch.backends.mkldnn.enabled
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_second_derivatives_exist_where_fused_kernels_have_none(name):
    objective = cases.objective(name)
    theta = objective.theta().requires_grad_()
    (share,) = objective.differentiable(theta)
    (gradient,) = torch.autograd.grad(share, theta, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ gradient.detach(), theta)
    direction = objective.grad(objective.theta())
    step = 1e-5 * direction
    here = objective.theta()
    difference = (objective.grad(here + step) - objective.grad(here - step)) / 2e-5
    assert_close(product, difference, 1e-6)


def test_the_closure_runs_dropout_natively():
    model = build(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 4))
    )
    objective = risk(model)
    (batch,) = objective.batches
    with torch.random.fork_rng():
        torch.manual_seed(7)
        loss = objective()
        gradients = [p.grad.clone() for p in model.parameters()]
        other = objective()
        torch.manual_seed(7)
        model.zero_grad()
        expected = 0.5 * (model(batch.inputs) - batch.targets).square().sum() / batch.size
        expected.backward()
    assert_close(loss, expected.detach(), 1e-14)
    assert float(other) != float(loss)
    for gradient, p in zip(gradients, model.parameters(), strict=True):
        assert_close(gradient, p.grad, 1e-14)


def test_the_closure_runs_batch_norm_natively():
    ours, theirs = (
        build(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))) for _ in range(2)
    )
    objective = risk(ours, chunk=3)
    loss = objective()
    expected = torch.zeros((), dtype=torch.float64)
    for batch in objective.batches:
        share = 0.5 * (theirs(batch.inputs) - batch.targets).square().sum() / 6
        share.backward()
        expected += share.detach()
    assert_close(loss, expected, 1e-14)
    assert_close(ours[1].running_mean, theirs[1].running_mean, 1e-14)
    assert int(ours[1].num_batches_tracked) == 2
    assert_close(ours[0].weight.grad, theirs[0].weight.grad, 1e-14)
    assert ours.training


def test_the_closure_replaces_old_gradients():
    objective = risk(build(lambda: nn.Linear(4, 4)))
    objective()
    first = [p.grad.clone() for p in objective.model.parameters()]
    objective()
    for gradient, p in zip(first, objective.model.parameters(), strict=True):
        assert torch.equal(gradient, p.grad)
