"""Softmax Fisher statistics against finite networks (row 2c of the verified numbers)."""

import numpy as np
import pytest
from scipy.special import softmax

from kobai.theory import WideNetwork, fisher_statistics, order_parameters, softmax_averages
from theory.finite_networks import Net


def _network(width, outputs=5, phi="relu", w=2.0, b=0.1):
    return WideNetwork(
        widths=(width, width, width, outputs), activation=phi, weight_variance=w, bias_variance=b
    )


def _measured(network, n, seed):
    """Eigenvalues of F with softmax outputs through the dual, and the logits."""
    rng = np.random.default_rng(seed)
    net = Net(rng, network.widths, network.phi.name, network.weight_variance, network.bias_variance)
    x = rng.standard_normal((n, network.widths[0]))
    f, c = net.forward(x)[1][-1], network.outputs
    g = softmax(f, axis=1)
    root = np.sqrt(g)
    b = np.einsum("ni,nij->nij", root, np.eye(c) - root[:, :, None] * root[:, None, :])
    dual = sum(net.grams(x)).reshape(c, n, c, n)
    matrix = np.einsum("nki,knlm,mlj->nimj", b, dual, b, optimize=True) / n
    return np.linalg.eigvalsh(matrix.reshape(c * n, c * n)), f, x


@pytest.mark.parametrize(
    ("width", "n", "seeds"), [(300, 60, 3), pytest.param(500, 100, 3, marks=pytest.mark.slow)]
)
def test_realised_outputs(width, n, seeds):
    """m 15 %, s 30 %, λ_max 20 %; four outliers for five classes."""
    network, ratios = _network(width), []
    for seed in range(seeds):
        values, f, _ = _measured(network, n, seed)
        theory = fisher_statistics(network, n, loss="categorical", outputs=f)
        ratios.append(
            (
                values.sum() / theory.trace,
                (values**2).sum() / theory.sum_of_squares,
                values[-1] / theory.largest,
            )
        )
        assert theory.outliers == 4
        assert theory.eigenvalues.sum() == pytest.approx(theory.trace, rel=1e-9)
        assert (theory.eigenvalues**2).sum() == pytest.approx(theory.sum_of_squares, rel=1e-9)
    trace, squares, top = np.mean(ratios, axis=0)
    assert trace == pytest.approx(1, abs=0.15)
    assert squares == pytest.approx(1, abs=0.3)
    assert top == pytest.approx(1, abs=0.2)


# A-priori averages: relu C = 5: .5609, .1040, .1420; tanh(3, .64), C = 10: .7025, .0831, .1280.
@pytest.mark.parametrize(
    ("phi", "w", "b", "outputs", "expected"),
    [
        ("relu", 2.0, 0.1, 5, (0.5609, 0.1040, 0.1420)),
        ("tanh", 3.0, 0.64, 10, (0.7025, 0.0831, 0.1280)),
    ],
)
def test_averages_over_networks(phi, w, b, outputs, expected):
    p = order_parameters(_network(400, outputs, phi, w, b))
    rng = np.random.default_rng(0)
    own, shared = np.sqrt(p.variance[-1] - p.covariance[-1]), np.sqrt(p.covariance[-1])
    found = [
        softmax_averages(
            shared * rng.standard_normal(outputs) + own * rng.standard_normal((40, outputs))
        )
        for _ in range(1500)
    ]
    np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=0.03)


@pytest.mark.slow
def test_a_priori_prediction_for_the_average_over_networks():
    """30 networks at M = 400, N = 60: trace .950 ± .028, sum of squares .977 ± .040; 10 %."""
    network, n = _network(400), 60
    theory = fisher_statistics(network, n, loss="categorical", generator=np.random.default_rng(0))
    found = []
    for seed in range(30):
        values = _measured(network, n, seed)[0]
        found.append((values.sum(), (values**2).sum()))
    trace, squares = np.mean(found, axis=0)
    # 64 draws of the outputs leave a few per cent of their own.
    assert trace == pytest.approx(theory.trace, rel=0.12)
    assert squares == pytest.approx(theory.sum_of_squares, rel=0.2)


def test_on_given_inputs():
    network, n = _network(300), 40
    values, f, x = _measured(network, n, 0)
    theory = fisher_statistics(network, x, loss="categorical", outputs=f)
    assert values.sum() == pytest.approx(theory.trace, rel=0.1)
    assert values[-1] == pytest.approx(theory.largest, rel=0.2)
    drawn = fisher_statistics(network, x, loss="categorical", generator=np.random.default_rng(0))
    assert drawn.trace == pytest.approx(theory.trace, rel=0.4)


def test_without_outputs_it_says_what_it_needs():
    theory = fisher_statistics(_network(50), 10, loss="categorical")
    assert theory.status == "outputs needed"
    assert np.isnan(theory.largest)
    assert "generator" in theory.notes[-1]


def test_more_rows_than_it_decomposes():
    network = _network(50, 60)
    f = np.random.default_rng(0).standard_normal((100, 60))
    theory = fisher_statistics(network, 100, loss="categorical", outputs=f)
    assert theory.status == "bounds only"
    assert 0 < theory.lower < theory.trace
    assert np.isnan(theory.largest)


def test_certain_predictions_have_no_curvature():
    f = 1000 * np.eye(5)[np.arange(10) % 5]
    theory = fisher_statistics(_network(50), 10, loss="categorical", outputs=f)
    assert theory.trace == pytest.approx(0, abs=1e-12)
    assert theory.largest == pytest.approx(0, abs=1e-12)


def test_wrong_use():
    with pytest.raises(ValueError, match="NaN"):
        fisher_statistics(_network(50), 10, loss="categorical", outputs=np.full((10, 5), np.nan))
    with pytest.raises(ValueError, match="two examples"):
        softmax_averages(np.zeros((1, 5)))
