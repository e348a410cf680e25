"""K-FAC in every way that models are trained: precisions, checkpoints, compilation, odd layers."""

import copy
import math

import kfac_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from kobai.layers import Watch
from kobai.optim import EKFAC, KFAC
from tolerances import assert_close

FIXED = {"lr": 0.03, "damping": 0.03, "kl_bound": 0.03}


class Everything(nn.Module):
    """One of each kind of layer."""

    def __init__(self, checkpointed=None):
        super().__init__()
        self.embed = nn.Embedding(7, 4, padding_idx=0)
        self.conv = nn.Conv1d(4, 4, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose1d(4, 4, 3, padding=1)
        self.batch = nn.BatchNorm1d(4)
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.group = nn.GroupNorm(2, 4)
        self.root = nn.RMSNorm(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.unused = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(4, 3)
        self.checkpointed = checkpointed

    def forward(self, tokens):
        h = self.embed(tokens).transpose(1, 2)
        h = self.group(self.batch(self.back(torch.relu_(self.conv(h))))).transpose(1, 2)
        if self.checkpointed is None:
            h = self.block(h)
        else:
            h = checkpoint(self.block, h, use_reentrant=self.checkpointed)
        h = self.root(self.lstm(h)[0]) * self.scale
        return self.head(h[:, -1])


def everything(checkpointed=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Everything(checkpointed).double()
        return net, torch.randint(0, 7, (6, 5)), torch.randint(0, 3, (6,))


def trained(net, x, y, optimizer, steps=4):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize(("kind", "sharing"), [(KFAC, "expand"), (EKFAC, "reduce")])
def test_one_of_each_kind_of_layer_learns(kind, sharing):
    net, x, y = everything()
    optimizer = kind(net, **FIXED, sharing=sharing)
    blocks = {name: row.block for row in optimizer.coverage() for name in row.parameters}
    assert {n for n, b in blocks.items() if b == "diagonal"} == {"scale", "unused"}
    first = float(nn.functional.cross_entropy(net(x), y).detach())
    trained(net, x, y, optimizer, 60)
    assert float(nn.functional.cross_entropy(net(x), y).detach()) < 0.6 * first
    assert torch.equal(net.unused, torch.ones(2).double())
    assert torch.equal(net.embed.weight[0], torch.zeros(4).double())  # padding stays
    counts = optimizer.diagnostics()
    assert counts["inversions_failed"] == counts["refused_statistics"] == 0


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_state_of_every_block_resumes_to_the_bit(kind):
    net, x, y = everything()
    optimizer = kind(net, **FIXED)
    trained(net, x, y, optimizer)
    twin = copy.deepcopy(net)
    other = kind(twin, **FIXED)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(trained(net, x, y, optimizer), trained(twin, x, y, other))


def test_checkpointed_layers_have_the_statistics_of_others():
    plain, x, y = everything()
    other, _, _ = everything(False)
    expected = trained(plain, x, y, KFAC(plain, **FIXED))
    assert_close(trained(other, x, y, KFAC(other, **FIXED)), expected, 1e-9)


def test_reentrant_checkpoints_are_refused_with_the_way_out():
    net, x, y = everything(True)
    optimizer = KFAC(net, **FIXED)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        trained(net, x, y, optimizer)
    optimizer.close()


class Dropped(nn.Module):
    """Attention and recurrence with dropout inside, which draws once only."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
        self.lstm = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(self.attention(x, x, x)[0])[0].mean(1))


def test_dropout_inside_layers_is_the_same_for_statistics():
    """The gradient that the uses add up to is the gradient of the pass with its own masks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Dropped().double()
        x, y = torch.randn(6, 5, 4).double(), torch.randint(0, 3, (6,))
        watch = Watch()
        handles = watch.attach(net, {net.attention, net.lstm})
        outputs = net(x)
        nn.functional.cross_entropy(outputs, y).backward(retain_graph=True)
        loss = nn.functional.cross_entropy(outputs, y)
        found = torch.autograd.grad(loss, watch.edges, allow_unused=True)
        before = torch.get_rng_state()
        uses = watch.uses(found)
        assert torch.equal(before, torch.get_rng_state())
        for handle in handles:
            handle.remove()
    own = dict(net.named_parameters())
    for use in uses:
        gradient = torch.einsum("qetm,etk->mk", use.gradients, use.inputs)
        if use.slot == "in_proj":
            expected = own["attention.in_proj_weight"].grad.chunk(3)[use.group]
        elif use.slot == "out_proj":
            expected = own["attention.out_proj.weight"].grad
        else:
            expected = own[f"lstm.{use.slot}"].grad
        assert_close(gradient, expected)


def test_products_in_bfloat16_are_near_those_in_full():
    steps = {}
    for dtype in (None, torch.bfloat16):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
            x, y = torch.randn(64, 20), torch.randint(0, 5, (64,))
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        optimizer = KFAC(net, **FIXED, labels="exact", product_dtype=dtype)
        steps[dtype] = trained(net, x, y, optimizer, 1) - before
        kept = oracle.saved(optimizer)["0.weight"]["input_inverse"].dtype
        assert kept == (dtype or torch.float32)
        twin = copy.deepcopy(net)
        other = KFAC(twin, **FIXED, labels="exact", product_dtype=dtype)
        other.load_state_dict(optimizer.state_dict())
        assert torch.equal(trained(net, x, y, optimizer), trained(twin, x, y, other))
    error = (steps[torch.bfloat16] - steps[None]).norm() / steps[None].norm()
    assert 1e-6 < float(error) < 0.02
    with pytest.raises(ValueError, match="product_dtype"):
        EKFAC(net, **FIXED, product_dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_a_scaler_do_not_reach_the_factors(dtype):
    """Factors of a scaled half-precision pass are those of the plain one, up to its rounding."""
    factors = {}
    for scale in (None, 2.0**12):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
            x, y = torch.randn(32, 5), torch.randint(0, 3, (32,))
        optimizer = KFAC(net, **FIXED, labels="exact")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=scale is not None):
                loss = nn.functional.cross_entropy(net(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        saved = oracle.saved(optimizer)
        factors[scale] = [
            saved[f"{layer}.weight"][f"{side}_factor"]
            for layer in (0, 3)
            for side in ("input", "output")
        ]
        assert all(t.dtype == torch.float32 for t in factors[scale])
        assert optimizer.diagnostics()["skipped_steps"] == 0
    for plain, scaled in zip(*factors.values(), strict=True):
        assert_close(scaled, plain, 0.1 * float(plain.abs().max()))


def test_overflowing_half_precision_is_skipped_by_the_scaler():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        x, y = torch.randn(8, 5), torch.randint(0, 3, (8,))
    optimizer = KFAC(net, **FIXED)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = net.weight.detach().clone()
    for step in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = nn.functional.cross_entropy(net(x).half(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 0:
            assert torch.equal(net.weight, before)
    assert not torch.equal(net.weight, before)
    assert bool(torch.isfinite(net.weight).all())


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about hooks that it cannot trace
@pytest.mark.parametrize("given", ["model", "compiled"])
def test_compiled_models_are_trained_like_others(given):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(8, 5).double(), torch.randint(0, 3, (8,))
    plain = copy.deepcopy(net)
    expected = trained(plain, x, y, KFAC(plain, **FIXED, statistics_every=3), 8)
    compiled = torch.compile(net, backend="eager")
    optimizer = KFAC(net if given == "model" else compiled, **FIXED, statistics_every=3)
    assert_close(trained(compiled, x, y, optimizer, 8), expected, 1e-10)
    assert {row.block for row in optimizer.coverage()} == {"kronecker"}


@given(
    kind=st.sampled_from(["conv", "attention", "lstm", "embedding", "norm"]),
    rows=st.integers(1, 4),
    places=st.integers(1, 4),
    scale=st.floats(-8, 8),
    data=st.sampled_from(["normal", "constant", "one-hot", "zero"]),
    corrected=st.booleans(),
    sharing=st.sampled_from(["expand", "reduce"]),
    bad=st.sampled_from([0.0, math.nan, math.inf]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_layer_ever_breaks_it(kind, rows, places, scale, data, corrected, sharing, bad):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = {
            "conv": lambda: nn.Conv1d(4, 4, 3, padding=1),
            "attention": lambda: nn.MultiheadAttention(4, 2, batch_first=True),
            "lstm": lambda: nn.GRU(4, 4, batch_first=True),
            "embedding": lambda: nn.Embedding(5, 4),
            "norm": lambda: nn.LayerNorm(4),
        }[kind]()
        head = nn.Linear(4, 2)
        x = torch.randn(rows, places, 4)
    if kind == "embedding":
        x = torch.zeros(rows, places, dtype=torch.int64)
    elif data != "normal":
        x = {"constant": torch.ones_like(x), "zero": torch.zeros_like(x)}.get(
            data, torch.eye(4)[torch.arange(places) % 4].expand(rows, places, 4)
        )
    x = x if kind == "embedding" else x * 10**scale

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, head

        def forward(self, x):
            if kind == "conv":
                h = self.layer(x.transpose(1, 2)).transpose(1, 2)
            elif kind == "attention":
                h = self.layer(x, x, x)[0]
            else:
                h = self.layer(x)
            return self.head((h[0] if kind == "lstm" else h).mean(1))

    net, y = Net(), torch.zeros(rows, dtype=torch.int64)
    optimizer = (EKFAC if corrected else KFAC)(net, **FIXED, sharing=sharing)
    for step in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        if step == 1 and bad:
            loss = loss * bad
        loss.backward()
        optimizer.step()
        assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert optimizer.diagnostics()["steps"] == 4
