"""The excess of cross-entropy over its floor, against torch's divergences and its own parts."""

import math

import pytest
import torch
import torch.nn.functional as F

from kobai.problem import Bernoulli, Categorical
from kobai.problem.likelihoods.divergence import divergence
from tolerances import assert_close


def draws(*shape, seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=g, dtype=torch.float64)


def soft(seed=1, n=5, c=4):
    return torch.softmax(draws(n, c, seed=seed), 1)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_categorical_excess_is_torchs_divergence(scale):
    logits, targets = draws(5, 4), soft()
    found = Categorical(excess=True, scale=scale).nll(logits, targets)
    wanted = F.kl_div(logits.log_softmax(1), targets, reduction="none").sum(1)
    assert_close(found, scale * wanted, 1e-13)


def test_bernoulli_excess_is_torchs_divergence():
    logits, targets = draws(5, 3), torch.sigmoid(draws(5, 3, seed=2))
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(probs=targets), torch.distributions.Bernoulli(logits=logits)
    ).sum(1)
    assert_close(Bernoulli(excess=True).nll(logits, targets), wanted, 1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_excess_is_cross_entropy_less_its_least_value(axis, smoothing):
    """Targets of any mass, several positions: the least value is the entropy m H(q / m)."""
    logits = draws(3, 4, 4)
    targets = 3 * torch.softmax(draws(3, 4, 4, seed=1), 1)
    options = {"axis": axis, "label_smoothing": smoothing}
    q = (1 - smoothing) * targets + smoothing / 4
    m = q.sum(axis, keepdim=True)
    floor = -(q * (q / m).log()).sum((1, 2))
    wanted = Categorical(**options).nll(logits, targets) - floor
    assert_close(Categorical(excess=True, **options).nll(logits, targets), wanted, 1e-12)


def test_labels_have_no_entropy_and_ignored_ones_no_loss():
    logits, labels = draws(4, 3), torch.tensor([0, 2, -100, 1])
    plain, excess = Categorical(), Categorical(excess=True)
    assert_close(excess.nll(logits, labels), plain.nll(logits, labels), 1e-13)


def test_derivatives_are_those_of_cross_entropy():
    logits, targets = draws(5, 4), soft()
    plain, excess = Categorical(), Categorical(excess=True)

    def total(likelihood):
        return lambda f: likelihood.nll(f, targets).sum()

    for transform in (torch.func.grad, torch.func.hessian):
        assert_close(transform(total(excess))(logits), transform(total(plain))(logits), 1e-12)
    u, g = draws(5, 4, seed=3), torch.Generator().manual_seed(0)
    again = torch.Generator().manual_seed(0)
    for name in ("residual", "hvp", "factor_product"):
        arguments = (logits, targets) if name == "residual" else (logits, targets, u)
        assert torch.equal(getattr(excess, name)(*arguments), getattr(plain, name)(*arguments))
    assert_close(excess.residual(logits, targets), torch.func.grad(total(excess))(logits), 1e-12)
    assert torch.equal(
        excess.sample(logits, targets, generator=g), plain.sample(logits, targets, generator=again)
    )
    excess.check(logits, targets)
    with pytest.raises(ValueError, match="negative"):
        excess.check(logits, targets - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_near_agreement_no_digit_is_lost(dtype):
    """For a shift t u of the logits the divergence is ½ t² uᵀ(diag p − ppᵀ)u + O(t³)."""
    logits, u = draws(6, 5).to(dtype), draws(6, 5, seed=4).to(dtype)
    targets = torch.softmax(logits, 1)
    quadratic = 0.5 * (u * Categorical().hvp(logits, targets, u)).sum(1)
    t = 1e-3
    found = Categorical(excess=True).nll(logits + t * u, targets) / t**2
    # Cross-entropy less entropy would be off by eps / t², of the size of the quadratic in float32.
    assert_close(found.double(), quadratic.double(), 2e-2 if dtype == torch.float32 else 1e-2)
    at_target = Categorical(excess=True).nll(logits, targets)
    assert bool((at_target >= 0).all())
    assert float(at_target.max()) <= 100 * torch.finfo(dtype).eps ** 2


def test_series_and_difference_meet():
    """Both branches against the exact value, on either side of the switch."""
    for d in (0.5, 0.0100001, 0.0099999, 1e-5, -1e-5, -0.0099999, -0.0100001, -0.5):
        q = 0.3
        p = q * math.exp(-d)
        found = divergence(
            torch.tensor(q, dtype=torch.float64),
            torch.ones((), dtype=torch.float64),
            torch.tensor(math.log(p), dtype=torch.float64),
        )
        exact = q * sum((-d) ** k / math.factorial(k) for k in range(2, 30))
        assert float(found) == pytest.approx(exact, rel=1e-10)


def test_classes_without_mass_stay_finite():
    targets = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    logits = torch.tensor([[800.0, 0.0, -800.0]], dtype=torch.float64, requires_grad=True)
    loss = Categorical(excess=True).nll(logits, targets).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
