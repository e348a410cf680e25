"""K-FAC on numbers nobody asked for: it damps, skips and counts, and never raises or goes NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kobai.optim import EKFAC, KFAC
from kobai.problem import Bernoulli, Gaussian


def network(inputs, hidden, outputs, seed, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs)]
        if norm:
            layers.insert(1, nn.LayerNorm(hidden))
        return nn.Sequential(*layers)


def finite(model):
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())


LOSSES = {
    "categorical": nn.functional.cross_entropy,
    "gaussian": lambda f, y: 0.5 * (f - y).square().sum(1).mean(),
    "bernoulli": lambda f, y: (
        nn.functional.binary_cross_entropy_with_logits(f, y, reduction="sum") / len(f)
    ),
}


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    scale=st.floats(-8, 8),
    kind=st.sampled_from(["normal", "zero", "constant", "one-hot", "rank-one"]),
    likelihood=st.sampled_from(sorted(LOSSES)),
    damping=st.one_of(st.none(), st.floats(-12, 2)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    norm=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_degenerate_data_never_break_it(sizes, scale, kind, likelihood, damping, dtype, norm, seed):
    n, inputs, hidden, outputs = sizes
    model = network(inputs, hidden, outputs, seed, norm).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator, dtype=dtype)
    if kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "constant":
        x = torch.ones_like(x)
    elif kind == "one-hot":
        x = torch.eye(inputs, dtype=dtype)[torch.arange(n) % inputs]
    elif kind == "rank-one":
        x = x[:1] * torch.linspace(-1, 1, n, dtype=dtype)[:, None]
    x = x * 10**scale
    if likelihood == "categorical":
        y = torch.randint(0, outputs, (n,), generator=generator)
    elif likelihood == "gaussian":
        y = torch.randn(n, outputs, generator=generator, dtype=dtype) * 10**scale
    else:
        y = torch.randint(0, 2, (n, outputs), generator=generator).to(dtype)
    if damping is None:
        optimizer = KFAC(model, likelihood)
    else:
        optimizer = KFAC(model, likelihood, lr=0.03, damping=10**damping, kl_bound=0.03)
    for _ in range(4):
        optimizer.zero_grad()
        LOSSES[likelihood](model(x), y).backward()
        optimizer.step()
        assert finite(model)
    counts = optimizer.diagnostics()
    assert counts["steps"] == 4
    assert math.isfinite(counts["kl"])
    if damping is not None:
        assert counts["kl"] <= 0.03 * (1 + 1e-6)
    assert counts["inversions_failed"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_skipped_and_counted(bad):
    model = network(4, 5, 3, 0)
    x, y = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    optimizer = KFAC(model)
    for step in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if step in (0, 3):
            loss = loss * bad
        loss.backward()
        before = [p.clone() for p in model.parameters()]
        optimizer.step()
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert same == (step in (0, 3))
    assert optimizer.diagnostics()["skipped_steps"] == 2
    assert finite(model)


def test_statistics_that_are_not_finite_are_refused_and_counted():
    model = network(4, 5, 3, 0)
    y = torch.zeros(6, dtype=torch.int64)
    optimizer = KFAC(model, statistics_every=1)
    for step in range(6):
        x = torch.ones(6, 4)
        if step in (0, 2):
            x[0, 0] = math.inf if step else math.nan
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    counts = optimizer.diagnostics()
    assert counts["refused_statistics"] > 0
    assert counts["skipped_steps"] == 2
    assert finite(model)
    for stack in optimizer._made().stacks:
        for tensor in stack.tensors().values():
            assert bool(torch.isfinite(tensor).all())


def test_a_certain_classifier_leaves_no_subnormal_numbers():
    """Predictions of certainty 1 − 1e-30 and better, and momentum that has decayed."""
    model = network(4, 5, 3, 0)
    with torch.no_grad():
        model[2].bias += torch.tensor([85.0, 0.0, 0.0])
    x, y = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    optimizer = KFAC(model, momentum=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    tiny = torch.finfo(torch.float32).tiny
    for stack in optimizer._made().stacks:
        for tensor in stack.tensors().values():
            assert not bool(((tensor != 0) & (tensor.abs() < tiny)).any())


def test_an_exploding_loss_is_bounded():
    """Inputs a thousand times too large: every step stays bounded, and the loss comes down."""
    model = network(4, 16, 3, 1)
    generator = torch.Generator().manual_seed(0)
    x = 1e3 * torch.randn(64, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    optimizer, losses = KFAC(model), []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("settings", [{}, {"lr": 0.03, "damping": 0.03}])
def test_gradients_beyond_single_precision_squares_still_move(settings):
    model = nn.utils.skip_init(nn.Linear, 2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = KFAC(model, Gaussian(), **settings)
    (0.5 * (model(torch.ones(3, 2)) - 1e25).square()).mean().backward()
    optimizer.step()
    assert finite(model)
    counts = optimizer.diagnostics()
    handled = ("bounded_steps", "skipped_steps", "rejected_steps", "unmodelled_steps")
    assert sum(counts.get(name, 0) for name in handled) == 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("damping", 0.0),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1.0),
        ("statistics_every", 0),
        ("inverse_every", 0),
        ("kl_bound", 0.0),
        ("output_damping", -1.0),
        ("labels", "wrong"),
    ],
)
def test_wrong_settings_are_refused_at_once(setting, value):
    with pytest.raises(Exception, match=setting):
        KFAC(network(2, 2, 2, 0), **{setting: value})


def test_models_without_anything_to_train_are_refused():
    model = network(2, 2, 2, 0)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        KFAC(model)
    with pytest.raises(ValueError, match="run the model once"):
        KFAC(nn.Sequential(nn.LazyLinear(3)))


def test_wrong_likelihoods_are_refused():
    with pytest.raises(ValueError, match="unknown likelihood"):
        KFAC(network(2, 2, 2, 0), "poisson")
    assert isinstance(KFAC(network(2, 2, 2, 0), nn.BCEWithLogitsLoss()).likelihood, Bernoulli)


def minibatches(scale, steps):
    """A linearly separable problem of 512 examples in batches of 64, inputs times `scale`."""
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(512, 8, generator=generator)
    y = (x @ torch.randn(8, 3, generator=generator)).argmax(1)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * step + 64) % 512
        yield x[rows], y[rows]


def losses(model, optimizer, scale, steps, factor=1.0):
    found = []
    for x, y in minibatches(scale, steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        (factor * loss).backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("exponent", [-8, -5, 0, 2, 5, 6, 8])
def test_minibatches_of_any_scale_never_make_the_loss_explode(kind, exponent):
    """Also where predictions are certain and the curvature says nothing of a step's length."""
    model = network(8, 32, 3, 0)
    found = losses(model, kind(model), 10.0**exponent, 40)
    assert max(found) <= 1.5 * found[0]
    assert finite(model)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_a_start_far_off_is_left_behind(kind):
    """Steps are halved to nothing at first; the trust region then widens in time."""
    model = network(8, 32, 3, 0)
    with torch.no_grad():
        model[2].weight.mul_(1e3)
    found = losses(model, kind(model), 1.0, 60)
    assert found[0] > 100
    assert max(found[-8:]) < 0.2 * found[0]


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_weight_decay_does_not_depend_on_the_scale_of_the_loss(factor):
    ends = []
    for own in (1.0, factor):
        model = network(8, 16, 3, 0).double()
        optimizer = KFAC(model, weight_decay=0.01)
        for x, y in minibatches(1.0, 12):
            optimizer.zero_grad()
            (own * nn.functional.cross_entropy(model(x.double()), y)).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 1e-4


def test_a_step_that_is_not_made_decays_nothing():
    model = network(8, 32, 3, 0)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = KFAC(model, weight_decay=0.1)
    x, y = next(minibatches(1e8, 1))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert optimizer.diagnostics()["rejected_steps"] == 1
    for one, other in zip(model.parameters(), before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("numbers", [{}, {"lr": 0.03, "damping": 0.03}])
def test_an_empty_batch_moves_nothing_of_its_own(numbers):
    model = network(8, 32, 3, 0)
    optimizer = KFAC(model, **numbers)
    losses(model, optimizer, 1.0, 5)
    optimizer.zero_grad()
    x, y = next(minibatches(1.0, 1))
    nn.functional.cross_entropy(model(x[:0]), y[:0], reduction="sum").backward()
    optimizer.step()
    assert max(losses(model, optimizer, 1.0, 5)) < 1.1  # from 1.14
    assert finite(model)


def test_below_what_single_precision_resolves_nothing_is_judged():
    """One batch again and again: losses of 1e-7 are rounding errors of logits of ten."""
    model = network(8, 32, 3, 0)
    optimizer = KFAC(model)
    x, y = next(minibatches(1.0, 1))
    found = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    assert found[-1] < 1e-4
    assert found[-1] <= found[100]
    assert optimizer.diagnostics()["rejected_steps"] == 0
    assert optimizer.param_groups[0]["damping"] <= 0.01
