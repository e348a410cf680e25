"""Products with inverses in two bfloat16 pieces: near the float64 step, or not taken."""

import copy

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.layers.moments import multiplies_bfloat16
from kobai.optim import KFAC

needed = pytest.mark.skipif(not multiplies_bfloat16(), reason="no such instructions here")
SETTINGS = {"lr": 0.01, "damping": 0.01, "kl_bound": None, "inverse_every": 1, "momentum": 0.5}


def made(inputs=400, outputs=300, offset=0.0, damping=0.01):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh(), nn.Linear(outputs, 4))
    x = torch.randn(128, inputs, generator=generator) + offset
    y = torch.randint(0, 4, (128,), generator=generator)
    return net, x, y, KFAC(net, **{**SETTINGS, "damping": damping})


def steps(net, x, y, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def stepped(net, x, y, optimizer, layer, damping):
    """Make a step, and return the error of a layer's part of it, from the factors in float64.

    In the norm of (F + λ). The layer is at zero meanwhile, so that its step is not rounded.
    """
    own = net[layer].weight, net[layer].bias
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        before = [p.clone() for p in own]
        for p in own:
            p.zero_()
        optimizer.step()
        step = torch.cat([own[0], own[1][:, None]], 1).double() / -optimizer.param_groups[0]["lr"]
        for p, old in zip(own, before, strict=True):
            p.add_(old)
    entry = oracle.saved(optimizer)[f"{layer}.weight"]
    factors = KroneckerFactors(
        inputs=entry["input_factor"].double(), outputs=entry["output_factor"].double()
    )
    exact = factors.inverse(damping).product(entry["momentum_buffer"].double())
    wrong = step - exact

    def norm(v):
        return float((v * (factors.product(v) + damping * v)).sum().sqrt())

    return norm(wrong) / norm(exact)


def in_pieces(optimizer, layer):
    """Whether the products of a layer are made in pieces."""
    return bool(oracle.saved(optimizer)[f"{layer}.weight"]["pieces"].all())


@needed
def test_pieces_are_used_once_there_is_a_momentum_and_are_near():
    net, x, y, optimizer = made()
    assert stepped(net, x, y, optimizer, 0, 0.01) < 1e-4
    assert not in_pieces(optimizer, 0)
    steps(net, x, y, optimizer, 2)
    assert 1e-4 < stepped(net, x, y, optimizer, 0, 0.01) < 0.03
    assert in_pieces(optimizer, 0)
    assert stepped(net, x, y, optimizer, 2, 0.01) < 1e-4
    assert not in_pieces(optimizer, 2)


@needed
def test_pieces_are_given_up_where_they_are_not_near():
    # All inputs alike but for noise: A has one eigenvalue far above the rest and the damping.
    net, x, y, optimizer = made(offset=100.0, damping=1e-7)
    steps(net, x, y, optimizer, 4)
    assert not in_pieces(optimizer, 0)


def test_resumed_runs_are_equal_to_the_bit():
    net, x, y, optimizer = made()
    steps(net, x, y, optimizer, 4)
    twin = copy.deepcopy(net)
    other = KFAC(twin, **{**SETTINGS, "damping": 0.01})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(net, x, y, optimizer, 2)
    steps(twin, x, y, other, 2)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_float64_and_a_chosen_precision_are_never_in_pieces():
    net, x, y, _ = made()
    doubles = KFAC(net.double(), **SETTINGS)
    steps(net, x.double(), y, doubles, 3)
    assert not in_pieces(doubles, 0)
    net, x, y, _ = made()
    chosen = KFAC(net, **SETTINGS, product_dtype=torch.float32)
    steps(net, x, y, chosen, 2)
    assert stepped(net, x, y, chosen, 0, 0.01) < 1e-4
    assert not in_pieces(chosen, 0)
