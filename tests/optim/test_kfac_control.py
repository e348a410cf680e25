"""Automatic steps and damping: the model against dense matrices, the rules on made-up noise."""

import math

import kfac_oracle as oracle
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from kobai.optim import EKFAC, KFAC, LevenbergMarquardt
from kobai.optim.damping import ReductionRatio
from kobai.optim.kfac import KFACSettings
from kobai.optim.kfac.control_state import CONTROL_COUNTS, ControlState
from kobai.optim.kfac.damping_control import DampingControl
from kobai.optim.kfac.measured import Measured
from kobai.optim.kfac.minibatch import Minibatch, moved, repeat
from kobai.optim.kfac.observe import Observation
from kobai.optim.kfac.quadratic_model import minimiser, quadratic_model, shrunk
from kobai.optim.kfac.stack import Preconditioned
from kobai.optim.kfac.statistics import Sums
from kobai.optim.kfac.step_size import Fixed
from kobai.problem import Categorical
from tolerances import assert_close

cross_entropy = nn.functional.cross_entropy


def network(*layers, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(layer() for layer in layers)).double()


def classifier(seed=0):
    net = network(lambda: nn.Linear(4, 5), nn.Tanh, lambda: nn.Linear(5, 3), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 4, generator=generator).double()
    return net, x, torch.randint(0, 3, (12,), generator=generator)


def dense(net, x, y):
    """Gradient and Gauss-Newton matrix by torch.func alone: JᵀHJ/N with H by autograd."""
    names = [name for name, _ in net.named_parameters()]
    values = tuple(p.detach() for p in net.parameters())

    def outputs(*parameters):
        return functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    f = outputs(*values)
    jacobian = jacrev(outputs, argnums=tuple(range(len(values))))(*values)
    j = torch.cat([part.flatten(2) for part in jacobian], 2)
    h = torch.stack(
        [hessian(lambda o, t=t: cross_entropy(o, t))(o) for o, t in zip(f, y, strict=True)]
    )
    r = torch.softmax(f, 1) - nn.functional.one_hot(y, 3)
    count = len(x)
    return (
        torch.einsum("ncp,nc->p", j, r) / count,
        torch.einsum("ncp,ncd,ndq->pq", j, h, j) / count,
        j,
    )


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def test_the_minimum_over_two_directions_is_that_of_the_h():
    net, x, y = classifier()
    gradient, ggn, j = dense(net, x, y)
    generator = torch.Generator().manual_seed(1)
    span = torch.randn(len(gradient), 2, generator=generator).double()
    damping = 0.07
    inside = span.T @ (ggn + damping * torch.eye(len(gradient))) @ span
    expected = torch.linalg.solve(inside, -span.T @ gradient)
    changes = [[torch.einsum("ncp,p->nc", j, d)] for d in span.T]
    model = quadratic_model(Categorical(), [net(x).detach()], [y], changes)
    found = minimiser(model.slope, model.bend, damping * span.T @ span)
    assert torch.allclose(model.bend, span.T @ ggn @ span, rtol=0, atol=1e-12)
    assert torch.allclose(found, expected, rtol=0, atol=1e-8)


def test_the_minimum_of_a_flat_or_doubled_direction_is_the_shortest():
    slope = torch.tensor([-1.0, -1.0]).double()
    doubled = minimiser(slope, torch.ones(2, 2).double())
    assert torch.allclose(doubled, torch.tensor([0.5, 0.5]).double())
    flat_one = minimiser(
        torch.tensor([-1.0, 0.0]).double(), torch.diag(torch.tensor([2.0, 0.0])).double()
    )
    assert torch.allclose(flat_one, torch.tensor([0.5, 0.0]).double())


def test_slopes_lose_what_their_errors_explain():
    slope, error = torch.tensor([2.0, -2.0, 1.0]).double(), torch.tensor([1.0, 4.0, math.inf])
    assert torch.allclose(shrunk(slope, error.double()), torch.tensor([1.5, 0.0, 1.0]).double())


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_first_step_is_the_dense_minimum_along_the_preconditioned_gradient(pieces):
    """Also where the batch comes in pieces, their gradients added."""
    net, x, y = classifier()
    gradient, ggn, _ = dense(net, x, y)
    start = flat(p.detach().clone() for p in net.parameters())
    optimizer = KFAC(net, labels="exact")
    for piece in range(pieces):
        rows = slice(piece * 12 // pieces, (piece + 1) * 12 // pieces)
        (cross_entropy(net(x[rows]), y[rows]) / pieces).backward()
    optimizer.step()
    step = flat(p.detach() for p in net.parameters()) - start
    # The step is parallel to the direction, so it must be the minimum of the model along itself.
    damped = ggn + 0.01 * torch.eye(len(step))
    best = -(gradient @ step) / (step @ damped @ step)
    assert float(best) == pytest.approx(1.0, abs=1e-5)
    assert optimizer.diagnostics()["kl"] == pytest.approx(float(step @ ggn @ step), rel=1e-5)


def regression(noise, seed=0, count=400):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator).double()
    truth = torch.randn(6, 2, generator=generator).double()
    return x, x @ truth + noise * torch.randn(count, 2, generator=generator).double()


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_a_linear_gaussian_problem_is_solved_in_a_few_steps(kind):
    x, y = regression(0.3)
    net = network(lambda: nn.Linear(6, 2))
    ones = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    best = torch.linalg.lstsq(ones, y).solution
    least = float(0.5 * (ones @ best - y).square().sum(1).mean())
    optimizer = kind(net, "gaussian", labels="exact")
    for _ in range(8):
        optimizer.zero_grad()
        loss = 0.5 * (net(x) - y).square().sum(1).mean()
        loss.backward()
        optimizer.step()
    excess = float(0.5 * (net(x) - y).detach().square().sum(1).mean()) - least
    assert excess < 1e-8


def train(net, optimizer, x, y, steps, batch, loss, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (batch,), generator=generator) if batch else slice(None)
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()


def test_noise_is_the_floor_of_the_damping():
    """Labels that nothing can be learned from: the damping never falls; on one batch it does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator).double()
    y = torch.randint(0, 3, (2000,), generator=generator)
    damping = {}
    for batch in (0, 32):
        net = network(lambda: nn.Linear(8, 16), nn.Tanh, lambda: nn.Linear(16, 3))
        optimizer = KFAC(net)
        rows = slice(0, 200) if not batch else slice(None)
        train(net, optimizer, x[rows], y[rows], 60, batch, cross_entropy)
        damping[batch] = optimizer.diagnostics()["damping"]
        lowered = [d for d in optimizer.diagnostics()["decisions"] if d["action"] == "lowered"]
        assert bool(lowered) == (batch == 0)
    assert damping[0] < 0.1 * 0.01
    assert damping[32] >= 0.01


def test_decisions_follow_the_two_ratios():
    rule = LevenbergMarquardt(initial=0.1, raise_by=2.0, lower_by=0.5)

    def minibatch(net, value, error):
        made = Minibatch(net, Categorical(), [], list(net.parameters()), None, lambda rows: rows)
        made.fresh_ratio = lambda update, predicted: ReductionRatio(
            actual=-value, predicted=predicted, value=value, error=error
        )
        return made

    cases = [  # own ratio, fresh ratio, its error, damping before, after
        (1.0, 1.0, 0.01, 0.1, 0.05),  # both agree: lower
        (1.0, 0.6, 0.01, 0.1, 0.1),  # fresh examples do not confirm it
        (1.0, 0.9, 0.5, 0.1, 0.1),  # they might
        (0.1, 1.0, 0.01, 0.1, 0.2),  # wrong about its own examples
        (1.0, -0.3, 0.1, 0.1, 0.2),  # hurts others
        (1.0, -0.3, 0.5, 0.1, 0.1),  # perhaps
        (1.0, 0.3, 0.1, 0.4, 0.2),  # above the initial one, and not needed: back
        (1.0, 0.3, 0.1, 0.15, 0.1),
        (1.0, 0.1, 0.2, 0.4, 0.4),  # perhaps needed
        (1.0, 0.1, 0.05, 0.01, 0.02),  # below the initial one without fresh support: back
    ]
    net, _, _ = classifier()
    for own, fresh, error, before, after in cases:
        control = DampingControl(rule, dict.fromkeys(CONTROL_COUNTS, 0))
        state = ControlState(predicted=-1.0, ratio=own)
        factor = control.judge(state, minibatch(net, fresh, error), [], before, 0, 1)
        assert before * factor == pytest.approx(after), (own, fresh, error)
        assert state.predicted == 0.0  # used up
        (decision,) = control.decisions
        assert decision["next"] == pytest.approx(after)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("when", [3, 13])
def test_a_run_resumed_in_the_midst_of_control_is_the_same_to_the_bit(kind, when):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator).double()
    y = torch.randint(0, 3, (300,), generator=generator)

    def piece(net, optimizer, first, last):
        for step in range(first, last):
            rows = torch.randint(0, 300, (20,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    net, _, _ = classifier()
    optimizer = kind(net)
    piece(net, optimizer, 0, 25)
    first, _, _ = classifier()
    half = kind(first)
    piece(first, half, 0, when)
    second, _, _ = classifier(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = kind(second)
    resumed.load_state_dict(half.state_dict())
    piece(second, resumed, when, 25)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), second.parameters(), strict=True)
    )
    assert resumed.diagnostics() == optimizer.diagnostics()


def test_dropout_and_batch_normalisation_are_repeated_as_they_were():
    net = network(
        lambda: nn.Linear(4, 6),
        lambda: nn.BatchNorm1d(6),
        nn.ReLU,
        nn.Dropout,
        lambda: nn.Linear(6, 3),
    )
    _, x, y = classifier()
    observer = oracle.observer(net)
    observer.keeps = True
    with torch.random.fork_rng():
        torch.manual_seed(3)
        outputs = net(x)
        cross_entropy(outputs, y).backward()
        (one,) = observer.take().passes
        observer.close()
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        state = torch.get_rng_state()
        (again,) = repeat(net, [one])
        assert torch.equal(again, outputs)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())
        step = [torch.full_like(p, 0.1) for p in net.parameters()]
        with moved(list(net.parameters()), step):
            (there,) = repeat(net, [one])
        # The masks and the batch's own statistics at the moved parameters, by hand.
        torch.set_rng_state(one.random[0])
        with torch.no_grad():
            a = x @ (net[0].weight + 0.1).T + net[0].bias + 0.1
            a = (a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt()
            a = nn.functional.dropout(torch.relu(a * (net[1].weight + 0.1) + net[1].bias + 0.1))
            expected = a @ (net[4].weight + 0.1).T + net[4].bias + 0.1
        assert torch.allclose(there, expected, atol=1e-12)
        optimizer = KFAC(net)
        before = net[1].num_batches_tracked.clone()
        for _ in range(3):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        assert net[1].num_batches_tracked == before + 3


def test_a_gradient_scaler_is_seen_through():
    """For a Gaussian likelihood the size of the output gradient is all there is."""
    runs = []
    for scale in (1.0, 2.0**16):
        x, y = regression(0.3)
        net = network(lambda: nn.Linear(6, 4), nn.Tanh, lambda: nn.Linear(4, 2))
        optimizer = KFAC(net, "gaussian")
        for _ in range(6):
            optimizer.zero_grad()
            (scale * 0.5 * (net(x) - y).square().sum(1).mean()).backward()
            for p in net.parameters():
                p.grad /= scale
            optimizer.step()
        runs.append(flat(p.detach() for p in net.parameters()))
    assert torch.allclose(*runs, atol=1e-9)


def focal(outputs, labels):
    log_p = torch.log_softmax(outputs, 1).gather(1, labels[:, None])
    return -((1 - log_p.exp()).square() * log_p).mean()


def test_a_loss_of_another_form_asks_for_a_closure_and_is_served_by_one():
    net, x, y = classifier()
    optimizer = KFAC(net)
    focal(net(x), y).backward()
    with pytest.raises(RuntimeError, match="step\\(closure\\)"):
        optimizer.step()
    net, x, y = classifier()
    optimizer = KFAC(net)

    def closure():
        optimizer.zero_grad()
        loss = focal(net(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(20)]
    assert losses[-1] < 0.3 * losses[0]
    assert optimizer.diagnostics()["models"] > 5


class Jitter(nn.Module):
    """Draws from a generator of its own, out of anybody's sight."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.own, dtype=x.dtype)


def test_a_model_that_cannot_be_repeated_is_refused():
    net = network(lambda: nn.Linear(4, 3), Jitter)
    _, x, y = classifier()
    optimizer = KFAC(net)
    cross_entropy(net(x), y).backward()
    with pytest.raises(RuntimeError, match="repeated"):
        optimizer.step()


def test_inputs_that_changed_before_the_step_are_not_taken_for_the_pass():
    net, x, y = classifier()
    observer = oracle.observer(net)
    observer.keeps = True
    cross_entropy(net(x), y).backward()
    (one,) = observer.take().passes
    observer.close()
    assert one.intact
    optimizer = KFAC(net)
    cross_entropy(net(x), y).backward()
    x.add_(1.0)
    assert not one.intact
    with pytest.raises(RuntimeError, match="do not change its inputs in place"):
        optimizer.step()


def test_automatic_damping_beside_a_learning_rate_in_numbers():
    net, x, y = classifier()
    optimizer = KFAC(net, lr=0.1, kl_bound=0.5)
    train(net, optimizer, x, y, 40, 0, cross_entropy)
    counts = optimizer.diagnostics()
    assert counts["damping"] < 0.01  # the same batch again and again: the model is right
    assert counts["models"] > 10
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_schedule_sets_the_damping():
    net, x, y = classifier()
    optimizer = KFAC(net, lr=0.1, damping=lambda step: 0.5 / (1 + step))
    train(net, optimizer, x, y, 4, 0, cross_entropy)
    assert optimizer.param_groups[0]["damping"] == 0.5 / 4


def test_numbers_need_no_forward_passes():
    net, x, y = classifier()
    optimizer = KFAC(net, lr=0.1, damping=0.1)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    train(net, optimizer, x, y, 5, 0, cross_entropy)
    assert len(calls) == 5
    automatic = KFAC(net)
    calls.clear()
    train(net, automatic, x, y, 60, 0, cross_entropy)
    assert 60 < len(calls) < 60 + 4 * automatic.diagnostics()["models"] + 2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lr": "fast"}, "lr"),
        ({"damping": "some"}, "damping"),
        ({"kl_bound": "no"}, "kl_bound"),
        ({"control_every": 0}, "control_every"),
    ],
)
def test_other_words_are_refused(settings, match):
    with pytest.raises(Exception, match=match):
        KFAC(nn.utils.skip_init(nn.Linear, 2, 2), **settings)


@pytest.mark.parametrize(
    ("length", "factor"),
    [(1.0, math.exp(0.0125)), (4 / 3, 1.0), (2.0, math.exp(-0.0125)), (40.0, math.exp(-0.03625))],
)
def test_steps_may_end_half_way_between_the_most_and_no_gain(length, factor):
    """On a quadratic, along its gradient: 1 gains most, 2 nothing."""
    net = network(lambda: nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, k, generator=generator).double() for k in (4, 1))

    def loss(weight, bias):
        return 0.5 * (nn.functional.linear(x, weight, bias) - y).square().mean()

    values = tuple(p.detach() for p in net.parameters())
    gradient = torch.autograd.functional.jacobian(loss, values)
    blocks = torch.autograd.functional.hessian(loss, values)
    rows = [
        torch.cat([block.reshape(p.numel(), -1) for block in row], 1)
        for row, p in zip(blocks, values, strict=True)
    ]
    h = torch.cat(rows)
    g = flat(gradient)
    step = -length * (g @ g) / (g @ h @ g) * g
    settings = KFACSettings()
    measured = Measured(net, Categorical(), settings, Fixed(settings, lambda flag: None))
    # The step was made before, its successor is of no size and no measurement is due.
    measured.state.share, measured.state.bend = 0.5, float(step @ h @ step)
    measured.state.model_step = 7
    weight, bias = net.parameters()
    measured.updates = {id(weight): step[:4].view(1, 4).clone(), id(bias): step[4:].clone()}
    there = g + h @ step
    weight.grad, bias.grad = there[:4].view(1, 4), there[4:]
    nothing = Preconditioned(0.0, [weight, bias], [torch.zeros_like(p) for p in (weight, bias)], 0)
    with torch.no_grad():
        measured.move(7, [settings.group()], [(settings.group(), nothing)],
                      Observation([], Sums(), False), 0, None)  # fmt: skip
    assert measured.diagnostics()["share"] == pytest.approx(0.5 * factor, rel=1e-9)


def test_a_learning_rate_beside_auto_scales_the_measured_step():
    moved = {}
    for lr in (1.0, 0.1):
        net, x, y = classifier()
        before = flat(p.detach().clone() for p in net.parameters())
        optimizer = KFAC(net, labels="exact")
        for group in optimizer.param_groups:
            group["lr"] = lr
        cross_entropy(net(x), y).backward()
        optimizer.step()
        assert optimizer.diagnostics()["shortened_trials"] == 0
        moved[lr] = flat(p.detach() for p in net.parameters()) - before
    assert_close(moved[0.1], 0.1 * moved[1.0], 1e-12)


def test_relative_learning_rates_of_groups_turn_the_direction():
    net, x, y = classifier()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = KFAC(net, labels="exact")
    optimizer.param_groups[0]["params"] = list(net[0].parameters())
    optimizer.add_param_group({"params": list(net[2].parameters())})
    optimizer.param_groups[1]["lr"] = 0.0  # as a scheduler may
    cross_entropy(net(x), y).backward()
    optimizer.step()
    moved = [bool((p.detach() != q).any()) for p, q in zip(net.parameters(), before, strict=True)]
    assert moved == [True, True, False, False]
