"""Infinite-width kernels: a naive recursion, finite networks, torch modules, residual sums."""

import numpy as np
import pytest
import torch
from torch import nn

from kobai.theory import (
    Dense,
    Nonlinearity,
    Normalize,
    Residual,
    WideNetwork,
    activation,
    infinite_width_kernels,
    layers_of_module,
)
from theory.finite_networks import PHI, Net

ACTIVATIONS = ["linear", "relu", "leaky-relu", "erf", "tanh", "gelu", "hard-tanh"]


def _inputs(n=6, d=20, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


def _naive(phi, w, b, widths, x, y, parameterization, bias=True):
    """The recursion of the definition for one pair of inputs, 2 × 2 kernels."""
    pair = np.stack([x, y])
    k = w * pair @ pair.T / widths[0] + b
    theta = k[0, 1] if parameterization == "ntk" else x @ y + bias
    for fan_in in widths[1:-1]:
        value = np.array(
            [[float(phi.duals(k[i, i], k[i, j], k[j, j])[0]) for j in (0, 1)] for i in (0, 1)]
        )
        slope = float(phi.duals(k[0, 0], k[0, 1], k[1, 1])[1])
        k = w * value + b
        share = k[0, 1] if parameterization == "ntk" else fan_in * value[0, 1] + bias
        theta = w * slope * theta + share
    return k[0, 1], theta


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_blocks_agree_with_the_recursion_pair_by_pair(name, parameterization):
    network = WideNetwork(
        widths=(20, 30, 40, 50, 2), activation=name, weight_variance=1.7, bias_variance=0.2
    )
    x, y = _inputs(7), _inputs(4, seed=1)
    kernels = infinite_width_kernels(network, x, y, parameterization=parameterization)
    phi = activation(name)
    for i in (0, 3, 6):
        for j in range(4):
            nngp, ntk = _naive(phi, 1.7, 0.2, network.widths, x[i], y[j], parameterization)
            assert kernels.nngp[i, j] == pytest.approx(nngp, rel=1e-10)
            assert kernels.ntk[i, j] == pytest.approx(ntk, rel=1e-10)
    assert kernels.status == "ok"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_half_the_work_gives_the_same_matrix(name):
    """x₂ = None computes one triangle; sizes above one block and ragged last blocks included."""
    network = WideNetwork(widths=(20, 64, 64, 1), activation=name, bias_variance=0.1)
    x = _inputs(210)
    one, two = infinite_width_kernels(network, x), infinite_width_kernels(network, x, x.copy())
    np.testing.assert_allclose(one.nngp, two.nngp, rtol=1e-7)
    # D of kinked activations at equal inputs: rounding of the correlation under a square root.
    np.testing.assert_allclose(one.ntk, two.ntk, rtol=1e-6)
    np.testing.assert_array_equal(one.ntk, one.ntk.T)
    np.testing.assert_allclose(one.variance1, np.diag(one.nngp), rtol=1e-12)
    assert np.linalg.eigvalsh(one.ntk)[0] > -1e-10


@pytest.mark.parametrize("phi", ["relu", "erf", "linear", "tanh"])
def test_single_networks_approach_it_as_the_root_of_the_width(phi):
    """Row 7: relative Frobenius distance of one network within 4/√M (M = 128, 512)."""
    x = _inputs()
    for width in (128, 512):
        widths = (20, width, width, 2)
        kernel = infinite_width_kernels(
            WideNetwork(widths=widths, activation=phi, weight_variance=2.0, bias_variance=0.1),
            x,
            parameterization="ntk",
        ).ntk
        distances = []
        for seed in range(3):
            net = Net(np.random.default_rng(seed), widths, phi, 2.0, 0.1)
            found = sum(net.grams(x, "ntk"))[:6, :6]
            distances.append(np.linalg.norm(found - kernel) / np.linalg.norm(kernel))
        assert np.mean(distances) < 4 / np.sqrt(width)


@pytest.mark.parametrize("phi", ["relu", "erf", "linear", "tanh"])
@pytest.mark.parametrize(
    ("width", "nets"), [(128, 40), pytest.param(512, 40, marks=pytest.mark.slow)]
)
def test_averages_over_networks(phi, width, nets):
    """Row 7: NNGP, NTK and standard kernel of a mean of 40 networks within 6 %."""
    x, widths = _inputs(), (20, width, width, 8)
    network = WideNetwork(widths=widths, activation=phi, weight_variance=2.0, bias_variance=0.1)
    kernels = {
        p: infinite_width_kernels(network, x, parameterization=p) for p in ("standard", "ntk")
    }
    found = {"nngp": 0.0, "ntk": 0.0, "standard": 0.0}
    for seed in range(nets):
        net = Net(np.random.default_rng(seed), widths, phi, 2.0, 0.1)
        h = net.forward(x)[0][-1]
        # Averaged over the last layer in closed form; its few outputs would scatter by 14 %.
        found["nngp"] = found["nngp"] + (2.0 * h @ h.T / width + 0.1) / nets
        for p in ("standard", "ntk"):
            dual = sum(net.grams(x, p)).reshape(8, 6, 8, 6)
            found[p] = found[p] + np.einsum("knkm->nm", dual) / 8 / nets
    expected = {
        "nngp": kernels["ntk"].nngp, "ntk": kernels["ntk"].ntk, "standard": kernels["standard"].ntk
    }  # fmt: skip
    for key, value in expected.items():
        distance = np.linalg.norm(found[key] - value) / np.linalg.norm(value)
        assert distance < 0.06


def test_modules_are_read_like_descriptions():
    with torch.random.fork_rng():
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(20, 30), nn.Tanh(), nn.Sequential(nn.Linear(30, 40), nn.Tanh()),
            nn.Linear(40, 2),
        )  # fmt: skip
    network = WideNetwork(
        widths=(20, 30, 40, 2), activation="tanh", weight_variance=1.5, bias_variance=0.1
    )
    x = _inputs()
    read = infinite_width_kernels(
        module, x.reshape(6, 4, 5), weight_variance=1.5, bias_variance=0.1
    )
    np.testing.assert_allclose(read.ntk, infinite_width_kernels(network, x).ntk, rtol=1e-13)
    tensor = infinite_width_kernels(module, torch.tensor(x), weight_variance=1.5, bias_variance=0.1)
    np.testing.assert_array_equal(tensor.ntk, read.ntk)


def test_a_module_as_torch_draws_it():
    """Default variances: the empirical mean over networks drawn by nn.Linear itself."""
    x = _inputs(4)
    outputs = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(40):
            module = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 400)).double()
            outputs.append(module(torch.tensor(x)).detach().numpy())
    f = np.concatenate(outputs, axis=1)
    kernel = infinite_width_kernels(module, x)
    found = f @ f.T / f.shape[1]
    assert np.linalg.norm(found - kernel.nngp) < 0.06 * np.linalg.norm(kernel.nngp)


def test_activations_of_modules():
    kinds = [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.GELU(), nn.Hardtanh()]
    with torch.random.fork_rng():
        linear = nn.Linear(3, 4, bias=False)
    names = []
    for kind in kinds:
        layers = layers_of_module(nn.Sequential(linear, kind))
        assert layers[0] == Dense(fan_in=3, weight_variance=1 / 3, bias_variance=0.0, bias=False)
        names.append(layers[1].phi.name)
    assert names == ["relu", "leaky-relu(0.2)", "tanh", "gelu", "hard-tanh"]


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.Softmax(-1), "Softmax"), (nn.GELU("tanh"), "GELU"), (nn.Hardtanh(0, 6), "Hardtanh")],
)
def test_modules_without_a_rule_are_named(layer, name):
    with torch.random.fork_rng():
        module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(layer))
    with pytest.raises(TypeError, match=rf"{name} at 1\.0"):
        infinite_width_kernels(module, np.zeros((2, 3)))


def test_residual_sums_against_finite_networks():
    """x ↦ W₃(h + W₂ φ(h) + b₂), h = W₁ x + b₁; kernels are sums because W₂ has mean 0."""
    width, nets, w, b, x = 300, 30, 1.3, 0.2, _inputs()
    layers = [
        Dense(fan_in=20, weight_variance=w, bias_variance=b),
        Residual(
            branch=(
                Nonlinearity(activation="erf"),
                Dense(fan_in=width, weight_variance=w, bias_variance=b),
            )
        ),
        Dense(fan_in=width, weight_variance=w, bias_variance=b),
    ]
    kernel = infinite_width_kernels(layers, x)
    phi, slope = PHI["erf"]
    nngp, ntk = 0.0, 0.0
    for seed in range(nets):
        rng = np.random.default_rng(seed)
        w1 = rng.standard_normal((width, 20)) * np.sqrt(w / 20)
        w2 = rng.standard_normal((width, width)) * np.sqrt(w / width)
        w3 = rng.standard_normal((8, width)) * np.sqrt(w / width)
        b1, b2 = (rng.standard_normal(width) * np.sqrt(b) for _ in range(2))
        h = x @ w1.T + b1
        a = phi(h)
        r = h + a @ w2.T + b2
        nngp = nngp + (w * r @ r.T / width + b) / nets
        back = np.broadcast_to(w3[:, None, :], (8, 6, width))
        first = back + (back @ w2) * slope(h)
        for delta, inputs in ((np.broadcast_to(np.eye(8)[:, None, :], (8, 6, 8)), r),
                              (back, a), (first, x)):  # fmt: skip
            gram = np.einsum("kni,kmi->nm", delta, delta) / 8
            ntk = ntk + gram * (inputs @ inputs.T + 1) / nets
    assert np.linalg.norm(ntk - kernel.ntk) < 0.04 * np.linalg.norm(kernel.ntk)
    assert np.linalg.norm(nngp - kernel.nngp) < 0.04 * np.linalg.norm(kernel.nngp)


def test_a_linear_residual_network_by_hand():
    x = _inputs(3)
    dense = Dense(fan_in=20, weight_variance=0.5)
    kernel = infinite_width_kernels((Residual(branch=(dense,)),), x)
    np.testing.assert_allclose(kernel.nngp, 1.5 * x @ x.T / 20)
    np.testing.assert_allclose(kernel.ntk, x @ x.T + 1)


def test_layer_normalisation_forgets_the_input_scale():
    network = WideNetwork(widths=(20, 30, 30, 1), hidden_normalization="layer")
    x = _inputs()
    scaled = infinite_width_kernels(network, x * np.arange(1, 7)[:, None])
    np.testing.assert_allclose(scaled.nngp, infinite_width_kernels(network, x).nngp, rtol=1e-10)
    single = infinite_width_kernels((Dense(fan_in=20, weight_variance=1), Normalize()), x).nngp
    np.testing.assert_allclose(np.diag(single), 1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equal_opposite_and_zero_inputs(name):
    x = _inputs(4)
    x[1], x[2], x[3] = x[0], -x[0], 0
    network = WideNetwork(widths=(20, 30, 30, 1), activation=name, bias_variance=0.0)
    kernel = infinite_width_kernels(network, x)
    assert np.isfinite(kernel.ntk).all()
    assert kernel.nngp[0, 1] == pytest.approx(kernel.nngp[0, 0], rel=1e-9)
    assert kernel.ntk[0, 1] == pytest.approx(kernel.ntk[0, 0], rel=1e-6)
    assert abs(kernel.nngp[3, 0]) < 1e-12
    if activation(name).odd:
        np.testing.assert_allclose(kernel.nngp[0, 2], -kernel.nngp[0, 0], rtol=1e-9)


def test_accuracy_is_reported():
    network = WideNetwork(widths=(20, 30, 1), activation="tanh", weight_variance=100.0)
    kernel = infinite_width_kernels(network, _inputs())
    assert kernel.status == "inaccurate"
    assert kernel.accuracy > 1e-6


def test_wrong_use():
    network = WideNetwork(widths=(20, 30, 1))
    with pytest.raises(ValueError, match="has 3 coordinates, the first layer takes 20"):
        infinite_width_kernels(network, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        infinite_width_kernels(network, np.full((2, 20), np.nan))
    with pytest.raises(ValueError, match="ends in Dense"):
        Residual(branch=(Nonlinearity(activation="relu"),))
    with pytest.raises(ValueError, match="arguments for modules"):
        infinite_width_kernels(network, _inputs(), weight_variance=1.0)
    with pytest.raises(ValueError, match="whole batch"):
        infinite_width_kernels(
            WideNetwork(widths=(20, 30, 1), hidden_normalization="batch"), _inputs()
        )
