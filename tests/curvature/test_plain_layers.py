"""Layers put in for cheap second derivatives have torch's values and derivatives of every order."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cases
from kobai.curvature import GGN
from kobai.layers.derivatives import PlainLayers


def _net(x, w, b, scale, kind):
    mean, variance = torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double()
    settings = {
        "plain": {"padding": 1},
        "stride": {"stride": 2, "padding": (1, 0)},
        "dilation": {"dilation": 2, "padding": 2},
        "same": {"padding": "same"},
    }[kind]
    y = F.conv2d(x, w, b, **settings)
    y = F.batch_norm(y, mean, variance, scale, b, training=False)
    return F.relu(y).square().sum() + torch.relu(y.sin()).sum() + F.relu(y + 0, inplace=True).sum()


@pytest.mark.parametrize("kind", ["plain", "stride", "dilation", "same"])
def test_three_derivatives_agree(kind):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    point = [draw(2, 3, 5, 6), draw(4, 3, 3, 3), draw(4), draw(4)]
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in point]

    def derivatives():
        value = _net(*point, kind)
        found = []
        for _ in range(3):
            grads = torch.autograd.grad(value, point, create_graph=True)
            found += grads
            value = sum((g * v).sum() for g, v in zip(grads, along, strict=True))
        return found

    expected = derivatives()
    with PlainLayers():
        got = derivatives()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_grouped_convolution_through_a_module():
    with torch.random.fork_rng():
        layer = nn.Conv2d(4, 6, 3, groups=2).double()
    x = torch.linspace(-1, 1, 2 * 4 * 5 * 5).double().view(2, 4, 5, 5)
    with PlainLayers():
        first = torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]
    torch.testing.assert_close(first, torch.autograd.grad(layer(x).square().sum(), layer.weight)[0])


def test_infinite_inputs_of_a_rectifier():
    x = torch.tensor([-torch.inf, -1.0, 0.0, 2.0, torch.inf]).requires_grad_()
    with PlainLayers():
        y = torch.relu(x)
    assert torch.equal(y, torch.relu(x))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.tensor([0.0, 0, 0, 1, 1]))


def _affine_net(x, w, b, v, c):
    y = F.linear(x, w, b).tanh()
    return F.relu(F.linear(y, v, c)).square().sum() + F.linear(y, v).sin().sum() + (b * c[:4]).sum()


@pytest.mark.parametrize("lead", [(5,), (2, 3)])
def test_three_derivatives_of_affine_maps_agree(lead):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    point = [draw(*lead, 3), draw(4, 3), draw(4), draw(6, 4), draw(6)]
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in point]

    def derivatives():
        value = _affine_net(*point)
        found = []
        for _ in range(3):
            grads = torch.autograd.grad(value, point, create_graph=True)
            found += grads
            value = sum((g * v).sum() for g, v in zip(grads, along, strict=True))
        return found

    expected = derivatives()
    with PlainLayers():
        got = derivatives()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", [[1], [2], [1, 2]])
def test_affine_maps_with_frozen_parameters(frozen):
    generator = torch.Generator().manual_seed(2)
    point = [torch.randn(*s, generator=generator) for s in ((5, 3), (4, 3), (4,))]
    for i, tensor in enumerate(point):
        tensor.requires_grad_(i not in frozen)
    wanted = [tensor for tensor in point if tensor.requires_grad]
    expected = torch.autograd.grad(F.linear(*point).sin().sum(), wanted)
    with PlainLayers():
        got = torch.autograd.grad(F.linear(*point).sin().sum(), wanted)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


class _Products(TorchDispatchMode):
    """Counts convolutions and matrix products; a convolution's backward counts once an output."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "convolution_backward":
            self.count += sum(args[-1][:2])
        self.count += name in ("convolution", "mm", "addmm", "bmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_gauss_newton_product_is_one_forward_and_one_backward_pass(name):
    """Each layer: x Vᵀ and u Wᵀ, then δ W and δᵀ x; but nothing in the inputs of the first."""
    objective = cases.objective(name)
    layers = sum(p.ndim > 1 for p in objective.model.parameters())
    matrix = GGN(objective)
    vector = torch.ones(matrix.shape[0], dtype=torch.float64)
    matrix @ vector
    with _Products() as products:
        matrix @ vector
    assert products.count == 4 * layers - 2
