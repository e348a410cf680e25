"""α of natural-gradient structures against K̄ = J G⁻¹ Jᵀ/N of finite networks (rows 3b, 3f)."""

import numpy as np
import pytest

from kobai.theory import WideNetwork, natural_gradient_alpha, tridiagonal_weights
from theory.finite_networks import Net


def _setting(phi, depth, width, outputs, n=20, inputs=40, seed=0, w=2.0, b=0.1):
    network = WideNetwork(
        widths=(inputs, *(width,) * (depth - 1), outputs),
        activation=phi, weight_variance=w, bias_variance=b,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    net = Net(rng, network.widths, phi, w, b)
    return network, net, rng.standard_normal((n, inputs))


def _block(net, x):
    """Σ_l K_l K_l⁺."""
    return sum(k @ np.linalg.pinv(k, rcond=1e-12) for k in net.grams(x, "ntk"))


def _tridiagonal(net, x):
    """1ᵀ ⊗ (K_l) solved with the indefinite matrix, ρ → 0 by a tiny ρ."""
    grams = net.grams(x, "ntk")
    size, depth = len(grams[0]), len(grams)
    matrix = np.zeros((depth * size, depth * size))
    for i in range(depth):
        for j in range(max(0, i - 1), min(depth, i + 2)):
            matrix[i * size : (i + 1) * size, j * size : (j + 1) * size] = grams[j]
    matrix += 1e-10 * np.eye(depth * size)
    solved = np.linalg.solve(matrix, np.tile(np.eye(size), (depth, 1)))
    return sum(k @ solved[i * size : (i + 1) * size] for i, k in enumerate(grams))


def _kronecker(net, x):
    """Σ_l N [Â Â⁺] ∘ [B̂ B̂⁺], the output layer without the N."""
    features, before = net.forward(x)
    deltas, n = net.deltas(before), len(x)
    total = 0.0
    for i, (h, delta) in enumerate(zip(features, deltas, strict=True)):
        inputs = net.inputs(h, "ntk")
        project = inputs @ np.linalg.pinv(inputs, rcond=1e-10)
        c = len(delta)
        if i == len(features) - 1:
            total = total + np.kron(np.eye(c), project)
        else:
            flat = delta.reshape(c * n, -1)
            total = total + n * np.tile(project, (c, c)) * (
                flat @ np.linalg.pinv(flat, rcond=1e-10)
            )
    return total


def _unit(net, x):
    """Σ over units of the projector on the span of their Jacobian's rows."""
    features, before = net.forward(x)
    deltas, n = net.deltas(before), len(x)
    c = len(deltas[0])
    total = np.zeros((c, n, c, n))
    for h, delta in zip(features, deltas, strict=True):
        assert np.linalg.matrix_rank(net.inputs(h, "ntk")) == n
        # With h̄ of full row rank the projector is blockdiag_n(d_n d_nᵀ/‖d_n‖²).
        norms = (delta**2).sum(axis=0)
        unit = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 1e-20)
        blocks = np.einsum("kni,ni,lni->nkl", delta, unit, delta)
        for m in range(n):
            total[:, m, :, m] += blocks[m]
    return total.reshape(c * n, c * n)


def _alpha_and_error(kernel):
    alpha = np.trace(kernel) / len(kernel)
    rest = kernel - alpha * np.eye(len(kernel))
    return alpha, np.linalg.norm(rest) / (alpha * np.sqrt(len(kernel)))


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("phi", ["erf", "relu"])
def test_isotropic_structures(depth, outputs, phi):
    """Row 3b: exact 1, block L, tri ⌈L/3⌉, K-FAC N (L − 1) + 1 = 41, 61; 1e-8."""
    network, net, x = _setting(phi, depth, 128, outputs)
    measured = {"layer": _block, "tridiagonal": _tridiagonal, "kronecker": _kronecker}
    expected = {"layer": depth, "tridiagonal": -(-depth // 3), "kronecker": 20 * (depth - 1) + 1}
    for structure, measure in measured.items():
        theory = natural_gradient_alpha(structure, network, len(x))
        alpha, error = _alpha_and_error(measure(net, x))
        assert theory.alpha == expected[structure]
        assert theory.isotropic
        assert alpha == pytest.approx(theory.alpha, rel=1e-6)
        assert error < (1e-5 if structure == "tridiagonal" else 1e-8)
    assert natural_gradient_alpha("full", network, len(x)).alpha == 1


@pytest.mark.parametrize(
    ("phi", "outputs", "expected"), [("erf", 1, 513), ("relu", 1, 257), ("erf", 2, 257)]
)
def test_unit_wise(phi, outputs, expected):
    """Row 3b: Σ M_l/C + 1, half of it for relu; α within 3 %, isotropy as the width grows."""
    errors = []
    for width in (64, 256):
        network, net, x = _setting(phi, 3, width, outputs)
        theory = natural_gradient_alpha("unit", network, len(x))
        alpha, error = _alpha_and_error(_unit(net, x))
        assert alpha == pytest.approx(theory.alpha, rel=0.03 if width == 256 else 0.1)
        errors.append(error)
    assert theory.alpha == expected
    if (phi, outputs) == ("erf", 1):
        assert theory.status == "isotropic"
    else:
        assert theory.status == "isotropic as width grows"
        assert errors[1] < errors[0]


# Row 3f: (N, C, M_0, M): 33.000, 30.450, 61.000, 43.667 within .1 %; isotropy is lost.
@pytest.mark.parametrize(
    ("n", "outputs", "inputs", "width", "alpha"),
    [
        (20, 4, 40, 64, 33.0),
        (20, 1, 40, 16, 30.45),
        (40, 1, 19, 64, 61.0),
        (30, 3, 40, 64, 43.667),
    ],
)
def test_rank_deficient_kfac(n, outputs, inputs, width, alpha):
    network, net, x = _setting("erf", 3, width, outputs, n, inputs)
    theory = natural_gradient_alpha("kronecker", network, n)
    assert theory.alpha == pytest.approx(alpha, rel=1e-4)
    assert theory.status == "rank deficient"
    found, error = _alpha_and_error(_kronecker(net, x))
    assert found == pytest.approx(alpha, rel=2e-3)
    assert 0.05 < error < 0.4


def test_tridiagonal_weights():
    np.testing.assert_allclose(tridiagonal_weights(3), [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(tridiagonal_weights(4), [1, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(tridiagonal_weights(6), [0, 1, 0, 0, 1, 0], atol=1e-12)
    for depth in range(1, 40):
        weights = tridiagonal_weights(depth)
        gap = np.abs(np.subtract.outer(np.arange(depth), np.arange(depth))) <= 1
        np.testing.assert_allclose(gap @ weights, 1, atol=1e-10)
        assert weights.sum() == pytest.approx(-(-depth // 3))


def test_singular_tridiagonal_depth():
    """L = 5 = 3·1 + 2: Σ is singular, the limit is still ⌈5/3⌉ = 2."""
    network, net, x = _setting("erf", 5, 64, 1, n=8)
    theory = natural_gradient_alpha("tridiagonal", network, 8)
    assert theory.alpha == 2
    assert any("not unique" in note for note in theory.notes)
    alpha, error = _alpha_and_error(_tridiagonal(net, x))
    assert alpha == pytest.approx(2, abs=1e-4)
    assert error < 1e-3


def test_one_step_and_its_rate():
    network, _, _ = _setting("erf", 3, 64, 1)
    theory = natural_gradient_alpha("layer", network, 20)
    assert theory.learning_rate == pytest.approx(1 / 3)
    assert theory.residual(theory.learning_rate, 1) == pytest.approx(0)
    assert theory.residual(0.5 * theory.learning_rate, 3) == pytest.approx(0.125)


def test_rescaled_output_layer():
    network, _, _ = _setting("erf", 3, 64, 1)
    scaled = natural_gradient_alpha("kronecker", network, 20, last_layer_scaled=True)
    assert scaled.alpha == 60


def test_what_is_refused():
    narrow = WideNetwork(widths=(10, 4, 4, 2), activation="tanh")
    for structure in ("layer", "kronecker", "unit"):
        theory = natural_gradient_alpha(structure, narrow, 50)
        assert theory.status == "rank deficient"
        assert not theory.isotropic
    assert np.isnan(natural_gradient_alpha("tridiagonal", narrow, 50).alpha)
    diagonal = natural_gradient_alpha("diagonal", narrow, 50)
    assert np.isnan(diagonal.alpha)
    assert diagonal.status == "not isotropic"
    too_many = natural_gradient_alpha("full", narrow, 500)
    assert too_many.alpha == pytest.approx(narrow.parameters / 1000)


def test_layer_ranks_of_a_narrow_network():
    """The mean diagonal Σ rank K_l / CN, measured."""
    network, net, x = _setting("erf", 3, 6, 2, n=12, inputs=40)
    theory = natural_gradient_alpha("layer", network, 12)
    alpha, _ = _alpha_and_error(_block(net, x))
    assert theory.status == "rank deficient"
    assert alpha == pytest.approx(theory.alpha, rel=1e-6)


def test_wrong_use():
    network = WideNetwork(widths=(10, 4, 2))
    with pytest.raises(ValueError, match="last_layer_scaled"):
        natural_gradient_alpha("unit", network, 5, last_layer_scaled=True)
    with pytest.raises(ValueError, match="examples"):
        natural_gradient_alpha("unit", network, 0)
