"""Blocks of θ: every coordinate once, and what belongs together together."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

import cases
from kobai.problem import Block, ParameterSpace

KINDS = ["parameter", "layer", "unit", "filter"]


def build(make, *args, **kwargs) -> nn.Module:
    with torch.random.fork_rng():
        return make(*args, **kwargs)


LAYERS = {
    "linear": lambda: nn.Linear(3, 4),
    "conv": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3),
    "transposed-square": lambda: nn.ConvTranspose1d(4, 4, 3),
    "transposed-groups": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(3, 4, num_layers=2, proj_size=2),
    "gru": lambda: nn.GRU(3, 4, bias=False),
    "cell": lambda: nn.LSTMCell(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "split-attention": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
    "embedding": lambda: nn.Embedding(5, 3),
    "bilinear": lambda: nn.Bilinear(2, 3, 4),
    "prelu": lambda: nn.PReLU(),
    "layernorm": lambda: nn.LayerNorm((3, 4)),
    "batchnorm": lambda: nn.BatchNorm2d(3),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)),
    "empty": lambda: nn.ParameterList(
        [nn.Parameter(torch.ones(0, 3)), nn.Parameter(torch.ones(3, 0))]
    ),
}


def entries(space: ParameterSpace, blocks: Sequence[Block]) -> list[dict[str, list]]:
    """For every block the entries it holds of each parameter, as multi-indices."""
    labels = []
    for name, shape in zip(space.names, space.shapes, strict=True):
        labels += [(name, tuple(i)) for i in torch.ones(shape).nonzero().tolist()]
    found = []
    for block in blocks:
        held: dict[str, list] = {}
        for index in block.indices.tolist():
            held.setdefault(labels[index][0], []).append(labels[index][1])
        found.append(held)
    return found


def assert_partition(space: ParameterSpace, kind: str) -> None:
    blocks = space.blocks(kind)
    joined = torch.cat([block.indices for block in blocks])
    assert joined.dtype == torch.int64
    assert torch.equal(joined.sort().values, torch.arange(space.dimension))
    assert len({block.name for block in blocks}) == len(blocks)
    for block, held in zip(blocks, entries(space, blocks), strict=True):
        assert block.size == block.indices.numel()
        assert not held or set(held) == set(block.parameters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", cases.CASES)
def test_blocks_hold_every_coordinate_once(name, kind):
    assert_partition(ParameterSpace(cases.problem(name).model), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_blocks_of_a_layer_hold_every_coordinate_once(name, kind):
    assert_partition(ParameterSpace(build(LAYERS[name])), kind)


@pytest.mark.parametrize("name", cases.CASES)
def test_parameter_blocks_are_the_pieces(name):
    space = ParameterSpace(cases.problem(name).model)
    theta = torch.arange(float(space.dimension))
    blocks, pieces = space.blocks("parameter"), space.unflatten(theta)
    assert tuple(block.name for block in blocks) == space.names
    for block in blocks:
        assert torch.equal(theta[block.indices], pieces[block.name].flatten())


def test_layers_hold_weights_and_biases():
    space = ParameterSpace(cases.problem("frozen").model)
    assert [(b.name, b.parameters) for b in space.blocks("layer")] == [
        ("0", ("0.bias",)),
        ("2", ("2.weight",)),
        ("4", ("4.weight", "4.bias")),
    ]
    alone = ParameterSpace(build(nn.Linear, 2, 3)).blocks("layer")
    assert [(b.name, b.size) for b in alone] == [("(root)", 9)]


def units(name: str) -> tuple[list[str], list[dict[str, list]]]:
    space = ParameterSpace(build(LAYERS[name]))
    blocks = space.blocks("unit")
    return [block.name for block in blocks], entries(space, blocks)


def test_a_unit_of_a_linear_layer_is_a_row_and_its_bias():
    names, held = units("linear")
    assert names == [f"(root)[{i}]" for i in range(4)]
    for i, block in enumerate(held):
        assert block == {"weight": [(i, 0), (i, 1), (i, 2)], "bias": [(i,)]}


def test_a_unit_of_a_convolution_is_an_output_channel():
    for i, block in enumerate(units("conv")[1]):
        assert {e[0] for e in block["weight"]} == {i}
        assert (len(block["weight"]), block["bias"]) == (2 * 9, [(i,)])


@pytest.mark.parametrize("name", ["transposed", "transposed-square", "transposed-groups"])
def test_a_unit_of_a_transposed_convolution_is_what_feeds_an_output_channel(name, generator):
    """Found by autograd: the entries that one output channel depends on."""
    layer = build(LAYERS[name])
    x = torch.randn(2, 4, *[5] * (layer.weight.ndim - 2), generator=generator)
    space = ParameterSpace(layer)
    blocks = space.blocks("unit")
    assert len(blocks) == layer.out_channels
    for i, block in enumerate(blocks):
        layer.zero_grad()
        layer(x)[:, i].square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in layer.parameters()])
        assert torch.equal(gradient.nonzero().flatten(), block.indices.sort().values)


def test_a_unit_of_a_recurrent_layer_is_one_gate_of_one_step_layer_and_direction():
    names, held = units("lstm")
    assert len(names) == 4 * 16
    for place in ("l0", "l0_reverse", "l1", "l1_reverse"):
        width = 3 if place.startswith("l0") else 8
        for i in range(16):
            block = held[names.index(f"weight_ih_{place}[{i}]")]
            assert block == {
                f"weight_ih_{place}": [(i, j) for j in range(width)],
                f"weight_hh_{place}": [(i, j) for j in range(4)],
                f"bias_ih_{place}": [(i,)],
                f"bias_hh_{place}": [(i,)],
            }


def test_a_projection_has_units_of_its_own():
    names, held = units("projected")
    assert held[names.index("weight_hr_l1[1]")] == {"weight_hr_l1": [(1, j) for j in range(4)]}
    cell_names, cell = units("cell")
    assert len(cell_names) == 16
    assert set(cell[0]) == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}


def test_units_of_norms_are_scale_and_shift():
    for i, block in enumerate(units("batchnorm")[1]):
        assert block == {"weight": [(i,)], "bias": [(i,)]}
    names, held = units("layernorm")
    assert len(names) == 12
    assert held[5] == {"weight": [(1, 1)], "bias": [(1, 1)]}


def test_units_of_attention_keep_the_projections_apart():
    joint, held = units("attention")
    assert held[joint.index("(root)[7]")] == {
        "in_proj_weight": [(7, j) for j in range(4)],
        "in_proj_bias": [(7,)],
    }
    names, held = units("split-attention")
    for letter, width in zip("qkv", (4, 3, 5), strict=True):
        block = held[names.index(f"{letter}_proj_weight[2]")]
        assert block == {f"{letter}_proj_weight": [(2, j) for j in range(width)]}


def test_a_unit_of_an_embedding_is_a_token():
    for i, block in enumerate(units("embedding")[1]):
        assert block == {"weight": [(i, 0), (i, 1), (i, 2)]}


def test_filters_are_the_weights_of_a_channel_alone():
    model = build(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 2), nn.LayerNorm((2, 3))
        )
    )
    space = ParameterSpace(model)
    blocks = space.blocks("filter")
    assert [(b.name, b.size) for b in blocks] == [
        ("0.weight[0]", 9),
        ("0.weight[1]", 9),
        ("0.bias", 2),
        ("1.weight", 2),
        ("1.bias", 2),
        ("2.weight[0]", 3),
        ("2.weight[1]", 3),
        ("2.bias", 2),
        ("3.weight", 6),
        ("3.bias", 6),
    ]
    assert entries(space, blocks)[6] == {"2.weight": [(1, 0), (1, 1), (1, 2)]}


def test_filters_of_a_transposed_convolution_are_output_channels():
    space = ParameterSpace(build(LAYERS["transposed"]))
    *filters, bias = entries(space, space.blocks("filter"))
    assert len(filters) == 6
    assert set(bias) == {"bias"}
    for i, block in enumerate(filters):
        assert {e[1] for e in block["weight"]} == {i}


def test_unknown_kinds_are_refused():
    space = ParameterSpace(build(LAYERS["linear"]))
    with pytest.raises((ValueError, TypeError)):
        space.blocks("row")  # type: ignore[arg-type]
