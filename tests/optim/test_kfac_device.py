"""Steps and renewals that a device decides: equal to the host's, without reading a number.

The routes for accelerators run here on the CPU, told that reading waits; tests marked gpu run them
where they belong.
"""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kobai.optim import EKFAC, KFAC, averages, block_optimizer, factored
from tolerances import assert_close
from two_ranks import on_two_ranks

SETTINGS = {
    "lr": 0.1, "damping": 0.05, "momentum": 0.8, "weight_decay": 0.1, "kl_bound": 2e-3,
    "statistics_every": 2, "inverse_every": 3,
}  # fmt: skip


class NothingIsRead(TorchDispatchMode):
    """Fails where the host would ask a device for a number or a shape."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), name
        assert not name.startswith("aten::masked_select"), name
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_device(monkeypatch):
    """Tells the optimizer that its tensors lie where reading waits."""

    def tell():
        for module in (averages, block_optimizer, factored):
            monkeypatch.setattr(module, "waits", lambda tensor: True)

    return tell


class Network(nn.Module):
    """A block of every kind: embedding, linear layers, a normalisation, a parameter alone."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.hidden, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, tokens):
        return self.head(
            torch.tanh(self.hidden(self.norm(self.embed(tokens).mean(1)))) * self.scale
        )


def made(kind=KFAC, device="cpu", **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Network().double().to(device)
        tokens, y = torch.randint(0, 7, (9, 4)), torch.randint(0, 3, (9,))
    return net, tokens.to(device), y.to(device), kind(net, **{**SETTINGS, **settings})


def backward(net, tokens, y, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(tokens), y).backward()


def run(net, tokens, y, optimizer, count, spoil=()):
    for step in range(count):
        backward(net, tokens, y, optimizer)
        if step in spoil:
            net.hidden.weight.grad[0, 0] = math.nan
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("spoil", [(), (5, 6)], ids=["finite", "not-finite"])
@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_decisions_on_the_device_are_the_hosts(kind, spoil, on_device, monkeypatch):
    """Trust region, momentum, decay, and gradients that are not finite."""
    net, tokens, y, host = made(kind)
    expected = run(net, tokens, y, host, 9, spoil)
    on_device()
    net, tokens, y, optimizer = made(kind)
    monkeypatch.setattr(optimizer._side, "suits", lambda blocks: False)
    theta = run(net, tokens, y, optimizer, 9, spoil)
    assert_close(theta, expected, 1e-12)
    wanted, found = host.diagnostics(), optimizer.diagnostics()
    assert found["bounded_steps"] == wanted["bounded_steps"] > 0
    assert found["skipped_steps"] == wanted["skipped_steps"] == len(spoil)
    for name in ("kl", "step_scale"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-9)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_a_step_between_refreshes_reads_nothing(kind, on_device):
    on_device()
    net, tokens, y, optimizer = made(kind, statistics_every=100)
    run(net, tokens, y, optimizer, 12)
    for _ in range(3):
        optimizer._refreshes.statistics.last = optimizer._steps
        optimizer._schedule()
        backward(net, tokens, y, optimizer)
        assert not optimizer._watch.due
        with NothingIsRead():
            optimizer.step()
    assert optimizer.diagnostics()["steps"] == 15


def test_the_guard_of_these_tests_sees_reading():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingIsRead():
        float(torch.ones(()))


def test_a_renewal_reads_nothing_and_is_taken_over_a_step_later(on_device):
    """Inverses in use are those of the host one step before; the first are taken at once."""
    settings = {"lr": 1e-12, "statistics_every": 1, "inverse_every": 1}
    net, tokens, y, host = made(**settings)
    inverses = []
    for _ in range(4):
        run(net, tokens, y, host, 1)
        inverses.append([stack.input_inverses.clone() for stack in host._made().stacks])
    on_device()
    net, tokens, y, optimizer = made(**settings)
    for step in range(4):
        run(net, tokens, y, optimizer, 1)
        expected = inverses[max(0, step - 1)]
        for stack, wanted in zip(optimizer._made().stacks, expected, strict=True):
            assert_close(stack.input_inverses, wanted, 1e-9)
    assert optimizer._side._pending
    with NothingIsRead():
        optimizer._side.take_over()
        optimizer._side.launch(optimizer._made(), lambda group: 0.05)
        optimizer._side.take_over()
    for stack, wanted in zip(optimizer._made().stacks, inverses[3], strict=True):
        assert_close(stack.input_inverses, wanted, 1e-9)
    assert optimizer.diagnostics()["inversions_failed"] == 0


def test_a_factorisation_that_fails_keeps_the_old_inverse_and_calls_for_the_ladder(on_device):
    on_device()
    net, tokens, y, optimizer = made()
    run(net, tokens, y, optimizer, 3)
    optimizer._side.take_over()
    stack = optimizer._made().stacks[0]
    before, factor = stack.input_inverses.clone(), stack.factors.inputs.clone()
    stack.factors.inputs.sub_(10 * torch.eye(stack.form.inputs, dtype=torch.float64))
    optimizer._side.launch(optimizer._made(), lambda group: 0.05)
    optimizer._side.take_over()
    assert torch.equal(stack.input_inverses, before)
    assert optimizer.diagnostics()["inversions_failed"] == stack.size
    stack.factors.inputs.copy_(factor)
    assert optimizer._side.retry
    optimizer._invert(optimizer._made(), lambda group: 0.05)
    assert not optimizer._side._pending
    assert not optimizer._side.retry


def test_a_state_saved_between_launch_and_use_continues_alike(on_device):
    on_device()
    net, tokens, y, optimizer = made(statistics_every=1, inverse_every=1)
    run(net, tokens, y, optimizer, 4)
    assert optimizer._side._pending
    twin, _, _, other = made(statistics_every=1, inverse_every=1)
    twin.load_state_dict(net.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(run(net, tokens, y, optimizer, 3), run(twin, tokens, y, other, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_cuda_steps_equal_those_of_the_cpu(kind):
    settings = {"labels": "exact"}
    net, tokens, y, host = made(kind, **settings)
    expected = run(net, tokens, y, host, 3)
    net, tokens, y, optimizer = made(kind, "cuda", **settings)
    # One inversion a step at the start: those of the first step are taken over at once.
    optimizer._side.suits = lambda blocks: False  # pyright: ignore
    assert_close(run(net, tokens, y, optimizer, 3).cpu(), expected, 1e-8)


@pytest.mark.gpu
def test_cuda_steps_between_refreshes_do_not_synchronise():
    net, tokens, y, optimizer = made(device="cuda", statistics_every=100)
    run(net, tokens, y, optimizer, 12)
    optimizer._refreshes.statistics.last = optimizer._steps
    optimizer._schedule()
    backward(net, tokens, y, optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer._side.launch(optimizer._made(), lambda group: 0.05)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    optimizer._side.take_over()
    assert optimizer.diagnostics()["inversions_failed"] == 0


def _half(rank, port, queue):
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.cuda.set_device(rank)
        net, tokens, y, optimizer = made(device=f"cuda:{rank}", labels="exact")
        share = slice(rank, None, 2)
        model = nn.parallel.DistributedDataParallel(net, device_ids=[rank])
        for _ in range(5):
            backward(model, tokens[:8][share], y[:8][share], optimizer)
            optimizer.step()
        theta = torch.cat([p.detach().flatten() for p in net.parameters()])
        queue.put((rank, theta.cpu().numpy()))
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_nccl_ranks_equal_one_process():
    found = on_two_ranks(_half)
    net, tokens, y, optimizer = made(labels="exact")
    expected = run(net, tokens[:8], y[:8], optimizer, 5)
    for rank in (0, 1):
        assert_close(torch.from_numpy(found[rank]), expected, 1e-8)
