"""Steps and renewals that a device decides: equal to the host's, without reading a number.

The routes for accelerators run here on the CPU, told that reading waits; tests marked gpu run them
where they belong.
"""

import math

import kfac_oracle as oracle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kobai.optim import EKFAC, KFAC
from kobai.optim.kfac import KFACSettings, refresh, stack
from kobai.optim.kfac import optimizer as loop
from kobai.optim.kfac.refresh import Refresh
from kobai.optim.kfac.side_stream import SideStream
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
        for module in (loop, refresh, stack):
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
    monkeypatch.setattr(SideStream, "suits", lambda self, stacks: False)
    theta = run(net, tokens, y, optimizer, 9, spoil)
    assert_close(theta, expected, 1e-12)
    wanted, found = host.diagnostics(), optimizer.diagnostics()
    assert found["bounded_steps"] == wanted["bounded_steps"] > 0
    assert found["skipped_steps"] == wanted["skipped_steps"] == len(spoil)
    for name in ("kl", "step_scale"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-9)


QUIET = (21, 23, 25)
"""Steps without statistics, where these are due every 100 steps and more often at the start."""


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_a_step_between_refreshes_reads_nothing(kind, on_device):
    on_device()
    net, tokens, y, optimizer = made(kind, statistics_every=100)
    run(net, tokens, y, optimizer, QUIET[0])
    for _ in QUIET:
        before = optimizer.diagnostics()["statistics"]
        backward(net, tokens, y, optimizer)
        with NothingIsRead():
            optimizer.step()
        assert optimizer.diagnostics()["statistics"] == before
        run(net, tokens, y, optimizer, 1)
        assert optimizer.diagnostics()["statistics"] == before + 1


def test_the_guard_of_these_tests_sees_reading():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingIsRead():
        float(torch.ones(()))


def averaged(device="cpu"):
    """Blocks that know a batch, those of them that a side stream renews, and their inverses."""
    net, tokens, y, optimizer = made(device=device)
    optimizer.close()
    observer, blocks = oracle.observer(net), oracle.blocks_of(net)

    def observe():
        nn.functional.cross_entropy(net(tokens), y).backward()
        sums = observer.take().sums
        blocks.average(sums.moments, sums.squares, sums.weight)

    observe()
    stacks = [one for one in blocks.stacks if one.block.shared()]
    inverses = lambda: [t.clone() for one in stacks for t in one.block.shared()]  # noqa: E731
    return blocks, stacks, inverses, observe


def damping(group):
    return 0.05


def test_a_renewal_reads_nothing_and_is_taken_over_when_asked():
    """The first inverses are taken at once; later ones are those of the host."""
    blocks, stacks, inverses, observe = averaged()
    side = SideStream()
    assert side.suits(stacks)
    with NothingIsRead():
        side.launch(stacks, damping)
    first = inverses()
    Refresh(KFACSettings()).renew(blocks, damping)
    for found, wanted in zip(first, inverses(), strict=True):
        assert_close(found, wanted, 1e-9)
    observe()
    with NothingIsRead():
        side.launch(stacks, damping)
        between = inverses()
        side.take_over()
    second = inverses()
    assert not any(torch.equal(a, b) for a, b in zip(between, second, strict=True) if b.any())
    Refresh(KFACSettings()).renew(blocks, damping)
    for found, wanted in zip(second, inverses(), strict=True):
        assert_close(found, wanted, 1e-9)
    assert side.failed() == 0


def test_steps_are_made_with_the_inverses_of_the_step_before(on_device):
    settings = {
        "lr": 1e-6, "momentum": 0.0, "weight_decay": 0.0, "kl_bound": None, "statistics_every": 1,
        "inverse_every": 1,
    }  # fmt: skip
    net, tokens, y, host = made(**settings)
    inverses = []
    for _ in range(4):
        run(net, tokens, y, host, 1)
        entry = oracle.saved(host)["hidden.weight"]
        inverses.append((entry["output_inverse"][0].clone(), entry["input_inverse"][0].clone()))
    on_device()
    net, tokens, y, optimizer = made(**settings)
    for step in range(4):
        before = net.hidden.weight.detach().clone()
        run(net, tokens, y, optimizer, 1)
        gradient = torch.cat([net.hidden.weight.grad, net.hidden.bias.grad[:, None]], 1)
        left, right = inverses[max(0, step - 1)]
        expected = -1e-6 * (left @ gradient @ right)[:, :-1]
        assert_close(1e6 * (net.hidden.weight.detach() - before), 1e6 * expected, 1e-4)
    assert optimizer.diagnostics()["inversions_failed"] == 0


def test_a_factorisation_that_fails_keeps_the_old_inverse_and_calls_for_the_ladder(on_device):
    on_device()
    blocks, stacks, inverses, observe = averaged()
    renewals = Refresh(KFACSettings())
    renewals.renew(blocks, damping)
    before = inverses()
    observe()
    block = stacks[0].block
    factor = block.factors.inputs.clone()
    block.factors.inputs.sub_(10 * torch.eye(factor.shape[-1], dtype=torch.float64))
    renewals.renew(blocks, damping)
    renewals.side.take_over()
    assert torch.equal(inverses()[0], before[0])
    assert renewals.side.failed() == block.shape[0]
    block.factors.inputs.copy_(factor)
    assert renewals.side.retry
    assert renewals.renew(blocks, damping).failed == 0
    assert not renewals.side.retry
    assert not torch.equal(inverses()[0], before[0])  # at once


def test_a_state_saved_between_launch_and_use_continues_alike(on_device):
    on_device()
    settings = {"statistics_every": 1, "inverse_every": 1}
    whole = run(*made(**settings), 7)
    net, tokens, y, optimizer = made(**settings)
    run(net, tokens, y, optimizer, 4)
    twin, _, _, other = made(**settings)
    twin.load_state_dict(net.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(run(net, tokens, y, optimizer, 3), whole)
    assert torch.equal(run(twin, tokens, y, other, 3), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_cuda_steps_equal_those_of_the_cpu(kind, monkeypatch):
    settings = {"labels": "exact"}
    net, tokens, y, host = made(kind, **settings)
    expected = run(net, tokens, y, host, 3)
    net, tokens, y, optimizer = made(kind, "cuda", **settings)
    # One inversion a step at the start: those of the first step are taken over at once.
    monkeypatch.setattr(SideStream, "suits", lambda self, stacks: False)
    assert_close(run(net, tokens, y, optimizer, 3).cpu(), expected, 1e-8)


@pytest.mark.gpu
def test_cuda_steps_between_refreshes_do_not_synchronise():
    net, tokens, y, optimizer = made(device="cuda", statistics_every=100)
    run(net, tokens, y, optimizer, QUIET[0])
    backward(net, tokens, y, optimizer)
    side, (_, stacks, _, observe) = SideStream(), averaged("cuda")
    side.launch(stacks, damping)
    observe()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        side.launch(stacks, damping)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side.take_over()
    assert side.failed() == optimizer.diagnostics()["inversions_failed"] == 0


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
