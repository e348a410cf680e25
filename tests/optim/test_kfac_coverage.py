"""Every parameter has a block, and the table says which and why."""

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

import cases
from kobai.optim import KFAC


def blocks(model):
    optimizer = KFAC(model)
    table = {name: row for row in optimizer.coverage() for name in row.parameters}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(table) == trainable
    return optimizer, table


@pytest.fixture(autouse=True)
def _keep_global_random_state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", cases.CASES)
def test_every_trainable_parameter_has_exactly_one_block(name):
    model = cases.problem(name).model
    optimizer, table = blocks(model)
    listed = [name for row in optimizer.coverage() for name in row.parameters]
    assert len(listed) == len(table)
    text = repr(optimizer)
    assert all(name in text for name in table)


def test_layers_and_the_rest():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3, bias=False)
    )
    _, table = blocks(model)
    assert table["0.bias"] is table["0.weight"]
    assert table["0.weight"].size == "2 × 2×2 ⊗ 10×10"
    assert table["0.weight"].numbers == 2 * (2 * 4 + 2 * 100 + 2 * 20)
    assert table["3.weight"].block == "kronecker"
    assert table["0.weight"].shape == table["0.weight"].size  # its former name
    assert table["1.bias"] is table["1.weight"]
    assert (table["1.weight"].block, table["1.weight"].size) == ("unit", "4 of 2×2")
    assert table["1.weight"].numbers == 4 * (4 + 2 * 2)
    assert "BatchNorm2d" in table["1.weight"].reason


def test_attention_and_recurrent_layers_have_their_matrices_factored():
    _, table = blocks(nn.TransformerEncoderLayer(8, 2, 16))
    assert table["self_attn.in_proj_weight"].size == "3 × 8×8 ⊗ 9×9"
    assert table["self_attn.out_proj.weight"].size == "8×8 ⊗ 9×9"
    assert table["norm1.weight"].block == "unit"
    _, table = blocks(nn.LSTM(3, 4, bias=False))
    assert table["weight_hh_l0"].size == "16×16 ⊗ 4×4"


def test_embeddings_never_keep_a_matrix_of_the_vocabulary():
    _, table = blocks(nn.Embedding(50_000, 8))
    assert table["weight"].size == "8×8 ⊗ diagonal 50000"
    assert table["weight"].numbers < 20 * 50_000


def test_frozen_halves():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    _, table = blocks(model)
    assert table["0.weight"].size == "4×4 ⊗ 3×3"
    assert table["1.bias"].size == "2×2 ⊗ 1×1"


def test_embeddings_tied_to_the_head_are_diagonal():
    model = nn.Module()
    model.embed, model.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    model.head.weight = model.embed.weight
    _, table = blocks(model)
    assert table["embed.weight"].block == "diagonal"
    assert "shared by embed, head: layers of different form" in table["embed.weight"].reason
    assert "Embedding" in table["embed.weight"].reason


def test_parametrised_weights_are_diagonal():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    _, table = blocks(model)
    assert {name: row.block for name, row in table.items()} == {
        "0.bias": "kronecker",
        "0.parametrizations.weight.original0": "diagonal",
        "0.parametrizations.weight.original1": "diagonal",
    }


def test_layers_of_other_function_are_diagonal():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    _, table = blocks(nn.Sequential(Scaled(2, 2)))
    assert {row.block for row in table.values()} == {"diagonal"}


class Bypass(nn.Module):
    """Uses its layer's weight without calling the layer, as fused code does."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(nn.functional.linear(x, self.layer.weight, self.layer.bias)))


def test_a_weight_used_behind_its_module_becomes_diagonal_when_it_shows():
    model, x, y = Bypass(), torch.randn(6, 4), torch.randint(0, 2, (6,))
    optimizer = KFAC(model)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    before = model.layer.weight.detach().clone()
    step()
    assert torch.equal(before, model.layer.weight)  # waits for its first statistics
    assert optimizer.diagnostics()["waiting_blocks"] > 0
    step()
    assert not torch.equal(before, model.layer.weight)
    table = {name: row for row in optimizer.coverage() for name in row.parameters}
    assert table["layer.weight"].block == "diagonal"
    assert "without its module being called" in table["layer.weight"].reason
    fresh = KFAC(Bypass())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.coverage() == optimizer.coverage()


class Branches(nn.Module):
    """Layers that take part in some passes only."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x, which):
        return (self.first if which == 0 else self.second)(x)


def test_layers_that_rest_keep_their_values_and_momentum():
    model, x, y = Branches(), torch.randn(6, 4), torch.randint(0, 2, (6,))
    optimizer = KFAC(model)

    def step(which):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x, which), y).backward()
        optimizer.step()

    for _ in range(3):
        step(0)
    resting = model.first.weight.detach().clone()
    untouched = model.second.weight.detach().clone()
    for _ in range(40):  # the second layer appears between two updates of the statistics
        step(1)
    assert torch.equal(resting, model.first.weight)
    assert not torch.equal(untouched, model.second.weight)


def test_layers_inside_a_model_run_without_gradients_are_skipped():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    x, y = torch.randn(6, 4), torch.randint(0, 2, (6,))
    model[0].requires_grad_(False)
    optimizer = KFAC(model)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert len(optimizer.coverage()) == 1


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "layer", "unit", "diagonal"])
def test_the_memory_that_is_told_is_what_is_allocated(structure):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10), nn.Linear(10, 3)
    )
    told = sum(row.numbers for row in KFAC(net, structure=structure).coverage())
    allocated = 0
    for stack in oracle.blocks_of(net, structure=structure).stacks:
        own = {t.data_ptr(): t.numel() for t in stack.block.tensors().values()}
        allocated += sum(own.values()) + stack.momentum.numel() + stack.direction.numel()
    assert told == pytest.approx(allocated, rel=0.01)
