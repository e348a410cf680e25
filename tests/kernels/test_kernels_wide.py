"""Isotropy of natural gradients in wide networks: theory's constants, dampings and training."""

import pytest
import torch
from test_kernels_ntk import dense_kernel
from torch.func import functional_call
from wide_nets import PHI, inputs_of, targets_of, wide_net, wide_risk

from kobai import Problem
from kobai.kernels import (
    KernelRegression,
    isotropy,
    natural_kernel,
    ntk,
    radial_isotropic,
)
from kobai.optim import NaturalGradient
from kobai.theory import WideNetwork, natural_gradient_alpha
from tolerances import assert_close

METHODS = ["full", "layer", "tridiagonal", "kronecker"]


@pytest.mark.parametrize("ntk_form", [True, False])
@pytest.mark.parametrize("phi", PHI)
def test_dual_is_the_jacobian(phi, ntk_form):
    risk = wide_risk((5, 7, 6, 3), phi, 8, ntk=ntk_form)
    assert_close(ntk(risk), dense_kernel(risk), 1e-10)


@pytest.mark.parametrize("phi", ["erf", "relu"])
@pytest.mark.parametrize("depth", [3, 4])
def test_wide_networks_are_isotropic(depth, phi):
    risk = wide_risk((40, *(256,) * (depth - 1), 1 if depth == 3 else 2), phi, 20)
    alphas = {
        "full": 1,
        "layer": depth,
        "tridiagonal": -(-depth // 3),
        "kronecker": 20 * (depth - 1) + 1,
    }
    for structure, alpha in alphas.items():
        row = isotropy(risk, structure)
        assert row.alpha == pytest.approx(alpha, rel=1e-8)
        assert row.prediction == alpha
        assert row.worst < 1e-8
        assert row.expected
        assert row.learning_rate == pytest.approx(1 / alpha)
    assert isotropy(risk, "diagonal").worst > 0.15


@pytest.mark.parametrize(
    ("phi", "width", "alpha", "worst"),
    [("tanh", 64, 129, 1e-6), pytest.param("relu", 256, 257, 0.15, marks=pytest.mark.slow)],
)
def test_units_of_one_output(phi, width, alpha, worst):
    # Smooth and unsaturated units: every one of them fits every example.
    variances = {"s_w": 0.5, "s_b": 0.1} if phi == "tanh" else {}
    row = isotropy(wide_risk((40, width, width, 1), phi, 20, **variances), "unit")
    assert row.prediction == alpha
    assert row.alpha == pytest.approx(alpha, rel=0.03 if phi == "relu" else 1e-6)
    assert row.worst < worst


def test_units_of_two_outputs_become_isotropic_with_width():
    rows = [isotropy(wide_risk((40, m, m, 2), "erf", 20), "unit") for m in (16, 48, 144)]
    errors = [row.worst for row in rows]
    assert errors[0] > errors[1] > errors[2]
    assert rows[-1].alpha == pytest.approx(rows[-1].prediction, rel=0.03)
    assert "width grows" in " ".join(rows[-1].reasons)


@pytest.mark.parametrize(
    ("examples", "outputs", "inputs", "width"),
    [(20, 4, 40, 64), (20, 1, 40, 16), (40, 1, 19, 64), (30, 3, 40, 64)],
)
def test_kronecker_alpha_of_deficient_factors(examples, outputs, inputs, width):
    widths = (inputs, width, width, outputs)
    rows = [
        isotropy(wide_risk(widths, "erf", examples, seed=seed), "kronecker") for seed in range(6)
    ]
    row = rows[0]
    # α holds in the mean over networks, not in each.
    mean = sum(own.alpha for own in rows) / len(rows)
    assert mean == pytest.approx(row.prediction, rel=2e-3)
    assert not row.expected
    assert 0.05 < row.worst < 0.6
    assert any("exceed" in reason for reason in row.reasons)


@pytest.mark.parametrize("structure", [*METHODS, "unit"])
@pytest.mark.parametrize("widths", [(30, 64, 64, 1), (30, 64, 64, 64, 2), (5, 8, 8, 3)])
def test_prediction_is_the_theory(widths, structure):
    # Tanh: the two packages know nothing of each other's networks but their sizes.
    examples = 20
    risk = wide_risk(widths, "tanh", examples, ntk=False)
    theory = natural_gradient_alpha(
        structure, WideNetwork(widths=widths, activation="tanh", weight_variance=2.0), examples
    )
    row = isotropy(risk, structure)
    if structure == "unit" and not theory.isotropic and "too large" in " ".join(theory.notes):
        assert row.prediction <= theory.alpha
    else:
        assert row.prediction == pytest.approx(theory.alpha, nan_ok=True)
    assert row.expected == theory.isotropic


def test_damping_shrinks_and_is_named():
    risk = wide_risk((40, 256, 256, 1), "erf", 20)
    kernel = ntk(risk).flatten(2).flatten(0, 1) / 20
    least = float(torch.linalg.eigvalsh(kernel)[0])
    for damping in (1e-4, 1e-2):
        row = isotropy(risk, "full", damping)
        values = torch.linalg.eigvalsh(kernel)
        assert row.alpha == pytest.approx(float((values / (values + damping)).mean()), rel=1e-8)
        assert row.worst <= 1.5 * damping / (least + damping)
    small, large = (isotropy(risk, "kronecker", damping) for damping in (1e-4, 1e-2))
    # Theory's example: 40.7 and 23.0, with moderate relative error.
    assert small.alpha == pytest.approx(40.7, rel=0.02)
    assert large.alpha == pytest.approx(23.0, rel=0.15)
    assert large.worst < 0.3
    assert any("damping" in reason for reason in large.reasons)
    assert isotropy(risk, "layer", 1e-4).alpha == pytest.approx(2.994, rel=0.005)
    assert isotropy(risk, "layer", 1e-2).alpha == pytest.approx(2.53, rel=0.1)
    assert isotropy(risk, "tridiagonal", 1e-4).alpha == pytest.approx(0.998, rel=0.01)
    # The indefinite matrix has lost its meaning long before the others.
    assert isotropy(risk, "tridiagonal", 1e-2).worst > 3 * isotropy(risk, "layer", 1e-2).worst


def _one_step(width, structure, rate, phi="erf"):
    """Outputs before and after one step of size rate/α, on training and test points."""
    risk = wide_risk((30, width, width, 1), phi, 16, seed=3)
    generator = torch.Generator().manual_seed(11)
    x1 = torch.randn(10, 30, generator=generator, dtype=torch.float64)
    row = isotropy(risk, structure)
    cross = natural_kernel(risk, structure, x1=x1)
    own = natural_kernel(risk, structure)
    y = targets_of(risk)
    with torch.no_grad():
        before, before1 = risk.model(inputs_of(risk)), risk.model(x1)
    fit = KernelRegression(own, y, initial=before)
    predicted = fit.training(rate / row.alpha, 1, cross, initial=before1)
    optimizer = NaturalGradient(
        risk.model, "gaussian", structure=structure, lr=rate / row.alpha, damping=1e-7,
        damping_form="each",
    )  # fmt: skip
    optimizer.step(risk)
    with torch.no_grad():
        after, after1 = risk.model(inputs_of(risk)), risk.model(x1)
    left = float((after - y).norm() / (before - y).norm())
    wrong = float((after1 - predicted).norm() / (predicted - before1).norm())
    return left, wrong


@pytest.mark.parametrize("structure", METHODS)
def test_one_step_reaches_the_targets(structure):
    left, wrong = _one_step(512, structure, 1.0)
    limit = 0.1 if structure == "kronecker" else 0.05
    assert left < limit
    assert wrong < 0.15
    half, _ = _one_step(512, structure, 0.5)
    assert half == pytest.approx(0.5, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("phi", ["erf", "relu"])
@pytest.mark.parametrize("structure", METHODS)
def test_test_outputs_follow_the_formula(structure, phi):
    left, wrong = _one_step(2048, structure, 1.0, phi)
    wide = structure == "kronecker" or phi == "relu"
    assert wrong < (0.15 if wide else 0.05)
    assert left < (0.15 if wide else 0.05)


def test_descent_ends_where_one_exact_step_does():
    risk = wide_risk((30, 512, 512, 1), "erf", 12, seed=3)
    generator = torch.Generator().manual_seed(5)
    x1 = torch.randn(10, 30, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        before = risk.model(x1)
    start = risk.theta()
    NaturalGradient(risk.model, "gaussian", lr=1.0, damping=1e-9).step(risk)
    with torch.no_grad():
        jumped = risk.model(x1)
    values = torch.linalg.eigvalsh(ntk(risk, theta=start).flatten(2).flatten(0, 1)) / 12
    theta, rate = start, 1.9 / float(values[-1] + values[0])
    for _ in range(600):
        theta = theta - rate * risk.grad(theta)
    assert float(risk.value(theta)) < 1e-9

    with torch.no_grad():
        descended = functional_call(risk.model, risk.space.unflatten(theta), (x1,))
    assert float((descended - jumped).norm() / (jumped - before).norm()) < 0.05


@pytest.mark.parametrize("size", [20, 10])
def test_forster_inputs_make_the_first_kronecker_layer_isotropic(size):
    _, generator = wide_net((size, 64, 64, 1), "erf")
    x = torch.randn(40, size, generator=generator, dtype=torch.float64)
    position = radial_isotropic(x)
    assert position.status == "converged"
    assert_close(position.inputs.T @ position.inputs / 40, torch.eye(size).double(), 1e-10)
    assert_close(position.transform(x), position.inputs, 1e-12)
    # The first layer without its bias alone: K̄_1 = N P_A ∘ P_B with P_A of rank M_0.
    first = torch.nn.utils.skip_init(torch.nn.Linear, size, 64, bias=False).double()
    rest, _ = wide_net((64, 64, 1), "erf", seed=1)
    with torch.no_grad():
        first.weight.normal_(generator=generator).div_(size**0.5)
    for parameter in rest.parameters():
        parameter.requires_grad_(False)
    deviations = {}
    for name, inputs in (("raw", x), ("forster", position.inputs)):
        net = torch.nn.Sequential(first, torch.nn.Tanh(), *rest)
        risk = Problem(net, "gaussian", train=(inputs, torch.zeros(40, 1).double())).objective()
        kernel = natural_kernel(risk, "kronecker").flatten(2).flatten(0, 1)
        assert float(kernel.diagonal().mean()) == pytest.approx(size, rel=1e-8)
        deviations[name] = float(kernel.diagonal().std())
        off = kernel - torch.diag(kernel.diagonal())
        if name == "forster":
            assert float(off.abs().max()) < 1e-8
    assert deviations["forster"] < 1e-8 < 1 < deviations["raw"]
