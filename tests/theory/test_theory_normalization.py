"""Normalised outputs and layers against finite networks (verified numbers, rows 2a, 2b)."""

import numpy as np
import pytest

from kobai.theory import WideNetwork, fisher_statistics, order_parameters
from theory.finite_networks import Net, top_mean


def _network(width, outputs=2, **options):
    return WideNetwork(widths=(width, width, width, outputs), bias_variance=0.1, **options)


def _dual(network, n, seed):
    rng = np.random.default_rng(seed)
    net = Net(rng, network.widths, "relu", 2.0, 0.1)
    x = rng.standard_normal((n, network.widths[0]))
    return sum(net.grams(x)) / n, net.forward(x)[1][-1], x


def _output_variance(network):
    p = order_parameters(network)
    return p.variance[-1] - p.covariance[-1]


def _outputs_normalised(dual, f, kind):
    """The dual of normalised outputs, rows (k, n), gradient through the statistics."""
    n, c = f.shape
    blocks = np.zeros((c * n, c * n))
    for k in range(c):
        centred, spread = f[:, k] - f[:, k].mean(), f[:, k].std()
        project = np.eye(n) - 1 / n
        if kind == "batch":
            project = (project - np.outer(centred, centred) / spread**2 / n) / spread
        elif kind == "scale":
            project = (np.eye(n) - np.outer(f[:, k], centred) / spread**2 / n) / spread
        blocks[k * n : (k + 1) * n, k * n : (k + 1) * n] = project
    return blocks @ dual @ blocks.T


@pytest.mark.parametrize("width", [100, 200, pytest.param(400, marks=pytest.mark.slow)])
def test_mean_subtraction_and_batch_norm_remove_the_outliers(width):
    """Row 2a, M = N: below 15 at every width, more than .6 M without; traces within 12 %."""
    network, traces = _network(width), []
    mean = fisher_statistics(network, width, normalization="mean")
    batch = fisher_statistics(network, width, normalization="batch")
    for seed in range(2):
        dual, f, _ = _dual(network, width, seed)
        assert np.linalg.eigvalsh(dual)[-1] > 0.6 * width
        found = [np.linalg.eigvalsh(_outputs_normalised(dual, f, k)) for k in ("mean", "batch")]
        assert found[0][-1] < 15
        # sd² of one network scatters: (q − q_st) is its mean over networks.
        ratio = f.var(axis=0).mean() / _output_variance(network)
        traces.append((found[0].sum() / mean.trace, found[1].sum() * ratio / batch.trace))
        assert mean.lower < found[0][-1] < 1.6 * mean.upper
        assert batch.lower < found[1][-1] < 2 * batch.upper
    np.testing.assert_allclose(np.mean(traces, axis=0), 1, atol=0.15)
    assert mean.status == batch.status == "bounds only"
    assert np.isnan(mean.largest)


def test_division_without_centring_does_not_help():
    width, n = 300, 100
    network, ratios = _network(width), []
    theory = fisher_statistics(network, n, normalization="scale")
    for seed in range(3):
        dual, f, _ = _dual(network, n, seed)
        values = np.linalg.eigvalsh(_outputs_normalised(dual, f, "scale"))
        ratios.append(top_mean(values, 2) / theory.largest)
    assert theory.largest > 0.3 * width
    assert np.mean(ratios) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("kind", ["mean", "batch"])
def test_on_given_inputs_a_spectrum_instead_of_bounds(kind):
    network, n = _network(400), 60
    dual, f, x = _dual(network, n, 0)
    found = np.linalg.eigvalsh(_outputs_normalised(dual, f, kind))
    theory = fisher_statistics(network, x, normalization=kind, outputs=f)
    assert theory.status == "ok"
    assert found.sum() == pytest.approx(theory.trace, rel=0.1)
    # The finite network's bulk is wider than the kernel's.
    assert 1 < found[-1] / theory.largest < 1.8
    needed = fisher_statistics(network, x, normalization="batch")
    assert needed.status == "outputs needed"


def test_layer_norm_of_outputs_keeps_the_outliers():
    """Row 2b, C = 10, N = 60: ratio 1.14 ± .2 at M = 100, then 1.01 and 1.04; 20 %."""
    network, n = _network(300, 10), 60
    ratios = []
    for seed in range(2):
        dual, f, _ = _dual(network, n, seed)
        theory = fisher_statistics(network, n, normalization="layer", outputs=f)
        centred = f - f.mean(axis=1, keepdims=True)
        spread = f.std(axis=1, keepdims=True)
        standard = centred / spread
        p = (np.eye(10) - 0.1 - np.einsum("ni,nj->nij", standard, standard) / 10) / spread[
            ..., None
        ]
        four = dual.reshape(10, n, 10, n)
        found = np.einsum("nik,knlm,mlj->nimj", p, four, p.transpose(0, 2, 1), optimize=True)
        ratios.append(np.linalg.eigvalsh(found.reshape(10 * n, 10 * n))[-1] / theory.largest)
        assert theory.largest > 0.2 * 300
    assert np.mean(ratios) == pytest.approx(1, abs=0.2)
    assert fisher_statistics(network, n, normalization="layer").status == "outputs needed"
    few = fisher_statistics(
        _network(50, 4), n, normalization="layer", generator=np.random.default_rng(0)
    )
    assert any("heavy tails" in note for note in few.notes)


@pytest.mark.parametrize("width", [100, 200, 400])
def test_layer_norm_in_hidden_layers(width):
    """Row 2b: theory 42.2, 82.7, 163.7 at N = 30, C = 2."""
    expected = {100: 42.2, 200: 82.7, 400: 163.7}[width]
    theory = fisher_statistics(_network(width, hidden_normalization="layer"), 30)
    assert theory.largest == pytest.approx(expected, rel=2e-2)


def test_measured_layer_norm_in_hidden_layers():
    """The exact Jacobian through x ↦ (u − mean)/sd, per example, by its projection."""
    width, n, ratios = 200, 30, []
    network = _network(width, hidden_normalization="layer")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        net = Net(rng, network.widths, "relu", 2.0, 0.1)
        h, features, cache = rng.standard_normal((n, width)), [], []
        for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            features.append(h)
            u = h @ w.T + b
            if i < 2:
                spread = u.std(axis=1, keepdims=True)
                z = (u - u.mean(axis=1, keepdims=True)) / spread
                cache.append((z, spread))
                h = np.maximum(z, 0)
        signal = np.broadcast_to(np.eye(2)[:, None, :], (2, n, 2))
        dual = 0.0
        for i in (2, 1, 0):
            if i < 2:
                z, spread = cache[i]
                g = (signal @ net.weights[i + 1]) * (z > 0)
                g = g - g.mean(axis=2, keepdims=True) - z * (g * z).mean(axis=2, keepdims=True)
                signal = g / spread
            flat = signal.reshape(2 * n, -1)
            inputs = np.hstack([features[i], np.ones((n, 1))])
            dual = dual + (flat @ flat.T) * np.tile(inputs @ inputs.T, (2, 2))
        theory = fisher_statistics(network, n)
        ratios.append(top_mean(np.linalg.eigvalsh(dual / n), 2) / theory.largest)
    assert np.mean(ratios) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("width", "part"), [(100, 18.1), (200, 35.1), (400, 69.2)])
def test_batch_norm_in_hidden_layers_gives_a_lower_bound(width, part):
    """Row 2b: the output layer's part, bias included, at N = 30."""
    theory = fisher_statistics(_network(width, hidden_normalization="batch"), 30)
    assert theory.status == "lower bound only"
    assert theory.lower == pytest.approx(part, rel=0.05)
    assert np.isnan(theory.largest)
    assert np.isnan(theory.trace)


def test_constant_outputs_are_refused():
    network = WideNetwork(widths=(5, 5, 2), weight_variance=0.0, bias_variance=1.0)
    refused = fisher_statistics(network, 10, normalization="batch")
    assert refused.status == "not defined"
    assert "variance is 0" in refused.notes[-1]
