"""Fisher statistics against finite networks' dual matrices, and what is refused."""

import numpy as np
import pytest

from kobai.results import identical, load, save
from kobai.theory import WideNetwork, fisher_statistics, infinite_width_kernels, ntk_statistics
from theory.finite_networks import Net, top_mean

SETTINGS = [("relu", 2.0, 0.1), ("tanh", 3.0, 0.64), ("erf", 2.0, 0.3), ("linear", 1.0, 0.1)]


def _network(phi, w, b, width=600, outputs=3):
    return WideNetwork(
        widths=(width, width, width, outputs), activation=phi, weight_variance=w, bias_variance=b
    )


def _measure(network, examples, seeds, data_dependent=False):
    """Ratios measured/predicted of trace, tr F², mean of the top C; averages over networks."""
    ratios = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        net = Net(
            rng, network.widths, network.phi.name, network.weight_variance, network.bias_variance
        )
        x = rng.standard_normal((examples, network.widths[0]))
        values = np.linalg.eigvalsh(sum(net.grams(x)) / examples)
        theory = fisher_statistics(network, x if data_dependent else examples)
        c = network.outputs
        ratios.append(
            (
                values.sum() / theory.trace,
                (values**2).sum() / theory.sum_of_squares,
                top_mean(values, c) / theory.largest,
                values[-c] / values[-c - 1],
            )
        )
    return np.mean(ratios, axis=0)


# Verified numbers, row 1a: values.
@pytest.mark.parametrize(
    ("phi", "w", "b", "largest"),
    [("relu", 2.0, 0.1, 497.8), ("tanh", 3.0, 0.64, 154.3), ("erf", 2.0, 0.3, 121.5)],
)
def test_largest_eigenvalue_of_the_theory(phi, w, b, largest):
    s = fisher_statistics(_network(phi, w, b), 100)
    assert s.largest == pytest.approx(largest, rel=1e-3)
    assert s.learning_rate == 2 / s.largest
    assert (s.status, s.outliers, s.rank) == ("ok", 3, 300)


def test_moments_of_the_theory():
    s = fisher_statistics(_network("relu", 2.0, 0.1), 100)
    assert s.mean == pytest.approx(0.007855, rel=1e-3)
    assert s.second_moment == pytest.approx(1.110, rel=1e-3)
    # All eigenvalues of the two-valued prediction add up to its moments.
    bulk = s.outputs * (s.examples - 1)
    assert 3 * s.largest + bulk * s.bulk_mean == pytest.approx(s.trace)
    assert 3 * s.largest**2 + bulk * s.bulk_mean**2 == pytest.approx(s.sum_of_squares)


# Row 1a: L = 3, M = 600, C = 3, N = 100; m 5 %, s 15 %, top C 10 %. Row 1d: gap above 5.
@pytest.mark.parametrize(("phi", "w", "b"), SETTINGS)
@pytest.mark.parametrize(
    ("width", "seeds"), [(400, 2), pytest.param(600, 5, marks=pytest.mark.slow)]
)
def test_finite_networks_have_these_statistics(phi, w, b, width, seeds):
    trace, squares, top, gap = _measure(_network(phi, w, b, width), width // 6, seeds)
    loose = 600 / width
    assert trace == pytest.approx(1, abs=0.05 * loose)
    assert squares == pytest.approx(1, abs=0.15 * loose)
    assert top == pytest.approx(1, abs=0.10 * loose)
    if phi == "relu":
        assert gap > 5


# Row 1b: λ_max/M = .846, .836, .831, .829 in theory, measured within 10 % from M = 200 on.
def test_largest_eigenvalue_grows_with_the_width():
    theory = [
        fisher_statistics(_network("relu", 2.0, 0.1, m), 100).largest / m
        for m in (100, 200, 400, 800)
    ]
    np.testing.assert_allclose(theory, [0.846, 0.836, 0.831, 0.829], atol=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("width", [200, 400, 800])
def test_measured_largest_eigenvalue_grows_with_the_width(width):
    ratio = _measure(_network("relu", 2.0, 0.1, width), 100, 5)[2]
    assert ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_as_many_outliers_as_outputs(outputs):
    """Row 1d: λ_C/λ_{C+1} is 14 to 20."""
    gap = _measure(_network("relu", 2.0, 0.1, 400, outputs), 50, 1)[3]
    assert gap > 5


@pytest.mark.parametrize(("phi", "w"), [("linear", 1.0), ("tanh", 3.0)])
def test_without_a_common_mean_the_largest_is_refused(phi, w):
    """κ₂ = 0: odd activation, no biases drawn, centred inputs."""
    s = fisher_statistics(_network(phi, w, 0.0), 100)
    assert s.status == "no separated outliers"
    assert np.isnan(s.largest)
    assert np.isnan(s.learning_rate)
    assert s.outliers == 0
    assert np.isnan(s.layer_largest[:-1]).all()
    assert "pass the inputs" in s.notes[-1]
    assert np.isfinite([s.mean, s.second_moment]).all()


# Row 1f: data-dependent form; 15 % where κ₂ > 0, a known factor on top where κ₂ = 0.
@pytest.mark.parametrize(
    ("phi", "w", "b", "factor"),
    [
        ("relu", 2.0, 0.1, 0.96),
        ("tanh", 3.0, 0.64, 0.98),
        ("linear", 1.0, 0.0, 1.234),
        ("tanh", 3.0, 0.0, 1.232),
    ],
)
def test_kernel_on_the_inputs_replaces_the_mean_field(phi, w, b, factor):
    trace, squares, top, _ = _measure(_network(phi, w, b), 100, 2, data_dependent=True)
    assert trace == pytest.approx(1, abs=0.05)
    assert squares == pytest.approx(1, abs=0.15)
    assert top == pytest.approx(factor, rel=0.15)


@pytest.mark.slow
def test_excess_over_the_kernel_decays_with_the_width():
    """Row 1f, second part: linear(1, 0), N = 100: λ_max ratio 1.35 at M = 300, 1.18 at 1200."""
    ratios = []
    for width in (300, 1200):
        network = _network("linear", 1.0, 0.0, width)
        found = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            net = Net(rng, network.widths, "linear", 1.0, 0.0)
            x = rng.standard_normal((100, width))
            top = np.linalg.eigvalsh(sum(net.grams(x)) / 100)[-1]
            found.append(top / fisher_statistics(network, x).largest)
        ratios.append(np.mean(found))
    assert ratios[0] == pytest.approx(1.35, rel=0.1)
    assert ratios[1] == pytest.approx(1.18, rel=0.1)


def test_orthogonal_inputs_make_both_forms_one():
    network = _network("relu", 2.0, 0.1, 64)
    x = np.sqrt(64) * np.eye(64)[:20]
    s, k = fisher_statistics(network, 20), fisher_statistics(network, x)
    for name in ("trace", "sum_of_squares", "largest", "bulk_mean"):
        assert getattr(s, name) == pytest.approx(getattr(k, name), rel=1e-9)
    assert k.eigenvalues.sum() == pytest.approx(s.trace)


# Row 2d: diagonal blocks 10 %, layer 1 of centred inputs refused; NTK counterpart.
def test_diagonal_blocks_and_tangent_kernel():
    network, n = _network("relu", 2.0, 0.1), 100
    theory, kernel = fisher_statistics(network, n), ntk_statistics(network, n)
    assert np.isnan(theory.layer_largest[0])
    assert theory.layer_trace.sum() == pytest.approx(theory.trace)
    found = np.zeros((3, 3))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        net = Net(rng, network.widths, "relu", 2.0, 0.1)
        x = rng.standard_normal((n, 600))
        for i, gram in enumerate(net.grams(x)):
            values = np.linalg.eigvalsh(gram / n)
            found[0, i] += values.sum() / theory.layer_trace[i] / 2
            found[1, i] += top_mean(values, 3) / theory.layer_largest[i] / 2
        values = np.linalg.eigvalsh(sum(net.grams(x, "ntk")))
        found[2] += np.array([values.mean() / kernel.same, top_mean(values, 3) / kernel.largest, 0])
    np.testing.assert_allclose(found[0], 1, atol=0.1)
    np.testing.assert_allclose(found[1, 1:], 1, atol=0.1)
    np.testing.assert_allclose(found[2, :2] / 2, 1, atol=0.1)
    assert kernel.learning_rate == pytest.approx(2 * n / kernel.largest)


def test_tangent_kernel_on_orthogonal_inputs():
    network = _network("relu", 2.0, 0.1, 64)
    kernel = infinite_width_kernels(network, np.sqrt(64) * np.eye(64)[:9], parameterization="ntk")
    values = np.linalg.eigvalsh(kernel.ntk)
    theory = ntk_statistics(network, 9)
    assert theory.largest == pytest.approx(values[-1])
    assert theory.bulk_mean == pytest.approx(values[0])


def test_without_biases():
    """ReLU without bias parameters, dual without the column of ones."""
    network = WideNetwork(widths=(400, 400, 400, 2), bias=False)
    theory = fisher_statistics(network, 60)
    rng = np.random.default_rng(0)
    net = Net(rng, network.widths, "relu", 2.0, 0.0)
    x = rng.standard_normal((60, 400))
    values = np.linalg.eigvalsh(sum(net.grams(x, bias=False)) / 60)
    assert values.sum() == pytest.approx(theory.trace, rel=0.08)
    assert top_mean(values, 2) == pytest.approx(theory.largest, rel=0.15)


def test_it_saves_and_loads(tmp_path):
    s = fisher_statistics(_network("relu", 2.0, 0.1), 100)
    save(s, tmp_path, "theory")
    assert identical(load(tmp_path, "theory"), s)


def test_wrong_use():
    network = _network("relu", 2.0, 0.1, 8)
    with pytest.raises(ValueError, match="at least 2"):
        fisher_statistics(network, 1)
    with pytest.raises(ValueError, match="no theory"):
        fisher_statistics(network, 5, loss="categorical", normalization="mean")
    with pytest.raises(ValueError, match="outputs have shape"):
        fisher_statistics(network, 5, loss="categorical", outputs=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="coordinates"):
        fisher_statistics(network, np.zeros((5, 7)))
