"""The chapter's own form of each first-order method, written out plainly, against torch's.

Where they agree the test says so to rounding; where they differ it measures the difference, and
docs/chapter8.md has a row for it.
"""

import math

import torch

from kobai.optim import BFGS
from kobai.problem import surfaces

STEPS = 12


def _surface():
    return surfaces.quadratic(20.0, 4, generator=torch.Generator().manual_seed(3))


def _torch_path(make, rates=None):
    """Iterates of a torch optimizer, the learning rate set before each step where given."""
    objective = _surface().objective()
    optimizer = make(objective.space.module.parameters())
    path = []
    for k in range(STEPS):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[k]
        optimizer.step(objective)
        path.append(objective.theta())
    return path


def _gradient():
    surface = _surface()
    objective = surface.objective()
    return objective.grad, surface.start


def _momentum(rates, alpha):
    """Algorithm 8.2: v ← αv − εg, θ ← θ + v."""
    grad, theta = _gradient()
    v, path = torch.zeros_like(theta), []
    for rate in rates:
        v = alpha * v - rate * grad(theta)
        theta = theta + v
        path.append(theta)
    return path


def _nesterov(rate, alpha):
    """Algorithm 8.3: the gradient at θ + αv; iterates and look-ahead points."""
    grad, theta = _gradient()
    v, path, ahead = torch.zeros_like(theta), [], []
    for _ in range(STEPS):
        v = alpha * v - rate * grad(theta + alpha * v)
        theta = theta + v
        path.append(theta)
        ahead.append(theta + alpha * v)
    return path, ahead


def _adagrad(rate, delta):
    """Algorithm 8.4: Δθ = −ε / (δ + √r) g."""
    grad, theta = _gradient()
    r, path = torch.zeros_like(theta), []
    for _ in range(STEPS):
        g = grad(theta)
        r = r + g * g
        theta = theta - rate / (delta + r.sqrt()) * g
        path.append(theta)
    return path


def _rmsprop(rate, rho, delta):
    """Algorithm 8.5: Δθ = −ε / √(δ + r) g."""
    grad, theta = _gradient()
    r, path = torch.zeros_like(theta), []
    for _ in range(STEPS):
        g = grad(theta)
        r = rho * r + (1 - rho) * g * g
        theta = theta - rate / (delta + r).sqrt() * g
        path.append(theta)
    return path


def _adam(rate, rho1, rho2, eps, *, corrected):
    """Moments with or without the bias correction."""
    grad, theta = _gradient()
    m, v, path = torch.zeros_like(theta), torch.zeros_like(theta), []
    for t in range(1, STEPS + 1):
        g = grad(theta)
        m, v = rho1 * m + (1 - rho1) * g, rho2 * v + (1 - rho2) * g * g
        first, second = (m / (1 - rho1**t), v / (1 - rho2**t)) if corrected else (m, v)
        theta = theta - rate * first / (second.sqrt() + eps)
        path.append(theta)
    return path


def _same(a, b, rtol=1e-10):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-13)


def test_momentum_agrees_at_a_constant_rate():
    rates = [0.02] * STEPS
    _same(_torch_path(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)), _momentum(rates, 0.9))


def test_momentum_differs_when_the_rate_changes():
    """Torch's rate multiplies the whole velocity, the chapter's the newest gradient alone.

    After the rate falls to zero the chapter's point coasts on; torch's stands still.
    """
    rates = [0.02] * 6 + [0.0] * 6
    theirs = _torch_path(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), rates)
    books = _momentum(rates, 0.9)
    _same(theirs[:6], books[:6])
    assert torch.equal(theirs[-1], theirs[5])
    last = books[5] - books[4]
    coasted = sum(0.9**k for k in range(1, 7)) * last
    torch.testing.assert_close(books[-1] - books[5], coasted)


def test_torchs_nesterov_iterates_are_the_chapters_look_ahead_points():
    theirs = _torch_path(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True))
    path, ahead = _nesterov(0.02, 0.9)
    _same(theirs, ahead)
    assert float((theirs[0] - path[0]).norm()) > 1e-3


def test_adagrad_agrees_with_the_chapters_delta():
    theirs = _torch_path(lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-7))
    _same(theirs, _adagrad(0.1, 1e-7))


def test_rmsprop_steps_are_shorter_by_a_root_of_two_at_most():
    """√(δ + r) ≤ √r + √δ ≤ √2 √(δ + r): torch's form, δ = eps², against the chapter's."""
    eps, rho, rate = 0.3, 0.9, 0.01
    theirs = _torch_path(lambda p: torch.optim.RMSprop(p, lr=rate, alpha=rho, eps=eps))
    books = _rmsprop(rate, rho, eps**2)
    start = _surface().start
    ratio = (theirs[0] - start) / (books[0] - start)
    assert bool((ratio <= 1 + 1e-12).all())
    assert bool((ratio >= 1 / math.sqrt(2) - 1e-12).all())
    assert float(ratio.min()) < 0.95
    small = _torch_path(lambda p: torch.optim.RMSprop(p, lr=rate, alpha=rho, eps=1e-12))
    _same(small, _rmsprop(rate, rho, 1e-24), rtol=1e-8)


def test_adam_is_torchs_and_without_correction_starts_too_fast():
    """The first step without correction is (1 − ρ₁)/√(1 − ρ₂) = 3.16 times as long."""
    theirs = _torch_path(lambda p: torch.optim.Adam(p, lr=0.01))
    _same(theirs, _adam(0.01, 0.9, 0.999, 1e-8, corrected=True), rtol=1e-8)
    plain = _adam(0.01, 0.9, 0.999, 1e-8, corrected=False)
    start = _surface().start
    ratio = (plain[0] - start) / (theirs[0] - start)
    torch.testing.assert_close(
        ratio, torch.full_like(ratio, 0.1 / math.sqrt(1e-3)), rtol=1e-5, atol=0
    )


def test_bfgs_goes_against_the_gradient_where_the_source_prints_a_plus():
    """With M = H⁻¹, θ − M g is the minimum of a quadratic and θ + M g twice as far away."""
    surface = _surface()
    objective = surface.objective()
    optimizer = BFGS(objective.space.module, search="exact", iterations=4)
    optimizer.step(objective)
    inverse = optimizer.inverse_hessian
    gradient = objective.grad(surface.start)
    torch.testing.assert_close(
        surface.start - inverse @ gradient, torch.zeros(4).double(), atol=1e-7, rtol=0
    )
    torch.testing.assert_close(
        surface.start + inverse @ gradient, 2 * surface.start, atol=1e-7, rtol=0
    )
