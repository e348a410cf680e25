"""Kernel regression against Gaussian-process formulas, and training against closed forms."""

import jaxtyping
import numpy as np
import pytest
import torch
from scipy import linalg
from wide_nets import inputs_of, targets_of, wide_risk

from kobai.kernels import KernelRegression, LinearizedModel, linearize, natural_kernel, ntk
from kobai.theory import WideNetwork, infinite_width_kernels
from tolerances import assert_close


def _points(generator, n, m=5, size=3):
    x = torch.randn(n + m, size, generator=generator, dtype=torch.float64)
    distance = torch.cdist(x, x).square()
    kernel = torch.exp(-distance / 2)
    return kernel[:n, :n], kernel[n:, :n], kernel[n:, n:]


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("width", [None, 2])
def test_gaussian_process(generator, width, ridge):
    kernel, cross, prior = _points(generator, 8)
    shape = (8,) if width is None else (8, width)
    y = torch.randn(shape, generator=generator, dtype=torch.float64)
    fit = KernelRegression(kernel, y, ridge=ridge)
    # SciPy's Cholesky solve is the oracle.
    factor = linalg.cho_factor(kernel.numpy() + ridge * np.eye(8))
    assert_close(fit.mean(cross), cross.numpy() @ linalg.cho_solve(factor, y.numpy()), 1e-8)
    variance = np.diag(prior.numpy() - cross.numpy() @ linalg.cho_solve(factor, cross.numpy().T))
    assert_close(fit.variance(cross, prior.diagonal()), torch.as_tensor(variance.copy()), 1e-8)
    if ridge == 0:
        assert_close(fit.mean(), y, 1e-8)
    assert fit.status == "ok"
    assert fit.rank == 8


def test_outputs_with_kernels_of_their_own(generator):
    root = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    kernel = (root @ root.T).view(4, 3, 4, 3)
    y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    cross = torch.randn(2, 3, 4, 3, generator=generator, dtype=torch.float64)
    start1 = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    found = KernelRegression(kernel, y, initial=start).mean(cross, initial=start1)
    solved = torch.linalg.solve(root @ root.T, (y - start).flatten())
    assert_close(found, start1 + (cross.view(6, 12) @ solved).view(2, 3), 1e-9)


def test_singular_kernel_is_the_shortest_fit(generator):
    features = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(6, generator=generator, dtype=torch.float64)
    test = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    fit = KernelRegression(features @ features.T, y)
    assert fit.status == "pseudo-inverse"
    assert fit.rank == 2
    # The least-squares solution of the features themselves.
    weights = torch.linalg.lstsq(features, y).solution
    assert_close(fit.mean(test @ features.T), test @ weights, 1e-9)


def test_trained_ensembles(generator):
    """Lee et al. 2019: mean and covariance of A y with random initial functions of kernel 𝒦."""
    theta, cross, _ = _points(generator, 6)
    joint, joint_cross, joint_prior = _points(torch.Generator().manual_seed(5), 6)
    fit = KernelRegression(theta, torch.zeros(6).double())
    found = fit.variance(cross, joint_prior.diagonal(), nngp=joint, nngp_cross=joint_cross)
    map_ = torch.linalg.solve(theta, cross.T).T
    # f(x') = f_0(x') − A f_0(X): its covariance by the rule for linear maps.
    whole = torch.cat(
        [torch.cat([joint, joint_cross.T], 1), torch.cat([joint_cross, joint_prior], 1)]
    )
    linear = torch.cat([-map_, torch.eye(5).double()], 1)
    assert_close(found, (linear @ whole @ linear.T).diagonal(), 1e-8)


def test_gradient_flow_is_the_matrix_exponential(generator):
    kernel, cross, _ = _points(generator, 7)
    y = torch.randn(7, generator=generator, dtype=torch.float64)
    start = torch.randn(7, generator=generator, dtype=torch.float64)
    fit = KernelRegression(kernel, y, initial=start)
    times = torch.tensor([0.0, 1.0, 30.5])
    found = fit.training(0.2, times, normaliser=7, method="flow")
    for t, outputs in zip(times.tolist(), found, strict=True):
        decay = linalg.expm(-0.2 * t * kernel.numpy() / 7)
        assert_close(outputs, y + torch.as_tensor(decay) @ (start - y), 1e-10)
    # On a test point f' integrates K' times the residual over time.
    grid = np.linspace(0, 30.5, 4001)
    residuals = np.stack(
        [linalg.expm(-0.2 * t * kernel.numpy() / 7) @ (y - start).numpy() for t in grid[::20]]
    )
    moved = 0.2 / 7 * cross.numpy() @ np.trapezoid(residuals, grid[::20], axis=0)
    assert_close(fit.training(0.2, 30.5, cross, normaliser=7, method="flow"), moved, 1e-4)


def _trained(risk, rate, steps, step):
    theta = risk.theta()
    for _ in range(steps):
        theta = theta - rate * step(theta)
    return theta


def test_linearised_network_follows_its_kernel(generator):
    risk = wide_risk((4, 9, 8, 2), "tanh", 6)
    x1 = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    linear = linearize(risk)
    assert isinstance(linear.model, LinearizedModel)
    start, start1 = risk.outputs(risk.theta()), risk.model(x1).detach()
    assert_close(linear.outputs(linear.theta()), start)
    kernel, cross = ntk(risk), ntk(risk, x1, risk)
    fit = KernelRegression(kernel, targets_of(risk), initial=start)
    theta = _trained(linear, 0.1, 15, linear.grad)
    assert_close(linear.outputs(theta), fit.training(0.1, 15, normaliser=6), 1e-10)
    with torch.no_grad():
        for parameter, value in zip(
            linear.model.parameters(), linear.space.unflatten(theta).values(), strict=True
        ):
            parameter.copy_(value)
        found = linear.model(x1)
    assert_close(found, fit.training(0.1, 15, cross, initial=start1, normaliser=6), 1e-10)
    # Its kernel never changes, and is that of the network.
    assert_close(ntk(linear), kernel, 1e-10)


@pytest.mark.parametrize("structure", ["layer", "kronecker", "unit", "diagonal", "ekfac"])
def test_natural_training_of_the_linearised_network(structure):
    from kobai.curvature import Fisher

    risk = wide_risk((4, 9, 8, 2), "erf", 6)
    linear = linearize(risk)
    damping, rate = 0.05, 0.02
    fisher = Fisher(risk, structure)
    inverse = fisher.inverse(damping, "each")
    theta = _trained(linear, rate, 7, lambda at: inverse @ linear.grad(at))
    kernel = natural_kernel(risk, structure, damping)
    fit = KernelRegression(kernel, targets_of(risk), initial=risk.outputs(risk.theta()))
    assert_close(linear.outputs(theta), fit.training(rate, 7), 1e-8)


def test_infinite_width_kernels_fit(generator):
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    network = WideNetwork(widths=(4, 100, 1), activation="relu", bias_variance=0.1)
    inside = infinite_width_kernels(network, x[:6])
    between = infinite_width_kernels(network, x[6:], x[:6])
    y = torch.randn(6, generator=generator, dtype=torch.float64)
    for kernel, cross in ((inside.nngp, between.nngp), (inside.ntk, between.ntk)):
        found = KernelRegression(kernel, y).mean(cross)
        expected = cross @ np.linalg.solve(kernel, y.numpy())
        assert_close(found, torch.as_tensor(expected), 1e-8)
    posterior = KernelRegression(inside.nngp, y, ridge=0.1)
    variance = posterior.variance(between.nngp, between.variance1)
    assert bool((variance > 0).all() & (variance < torch.tensor(between.variance1)).all())


@pytest.mark.parametrize(
    ("arguments", "settings", "match"),
    [
        ((torch.eye(3), torch.ones(4)), {}, "does not fit"),
        ((torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(2)), {}, "symmetric"),
        ((torch.eye(2), torch.ones(2)), {"ridge": -1.0}, "ridge"),
        ((torch.eye(2), torch.ones(2)), {"initial": torch.ones(3)}, "initial"),
        ((torch.eye(2), torch.ones(2, 1, 1)), {}, "targets"),
    ],
)
def test_wrong_fits(arguments, settings, match):
    with pytest.raises(ValueError, match=match):
        KernelRegression(*arguments, **settings)


def test_wrong_steps():
    fit = KernelRegression(torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match="whole"):
        fit.training(0.1, 0.5)
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="method"):
        fit.training(0.1, 1, method="leap")
    with pytest.raises(ValueError, match="cross"):
        fit.mean(torch.ones(1, 3))
    with pytest.raises(ValueError, match="constructor"):
        fit.mean(initial=torch.ones(2))


def test_indefinite_kernels_say_so():
    assert KernelRegression(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(2)).status == (
        "indefinite"
    )


def test_only_networks_are_linearised():
    with pytest.raises(TypeError, match="linearised"):
        linearize(lambda theta: theta)
    assert inputs_of(wide_risk((2, 3, 1), "erf", 4)).shape == (4, 2)
