"""Two gloo ranks with half of each batch make the steps of one process with all of it."""

import kfac_oracle as oracle
import pytest
import torch
import torch.distributed as dist
from torch import nn

from kobai.curvature.blocks import Inversions
from kobai.optim import EKFAC, KFAC
from kobai.optim.kfac import KFACSettings
from kobai.optim.kfac.distribution import joined, owners
from kobai.optim.kfac.refresh import Refresh
from kobai.optim.kfac.statistics import Sums
from two_ranks import on_two_ranks

SETTINGS = {
    "lr": 0.1, "damping": 0.05, "momentum": 0.9, "kl_bound": 0.01, "labels": "exact",
    "statistics_every": 2, "inverse_every": 3,
}  # fmt: skip


class Network(nn.Module):
    """Linear, convolution, norm, attention and repeated layers; nothing that mixes examples."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.twice = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(self.conv(x).transpose(1, 2))
        h = h + self.attention(h, h, h)[0]
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        return self.head(h.mean(1))


def problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Network().double()
        return net, torch.randn(8, 2, 5).double(), torch.randint(0, 3, (8,))


SINGLE = {"factor_dtype": torch.float64, "inverse": "newton-schulz"}


def trained(kind, model, net, x, y, steps=7, **settings):
    optimizer = kind(model, **SETTINGS, **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()]), optimizer


def _worker(rank, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found = {}
        for kind in (KFAC, EKFAC):
            for wrap in ("net", "wrapper"):
                net, x, y = problem()
                model = nn.parallel.DistributedDataParallel(net)
                share = slice(0, 4) if rank == 0 else slice(4, 8)
                if wrap == "net":
                    # The optimizer is given the module inside; the loop calls the wrapper.
                    optimizer = kind(net, **SETTINGS)
                    for _ in range(7):
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(model(x[share]), y[share]).backward()
                        optimizer.step()
                    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
                else:
                    theta, optimizer = trained(kind, model, net, x[share], y[share])
                found[kind.__name__, wrap] = theta.numpy()
        net, x, y = problem()
        theta, _ = trained(
            KFAC, nn.parallel.DistributedDataParallel(net.float()), net, x[share].float(),
            y[share], **SINGLE,
        )  # fmt: skip
        found["single"] = theta.numpy()
        # Sampled labels differ between ranks and factors do not.
        net, x, y = problem()
        observer, blocks = oracle.observer(net), oracle.blocks_of(net)
        nn.functional.cross_entropy(net(x), y).backward()
        own = observer.take().sums
        found["own"] = own.moments[0].outputs.numpy().copy()
        whole = joined(own, blocks)
        found["joined"] = whole.moments[0].outputs.numpy()
        # A rank without statistics takes part all the same.
        lonely = joined(whole if rank == 0 else Sums(), blocks)
        found["lonely"] = lonely.moments[0].outputs.numpy(), lonely.weight
        blocks.average(whole.moments, whole.squares, whole.weight)
        found["counts"] = Refresh(KFACSettings()).renew(blocks, lambda _: 0.05)
        found["inverse"] = blocks.block(0).input_inverses.numpy()
        queue.put((rank, found))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_process():
    found = on_two_ranks(_worker)
    for kind in (KFAC, EKFAC):
        net, x, y = problem()
        expected, _ = trained(kind, net, net, x, y)
        for rank in (0, 1):
            for wrap in ("net", "wrapper"):
                theta = torch.from_numpy(found[rank][kind.__name__, wrap])
                assert float((theta - expected).abs().max()) < 1e-9
    net, x, y = problem()
    expected, _ = trained(KFAC, net.float(), net, x.float(), y, **SINGLE)
    assert abs(found[0]["single"] - found[1]["single"]).max() == 0
    assert float((torch.from_numpy(found[0]["single"]) - expected).abs().max()) < 1e-4
    assert abs(found[0]["own"] - found[1]["own"]).max() > 1e-3
    total = found[0]["own"] + found[1]["own"]
    for rank in (0, 1):
        assert abs(found[rank]["joined"] - total).max() < 1e-12
        assert abs(found[rank]["lonely"][0] - total).max() < 1e-12
        assert found[rank]["lonely"][1] == 16
        assert found[rank]["counts"] == Inversions()
    assert abs(found[0]["inverse"] - found[1]["inverse"]).max() == 0
    assert abs(found[0]["inverse"]).max() > 0


def test_work_is_shared_by_cost():
    assert owners([1.0, 8.0, 2.0, 4.0], 2) == [1, 0, 1, 1]
    assert owners([5.0], 3) == [0]
    assert owners([1.0] * 6, 3).count(1) == 2


def test_one_process_shares_nothing():
    net, _, _ = problem()
    sums = Sums(weight=2.0)
    assert joined(sums, oracle.blocks_of(net)) is sums


@pytest.mark.parametrize("distributed", [True, False])
def test_it_can_be_switched_off(distributed):
    net, _, _ = problem()
    assert KFAC(net, lr=0.1, damping=0.1, distributed=distributed).distributed == distributed
