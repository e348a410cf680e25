"""Two gloo ranks with different examples decide alike: automatic steps, damping and intervals."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kobai.optim import EKFAC, KFAC
from two_ranks import on_two_ranks

cross_entropy = nn.functional.cross_entropy

AUTOMATIC = {"statistics_every": "auto", "inverse_every": "auto"}
STEPS, HALF = 40, 24


def data():
    """Three noisy clusters; more than linear."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (400,), generator=generator)
    centres = 1.5 * torch.randn(3, 6, generator=generator).double()
    x = centres[y] + torch.randn(400, 6, generator=generator).double()
    return torch.cat([x, x[:, :2] * x[:, 2:4]], 1), y


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)).double()


def train(model, optimizer, shares, rank):
    """Minibatches of 2 × HALF, of which each rank sees its own half (or one process both)."""
    x, y = data()
    for step in range(STEPS):
        rows = torch.randint(0, len(x), (2 * HALF,), generator=torch.Generator().manual_seed(step))
        rows = rows.view(shares, -1)[rank]
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()


def _worker(rank, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found = {}
        for kind in (KFAC, EKFAC):
            for name, settings in (("defaults", {}), ("staleness", AUTOMATIC)):
                net = network()
                model = nn.parallel.DistributedDataParallel(net)
                optimizer = kind(model, **settings)
                train(model, optimizer, 2, rank)
                theta = torch.cat([p.detach().flatten() for p in net.parameters()])
                found[kind.__name__, name] = theta.numpy(), optimizer.diagnostics()
        # Expected labels: nothing is drawn, so that one process can do the same.
        net = network()
        model = nn.parallel.DistributedDataParallel(net)
        optimizer = KFAC(model, labels="exact")
        train(model, optimizer, 2, rank)
        theta = torch.cat([p.detach().flatten() for p in net.parameters()])
        found["exact"] = theta.numpy(), optimizer.diagnostics()
        queue.put((rank, found))
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs():
    return on_two_ranks(_worker)


def losses(theta):
    """Loss on all data before and after."""
    net, (x, y) = network(), data()
    before = float(cross_entropy(net(x), y).detach())
    torch.nn.utils.vector_to_parameters(torch.from_numpy(theta), net.parameters())
    return before, float(cross_entropy(net(x), y).detach())


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["defaults", "staleness"])
@pytest.mark.parametrize("kind", ["KFAC", "EKFAC"])
def test_ranks_decide_alike_and_the_loss_falls(runs, kind, settings):
    (theta, own), (other, theirs) = runs[0][kind, settings], runs[1][kind, settings]
    assert (theta == other).all()
    assert own == theirs
    assert own["models"] > 5
    assert len(own["decisions"]) > 0
    assert own["skipped_steps"] == 0
    before, after = losses(theta)
    assert after < 0.5 * before


@pytest.mark.slow
def test_two_ranks_decide_as_one_process_with_the_joined_batch(runs):
    net = network()
    optimizer = KFAC(net, labels="exact")
    train(net, optimizer, 1, 0)
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    one = optimizer.diagnostics()
    for rank in (0, 1):
        theta, found = runs[rank]["exact"]
        assert float((torch.from_numpy(theta) - expected).abs().max()) < 1e-6
        assert [d["action"] for d in found["decisions"]] == [d["action"] for d in one["decisions"]]
        for key in ("damping", "rate", "momentum_rate", "share", "radius"):
            assert found[key] == pytest.approx(one[key], rel=1e-5), key
