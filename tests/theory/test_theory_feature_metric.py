"""Metrics on inputs and hidden features against finite networks (verified numbers, row 2e)."""

import numpy as np
import pytest

from kobai.theory import WideNetwork, feature_metric
from theory.finite_networks import Net, top_mean


def _network(width, phi="relu", w=2.0, b=0.1):
    return WideNetwork(
        widths=(width, width, width, 3), activation=phi, weight_variance=w, bias_variance=b
    )


@pytest.mark.parametrize(("level", "largest"), [(0, 0.654), (1, 1.25)])
def test_values(level, largest):
    for width in (100, 1000):
        s = feature_metric(_network(width), 100, level=level)
        assert s.largest == pytest.approx(largest, rel=5e-3)
        assert s.trace == pytest.approx(s.mean * width)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(("phi", "w", "b"), [("relu", 2.0, 0.1), ("tanh", 3.0, 0.0)])
@pytest.mark.parametrize(
    ("width", "n", "seeds"), [(400, 40, 3), pytest.param(1000, 100, 4, marks=pytest.mark.slow)]
)
def test_finite_networks_have_this_metric(level, phi, w, b, width, n, seeds):
    """Also for tanh without biases, whose Fisher matrix has no outliers; 10 % on wide networks."""
    network, ratios = _network(width, phi, w, b), []
    theory = feature_metric(network, n, level=level)
    assert theory.status == "ok"
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        net = Net(rng, network.widths, phi, w, b)
        before = net.forward(rng.standard_normal((n, width)))[1]
        gradient = (net.deltas(before)[level] @ net.weights[level]).reshape(3 * n, -1)
        values = np.linalg.eigvalsh(gradient @ gradient.T / n)
        ratios.append(
            (
                values.sum() / theory.trace,
                (values**2).sum() / theory.sum_of_squares,
                top_mean(values, 3) / theory.largest,
            )
        )
        # At the last level gradients do not depend on the input: three eigenvalues in all.
        assert values[-3] > (5 if width == 1000 else 3) * abs(values[-4])
    tolerance = np.array([0.1, 0.1, 0.1]) if width == 1000 else np.array([0.1, 0.3, 0.15])
    assert (abs(np.mean(ratios, axis=0) - 1) < tolerance).all()


def test_wrong_use():
    with pytest.raises(ValueError, match="level is 0"):
        feature_metric(_network(10), 10, level=3)
    refused = feature_metric(
        WideNetwork(widths=(9, 9, 9, 2), hidden_normalization="batch"), 10, level=0
    )
    assert refused.status == "not defined"
