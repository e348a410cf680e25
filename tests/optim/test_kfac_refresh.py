"""Statistics and inverses are renewed as often as they grow stale."""

import math

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

from kobai.curvature.blocks import FactorSums
from kobai.curvature.blocks.interface import past_weight
from kobai.optim import EKFAC, KFAC, KFACConfig, build
from kobai.optim.kfac import KFACSettings
from kobai.optim.kfac.refresh import FRESH, STALE, Refresh, interval

AUTOMATIC = {"statistics_every": "auto", "inverse_every": "auto"}
FIXED = {"lr": 1e-6, "damping": 0.1}


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def loud(time):
    """The direction of the inputs' largest variance; 60 units of time from axis to axis."""
    axis, angle = int(time // 60) % 6, (time % 60) / 60 * math.pi / 2
    direction = torch.zeros(6).double()
    direction[axis], direction[(axis + 1) % 6] = math.cos(angle), math.sin(angle)
    return direction


def train(net, optimizer, first, last, still=math.inf, batch=64):
    """Inputs whose covariance turns at every step before step `still`."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(batch, 6, generator=generator).double()
        strength = 5 * torch.randn(batch, 1, generator=generator).double()
        x = x + strength * loud(min(step, still))
        y = torch.randint(0, 3, (batch,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [KFAC, pytest.param(EKFAC, marks=pytest.mark.slow)])
def test_what_changes_fast_and_then_stays_is_followed_and_then_left_alone(kind):
    net = network()
    optimizer = kind(net, **FIXED, **AUTOMATIC)
    train(net, optimizer, 0, 120, still=120)
    moving = optimizer.diagnostics()
    assert moving["statistics_interval"] <= 2
    train(net, optimizer, 120, 320, still=120)
    resting = optimizer.diagnostics()
    assert resting["statistics_interval"] >= 32
    assert resting["inverse_interval"] > moving["inverse_interval"]
    train(net, optimizer, 320, 420, still=120)
    end = optimizer.diagnostics()
    assert moving["statistics"] > 60
    assert end["statistics"] - resting["statistics"] <= 8
    assert end["inversions"] - resting["inversions"] <= 2
    assert moving["inversions"] > 10


def test_a_sudden_change_is_inverted_at_the_next_update():
    net = network()
    optimizer = KFAC(net, **FIXED, statistics_every=5, inverse_every="auto")
    train(net, optimizer, 0, 200, still=0)
    before = optimizer.diagnostics()
    assert before["inverse_staleness"] < STALE
    for group in optimizer.param_groups:
        group["damping"] *= 2
    train(net, optimizer, 200, 206, still=0)
    assert optimizer.diagnostics()["inversions"] == before["inversions"] + 1
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x = 100 * torch.randn(64, 6, generator=generator).double()
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), torch.zeros(64, dtype=torch.long)).backward()
            optimizer.step()
    assert optimizer.diagnostics()["inversions"] >= before["inversions"] + 2


@pytest.mark.parametrize(("kind", "tolerance"), [("diagonal", 1e-9), ("full", 0.1)])
def test_staleness_is_the_relative_frobenius_norm(kind, tolerance):
    """Sketches against the norms themselves: exact for diagonals, near for large matrices."""
    net = nn.utils.skip_init(nn.Linear, 200, 150, bias=False).double()
    blocks, refresh = oracle.blocks_of(net), Refresh(KFACSettings(**AUTOMATIC))
    generator = torch.Generator().manual_seed(0)

    def moments(size):
        rows = torch.randn(size, size, generator=generator).double()
        matrix = rows.T @ rows / size
        return torch.diag(matrix.diagonal())[None] if kind == "diagonal" else matrix[None]

    averages = []
    for step in range(3):
        blocks.average({0: FactorSums(inputs=moments(200), rows=1, outputs=moments(150))}, {}, 1.0)
        refresh.updated(step, blocks)
        if step == 0:
            refresh.inverted(step, 0.1)
        averages.append([factor.clone() for factor in blocks.block(0).averages()])
    pairs = list(zip(*averages, strict=True))
    moved = [float((c - a).square().sum() / c.square().sum()) for a, _, c in pairs]
    found = refresh.diagnostics()
    expected = math.sqrt(sum(moved) / 2)
    assert found["inverse_staleness"] == pytest.approx(expected, rel=tolerance)
    one, two = 1 - past_weight(2), 1 - past_weight(3)
    lag = [float(((c - b) * (b - a)).sum() / c.square().sum()) / (one * two) for a, b, c in pairs]
    expected = math.sqrt(max(0.0, sum(lag) / 2))
    assert found["statistics_staleness"] == pytest.approx(expected, abs=tolerance)


def test_intervals_double_and_halve_within_bounds():
    own = interval("inverse", "auto")
    own.last = 0
    own.adapt(40, 2 * STALE)  # less than the interval has passed
    assert own.every == 20
    for _ in range(10):
        own.adapt(own.last + 1, 2 * STALE)
    assert own.every == 1
    for _ in range(20):
        own.adapt(own.last + own.every, FRESH / 2)
    assert own.every == own.longest == 1000
    own.adapt(own.last + 500, FRESH / 2)
    own.adapt(own.last + 1000, 0.5 * (FRESH + STALE))
    assert own.every == 1000


def test_numbers_are_intervals_as_they_are():
    refresh = Refresh(KFACSettings(statistics_every=7, inverse_every=30))
    refresh.statistics.last, refresh.inverse.last = 700, 700
    for refreshed in (refresh.statistics, refresh.inverse):
        refreshed.adapt(800, 10.0)
    assert [refresh.statistics_due(step) for step in (706, 707)] == [False, True]
    assert [refresh.inverse_due(step, 5.0) for step in (729, 730)] == [False, True]
    assert refresh.diagnostics() == {}


@pytest.mark.parametrize("kind", [KFAC, pytest.param(EKFAC, marks=pytest.mark.slow)])
def test_a_resumed_run_keeps_intervals_and_sketches_to_the_bit(kind):
    settings = {**AUTOMATIC, "control_every": 3}
    whole = network()
    optimizer = kind(whole, **settings)
    train(whole, optimizer, 0, 42, still=15, batch=16)
    first = network()
    half = kind(first, **settings)
    train(first, half, 0, 23, still=15, batch=16)
    second = network(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = kind(second, **settings)
    resumed.load_state_dict(half.state_dict())
    train(second, resumed, 23, 42, still=15, batch=16)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.diagnostics() == optimizer.diagnostics()


def test_other_words_are_refused():
    with pytest.raises(Exception, match="statistics_every"):
        KFAC(network(), statistics_every="often")
    with pytest.raises(Exception, match="inverse_every"):
        KFACConfig(inverse_every=0)
    made = build("ekfac", network(), config=KFACConfig(**AUTOMATIC))
    assert made.diagnostics()["inverse_interval"] == 100
