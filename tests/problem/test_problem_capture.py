"""Capture: what layers were given, and gradients in what they gave, against autograd's own."""

import gc
import weakref

import pytest
import torch
from torch import nn

from kobai.problem import Capture, attach, capture
from tolerances import assert_close


def output_gradients(record, outputs, cotangents, *, batched=False):
    """Gradients of ⟨outputs, cotangents⟩ at the edges of all calls; None where there is none."""
    edges = [call.edge for call in record.calls if call.edge is not None]
    if not edges:
        return [None] * len(record.calls)
    found = iter(
        torch.autograd.grad(
            outputs, edges, cotangents, retain_graph=True, allow_unused=True,
            is_grads_batched=batched,
        )
    )  # fmt: skip
    return [None if call.edge is None else next(found) for call in record.calls]


def build(*layers) -> nn.Sequential:
    """Float64 layers from factories, with a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*[make() for make in layers]).double()


def mlp(activation=nn.Tanh) -> nn.Sequential:
    return build(
        lambda: nn.Linear(3, 5), activation, lambda: nn.Linear(5, 4), activation,
        lambda: nn.Linear(4, 2),
    )  # fmt: skip


def in_place() -> nn.Module:
    return nn.ReLU(inplace=True)


def by_hand(model: nn.Sequential, x: torch.Tensor, cotangents: torch.Tensor):
    """Inputs of the layers and gradients in their outputs, activations out of place."""
    inputs, outputs = [], []
    for part in model:
        if isinstance(part, nn.Linear | nn.Conv2d):
            inputs.append(x.detach().clone())
            x = part(x)
            outputs.append(x)
        else:
            x = torch.relu(x) if isinstance(part, nn.ReLU) else part(x)
    return inputs, torch.autograd.grad(x, outputs, cotangents)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3), (2, 3, 2, 3), (3,)])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, in_place])
def test_inputs_and_gradients_of_linear_layers(activation, shape, generator):
    """With further axes torch's linear layer gives a view, which in-place work reroutes."""
    model = mlp(activation)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    u = torch.randn(*shape[:-1], 2, generator=generator, dtype=torch.float64)
    expected_inputs, expected = by_hand(model, x, u)
    with capture(model) as record:
        outputs = model(x)
    gradients = output_gradients(record, outputs, u)
    assert [call.layer for call in record.calls] == ["0", "2", "4"]
    for call, gradient, x, g in zip(
        record.calls, gradients, expected_inputs, expected, strict=True
    ):
        assert call.shape == gradient.shape
        assert_close(gradient, g, 1e-14)
        assert_close(call.inputs, x, 1e-14)
        assert not call.inputs.requires_grad


@pytest.mark.parametrize("activation", [nn.Tanh, in_place])
@pytest.mark.parametrize("shape", [(4, 2, 5, 5), (2, 5, 5)])
def test_convolutions(activation, shape, generator):
    model = build(lambda: nn.Conv2d(2, 3, 3), activation, lambda: nn.Conv2d(3, 2, 2), activation)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    with capture(model) as record:
        outputs = model(x)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    inputs, expected = by_hand(model, x, u)
    gradients = output_gradients(record, outputs, u)
    for call, gradient, x, g in zip(record.calls, gradients, inputs, expected, strict=True):
        assert_close(call.inputs, x, 1e-14)
        assert_close(gradient, g, 1e-14)


def test_weight_gradients_follow_from_what_is_captured(generator):
    """Σ g aᵀ is the gradient in the weights: the identity that K-FAC rests on."""
    model = mlp(in_place)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    with capture(model) as record:
        outputs = model(x)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    gradients = output_gradients(record, outputs, u)
    assert all(p.grad is None for p in model.parameters())
    outputs.backward(u)
    for call, g in zip(record.calls, gradients, strict=True):
        layer = model.get_submodule(call.layer)
        assert_close(g.T @ call.inputs, layer.weight.grad, 1e-13)
        assert_close(g.sum(0), layer.bias.grad, 1e-13)


@pytest.mark.parametrize("shape", [(6, 3), (6, 2, 3)])
@pytest.mark.parametrize("activation", [nn.Tanh, in_place])
def test_batched_cotangents_are_single_ones_stacked(activation, shape, generator):
    model = mlp(activation)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    with capture(model) as record:
        outputs = model(x)
    u = torch.randn(4, *outputs.shape, generator=generator, dtype=torch.float64)
    together = output_gradients(record, outputs, u, batched=True)
    singly = [output_gradients(record, outputs, one) for one in u]
    for call, stack, *rows in zip(record.calls, together, *singly, strict=True):
        assert stack.shape == (4, *call.shape)
        assert_close(stack, torch.stack(rows), 1e-14)


class Reused(nn.Module):
    """One layer three times, once in a branch that leads nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other = self.layer

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        self.unused(h)
        return self.other(torch.tanh(self.layer(h)))


def test_a_layer_used_again_is_seen_again(generator):
    model = build(Reused)[0]
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    with capture(model) as record:
        outputs = model(x)
    assert [call.layer for call in record.calls] == ["layer", "unused", "layer", "layer"]
    u = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    g = output_gradients(record, outputs, u)
    assert g[1] is None
    assert torch.equal(g[3], u)
    outputs.backward(u)
    used = [
        (c, gradient) for c, gradient in zip(record.calls, g, strict=True) if c.layer == "layer"
    ]
    assert_close(sum(b.T @ a.inputs for a, b in used), model.layer.weight.grad, 1e-13)


@pytest.mark.parametrize("frozen", ["0", "2", "4"])
def test_frozen_layers(frozen, generator):
    """A frozen layer has a gradient as long as something before it learns."""
    model = mlp(in_place)
    model.get_submodule(frozen).requires_grad_(False)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    with capture(model) as record:
        outputs = model(x)
    u = torch.ones_like(outputs)
    gradients = output_gradients(record, outputs, u)
    expected = by_hand(mlp(nn.ReLU), x, u)[1]
    for call, gradient, g in zip(record.calls, gradients, expected, strict=True):
        if frozen == call.layer == "0":
            assert call.edge is None
            assert gradient is None
        else:
            assert_close(gradient, g, 1e-14)


def test_nothing_to_differentiate():
    model = mlp()
    with torch.no_grad(), capture(model) as record:
        outputs = model(torch.ones(2, 3, dtype=torch.float64))
    assert [call.edge for call in record.calls] == [None] * 3
    assert output_gradients(record, outputs, outputs) == [None] * 3


def test_layers_are_chosen_by_type_or_by_function(generator):
    model = build(lambda: nn.Embedding(5, 3), lambda: nn.Linear(3, 3), lambda: nn.LayerNorm(3))
    tokens = torch.randint(0, 5, (4, 2), generator=generator)
    with capture(model, [nn.Embedding, nn.LayerNorm]) as record:
        model(tokens)
    assert [call.layer for call in record.calls] == ["0", "2"]
    assert torch.equal(record.calls[0].inputs, tokens)
    with capture(model, lambda module: module is model[1]) as record:
        model(tokens)
    assert [call.layer for call in record.calls] == ["1"]
    alone = model[1]
    with capture(alone) as record:
        alone(torch.ones(2, 3, dtype=torch.float64))
    assert [call.layer for call in record.calls] == [""]


def test_arguments_by_name(generator):
    model = mlp()
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    with capture(model) as record:
        model[0](input=x)
    assert torch.equal(record.calls[0].inputs, x)


def test_outputs_are_what_they_are_without_capture(generator):
    x = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    for activation in (nn.Tanh, in_place):
        model = mlp(activation)
        with capture(model):
            seen = model(x)
        assert torch.equal(seen, model(x))


def test_a_view_of_the_input_stays_one(generator):
    """`Flatten` gives its input's memory, and in-place work after it is meant for that memory."""
    model = build(nn.Identity, nn.Flatten)
    x = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    with capture(model, [nn.Flatten]) as record:
        outputs = model(x * 1.0)
    assert outputs._base is not None
    (g,) = output_gradients(record, outputs, torch.ones_like(outputs))
    assert torch.equal(g, torch.ones(3, 4).double())


def test_recording_can_be_paused_and_cleared():
    model = mlp()
    x = torch.ones(2, 3, dtype=torch.float64)
    with capture(model) as record:
        record.enabled = False
        model(x)
        assert record.calls == []
        record.enabled = True
        model(x)
        model(x)
        assert len(record.calls) == 6
        record.clear()
        assert record.calls == []


def test_hooks_are_gone_afterwards_even_after_a_failure():
    model = mlp()
    with pytest.raises(RuntimeError, match="mat1"), capture(model) as record:
        model(torch.ones(2, 7, dtype=torch.float64))
    assert record.calls == []
    assert not any(module._forward_hooks for module in model.modules())
    model(torch.ones(2, 3, dtype=torch.float64))
    assert record.calls == []


def test_captures_nest():
    model = mlp()
    with capture(model) as outer, capture(model, [nn.Tanh]) as inner:
        model(torch.ones(2, 3, dtype=torch.float64))
    assert [call.layer for call in outer.calls] == ["0", "2", "4"]
    assert [call.layer for call in inner.calls] == ["1", "3"]


def test_nothing_is_kept_alive():
    model = mlp()
    x = torch.ones(2, 3, dtype=torch.float64)
    with capture(model) as record:
        outputs = model(x)
    alive = weakref.ref(outputs)
    node = weakref.ref(record.calls[1].inputs)
    del outputs
    record.clear()
    gc.collect()
    assert alive() is None
    assert node() is None


def test_handles_end_the_recording():
    model, record = mlp(), Capture()
    handles = attach(model, lambda module: isinstance(module, nn.Linear), record)
    model(torch.ones(2, 3, dtype=torch.float64))
    assert len(record.calls) == 3
    for handle in handles:
        handle.remove()
    model(torch.ones(2, 3, dtype=torch.float64))
    assert len(record.calls) == 3


def test_layers_of_several_outputs_are_refused_by_name():
    model = build(lambda: nn.LSTM(3, 2))
    x = torch.ones(2, 1, 3, dtype=torch.float64)
    with (
        pytest.raises(TypeError, match=r"0 \(LSTM\) goes from Tensor to tuple"),
        capture(model, [nn.LSTM]),
    ):
        model(x)
    assert not model[0]._forward_hooks
