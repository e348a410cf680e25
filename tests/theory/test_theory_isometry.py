"""Deep orthogonal networks: rows 4a to 4c of the verified numbers."""

import numpy as np
import pytest

from kobai.theory import free_projection_moments, hard_tanh_critical_line, isometry_spectrum
from theory.finite_networks import PHI, orthogonal


def _dual(rng, phi, depth, width, w, b, feature):
    """H_L by its recursion on one orthogonal network, and the network's own q̂_0 … q̂_{L−1}."""
    function, slope = PHI[phi]
    x = rng.standard_normal(width)
    h = x * np.sqrt(width * feature) / np.linalg.norm(x)
    features = [h @ h / width]
    dual = features[0] * np.eye(width)
    u = np.sqrt(w) * orthogonal(rng, width) @ h + np.sqrt(b) * rng.standard_normal(width)
    for _ in range(depth - 1):
        weight = np.sqrt(w) * orthogonal(rng, width)
        h, d = function(u), slope(u)
        features.append(h @ h / width)
        dual = features[-1] * np.eye(width) + (weight * d) @ dual @ (weight * d).T
        u = weight @ h + np.sqrt(b) * rng.standard_normal(width)
    return dual, np.array(features)


@pytest.mark.parametrize("depth", [5, 10])
@pytest.mark.parametrize("w", [1.0, 1.1])
def test_linear_networks_are_exact(depth, w):
    """Row 4a: H_L = L σ_w^{2(L−1)} q̂_0 I at any width."""
    dual, _ = _dual(np.random.default_rng(0), "linear", depth, 30, w, 0.0, 0.7)
    theory = isometry_spectrum("linear", depth=depth, width=30, weight_variance=w, features=0.7)
    np.testing.assert_allclose(dual, theory.largest * np.eye(30), atol=1e-12)
    assert theory.largest == pytest.approx(depth * w ** (depth - 1) * 0.7)
    assert theory.atom == 1
    np.testing.assert_allclose(theory.moments, theory.largest ** np.arange(1, 5))
    assert theory.learning_rate == pytest.approx(2 / (30 * theory.largest))


@pytest.mark.parametrize(
    ("q", "depth", "width"),
    [
        (0.1, 5, 150),
        (0.15, 10, 200),
        (0.25, 5, 150),
        *(
            pytest.param(q, depth, 400, marks=pytest.mark.slow)
            for q in (0.1, 0.15, 0.25)
            for depth in (5, 10, 20)
        ),
    ],
)
def test_hard_tanh_on_the_critical_line(q, depth, width):
    """Row 4b: λ_max exact given the network's q̂, 2 % a priori; atom .03; moments 5 %."""
    line = hard_tanh_critical_line(q)
    arguments = {
        "depth": depth, "width": width, "weight_variance": line.weight_variance,
        "bias_variance": line.bias_variance,
    }  # fmt: skip
    prior = isometry_spectrum("hard-tanh", features=line.feature, **arguments)
    np.testing.assert_allclose(prior.features, line.feature, rtol=1e-12)
    ratios, atoms, priors = [], [], []
    # The atom of one network has a standard deviation of .03 at q = .25, L = 10, M = 400.
    for seed in range(8 if width == 400 else 3):
        dual, own = _dual(
            np.random.default_rng(seed), "hard-tanh", depth, width, line.weight_variance,
            line.bias_variance, line.feature,
        )  # fmt: skip
        theory = isometry_spectrum("hard-tanh", features=own, **arguments)
        values = np.linalg.eigvalsh(dual)
        assert values[-1] == pytest.approx(theory.largest, rel=1e-6)
        priors.append(values[-1] / prior.largest)
        atoms.append((values > values[-1] * (1 - 1e-9)).mean())
        ratios.append([(values**k).mean() / prior.moments[k - 1] for k in (1, 2, 3, 4)])
    assert np.mean(priors) == pytest.approx(1, abs=0.02 * np.sqrt(400 / width))
    assert np.mean(atoms) == pytest.approx(prior.atom, abs=0.03 * np.sqrt(400 / width))
    known = 4 if width == 400 else 2  # higher moments scatter more in small networks
    found = np.mean(ratios, axis=0)[:known]
    np.testing.assert_allclose(found, 1, atol=0.05 * np.sqrt(400 / width))
    assert prior.lower <= prior.largest == prior.upper


def test_critical_line():
    line = hard_tanh_critical_line(0.15)
    assert line.weight_variance * line.inside == pytest.approx(1)
    assert line.weight_variance * line.feature + line.bias_variance == pytest.approx(0.15)
    # Isometry as q → 0: the clamp never acts.
    limit = hard_tanh_critical_line(1e-4)
    assert (limit.weight_variance, limit.bias_variance) == (1, 0)
    # λ_max ≈ L q̂: the normalised trace on the critical line is exactly that.
    theory = isometry_spectrum(
        "hard-tanh", depth=20, width=100, weight_variance=line.weight_variance,
        bias_variance=line.bias_variance, features=line.feature,
    )  # fmt: skip
    assert theory.moments[0] == pytest.approx(20 * line.feature)
    assert theory.learning_rate < 2 / (100 * 20 * line.feature)


@pytest.mark.parametrize(("q", "atoms"), [(0.15, (0.961, 0.912, 0.813)),
                                          (0.25, (0.818, 0.590, 0.135))])  # fmt: skip
def test_atom_weights(q, atoms):
    line = hard_tanh_critical_line(q)
    for depth, atom in zip((5, 10, 20), atoms, strict=True):
        theory = isometry_spectrum(
            "hard-tanh", depth=depth, width=400, weight_variance=line.weight_variance,
            bias_variance=line.bias_variance, features=line.feature,
        )  # fmt: skip
        assert theory.atom == pytest.approx(atom, abs=1e-3)


def test_top_is_refused_once_the_atom_has_dissolved():
    line = hard_tanh_critical_line(0.5)
    theory = isometry_spectrum(
        "hard-tanh", depth=40, width=100, weight_variance=line.weight_variance,
        bias_variance=line.bias_variance, features=line.feature,
    )  # fmt: skip
    assert theory.atom == 0
    assert np.isnan(theory.largest)
    assert theory.lower < theory.upper
    assert "dissolved" in theory.notes[-1]


@pytest.mark.parametrize(
    ("phi", "w", "b", "width", "seeds", "tolerance"),
    [
        ("tanh", 1.05, 0.01, 200, 4, (0.04, 0.07)),
        pytest.param("tanh", 1.05, 0.01, 500, 3, (0.03, 0.05), marks=pytest.mark.slow),
        pytest.param("tanh", 1.5, 0.3, 500, 3, (0.03, 0.05), marks=pytest.mark.slow),
        pytest.param("erf", 1.0, 0.1, 500, 3, (0.03, 0.05), marks=pytest.mark.slow),
        pytest.param("relu", 2.0, 0.0, 500, 20, (0.10, 0.15), marks=pytest.mark.slow),
    ],
)
def test_two_moments_of_other_activations(phi, w, b, width, seeds, tolerance):
    """Row 4b', L = 8, q̂_0 = 1: m₁ 3 %, m₂ 5 %; relu averaged over many networks 10 %, 15 %."""
    theory = isometry_spectrum(phi, depth=8, width=width, weight_variance=w, bias_variance=b)
    found = []
    for seed in range(seeds):
        dual, _ = _dual(np.random.default_rng(seed), phi, 8, width, w, b, 1.0)
        found.append((np.trace(dual) / width, (dual**2).sum() / width))
    ratio = np.mean(found, axis=0) / theory.moments
    assert abs(ratio[0] - 1) < tolerance[0]
    assert abs(ratio[1] - 1) < tolerance[1]
    assert theory.status == "top eigenvalue not predicted"
    assert np.isnan(theory.learning_rate)


def test_free_compression_of_a_projection():
    """Half of half: a projection of trace ½ compressed by another has Jacobi-like moments."""
    rng, size = np.random.default_rng(0), 600
    p = (np.arange(size) < size // 2).astype(float)
    o = orthogonal(rng, size)
    # Level 0 then two projections: H = 1·(O p O')…; moments of p O p Oᵀ p with level 0 in between.
    compressed = (o.T * p) @ o
    found = p[:, None] * compressed * p
    values = np.linalg.eigvalsh(found)
    levels = np.array([1.0, 0.0, 0.0])
    theory = free_projection_moments(levels, np.array([0.5, 0.5]), 1.0, 5)
    np.testing.assert_allclose([(values**k).mean() for k in range(1, 6)], theory, rtol=0.02)


@pytest.mark.parametrize("phi", ["linear", "hard-tanh"])
def test_online_learning_rate_falls_as_one_over_depth(phi):
    """Row 4c: 150 single-example steps at M = 40 blow up at 1.10 to 1.16 of the rate."""
    width = 40
    line = hard_tanh_critical_line(0.05)
    w, b, feature = (
        (1.0, 0.0, 1.0) if phi == "linear"
        else (line.weight_variance, line.bias_variance, line.feature)
    )  # fmt: skip
    function, slope = PHI[phi]
    rates = []
    for depth in (5, 10, 20):
        rate = isometry_spectrum(
            phi, depth=depth, width=width, weight_variance=w, bias_variance=b, features=feature
        ).learning_rate
        rates.append(rate * depth)
        for multiple, diverges in ((0.9, False), (1.3, True)):
            rng = np.random.default_rng(0)
            weights = [np.sqrt(w) * orthogonal(rng, width) for _ in range(depth)]
            biases = [np.sqrt(b) * rng.standard_normal(width) for _ in range(depth)]
            x = rng.standard_normal(width)
            x *= np.sqrt(width * feature) / np.linalg.norm(x)
            target, first, worst = None, None, 0.0
            for _ in range(150):
                hs, us = [x], []
                for i in range(depth):
                    us.append(weights[i] @ hs[-1] + biases[i])
                    hs.append(function(us[-1]) if i < depth - 1 else us[-1])
                if target is None:
                    target = hs[-1] + 1e-3 * rng.standard_normal(width)
                signal = hs[-1] - target
                size = float(signal @ signal)
                first = size if first is None else first
                worst = max(worst, size / first)
                if worst > 100:
                    break
                for i in range(depth - 1, -1, -1):
                    below = (weights[i].T @ signal) * slope(us[i - 1]) if i else None
                    weights[i] = weights[i] - multiple * rate * np.outer(signal, hs[i])
                    signal = below
            assert (worst > 100) == diverges
    assert max(rates) < 1.3 * min(rates)


def test_trained_biases_add_one_over_width():
    plain = isometry_spectrum("linear", depth=3, width=10, weight_variance=1.0)
    biased = isometry_spectrum("linear", depth=3, width=10, weight_variance=1.0, bias=True)
    assert biased.largest == pytest.approx(plain.largest + 3 / 10)


def test_wrong_use():
    with pytest.raises(ValueError, match="features"):
        isometry_spectrum("linear", depth=3, width=10, weight_variance=1.0, features=[1.0, 2.0])
    with pytest.raises(ValueError, match="depth"):
        isometry_spectrum("linear", depth=0, width=10, weight_variance=1.0)
    with pytest.raises(ValueError, match="positive"):
        hard_tanh_critical_line(0.0)
