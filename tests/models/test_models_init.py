"""Every initialiser against its formula, at fixed seeds and with standard errors."""

import math

import pytest
import torch
from torch import nn

from kobai.models import (
    INITS,
    PLAIN_INITS,
    BatchNorm,
    Init,
    MLPConfig,
    NTKLinear,
    build,
    draw_weight,
    initialize,
)

N_OUT, N_IN = 300, 500

# The formulas once more, written from the sources and not from the code.
VARIANCES = {
    "glorot-uniform": (2 * math.sqrt(6 / (N_IN + N_OUT))) ** 2 / 12,
    "glorot-normal": 2 / (N_IN + N_OUT),
    "he": 2 / N_IN,
    "lecun": 1 / N_IN,
    "standard": 2 / N_IN,
}


def assert_moments(sample: torch.Tensor, variance: float, kurtosis: float = 3.0) -> None:
    """Mean 0 and the given variance within four standard errors."""
    sample = sample.detach()
    count = sample.numel()
    assert abs(float(sample.mean())) < 4 * math.sqrt(variance / count)
    error = variance * math.sqrt((kurtosis - 1) / count)
    assert abs(float(sample.square().mean()) - variance) < 4 * error


def stock(make, *args, **kwargs) -> nn.Module:
    with torch.random.fork_rng():
        return make(*args, dtype=torch.float64, **kwargs)


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_of_dense_weights(name, generator):
    w = draw_weight(Init(name=name), (N_OUT, N_IN), generator=generator)
    assert_moments(w, VARIANCES[name], 9 / 5 if name == "glorot-uniform" else 3.0)
    assert Init(name=name).variance(N_IN, N_OUT) == pytest.approx(VARIANCES[name], rel=1e-14)


def test_glorot_uniform_fills_its_interval_and_no_more(generator):
    w = draw_weight(Init(name="glorot-uniform"), (N_OUT, N_IN), generator=generator)
    bound = math.sqrt(6 / (N_IN + N_OUT))
    assert 0.999 * bound < float(w.abs().max()) <= bound


@pytest.mark.parametrize("name", ["he", "glorot-normal"])
def test_fans_of_a_convolution_count_kernel_positions(name, generator):
    w = draw_weight(Init(name=name), (64, 32, 3, 3), generator=generator)
    expected = 2 / (32 * 9) if name == "he" else 2 / (9 * (32 + 64))
    assert_moments(w, expected)


@pytest.mark.parametrize("shape", [(300, 300), (300, 500), (500, 300), (64, 16, 3, 3)])
@pytest.mark.parametrize("variance", [None, 2.0])
def test_orthogonal_rows_or_columns(shape, variance, generator):
    init = Init(name="orthogonal", weight_variance=variance)
    w = draw_weight(init, shape, generator=generator).flatten(1)
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    identity = torch.eye(min(w.shape), dtype=w.dtype)
    torch.testing.assert_close(gram, (variance or 1.0) * identity, atol=1e-12, rtol=0)
    assert float(w.square().mean()) == pytest.approx(init.variance(w.shape[1], w.shape[0]))


@pytest.mark.parametrize(("inputs", "connections"), [(500, 15), (7, 7)])
def test_sparse_rows_have_few_unit_normal_entries(inputs, connections, generator):
    w = draw_weight(Init(name="sparse"), (400, inputs), generator=generator)
    assert ((w != 0).sum(1) == connections).all()
    assert_moments(w[w != 0], 1.0)
    assert (w != 0).any(0).all()
    scaled = draw_weight(
        Init(name="sparse", weight_variance=2.0), (400, inputs), generator=generator
    )
    assert_moments(scaled[scaled != 0], 2.0 / connections)


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("width", [6, 20, 100])
def test_random_walk_has_no_drift(activation, width, generator):
    """Back-propagate through many independent layers: the log-norm's mean step is 0."""
    init = Init(name="random-walk", activation=activation)
    steps = []
    delta = torch.full((width,), width**-0.5, dtype=torch.float64)
    for _ in range(1000):
        back = draw_weight(init, (width, width), generator=generator).T @ delta
        if activation == "relu":
            active = torch.rand(width, generator=generator) < 0.5
            if not active.any():
                continue
            back = back * active
        steps.append(float(back.norm().log()))
    steps = torch.tensor(steps, dtype=torch.float64)
    assert abs(float(steps.mean())) < 4 * float(steps.std()) / math.sqrt(len(steps))


@pytest.mark.parametrize("width", [20, 100, 500])
def test_random_walk_agrees_with_the_published_fits(width):
    """Sussillo & Abbott 2014: g = exp(1/2N) and √2 exp(1.2/(max(N, 6) − 2.4)), to O(1/N²)."""
    linear = math.exp(1 / (2 * width))
    relu = math.sqrt(2) * math.exp(1.2 / (max(width, 6) - 2.4))
    for activation, published in [("linear", linear), ("relu", relu)]:
        variance = Init(name="random-walk", activation=activation).variance(width, width)
        assert math.sqrt(width * variance) == pytest.approx(published, rel=2.0 / width**1.5)


@pytest.mark.parametrize("name", ["standard", "ntk"])
def test_standard_and_ntk_parameters_and_functions(name, generator):
    """Stored parameters differ, W h + b has one law: variance s_w |h|²/M + s_b."""
    s_w, s_b, widths = 1.7, 0.4, 400
    config = MLPConfig(widths=(widths,), init=name, weight_variance=s_w, bias_variance=s_b)
    model = build(
        config, input_shape=(500,), num_outputs=2, generator=generator, dtype=torch.float64
    )
    layer = model.hidden[0].linear
    ntk = name == "ntk"
    assert isinstance(layer, NTKLinear) == ntk
    assert_moments(layer.weight, 1.0 if ntk else s_w / 500)
    assert_moments(layer.bias, 1.0 if ntk else s_b)
    h = torch.randn(500, dtype=torch.float64, generator=generator)
    assert_moments(layer(h).detach(), s_w * float(h.square().mean()) + s_b)


def test_ntk_and_standard_are_one_function_with_rescaled_jacobians(generator):
    s_w, s_b, m = 1.7, 0.4, 30
    ntk = NTKLinear(
        m, 20, weight_variance=s_w, bias_variance=s_b, generator=generator, dtype=torch.float64
    )
    standard = stock(nn.Linear, m, 20)
    standard.load_state_dict(
        {"weight": math.sqrt(s_w / m) * ntk.weight, "bias": math.sqrt(s_b) * ntk.bias}
    )
    h = torch.randn(4, m, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(ntk(h), standard(h))
    for layer in (ntk, standard):
        layer(h).square().sum().backward()
    torch.testing.assert_close(ntk.weight.grad, math.sqrt(s_w / m) * standard.weight.grad)
    torch.testing.assert_close(ntk.bias.grad, math.sqrt(s_b) * standard.bias.grad)


def test_an_ntk_layer_without_bias_variance_has_no_bias(generator):
    assert NTKLinear(3, 2, generator=generator).bias is None


def test_gates_and_projections_are_drawn_apart(generator):
    """Glorot fans of stacked matrices are those of one gate, not of the stack."""
    lstm, attention = stock(nn.LSTM, 100, 200), stock(nn.MultiheadAttention, 200, 4)
    initialize(nn.ModuleList([lstm, attention]), "glorot-normal", generator=generator)
    assert_moments(lstm.weight_ih_l0.detach(), 2 / (100 + 200))
    assert_moments(lstm.weight_hh_l0.detach(), 2 / (200 + 200))
    assert_moments(attention.in_proj_weight.detach(), 2 / (200 + 200))
    forget = lstm.bias_ih_l0 + lstm.bias_hh_l0
    assert forget.view(4, 200)[1].eq(1).all()
    assert forget.view(4, 200)[[0, 2, 3]].eq(0).all()
    assert attention.in_proj_bias.eq(0).all()
    initialize(lstm, "orthogonal", generator=generator)
    for gate in lstm.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(200, dtype=torch.float64))


def test_normalisation_layers_and_embeddings(generator):
    norm, table = BatchNorm(8, dtype=torch.float64), stock(nn.Embedding, 500, 40, padding_idx=3)
    with torch.no_grad():
        norm.weight.fill_(7.0)
        norm(torch.randn(5, 8, dtype=torch.float64, generator=generator))
    initialize(nn.ModuleList([norm, table]), "he", generator=generator)
    assert norm.weight.eq(1).all()
    assert norm.running_mean.eq(0).all()
    assert norm.num_batches_tracked == 0
    assert table.weight[3].eq(0).all()
    assert_moments(table.weight.detach()[4:], 0.02**2)


@pytest.mark.parametrize("name", INITS)
def test_a_seed_decides_everything(name):
    """Equal generators give equal models, others differ, and float32 rounds the float64 model."""

    def make(seed: int, dtype: torch.dtype) -> torch.Tensor:
        model = build(
            MLPConfig(widths=(20,), init=name),
            input_shape=(30,),
            num_outputs=5,
            generator=torch.Generator().manual_seed(seed),
            dtype=dtype,
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = make(0, torch.float64)
    assert torch.equal(first, make(0, torch.float64))
    assert not torch.equal(first, make(1, torch.float64))
    assert torch.equal(first.float(), make(0, torch.float32))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "xavier"}, "unknown init 'xavier'; choose one of glorot-uniform"),
        ({"name": "he", "weight_variance": 2.0}, "fixes its variance"),
        ({"name": "standard", "weight_variance": 0.0}, "weight_variance must be positive"),
        ({"name": "standard", "bias_variance": -1.0}, "must not be negative"),
        ({"name": "he", "bias_variance": 1.0}, "sets biases to 0"),
        ({"name": "random-walk", "activation": "tanh"}, "derived for the activations"),
    ],
)
def test_wrong_laws_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Init(**arguments)


def test_wrong_modules_are_refused(generator):
    with pytest.raises(ValueError, match="NTKLinear"):
        initialize(stock(nn.Linear, 2, 2), "ntk", generator=generator)
    with pytest.raises(ValueError, match=r"N\(0, 1\)"):
        initialize(NTKLinear(2, 2, generator=generator), "he", generator=generator)
    with pytest.raises(ValueError, match="no initialisation is known for weight of a PReLU"):
        initialize(stock(nn.PReLU), "he", generator=generator)
    with pytest.raises(ValueError, match="not a multiple of 3"):
        initialize(stock(nn.Linear, 2, 4), "he", generator=generator, blocks={"weight": 3})
    with pytest.raises(ValueError, match="axes"):
        draw_weight(Init(), (3,), generator=generator)


def test_plain_inits_leave_out_ntk_alone():
    assert set(INITS) - set(PLAIN_INITS) == {"ntk"}
