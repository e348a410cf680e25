"""Targets read off output gradients: every loss of torch that has the right form, and no other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kobai.optim import KFAC
from kobai.problem import Bernoulli, Categorical, Gaussian, as_likelihood

FACTORS = (1.0, 2.0**16, 0.37)


def leaf(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def gradient(loss, f):
    loss.backward()
    return f.grad


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_labels_of_cross_entropy_whatever_its_factor(factor, dtype):
    f = leaf(20, 5, dtype=dtype)
    y = torch.arange(20) % 5
    found = Categorical().recover_targets(f, gradient(factor * F.cross_entropy(f, y), f))
    if found.targets is None and dtype == torch.bfloat16:
        pytest.skip("half precision lost the form of the gradient, and says so: " + found.reason)
    assert found.kind == "hard"
    assert torch.equal(found.targets, y)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("classes", [3, 10])
def test_labels_under_smoothing(factor, classes):
    f = leaf(30, classes)
    y = torch.arange(30) % classes
    loss = factor * F.cross_entropy(f, y, label_smoothing=0.1)
    found = Categorical(label_smoothing=0.1).recover_targets(f, gradient(loss, f))
    assert found.kind == "hard"
    assert torch.equal(found.targets, y)


def test_ignored_terms_over_tokens():
    f = leaf(4, 6, 7)
    y = torch.arange(24).reshape(4, 6) % 7
    y[0, :3] = -100
    loss = F.cross_entropy(f.flatten(0, 1), y.flatten())
    found = Categorical(reduction="terms").recover_targets(f, gradient(loss, f))
    assert torch.equal(found.targets, y)


def test_soft_targets():
    f, y = leaf(8, 4), torch.softmax(leaf(8, 4, seed=1), 1).detach()
    found = Categorical().recover_targets(f, gradient(F.cross_entropy(f, y), f))
    assert found.kind == "soft"
    assert torch.allclose(found.targets, y)


@pytest.mark.parametrize("reduction", ["examples", "terms"])
def test_binary_targets_hard_and_soft(reduction):
    for y, kind in (
        (torch.rand(9, 3, generator=torch.Generator().manual_seed(0)).double(), "soft"),
    ):
        for targets, expected in ((y, kind), ((y > 0.5).double(), "hard")):
            f = leaf(9, 3)
            loss = F.binary_cross_entropy_with_logits(f, targets, reduction="sum")
            loss = loss / (27 if reduction == "terms" else 9)
            found = Bernoulli(reduction=reduction).recover_targets(f, gradient(loss, f))
            assert found.kind == expected
            assert torch.allclose(found.targets, targets)


@pytest.mark.parametrize(
    ("likelihood", "loss"),
    [
        (Gaussian(), lambda f, y: 0.5 * (f - y).square().sum(1).mean()),
        (Gaussian(reduction="terms"), lambda f, y: 0.5 * (f - y).square().mean()),
        (as_likelihood(nn.MSELoss()), F.mse_loss),
    ],
)
def test_targets_of_regression(likelihood, loss):
    f, y = leaf(9, 3), leaf(9, 3, seed=1).detach()
    found = likelihood.recover_targets(f, gradient(loss(f, y), f))
    assert found.kind == "regression"
    assert torch.allclose(found.targets, y)


def focal(f, y):
    log_p = torch.log_softmax(f, 1).gather(1, y[:, None])
    return -((1 - log_p.exp()).square() * log_p).mean()


@pytest.mark.parametrize(
    ("likelihood", "loss"),
    [
        (Categorical(), focal),
        (Categorical(), lambda f, y: F.multi_margin_loss(5 * f, y)),
        (Categorical(), lambda f, y: F.mse_loss(f, F.one_hot(y, 4).double()) * 4),
        (
            Categorical(),
            lambda f, y: F.cross_entropy(f, y, weight=torch.tensor([1.0, 9, 1, 1]).double()),
        ),
        (
            Bernoulli(),
            lambda f, y: (
                7 * F.binary_cross_entropy_with_logits(f, (y[:, None] == torch.arange(4)) * 0.9)
            ),
        ),
    ],
    ids=["focal", "margin", "squares", "class weights", "scaled soft"],
)
def test_other_losses_are_refused_with_the_reason(likelihood, loss):
    f = (3 * leaf(40, 4)).detach().requires_grad_()
    found = likelihood.recover_targets(f, gradient(loss(f, torch.arange(40) % 4), f))
    assert found.targets is None
    assert found.kind == "none"
    assert found.reason


def test_half_precision_with_a_gradient_scaler_trains():
    """Rounding of bfloat16 gradients is not taken for another loss."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        x, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
    optimizer, scaler = KFAC(model, "categorical"), torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]


def test_further_axes_are_told_to_give_the_loss_module():
    outputs = torch.zeros(2, 3, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        outputs += torch.linspace(0, 1, 24, dtype=torch.float64).view(2, 3, 4)
    labels = torch.tensor([[0, 1, 2, 1], [2, 0, 1, 0]])
    loss = nn.functional.cross_entropy(outputs, labels)
    (gradient,) = torch.autograd.grad(loss, outputs)
    found = as_likelihood("categorical").recover_targets(outputs, gradient)
    assert found.targets is None
    assert "give that loss module" in found.reason
    good = as_likelihood(nn.CrossEntropyLoss()).recover_targets(outputs, gradient)
    torch.testing.assert_close(good.targets, labels)
