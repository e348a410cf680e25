"""Order parameters: exact values, finite networks, normalised hidden layers."""

import numpy as np
import pytest

from kobai.results import identical, load, save
from kobai.theory import WideNetwork, order_parameters
from theory.finite_networks import Net


def _network(phi="relu", w=2.0, b=0.1, widths=(600, 600, 600, 3), **options):
    return WideNetwork(widths=widths, activation=phi, weight_variance=w, bias_variance=b, **options)


# Verified numbers, row 1a: values of the recursion.
@pytest.mark.parametrize(
    ("phi", "w", "b", "kappa1", "kappa2"),
    [
        ("relu", 2.0, 0.1, 1.5750, 0.4015),
        ("tanh", 3.0, 0.64, 0.9555, 0.1186),
        ("erf", 2.0, 0.3, 0.9454, 0.0911),
    ],
)
def test_values_of_the_recursion(phi, w, b, kappa1, kappa2):
    p = order_parameters(_network(phi, w, b))
    assert p.kappa1 == pytest.approx(kappa1, abs=1e-4)
    assert p.kappa2 == pytest.approx(kappa2, abs=1e-4)
    assert p.alpha == 2.0
    assert p.s1 == pytest.approx(p.alpha * p.scale * p.kappa1 + p.backward.sum())


def test_linear_network_by_hand():
    p = order_parameters(_network("linear", 1.0, 0.1))
    np.testing.assert_allclose(p.variance, [1.1, 1.2, 1.3])
    np.testing.assert_allclose(p.covariance, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(p.backward, 1.0)
    assert p.s1 == pytest.approx(600 * (1 + 1.1 + 1.2) + 3)


# Row 1c: L = 4, M = 2000, N = 20, averages over networks.
@pytest.mark.parametrize(
    ("phi", "w", "b"),
    [("relu", 2.0, 0.1), ("tanh", 3.0, 0.64), ("erf", 2.0, 0.3), ("linear", 1.0, 0.1)],
)
@pytest.mark.parametrize(
    ("width", "seeds"), [(500, 4), pytest.param(2000, 3, marks=pytest.mark.slow)]
)
def test_finite_networks_have_these_order_parameters(phi, w, b, width, seeds):
    widths, n = (width, width, width, width, 2), 20
    p = order_parameters(_network(phi, w, b, widths))
    found = np.zeros((4, 4))
    pairs = ~np.eye(n, dtype=bool)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        net = Net(rng, widths, phi, w, b)
        features, before = net.forward(rng.standard_normal((n, width)))
        for i, (h, delta) in enumerate(zip(features, net.deltas(before), strict=True)):
            gram = h @ h.T / h.shape[1]
            back = np.einsum("kni,kmi->nm", delta, delta) / len(delta)
            found[0, i] += np.diag(gram).mean() / seeds
            found[1, i] += gram[pairs].mean() / seeds
            found[2, i] += np.diag(back).mean() / seeds
            found[3, i] += back[pairs].mean() / seeds
    loose = np.sqrt(2000 / width)
    np.testing.assert_allclose(found[0], p.feature, rtol=0.05 * loose)
    np.testing.assert_allclose(found[1, 1:], p.feature_pair[1:], rtol=0.05 * loose)
    np.testing.assert_allclose(found[2], p.backward, rtol=0.1 * loose)
    np.testing.assert_allclose(found[3], p.backward_pair, rtol=0.1 * loose)


def test_batch_normalised_hidden_layers():
    """Row 2b: q̂ = ½, q̂_st = 1/2π for relu; backward signals are refused."""
    p = order_parameters(_network(hidden_normalization="batch"))
    np.testing.assert_allclose(p.feature[1:], 0.5)
    np.testing.assert_allclose(p.feature_pair[1:], 1 / (2 * np.pi))
    assert p.status == "batch normalization"
    assert np.isnan(p.backward[:-1]).all()
    assert p.backward[-1] == 1
    rng = np.random.default_rng(0)
    u = rng.standard_normal((200, 1000)) @ rng.standard_normal((1000, 1000)).T
    h = np.maximum((u - u.mean(0)) / u.std(0), 0)
    gram = h @ h.T / 1000
    assert np.diag(gram).mean() == pytest.approx(0.5, rel=0.02)
    assert gram[~np.eye(200, dtype=bool)].mean() == pytest.approx(1 / (2 * np.pi), rel=0.02)


def test_layer_normalised_hidden_layers_are_scale_free():
    p = order_parameters(_network(hidden_normalization="layer"))
    scaled = order_parameters(_network(hidden_normalization="layer"), input_square=1.0)
    np.testing.assert_allclose(p.feature[1:], 0.5)
    assert p.backward[0] == pytest.approx(2 * p.backward[1] * 0.5 / p.variance[0])
    assert identical(p, scaled)
    dead = order_parameters(_network(b=0.0, hidden_normalization="layer"), input_square=0.0)
    assert dead.status == "zero variance"


def test_without_biases_the_ones_go():
    with_bias, without = _network(b=0.0), _network(b=0.0, bias=False)
    p, r = order_parameters(with_bias), order_parameters(without)
    np.testing.assert_allclose(p.sum_same - r.sum_same, p.backward)
    assert with_bias.parameters - without.parameters == 600 + 600 + 3


def test_zero_input_and_parallel_inputs():
    p = order_parameters(_network(), input_square=0.0)
    np.testing.assert_allclose(p.feature, p.feature_pair)
    q = order_parameters(_network("tanh", 3.0, 0.0), input_square=1.0, input_product=1.0)
    np.testing.assert_allclose(q.sum_same, q.sum_pair, rtol=1e-12)


def test_it_saves_and_loads(tmp_path):
    p = order_parameters(_network("gelu"))
    save(p, tmp_path, "signals")
    assert identical(load(tmp_path, "signals"), p)


def test_wrong_use():
    with pytest.raises(ValueError, match="widths"):
        _network(widths=(5,))
    with pytest.raises(ValueError, match="weight_variance"):
        _network(w=-1.0)
    with pytest.raises(ValueError, match="bias=False"):
        _network(b=0.1, bias=False)
    with pytest.raises(ValueError, match="input_product"):
        order_parameters(_network(), input_product=2.0)
