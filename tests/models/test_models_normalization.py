"""Normalisation layers: against torch in training, against closed forms and torch.func coupled."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from kobai.models import (
    BatchNorm,
    LayerNorm,
    MeanSubtraction,
    MLPConfig,
    batch_center,
    batch_standardize,
    build,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=g)


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (7, 3, 4, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_equals_torch(shape, momentum, affine):
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    theirs = kind(3, momentum=momentum, affine=affine, dtype=torch.float64)
    ours = BatchNorm(3, momentum=momentum, affine=affine, dtype=torch.float64)
    if affine:
        with torch.no_grad():
            theirs.weight.copy_(normal(3, seed=1))
            theirs.bias.copy_(normal(3, seed=2))
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):
        x = 2 + 3 * normal(*shape, seed=step)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (7, 5, 3)])
def test_layer_norm_equals_torch(shape, affine):
    theirs = nn.LayerNorm(3, elementwise_affine=affine, dtype=torch.float64)
    ours = LayerNorm(3, affine=affine, dtype=torch.float64)
    if affine:
        with torch.no_grad():
            theirs.weight.copy_(normal(3, seed=1))
            theirs.bias.copy_(normal(3, seed=2))
    ours.load_state_dict(theirs.state_dict())
    x = 2 + 3 * normal(*shape)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_mean_subtraction_trains_and_evaluates(momentum):
    layer = MeanSubtraction(3, momentum=momentum, dtype=torch.float64)
    batches = [normal(5, 3, seed=s) + s for s in range(3)]
    running = torch.zeros(3, dtype=torch.float64)
    for count, x in enumerate(batches, start=1):
        torch.testing.assert_close(layer(x), x - x.mean(0))
        factor = 1 / count if momentum is None else momentum
        running = (1 - factor) * running + factor * x.mean(0)
    torch.testing.assert_close(layer.running_mean, running)
    torch.testing.assert_close(layer.eval()(batches[0]), batches[0] - running)
    image = normal(2, 3, 4, 4)
    torch.testing.assert_close(layer(image), image - running[:, None, None])


@pytest.mark.parametrize("training", [True, False])
def test_coupled_layers_ignore_mode_and_buffers(training):
    x = 1 + 2 * normal(6, 3, 2)
    mean, var = x.mean((0, 2), keepdim=True), x.var((0, 2), unbiased=False, keepdim=True)
    for layer, expected in [
        (BatchNorm(3, dtype=torch.float64), (x - mean) / (var + 1e-5).sqrt()),
        (BatchNorm(3, affine=False, eps=0.0, dtype=torch.float64), (x - mean) / var.sqrt()),
        (MeanSubtraction(3, dtype=torch.float64), x - mean),
    ]:
        assert layer.coupled_batch is False
        layer.coupled_batch = True
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        torch.testing.assert_close(layer.train(training)(x), expected)
        for name, value in layer.state_dict().items():
            assert torch.equal(value, before[name])


def test_jacobians_are_the_projections_of_the_theory():
    """Centring is I − 11ᵀ/N; standardising (I − 11ᵀ/N − vvᵀ/N)/sd with v the standardised batch."""
    x = 1 + 2 * normal(6, 1)
    n, one = 6, torch.ones(6, 1, dtype=torch.float64)
    centring = torch.eye(n, dtype=torch.float64) - one @ one.T / n
    torch.testing.assert_close(jacrev(batch_center)(x).view(n, n), centring)
    v = batch_standardize(x, eps=0.0)
    expected = (centring - v @ v.T / n) / x.std(unbiased=False)
    torch.testing.assert_close(
        jacrev(lambda u: batch_standardize(u, eps=0.0))(x).view(n, n), expected
    )


@pytest.mark.parametrize("normalization", ["batch", "last-batch", "last-mean", "layer"])
def test_coupled_networks_pass_through_torch_func(normalization):
    """Forward over reverse mode, dense Hessians, differences and per-weight gradients agree."""
    config = MLPConfig(widths=(4, 3), normalization=normalization, activation="tanh")
    model = build(
        config,
        input_shape=(3,),
        num_outputs=2,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    for layer in model.modules():
        if hasattr(layer, "coupled_batch"):
            layer.coupled_batch = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = normal(8, 3), normal(8, 2, seed=1)
    theta = {name: value.detach() for name, value in model.named_parameters()}
    v = {name: normal(*value.shape, seed=2) for name, value in theta.items()}

    def loss(theta):
        return 0.5 * (functional_call(model, theta, (x,)) - y).square().sum() / len(x)

    gradient = grad(loss)(theta)
    product = jvp(grad(loss), (theta,), (v,))[1]
    dense = hessian(loss)(theta)
    eps = 1e-5
    for name in theta:
        expected = sum(
            torch.einsum("...k,k->...", dense[name][other].flatten(theta[name].ndim), w.flatten())
            for other, w in v.items()
        )
        torch.testing.assert_close(product[name], expected, atol=1e-12, rtol=1e-9)
    ahead = loss({k: theta[k] + eps * v[k] for k in theta})
    behind = loss({k: theta[k] - eps * v[k] for k in theta})
    slope = sum((gradient[k] * v[k]).sum() for k in theta)
    torch.testing.assert_close((ahead - behind) / (2 * eps), slope, atol=1e-8, rtol=1e-6)
    many = {k: torch.stack([theta[k], theta[k] + v[k]]) for k in theta}
    batched = vmap(grad(loss))(many)
    for name, value in gradient.items():
        torch.testing.assert_close(batched[name][0], value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("layer", [BatchNorm(3), MeanSubtraction(3)])
def test_single_values_have_no_statistics(layer):
    x = torch.zeros(1, 3)
    for coupled in (False, True):
        layer.coupled_batch = coupled
        with pytest.raises(ValueError, match="two or more values per channel"):
            layer.train()(x)
    layer.coupled_batch = False
    assert layer.eval()(x).shape == (1, 3)
