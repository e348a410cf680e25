"""Steps from the rows of a gradient: the same as from the gradient, and never from stale rows."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kobai.optim import KFAC
from kobai.optim.kfac import gradient_rows, preconditioner
from kobai.optim.kfac.gradient_rows import pays
from tolerances import assert_close

INPUTS, WIDTH = 90, 84
SETTINGS = {"lr": 0.05, "damping": 0.05, "kl_bound": None, "momentum": 0.0}


@pytest.fixture(autouse=True)
def _small_layers_count_as_wide(monkeypatch):
    def stands_alone(form, device):
        return form.groups == 1 and min(form.outputs, form.inputs) > 1 and (
            form.outputs * form.inputs >= 5_000
        )  # fmt: skip

    monkeypatch.setattr(preconditioner, "stands_alone", stands_alone)


class Twice(nn.Module):
    """Calls its wide layer twice, works in place behind it, and may checkpoint."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.first, self.wide, self.last = (
            nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 3)
        )  # fmt: skip
        self.checkpointed = checkpointed

    def forward(self, x):
        h = torch.relu(self.first(x))
        for _ in range(2):
            h = (
                checkpoint(self.wide, h, use_reentrant=False) if self.checkpointed else self.wide(h)
            ).tanh_()
        return self.last(h)


def plain():
    return nn.Sequential(
        nn.Linear(INPUTS, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH, bias=False),
        nn.Tanh(), nn.Linear(WIDTH, 3),
    )  # fmt: skip


def made(build=plain, inputs=INPUTS, dtype=torch.float64, watched=True, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build().to(dtype)
        x, y = torch.randn(24, inputs, dtype=dtype), torch.randint(0, 3, (24,))
    optimizer = KFAC(net, **{**SETTINGS, **settings})
    if not watched:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gradient_rows, "has_rows", lambda layer: False)
            optimizer.state_dict()  # makes the blocks
    return net, x, y, optimizer


def backward(net, x, y, scale=1.0):
    (scale * nn.functional.cross_entropy(net(x), y)).backward()


def run(net, x, y, optimizer, count, between=lambda net: None):
    for step in range(count):
        optimizer.zero_grad()
        backward(net, x[step % 3 :], y[step % 3 :])
        between(net)
        optimizer.step()


def parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def from_rows(optimizer):
    return optimizer.diagnostics()["products_from_rows"]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("lr", [0.05, "auto"])
def test_steps_equal_those_from_the_gradient(lr, weight_decay):
    """Momentum over renewals of statistics and inverses; and with automatic control."""
    settings = {"damping": "auto" if lr == "auto" else 0.05, "weight_decay": weight_decay}
    settings |= {"lr": lr, "momentum": 0.7}
    net, x, y, optimizer = made(**settings)
    twin, _, _, other = made(watched=False, **settings)
    run(net, x, y, optimizer, 10)
    run(twin, x, y, other, 10)
    assert from_rows(optimizer) >= 6
    assert from_rows(other) == optimizer.diagnostics()["changed_gradients"] == 0
    assert_close(parameters(net), parameters(twin), 1e-9)


def test_a_step_equals_the_solution_of_the_damped_systems():
    net, x, y, optimizer = made(inverse_every=1, statistics_every=1)
    run(net, x, y, optimizer, 3)
    before = [p.detach().clone() for p in net.parameters()]
    count = from_rows(optimizer)
    run(net, x, y, optimizer, 1)
    assert from_rows(optimizer) == count + 2
    state = optimizer.state_dict()["state"]
    for index, bias in ((0, True), (2, False)):
        a, b = state[index]["input_factor"][0], state[index]["output_factor"][0]
        weight = list(net.parameters())[index]
        gradient = weight.grad
        if bias:
            gradient = torch.cat([gradient, net[0].bias.grad.unsqueeze(1)], 1)
        pi = ((a.trace() / len(a)) / (b.trace() / len(b))).sqrt()
        left = b + math.sqrt(0.05) / pi * torch.eye(len(b), dtype=b.dtype)
        right = a + math.sqrt(0.05) * pi * torch.eye(len(a), dtype=a.dtype)
        step = torch.linalg.solve(right, torch.linalg.solve(left, gradient).T).T
        moved = before[index] - weight.detach()
        assert_close(moved, 0.05 * step[:, : moved.shape[1]], 1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_clipping_by_the_norm_is_a_scale(dtype):
    def clip(net):
        nn.utils.clip_grad_norm_(net.parameters(), 0.01)

    net, x, y, optimizer = made(dtype=dtype)
    twin, _, _, other = made(dtype=dtype, watched=False)
    run(net, x, y, optimizer, 6, clip)
    run(twin, x, y, other, 6, clip)
    assert from_rows(optimizer) > 0
    assert optimizer.diagnostics()["changed_gradients"] == 0
    assert_close(parameters(net), parameters(twin), 1e-8 if dtype == torch.float64 else 1e-5)


CHANGES = {
    "decay": lambda p: p.grad.add_(p.detach(), alpha=1e-3),
    "scaled-and-decay": lambda p: p.grad.mul_(1e-6).add_(p.detach(), alpha=1e-9),
    "entries": lambda p: p.grad.clamp_(-1e-4, 1e-4),
    "one-entry": lambda p: p.grad.view(-1)[7:8].add_(0.01),
    "noise": lambda p: p.grad.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)),
                                   alpha=1e-3),
    "centred": lambda p: p.grad.sub_(p.grad.mean(0, keepdim=True)),
    "replaced": lambda p: setattr(p, "grad", torch.ones_like(p)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CHANGES)
def test_changed_gradients_are_noticed_and_taken_as_they_are(name, dtype):
    def change(net):
        for p in net.parameters():
            CHANGES[name](p)

    net, x, y, optimizer = made(dtype=dtype)
    twin, _, _, other = made(dtype=dtype, watched=False)
    run(net, x, y, optimizer, 4, change)
    run(twin, x, y, other, 4, change)
    assert from_rows(optimizer) == 0
    assert (
        optimizer.diagnostics()["changed_gradients"] == 6
    )  # the blocks are made in the first step
    assert torch.equal(parameters(net), parameters(twin))


def test_passes_that_are_accumulated_add_up_and_loss_scales_do_not_matter():
    net, x, y, optimizer = made()
    twin, _, _, other = made(watched=False)
    for step in range(4):
        for model, own in ((net, optimizer), (twin, other)):
            own.zero_grad()
            for part in (slice(0, 10), slice(10, 24)):
                backward(model, x[part], y[part], 1024.0 / 2)
            for p in model.parameters():
                p.grad /= 1024.0
            own.step()
        assert from_rows(optimizer) == 2 * step
    assert_close(parameters(net), parameters(twin), 1e-9)


def test_many_accumulated_rows_are_left_to_the_gradient():
    net, x, y, optimizer = made()
    run(net, x, y, optimizer, 1)
    optimizer.zero_grad()
    for _ in range(12):
        backward(net, x, y)
    assert not pays(12 * 24, WIDTH, WIDTH)
    optimizer.step()
    assert from_rows(optimizer) == optimizer.diagnostics()["changed_gradients"] == 0


def test_a_pass_that_was_discarded_is_noticed():
    net, x, y, optimizer = made()
    run(net, x, y, optimizer, 2)
    count = from_rows(optimizer)
    backward(net, x.flip(0)[:5], y[:5])
    optimizer.zero_grad()
    backward(net, x, y)
    with torch.no_grad():
        net(x)
    optimizer.step()
    assert from_rows(optimizer) == count
    assert optimizer.diagnostics()["changed_gradients"] == 2


def test_gradients_asked_for_besides_do_not_pass_for_the_users():
    """All rows twice are the gradient twice, and that is a scale; with others they are neither."""
    net, x, y, optimizer = made()
    twin, _, _, other = made(watched=False)
    for model, own in ((net, optimizer), (twin, other)):
        for index in range(5):
            own.zero_grad()
            outputs = model(x)
            loss = nn.functional.cross_entropy(outputs, y)
            wanted = loss if index <= 2 else outputs.square().sum()
            torch.autograd.grad(wanted, list(model.parameters()), retain_graph=True)
            loss.backward()
            own.step()
    assert from_rows(optimizer) == 4
    assert optimizer.diagnostics()["changed_gradients"] == 4
    assert_close(parameters(net), parameters(twin), 1e-9)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_layers_called_twice_and_activation_checkpointing(checkpointed):
    net, x, y, optimizer = made(lambda: Twice(checkpointed), 5)
    twin, _, _, other = made(lambda: Twice(checkpointed), 5, watched=False)
    run(net, x, y, optimizer, 5)
    run(twin, x, y, other, 5)
    assert from_rows(optimizer) > 0
    assert_close(parameters(net), parameters(twin), 1e-9)


def test_rows_of_tokens_are_rows():
    net, _, _, optimizer = made()
    twin, _, _, other = made(watched=False)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, INPUTS, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (4, 5), generator=generator)
    for model, own in ((net, optimizer), (twin, other)):
        for _ in range(4):
            own.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            own.step()
    assert from_rows(optimizer) > 0
    assert_close(parameters(net), parameters(twin), 1e-9)


def test_nesterov_and_autocast_take_the_gradient():
    net, x, y, optimizer = made(nesterov=True, momentum=0.5)
    run(net, x, y, optimizer, 3)
    assert from_rows(optimizer) == optimizer.diagnostics()["changed_gradients"] == 0
    net, x, y, optimizer = made(dtype=torch.float32)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert from_rows(optimizer) == optimizer.diagnostics()["changed_gradients"] == 0


@pytest.mark.parametrize("lr", [0.05, "auto"])
def test_resumed_runs_are_equal_to_the_bit(lr):
    settings = {"lr": lr, "damping": "auto" if lr == "auto" else 0.05, "momentum": 0.7}
    settings["dtype"] = torch.float32
    net, x, y, optimizer = made(**settings)
    run(net, x, y, optimizer, 6)
    twin, _, _, other = made(**settings)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(net, x, y, optimizer, 4)
    run(twin, x, y, other, 4)
    assert from_rows(optimizer) == from_rows(other) >= 6
    assert torch.equal(parameters(net), parameters(twin))


def test_nothing_is_kept_of_a_step_that_was_not_made():
    net, x, y, optimizer = made()
    run(net, x, y, optimizer, 2)
    run(net, x, y, optimizer, 1, lambda net: net[0].weight.grad.fill_(math.inf))
    count = from_rows(optimizer)
    run(net, x, y, optimizer, 1)
    assert from_rows(optimizer) == count + 2
    assert optimizer.diagnostics()["changed_gradients"] == 0
    optimizer.close()
    assert not any(module._forward_hooks for module in net.modules())


def test_products_pay_where_rows_are_few():
    # Multiplications of a square layer: 3 n N² against 2 N³.
    assert pays(599, 1000, 1000)
    assert not pays(601, 1000, 1000)
    assert not pays(256, 100, 785)
