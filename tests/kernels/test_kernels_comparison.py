"""Drift, alignment, radial-isotropic inputs, and the way to infinite width."""

import numpy as np
import pytest
import torch
from wide_nets import inputs_of, wide_risk

from kobai.kernels import (
    kernel_alignment,
    kernel_distance,
    kernel_drift,
    ntk,
    radial_isotropic,
)
from kobai.theory import WideNetwork, infinite_width_kernels
from tolerances import assert_close


def test_drift_and_distance(generator):
    kernel = torch.randn(4, 4, generator=generator)
    assert kernel_drift(kernel, kernel) == 0
    assert kernel_drift(kernel, 3 * kernel) == pytest.approx(2)
    assert kernel_distance(kernel, 3 * kernel) == pytest.approx(0, abs=1e-12)
    turned = torch.zeros(2, 2)
    turned[0, 1] = 1.0
    assert kernel_distance(torch.eye(2), turned) == pytest.approx(1)
    with pytest.raises(ValueError, match="shape"):
        kernel_drift(kernel, kernel[:2])


def test_lazy_networks_drift_less_when_wide():
    drifts = []
    for width in (16, 64, 256):
        risk = wide_risk((5, width, width, 1), "erf", 8)
        theta = risk.theta()
        before = ntk(risk)
        for _ in range(20):
            theta = theta - 0.2 * risk.grad(theta)
        drifts.append(kernel_drift(before, ntk(risk, theta=theta)))
    # O(M^-1/2): a factor of two for each fourfold width, with slack for one draw.
    assert drifts[0] > 1.4 * drifts[1] > 1.4**2 * drifts[2]


@pytest.mark.parametrize("centred", [False, True])
def test_alignment(generator, centred):
    root = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    kernel = root @ root.T
    y = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    middle = torch.eye(6).double() - (1 / 6 if centred else 0.0)
    k, z = middle @ kernel @ middle, middle @ y
    target = z @ z.T
    expected = float((k * target).sum() / (k.norm() * target.norm()))
    assert kernel_alignment(kernel, y, centred=centred) == pytest.approx(expected)
    # The same kernel for both outputs, written out, meets the vector of all targets.
    whole = torch.einsum("nm,ab->namb", kernel, torch.eye(2).double())
    big, long = torch.kron(k, torch.eye(2).double()), z.reshape(-1, 1)
    outer = long @ long.T
    expected = float((big * outer).sum() / (big.norm() * outer.norm()))
    assert kernel_alignment(whole, y, centred=centred) == pytest.approx(expected)
    assert kernel_alignment(target, y, centred=centred) == pytest.approx(1)
    with pytest.raises(ValueError, match="fit"):
        kernel_alignment(kernel, y[:3])


def test_radial_isotropic_refusals(generator):
    x = torch.randn(6, 3, generator=generator)
    with pytest.raises(ValueError, match="N ≥ D"):
        radial_isotropic(x[:2])
    with pytest.raises(ValueError, match="zeros"):
        radial_isotropic(torch.cat([x, torch.zeros(1, 3)]))
    with pytest.raises(ValueError, match="span"):
        radial_isotropic(torch.cat([x, x[:, :1]], 1))
    assert radial_isotropic(x, max_iterations=1).status == "max-iterations"


def _deviation(kernel, limit):
    return float(np.linalg.norm(kernel - limit) / np.linalg.norm(limit))


@pytest.mark.parametrize("phi", ["relu", "erf", "linear", "tanh"])
def test_finite_kernels_approach_the_infinite_one(phi):
    """One network's deviation falls as 1/√M: the exponent, and each within 4/√M (row 7)."""
    found = []
    for width in (32, 128, 512):
        deviations = []
        for seed in range(12):
            risk = wide_risk((20, width, width, 1), phi, 6, seed=seed)
            network = WideNetwork(widths=(20, width, width, 1), activation=phi, bias_variance=0.1)
            limit = infinite_width_kernels(network, inputs_of(risk), parameterization="ntk").ntk
            deviations.append(_deviation(ntk(risk, outputs="trace").numpy(), limit))
        assert max(deviations) < 4 / width**0.5
        found.append(float(np.mean(deviations)))
    slope = np.polyfit(np.log([32, 128, 512]), np.log(found), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("phi", ["relu", "erf"])
@pytest.mark.parametrize("ntk_form", [True, False])
def test_the_mean_over_networks_is_the_infinite_kernel(phi, ntk_form):
    width, seeds = 128, 40
    total, limit = 0.0, None
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    for seed in range(seeds):
        risk = wide_risk((20, width, width, 1), phi, 6, seed=seed, ntk=ntk_form)
        total = total + ntk(risk, x, outputs="trace").numpy() / seeds
    network = WideNetwork(widths=(20, width, width, 1), activation=phi, bias_variance=0.1)
    form = "ntk" if ntk_form else "standard"
    limit = infinite_width_kernels(network, x, parameterization=form).ntk
    assert _deviation(total, limit) < 0.06


def test_radial_isotropic_keeps_directions_up_to_a_linear_map(generator):
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    found = radial_isotropic(x)
    mapped = x @ found.matrix.T
    cosine = torch.cosine_similarity(mapped, found.inputs, 1)
    assert_close(cosine, torch.ones(12).double(), 1e-10)
