"""Deep linear networks with and without skips: rows 6a to 6c of the verified numbers."""

import numpy as np
import pytest

from kobai.theory import expected_factors, linear_factors, skip_terms, smallest_eigenvalue_bound


def _weights(rng, depth, d, variance):
    return [rng.standard_normal((d, d)) * np.sqrt(variance / d) for _ in range(depth)]


def _output(weights, x, skips):
    for w in weights:
        x = w @ x + x if skips else w @ x
    return x


def _jacobian(weights, x, skips, step=1e-6):
    """∂f/∂vec(W_1 … W_L), by central differences (the map is multilinear)."""
    columns = []
    for w in weights:
        for index in np.ndindex(*w.shape):
            kept = w[index]
            w[index] = kept + step
            up = _output(weights, x, skips)
            w[index] = kept - step
            columns.append((up - _output(weights, x, skips)) / (2 * step))
            w[index] = kept
    return np.array(columns).T


@pytest.mark.parametrize("skips", [False, True])
def test_blocks_are_those_of_the_jacobian(skips):
    """Row 6a: d = 4, L = 3; rank 16 of 48."""
    rng = np.random.default_rng(0)
    weights, x = _weights(rng, 3, 4, 1.0), rng.standard_normal((4, 30))
    fisher = sum(j.T @ j for j in (_jacobian(weights, x[:, i], skips) for i in range(30))) / 30
    factors = linear_factors(weights, x @ x.T / 30, skips=skips)
    blocks = [[factors.block(i, j) for j in (1, 2, 3)] for i in (1, 2, 3)]
    np.testing.assert_allclose(np.block(blocks), fisher, atol=1e-7 * np.abs(fisher).max())
    assert factors.rank == np.linalg.matrix_rank(np.block(blocks), tol=1e-8) == 16


def test_rectangular_layers_and_a_lonely_one():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(s) for s in ((5, 4), (3, 5), (2, 3))]
    factors = linear_factors(weights, np.eye(4), skips=False)
    assert factors.block(1, 3).shape == (20, 6)
    assert factors.block(2).shape == (15, 15)
    single = linear_factors(weights[:1], np.eye(4), skips=False)
    np.testing.assert_array_equal(single.block(1), np.eye(20))


@pytest.mark.parametrize("skips", [False, True])
def test_expectations(skips):
    """Row 6b: d = 30, s = .3, relative error .01 to .02 with 3000 draws; 5 %."""
    rng, d, depth, s = np.random.default_rng(0), 30, 4, 0.3
    root = rng.standard_normal((d, d)) / np.sqrt(d)
    covariance = root @ root.T
    drawn = [
        linear_factors(_weights(rng, depth, d, s), covariance, skips=skips) for _ in range(1500)
    ]
    for layer in (1, 3):
        inputs = sum(factors.inputs(layer) for factors in drawn) / 1500
        outputs = sum(factors.outputs(layer) for factors in drawn) / 1500
        theory = expected_factors(layer, depth, s, covariance, skips=skips)
        for found, expected in ((inputs, theory.inputs), (outputs, theory.outputs * np.eye(d))):
            assert np.linalg.norm(found - expected) < 0.07 * np.linalg.norm(expected)
        if skips:
            rest = theory.inputs - covariance
            np.testing.assert_allclose(rest, theory.damping * np.eye(d), atol=1e-12)


def test_cross_terms_do_not_vanish_with_the_width():
    """√(2s/((1 + s)² + s²)) = .58 at s = .3, M = I, at any width."""
    rng = np.random.default_rng(0)
    for d in (50, 400):
        weight = rng.standard_normal((d, d)) * np.sqrt(0.3 / d)
        terms = skip_terms(weight, np.eye(d))
        assert terms.relative_cross == pytest.approx(0.5806, rel=0.03)
        step = np.eye(d) + weight
        total = terms.plain + terms.skip + terms.cross
        np.testing.assert_allclose(total, step @ step.T, atol=1e-12)
        assert abs(np.trace(terms.cross)) / d < 0.2
        assert terms.damping == pytest.approx(1)
    cross = expected_factors(1, 2, 0.3, np.eye(3), skips=True).cross
    assert cross == pytest.approx(0.5806, rel=1e-3)


def test_smallest_eigenvalue_is_bounded_at_any_depth():
    rng, d = np.random.default_rng(0), 10
    x = rng.standard_normal((d, 40))
    covariance = x @ x.T / 40
    for depth in (3, 9, 21):
        weights = _weights(rng, depth, d, 0.1 / depth)
        factors = linear_factors(weights, covariance, skips=True)
        for layer in (1, depth // 2, depth):
            bound = smallest_eigenvalue_bound(weights, covariance, layer)
            assert 0 < bound <= np.linalg.eigvalsh(factors.inputs(layer))[0] * (1 + 1e-12)
        plain = linear_factors(_weights(rng, depth, d, 1.0), covariance, skips=False)
        assert np.linalg.cond(factors.inputs(depth)) < 200
        if depth > 3:
            assert np.linalg.cond(plain.inputs(depth)) > 1e6
    big = [3 * np.eye(d)] * 3
    assert smallest_eigenvalue_bound(big, covariance, 3) == 0.0


@pytest.mark.parametrize("depth", [3, 9])
@pytest.mark.parametrize("damping", [1e-8, 1e-3, 1e-1])
def test_layerwise_natural_gradient_converges_with_skips(depth, damping):
    """Row 6c: η = 1/L, variance .1/L: 3, 3 and 5 iterations to 1e-6, at most 6."""
    rng, d = np.random.default_rng(0), 10
    x = rng.standard_normal((d, 50))
    covariance, teacher = x @ x.T / 50, np.eye(d) + rng.standard_normal((d, d)) * 0.1 / np.sqrt(d)
    weights, steps = _weights(rng, depth, d, 0.1 / depth), 0
    first = None
    while steps < 20:
        factors = linear_factors(weights, covariance, skips=True)
        whole = factors.after[0] @ (np.eye(d) + weights[0])
        error = whole - teacher
        loss = np.trace(error @ covariance @ error.T) / 2
        first = loss if first is None else first
        if loss < 1e-6 * first:
            break
        for i in range(depth):
            gradient = factors.after[i].T @ error @ covariance @ factors.before[i].T
            a, u = np.linalg.eigh(factors.inputs(i + 1))
            b, v = np.linalg.eigh(factors.outputs(i + 1))
            step = v @ ((v.T @ gradient @ u) / (np.outer(b, a) + damping)) @ u.T
            weights[i] = weights[i] - step / depth
        steps += 1
    assert steps <= (6 if damping < 0.1 else 8)


def test_wrong_use():
    with pytest.raises(ValueError, match="square matrix, W_1"):
        linear_factors([np.zeros((3, 4))], np.eye(4), skips=True)
    with pytest.raises(ValueError, match="W_2 takes 3 inputs"):
        linear_factors([np.zeros((3, 4)), np.zeros((3, 4))], np.eye(4), skips=False)
    with pytest.raises(ValueError, match="layer is 1 to"):
        expected_factors(5, 4, 0.1, np.eye(2), skips=True)
