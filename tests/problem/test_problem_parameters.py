"""The vector θ: round trips, ties, frozen parameters, and the identity of what the module holds."""

import pytest
import torch
from torch import nn

import cases
from kobai.problem import Batch, EmpiricalRisk, Gaussian, ParameterSpace, pure
from tolerances import assert_close


class Scalars(nn.Module):
    """Parameters without an axis, among others."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.offset = nn.Parameter(torch.tensor(-1.0))

    def forward(self, x):
        return self.gain * (x @ self.weight.T) + self.offset


def module(name: str) -> nn.Module:
    return cases.problem(name).model


@pytest.mark.parametrize("name", cases.CASES)
def test_theta_is_what_torch_concatenates(name):
    model = module(name)
    space = ParameterSpace(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = nn.utils.parameters_to_vector(trainable)
    assert torch.equal(space.theta(), expected)
    assert space.dimension == sum(space.sizes) == expected.numel()
    assert space.names == tuple(n for n, p in model.named_parameters() if p.requires_grad)
    assert (space.dtype, space.device.type) == (torch.float64, "cpu")


@pytest.mark.parametrize("name", cases.CASES)
def test_round_trips(name, generator):
    model = module(name)
    space = ParameterSpace(model)
    theta = torch.randn(space.dimension, generator=generator, dtype=torch.float64)
    pieces = space.unflatten(theta)
    assert [tuple(piece.shape) for piece in pieces.values()] == [tuple(s) for s in space.shapes]
    assert torch.equal(space.flatten(pieces), theta)
    reordered = dict(reversed(pieces.items()))
    assert torch.equal(space.flatten(reordered), theta)

    held = {n: (p, p.data_ptr()) for n, p in model.named_parameters(remove_duplicate=False)}
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    space.assign(theta)
    assert torch.equal(space.theta(), theta)
    for n, p in model.named_parameters(remove_duplicate=False):
        assert p is held[n][0]
        assert p.data_ptr() == held[n][1]
    for n, value in frozen.items():
        assert torch.equal(model.get_parameter(n), value)


def test_theta_is_a_copy_and_pieces_are_views():
    space = ParameterSpace(Scalars())
    space.theta().zero_()
    assert float(space.theta().norm()) > 0
    theta = torch.zeros(space.dimension)
    space.unflatten(theta)["weight"][1, 2] = 7.0
    assert theta[1 + 5] == 7.0
    lone = ParameterSpace(nn.ParameterList([nn.Parameter(torch.ones(3))]))
    lone.theta().zero_()
    assert torch.equal(lone.theta(), torch.ones(3))


def test_parameters_without_an_axis():
    space = ParameterSpace(Scalars())
    assert space.sizes == (1, 6, 1)
    assert space.theta().tolist() == [2, 0, 1, 2, 3, 4, 5, -1]
    pieces = space.unflatten(torch.arange(8.0))
    assert pieces["gain"].shape == pieces["offset"].shape == ()
    assert (float(pieces["gain"]), float(pieces["offset"])) == (0.0, 7.0)
    columns = space.unflatten_columns(torch.arange(24.0).view(8, 3))
    assert columns["offset"].tolist() == [21, 22, 23]
    risk = EmpiricalRisk(space.module, Gaussian(), [Batch(torch.ones(4, 3), torch.zeros(4, 2))])
    risk()
    expected = [p.grad.reshape(-1) for p in space.module.parameters()]
    assert_close(risk.grad(risk.theta()), torch.cat(expected), 1e-6)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("name", ["mlp", "tied", "cnn"])
def test_columns_are_cut_like_vectors(name, count, generator):
    space = ParameterSpace(module(name))
    block = torch.randn(space.dimension, count, generator=generator, dtype=torch.float64)
    for n, stack in space.unflatten_columns(block).items():
        assert len(stack) == count
        for column, piece in zip(block.T, stack, strict=True):
            assert torch.equal(piece, space.unflatten(column)[n])


def test_a_vector_with_gaps_in_memory_can_be_cut(generator):
    space = ParameterSpace(module("mlp"))
    block = torch.randn(space.dimension, 2, generator=generator, dtype=torch.float64)
    pieces = space.unflatten(block[:, 1])
    assert torch.equal(space.flatten(pieces), block[:, 1])


def test_memory_format_does_not_matter(generator):
    conv = nn.utils.skip_init(nn.Conv2d, 2, 3, 3)
    values = torch.randn(57, generator=generator)
    plain = ParameterSpace(conv)
    plain.assign(values)
    conv.to(memory_format=torch.channels_last)
    assert not conv.weight.is_contiguous()
    assert torch.equal(ParameterSpace(conv).theta(), values)
    plain.assign(values + 1)
    assert torch.equal(plain.theta(), values + 1)
    assert not conv.weight.is_contiguous()


def test_gradient_of_the_split_is_the_concatenation(generator):
    space = ParameterSpace(module("tied"))
    theta = torch.randn(space.dimension, generator=generator, dtype=torch.float64)
    theta.requires_grad_()
    sum(float(i + 1) * p.sum() for i, p in enumerate(space.unflatten(theta).values())).backward()
    expected = [torch.full((size,), i + 1.0) for i, size in enumerate(space.sizes)]
    assert torch.equal(theta.grad, torch.cat(expected).double())


def test_tied_weights_count_once():
    model = module("tied")
    space = ParameterSpace(model)
    assert space.names == ("first.weight", "first.bias", "head.bias")
    assert space.dimension == 16 + 4 + 4
    here = torch.ones(4, 4)
    # The submodule `second` is `first`: one visit, or its tensors would be swapped twice.
    assert set(space.places({"first.weight": here})) == {"first.weight", "head.weight"}


def test_evaluation_keeps_the_identity_of_tied_parameters():
    objective = cases.objective("tied")
    model = objective.model
    names = ["first.weight", "second.weight", "head.weight", "first.bias", "second.bias"]
    held = {n: model.get_parameter(n) for n in names}
    values = {n: p.clone() for n, p in held.items()}
    objective.value(objective.theta() + 1)
    objective.grad(objective.theta() + 1)
    objective.outputs(objective.theta() + 1)
    for n in names:
        assert model.get_parameter(n) is held[n]
        assert torch.equal(held[n], values[n])
        assert isinstance(held[n], nn.Parameter)
    assert model.second is model.first
    assert model.head.weight is model.first.weight


def test_every_place_of_a_tied_parameter_moves(generator):
    """Against an untied copy of the network in which all copies are moved by hand."""
    objective = cases.objective("tied")
    theta = torch.randn(objective.space.dimension, generator=generator, dtype=torch.float64)
    w, b, c = theta[:16].view(4, 4), theta[16:20], theta[20:]
    x = objective.batches[0].inputs
    h = torch.tanh(torch.tanh(x @ w.T + b) @ w.T + b)
    assert_close(objective.outputs(theta), h @ w.T + c, 1e-14)


def test_recurrent_layers_follow_theta_and_get_their_own_weights_back(generator):
    objective = cases.objective("lstm")
    recurrent = objective.model.recurrent
    held = list(recurrent._flat_weights)
    theta = objective.theta()
    theta[: recurrent.weight_ih_l0.numel()] += 1.0
    assert not torch.allclose(objective.outputs(theta), objective.outputs(objective.theta()))
    assert all(a is b for a, b in zip(recurrent._flat_weights, held, strict=True))
    assert all(isinstance(weight, nn.Parameter) for weight in recurrent._flat_weights)
    objective.space.assign(theta)
    batch = objective.batches[0]
    with torch.no_grad():
        assert_close(objective.model(batch.inputs), objective.outputs(theta), 1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_recurrent_layers_follow_the_same_tensors_a_second_time(name):
    """They notice other weights by weak references, which must not outlive a call either."""
    objective = cases.objective(name)
    recurrent, (batch,) = objective.model.recurrent, objective.batches
    own = objective.outputs(objective.theta())
    pieces = objective.space.unflatten(objective.theta() + 1.0)
    with torch.no_grad(), pure(objective.model):
        first = objective.forward_parameters(pieces, batch)
        second = objective.forward_parameters(pieces, batch)
    assert torch.equal(first, second)
    assert not torch.allclose(first, own)
    references = [reference() for reference in recurrent._flat_weight_refs]
    assert all(a is b for a, b in zip(references, recurrent.parameters(), strict=True))


def test_frozen_parameters_are_constants():
    space = ParameterSpace(module("frozen"))
    assert space.names == ("0.bias", "2.weight", "4.weight", "4.bias")


def test_says_when_other_parameters_became_trainable():
    model = module("mlp")
    space = ParameterSpace(model)
    assert space.is_current()
    model[0].weight.requires_grad_(False)
    assert not space.is_current()
    assert ParameterSpace(model).is_current()


@pytest.mark.parametrize("shape", [(5,), (7,), (0,)])
def test_wrong_vectors_are_refused(shape):
    model = nn.utils.skip_init(nn.Linear, 2, 2)
    space = ParameterSpace(model)
    before = space.theta()
    with pytest.raises(ValueError, match=r"theta must have shape \(6,\)"):
        space.unflatten(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"theta must have shape \(6,\)"):
        space.assign(torch.zeros(shape))
    assert torch.equal(space.theta().nan_to_num(), before.nan_to_num())


def test_wrong_blocks_of_columns_are_refused():
    space = ParameterSpace(nn.utils.skip_init(nn.Linear, 2, 2))
    with pytest.raises(ValueError, match=r"columns must have shape \(6, K\)"):
        space.unflatten_columns(torch.zeros(5, 2))


def test_wrong_pieces_are_refused():
    space = ParameterSpace(nn.utils.skip_init(nn.Linear, 2, 3))
    pieces = space.unflatten(torch.zeros(9))
    with pytest.raises(ValueError, match="one tensor for each"):
        space.flatten({"weight": pieces["weight"]})
    with pytest.raises(ValueError, match="one tensor for each"):
        space.flatten({**pieces, "other": pieces["bias"]})
    with pytest.raises(ValueError, match=r"weight must have shape \(3, 2\), got \(2, 3\)"):
        space.flatten({**pieces, "weight": pieces["weight"].T})


def test_nothing_to_learn_is_refused():
    with pytest.raises(ValueError, match="ReLU has no trainable parameters"):
        ParameterSpace(nn.ReLU())
    linear = nn.utils.skip_init(nn.Linear, 2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters; set requires_grad"):
        ParameterSpace(linear)


def test_mixed_and_unfit_parameters_are_refused():
    half = nn.utils.skip_init(nn.Linear, 2, 2, dtype=torch.float16)
    single = nn.utils.skip_init(nn.Linear, 2, 2)
    with pytest.raises(ValueError, match=r"one dtype and device.*float16.*float32"):
        ParameterSpace(nn.Sequential(half, single))
    meta = nn.Linear(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"one dtype and device.*cpu.*meta"):
        ParameterSpace(nn.Sequential(single, meta))
    ParameterSpace(nn.Sequential(single, half.requires_grad_(False)))
    with pytest.raises(ValueError, match="must be real"):
        ParameterSpace(nn.utils.skip_init(nn.Linear, 2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="lazy layer has no shape yet"):
        ParameterSpace(nn.LazyLinear(2))
