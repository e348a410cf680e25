"""Shapes, parameter counts, determinism and derivatives of every family."""

import dataclasses
import sys
import types

import jaxtyping
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from kobai.models import (
    FAMILIES,
    CNNConfig,
    LinearConfig,
    LSTMConfig,
    MLPConfig,
    ResNet50Config,
    ResNetConfig,
    TransformerConfig,
    build,
    from_factory,
)

IMAGE = (1, 8, 8)

# One small model of each family, and of each of its branches.
SMALL = {
    "linear": LinearConfig(widths=(6, 6), skips=True, bias=True),
    "mlp": MLPConfig(widths=(6, 5), activation="maxout", normalization="layer"),
    "mlp-batch": MLPConfig(widths=(6, 5), normalization="batch", activation="erf"),
    "cnn": CNNConfig(channels=(3, 4), activation="gelu"),
    "cnn-mean": CNNConfig(channels=(3,), head="mean", pool="mean", normalization="batch"),
    "cnn-conv": CNNConfig(channels=(3,), head="conv", pool="none", activation="maxout"),
    "resnet": ResNetConfig(depth=8, width_multiplier=0.25),
    "resnet-plain": ResNetConfig(depth=8, width_multiplier=0.25, skips=False),
    "resnet50": ResNet50Config(stem="small", width_multiplier=1 / 32),
    "lstm": LSTMConfig(hidden=4, layers=2),
    "transformer": TransformerConfig(width=8, heads=2, feedforward=8, blocks=1),
}


def make(config, shape=IMAGE, outputs=3, seed=0, dtype=torch.float64, device=None) -> nn.Module:
    return build(
        config,
        input_shape=shape,
        num_outputs=outputs,
        generator=torch.Generator().manual_seed(seed),
        dtype=dtype,
        device=device,
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=g)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_outputs_dtype_and_determinism(name):
    model = make(SMALL[name]).eval()
    x = normal(5, *IMAGE)
    assert model(x).shape == (5, 3)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    again = make(SMALL[name]).state_dict()
    assert all(
        torch.equal(value, again[key]) for key, value in make(SMALL[name]).state_dict().items()
    )
    assert all(p.isfinite().all() for p in model.parameters())
    other = torch.cat([p.flatten() for p in make(SMALL[name], seed=1).parameters()])
    assert not torch.equal(other, torch.cat([p.flatten() for p in model.parameters()]))
    single = make(SMALL[name], dtype=torch.float32)
    torch.testing.assert_close(model(x).float(), single.eval()(x.float()), atol=1e-4, rtol=1e-4)
    assert make(SMALL[name], dtype=None)(x.float()).dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n == "resnet50" else n for n in SMALL],
)
def test_second_derivatives_exist_in_every_mode(name):
    """Hessian products by forward over reverse and twice reverse agree, and with dense ones."""
    model = make(SMALL[name]).eval()
    x, y = normal(4, *IMAGE), normal(4, 3, seed=1)
    theta = {key: value.detach() for key, value in model.named_parameters()}
    v = {key: normal(*value.shape, seed=2) for key, value in theta.items()}

    def loss(theta):
        return (functional_call(model, theta, (x,)) - y).square().mean()

    with sdpa_kernel(SDPBackend.MATH):
        dense = hessian(loss)(theta) if sum(p.numel() for p in theta.values()) < 1000 else None
        forward = jvp(grad(loss), (theta,), (v,))[1]
        slope = lambda theta: sum((grad(loss)(theta)[key] * v[key]).sum() for key in v)  # noqa: E731
        reverse = grad(slope)(theta)
        values = vmap(loss)({key: torch.stack([w, w + v[key]]) for key, w in theta.items()})
    for key in theta:
        torch.testing.assert_close(forward[key], reverse[key], atol=1e-10, rtol=1e-8)
        if dense is None:
            continue
        product = sum(dense[key][k].flatten(theta[key].ndim) @ w.flatten() for k, w in v.items())
        torch.testing.assert_close(forward[key], product, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(values[0], loss(theta))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_builds_its_default(name):
    config = FAMILIES[name]()
    assert dataclasses.is_dataclass(config)
    model = make(name, shape=(3, 32, 32), outputs=10, dtype=torch.float32)
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        # Layer sums by hand.
        (LinearConfig(), (784,), 784 * 100 + 4 * 100 * 100 + 100 * 10),
        (MLPConfig(widths=(512, 512)), (784,), 784 * 512 + 512 * 512 + 512 * 10 + 512 * 2 + 10),
        (MLPConfig(widths=(5,), activation="maxout", pieces=3), (4,), 4 * 15 + 15 + 5 * 10 + 10),
        (MLPConfig(widths=(5,), normalization="batch"), (4,), 4 * 5 + 2 * 5 + 5 * 10 + 10),
        (
            CNNConfig(channels=(128, 64, 32, 16), head="conv"),
            (3, 32, 32),
            9 * (3 * 128 + 128 * 64 + 64 * 32 + 32 * 16 + 16 * 10) + 128 + 64 + 32 + 16 + 10,
        ),
        # He et al. 2016, table 6: 0.27M and 0.85M, here with 2752 parameters of two projections.
        (ResNetConfig(), (3, 32, 32), 269_722 + 2_752),
        (ResNetConfig(depth=56), (3, 32, 32), 853_018 + 2_752),
        (ResNetConfig(skips=False), (3, 32, 32), 269_722),
        # The usual 25,557,032 of 1000 classes, with the output layer exchanged.
        (ResNet50Config(), (3, 224, 224), 25_557_032 - 2048 * 990 - 990),
        (LSTMConfig(), (1, 28, 28), 4 * 128 * (28 + 128 + 1) + 128 * 10 + 10),
    ],
)
def test_parameter_counts(config, shape, expected):
    assert count(make(config, shape=shape, outputs=10, dtype=torch.float32)) == expected


def test_linear_skips_equal_the_formula():
    x = normal(4, 5)
    # Two layers: f_s = W₂W₁x + W₁x, where W₁ changes the width and so has no skip.
    model = make(LinearConfig(widths=(6,), skips=True), shape=(5,), outputs=6)
    w1, w2 = (layer.weight for layer in model.layers)
    torch.testing.assert_close(model(x), x @ w1.T @ w2.T + x @ w1.T)
    # Every square layer is I + W; the others, first and last here, are W.
    deep = make(LinearConfig(widths=(6, 6, 6), skips=True), shape=(5,), outputs=3)
    product = torch.eye(5, dtype=torch.float64)
    for layer in deep.layers:
        w = layer.weight
        square = w.shape[0] == w.shape[1]
        product = (w + torch.eye(6, dtype=torch.float64) if square else w) @ product
    torch.testing.assert_close(deep(x), x @ product.T)
    plain = make(LinearConfig(widths=(6, 6, 6), bias=True), shape=(5,), outputs=3)
    assert [layer.bias is not None for layer in plain.layers] == [True] * 4
    torch.testing.assert_close(
        plain(x), x @ torch.linalg.multi_dot([w.weight.T for w in plain.layers])
    )


def test_maxout_equals_its_definition():
    model = make(MLPConfig(widths=(6,), activation="maxout", pieces=3), shape=(5,))
    x = normal(4, 5)
    layer = model.hidden[0].linear
    pieces = (x @ layer.weight.T + layer.bias).view(4, 6, 3)
    expected = torch.stack([pieces[..., i] for i in range(3)]).max(0).values
    torch.testing.assert_close(model.hidden(x), expected)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("tanh", torch.tanh),
        ("erf", torch.erf),
        ("relu", lambda u: u.clamp_min(0)),
        ("hardtanh", lambda u: u.clamp(-1, 1)),
        ("leaky_relu", lambda u: torch.where(u > 0, u, 0.01 * u)),
        ("gelu", lambda u: u * 0.5 * (1 + torch.erf(u / 2**0.5))),
        ("sigmoid", lambda u: 1 / (1 + torch.exp(-u))),
        ("linear", lambda u: u),
    ],
)
def test_activations_equal_their_definition(name, reference):
    model = make(MLPConfig(widths=(6,), activation=name), shape=(5,))
    x = 3 * normal(4, 5)
    layer = model.hidden[0].linear
    torch.testing.assert_close(model.hidden(x), reference(x @ layer.weight.T + layer.bias))


def test_last_layer_normalisation_acts_on_the_outputs():
    x = normal(7, 5)
    plain = make(MLPConfig(widths=(6,)), shape=(5,))
    for kind in ("last-mean", "last-batch"):
        model = make(MLPConfig(widths=(6,), normalization=kind, affine=False), shape=(5,))
        names = [key for key, _ in model.named_parameters()]
        assert names == [key for key, _ in plain.named_parameters()]
        f = plain(x) - plain(x).mean(0)
        if kind == "last-batch":
            f = f / (f.square().mean(0) + 1e-5).sqrt()
        torch.testing.assert_close(model(x), f)


def test_residual_blocks_equal_the_formula():
    model = make(SMALL["resnet"]).eval()
    x = normal(2, 4, 8, 8)
    same, shrinking = model.stages[0][0], model.stages[1][0]
    assert isinstance(same.shortcut, nn.Identity)
    torch.testing.assert_close(same(x), torch.relu(same.branch(x) + x))
    conv = shrinking.shortcut[0]
    assert (conv.kernel_size, conv.stride) == ((1, 1), (2, 2))
    torch.testing.assert_close(
        shrinking(x), torch.relu(shrinking.branch(x) + shrinking.shortcut(x))
    )
    plain = make(SMALL["resnet-plain"]).eval().stages[0][0]
    torch.testing.assert_close(plain(x), torch.relu(plain.branch(x)))
    assert make(SMALL["resnet"]).stages(x).shape == (2, 16, 2, 2)


def test_lstm_equals_torch_and_starts_with_open_forget_gates():
    model = make(LSTMConfig(hidden=6), shape=(5, 3))
    layer = model.layers[0]
    with torch.random.fork_rng():
        theirs = nn.LSTM(3, 6, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "weight_ih_l0": layer.inputs.weight,
            "weight_hh_l0": layer.recurrent.weight,
            "bias_ih_l0": layer.inputs.bias,
            "bias_hh_l0": torch.zeros(24),
        }
    )
    x = normal(4, 5, 3)
    torch.testing.assert_close(layer(x), theirs(x)[0])
    gates = layer.inputs.bias.view(4, 6)
    assert gates[1].eq(1).all()
    assert gates[[0, 2, 3]].eq(0).all()
    assert make(LSTMConfig(forget_bias=0.0), shape=(5, 3)).layers[0].inputs.bias.eq(0).all()


def test_lstm_reads_an_image_row_by_row():
    model = make(LSTMConfig(hidden=6), shape=(2, 5, 3))
    x = normal(4, 2, 5, 3)
    rows = torch.stack([x[:, :, t].flatten(1) for t in range(5)], 1)
    torch.testing.assert_close(model(x), model(rows))


def test_attention_equals_torch():
    config = TransformerConfig(width=8, heads=2, feedforward=8, blocks=1)
    model = make(config, shape=(5, 3))
    ours = model.blocks[0].attend[1]
    with torch.random.fork_rng():
        theirs = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.output.weight,
            "out_proj.bias": ours.output.bias,
        }
    )
    x = normal(4, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_transformer_reads_tokens():
    model = make(dataclasses.replace(SMALL["transformer"], vocabulary=11), shape=(6,))
    tokens = torch.arange(12).view(2, 6) % 11
    assert model(tokens).shape == (2, 3)
    # Positions matter: the same tokens in another order are another input.
    assert not torch.allclose(model(tokens), model(tokens.flip(1)))


def test_meta_models_cost_no_memory():
    model = make(ResNetConfig(depth=8), device="meta", dtype=torch.float32)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: make("transformers"), "unknown model 'transformers'; choose one of linear"),
        (lambda: MLPConfig(activation="swish"), "unknown activation 'swish'; choose one of relu"),
        (lambda: MLPConfig(normalization="group"), "unknown normalization 'group'"),
        (lambda: MLPConfig(widths=(5, 0)), r"widths must be positive, got \(5, 0\)"),
        (lambda: MLPConfig(activation="maxout", pieces=1), "at least 2 pieces"),
        (lambda: LinearConfig(widths=(-1,)), "widths must be positive"),
        (lambda: LinearConfig(init="xavier"), "unknown init 'xavier'"),
        (lambda: CNNConfig(channels=(0,)), "channels must be positive"),
        (lambda: CNNConfig(pool="median"), "unknown pool 'median'"),
        (lambda: CNNConfig(head="dense"), "unknown head 'dense'"),
        (lambda: CNNConfig(init="ntk"), "unknown init 'ntk'"),
        (lambda: CNNConfig(hidden_bias=0.1, init="standard", bias_variance=1.0), "of the two to 0"),
        (lambda: make(CNNConfig(channels=(2,) * 4)), "at least 16 x 16 pixels, got 8 x 8; use few"),
        (lambda: make(CNNConfig(), shape=(64,)), "cnn reads images"),
        (lambda: ResNetConfig(depth=50 + 1), "6n \\+ 2 layers, got depth=51"),
        (lambda: ResNetConfig(width_multiplier=0.0), "width_multiplier must be positive"),
        (lambda: make(ResNetConfig(), shape=(1, 3, 3)), "at least 4 x 4"),
        (lambda: make(ResNet50Config()), "at least 32 x 32 pixels, got 8 x 8; use stem 'small'"),
        (lambda: ResNet50Config(stem="tiny"), "unknown stem"),
        (lambda: LSTMConfig(hidden=0), "hidden must be positive"),
        (lambda: LSTMConfig(init="random-walk"), "derived for the activations relu and linear"),
        (lambda: make(LSTMConfig(), shape=(64,)), "lstm reads sequences"),
        (lambda: TransformerConfig(heads=3), "heads must divide the width"),
        (lambda: TransformerConfig(vocabulary=-1), "vocabulary must be 0"),
        (lambda: make(TransformerConfig(patch=3)), "do not tile an image of 8 x 8"),
        (lambda: make(TransformerConfig(), shape=(64,)), "with a vocabulary"),
        (lambda: make("mlp", outputs=0), "num_outputs must be positive, got 0"),
        (lambda: make("mlp", shape=()), "without the batch axis"),
        (lambda: make("mlp", shape=(1, 0, 8)), "input_shape must be positive"),
    ],
)
def test_wrong_arguments_are_refused(wrong, match, monkeypatch):
    # What users meet: outside tests nothing checks annotations before the code does.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=match):
        wrong()


@pytest.fixture
def users_module(monkeypatch):
    """A module of the user's own, importable as `mine`."""
    module = types.ModuleType("mine")

    def stock(input_shape, num_outputs, width=7):
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], num_outputs))

    module.stock = stock
    module.greedy = lambda **offered: nn.Linear(len(offered), 1)
    module.wanting = lambda depth, num_outputs: nn.Identity()
    module.silent = lambda: None
    module.number = 3
    module.Zoo = types.SimpleNamespace(small=lambda: nn.Identity())
    monkeypatch.setitem(sys.modules, "mine", module)


def bring(spec: str, seed: int = 0) -> nn.Module:
    return from_factory(
        spec,
        input_shape=(4,),
        num_outputs=2,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.usefixtures("users_module")
def test_factories_get_what_they_accept():
    model = bring("mine:stock")
    assert model[1].weight.shape == (2, 4)
    assert bring("mine:greedy").in_features == 3
    assert isinstance(bring("mine:Zoo.small"), nn.Identity)
    # Stock layers draw from the global state: seeded from the generator, and put back (fixture).
    assert torch.equal(model[1].weight, bring("mine:stock")[1].weight)
    assert not torch.equal(model[1].weight, bring("mine:stock", seed=1)[1].weight)
    assert make("mine:stock", shape=(4,))[1].weight.dtype == torch.float64


@pytest.mark.usefixtures("users_module")
@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ("mine", ValueError, "named package.module:factory, got 'mine'"),
        (":factory", ValueError, "named package.module:factory"),
        ("nowhere.to.be:found", ValueError, "no module 'nowhere.to.be' to import"),
        ("mine:absent", ValueError, "'mine' has no 'absent'"),
        ("mine:number", TypeError, "must be callable, got int"),
        ("mine:wanting", ValueError, "wants the arguments depth, but only input_shape"),
        ("mine:silent", TypeError, "must return an nn.Module, got NoneType"),
    ],
)
def test_factories_that_do_not_fit_are_refused(spec, error, match):
    with pytest.raises(error, match=match):
        bring(spec)


def test_a_factory_whose_own_imports_fail_says_so(tmp_path, monkeypatch):
    (tmp_path / "broken_zoo.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"importing 'broken_zoo' .* failed: No module named 'a_pa"
    ):
        bring("broken_zoo:factory")
