"""The critical learning rate against descent on finite networks (verified numbers, row 1e)."""

import numpy as np
import pytest

from kobai.theory import WideNetwork, critical_learning_rate
from theory.finite_networks import Net


def _network(phi, w, b, width):
    return WideNetwork(
        widths=(width, width, width, 2), activation=phi, weight_variance=w, bias_variance=b
    )


def _growth(network, multiple, steps=20, n=50):
    """loss(steps)/loss(0) from a residual of size .01, at a multiple of the predicted rate."""
    rng = np.random.default_rng(1)
    net = Net(rng, network.widths, network.phi.name, network.weight_variance, network.bias_variance)
    x = rng.standard_normal((n, network.widths[0]))
    start = net.forward(x)[1][-1]
    target = start + 0.01 * rng.standard_normal(start.shape)
    rate = multiple * critical_learning_rate(network, n).value
    losses = []
    for _ in range(steps + 1):
        residual = net.forward(x)[1][-1] - target
        losses.append((residual**2).sum())
        for i, (weight, bias) in enumerate(net.gradients(x, residual)):
            net.weights[i] -= rate * weight
            net.biases[i] -= rate * bias
    return losses[-1] / losses[0]


@pytest.mark.parametrize(("phi", "w", "b"), [("relu", 2.0, 0.1), ("tanh", 3.0, 0.64)])
@pytest.mark.parametrize("width", [200, pytest.param(800, marks=pytest.mark.slow)])
def test_descent_contracts_below_and_grows_above(phi, w, b, width):
    network = _network(phi, w, b, width)
    assert _growth(network, 0.5) < 0.5
    assert _growth(network, 0.9) < 0.5
    assert _growth(network, 1.1) > 1


def test_scales_of_losses_and_momentum():
    network = WideNetwork(widths=(50, 50, 4))
    plain = critical_learning_rate(network, 20)
    assert plain.value == 2 / plain.eigenvalue
    # nn.MSELoss divides by the number of outputs and lacks the half: C/λ_max(F).
    mse = critical_learning_rate(network, 20, loss="mse")
    assert mse.value == pytest.approx(4 / plain.eigenvalue)
    heavy = critical_learning_rate(network, 20, momentum=0.9)
    assert heavy.value == pytest.approx(1.9 * plain.value)


def test_bounds_where_only_bounds_are_known():
    network = WideNetwork(widths=(500, 500, 500, 2), bias_variance=0.1)
    rate = critical_learning_rate(network, 500, normalization="mean")
    assert np.isnan(rate.value)
    assert rate.status == "bounds only"
    # Measured top eigenvalues with mean subtraction are 9 to 10: well inside, and ≫ 2/λ without.
    assert rate.lower < 2 / 9.5 < rate.upper
    assert rate.upper > 10 * critical_learning_rate(network, 500).value


def test_refusal_is_passed_on():
    network = WideNetwork(widths=(50, 50, 4), activation="tanh", weight_variance=3.0)
    refused = critical_learning_rate(network, 20)
    assert np.isnan(refused.value)
    assert refused.status == "no separated outliers"
    given = critical_learning_rate(network, np.random.default_rng(0).standard_normal((20, 50)))
    assert given.value > 0


def test_wrong_use():
    network = WideNetwork(widths=(5, 5, 1))
    with pytest.raises(ValueError, match="momentum"):
        critical_learning_rate(network, 20, momentum=1.0)
