"""Kronecker factors of layers: second moments from calls, products, damped inverses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from kobai.curvature.blocks.factor_sums import nearest_product
from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.layers import reading_of, slots
from kobai.layers.moments import gram
from tolerances import assert_close

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "no-bias": {"kernel_size": 2, "bias": False},
    "same": {"kernel_size": (3, 2), "padding": "same"},
    "same-dilated": {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "strided": {"kernel_size": 3, "stride": (2, 1), "padding": (1, 2)},
    "dilated": {"kernel_size": 2, "dilation": (2, 1), "padding": 1},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1},
    "depthwise": {"kernel_size": (2, 3), "groups": 4, "bias": False},
    "pointwise": {"kernel_size": 1, "groups": 2, "stride": 2},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
    "by shifts": {"kernel_size": 3, "padding": 1},
    "by shifts, wide": {"kernel_size": 5, "padding": "same", "bias": False},
    "replicate-same": {"kernel_size": (2, 4), "padding": "same", "padding_mode": "replicate"},
}


def layer_form(module, bias=True):
    own = slots(module)
    return own[0].form_with(bias and own[0].form.bias) if own else None


def convolution(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outputs = 4 if name == "depthwise" else 6
        return nn.Conv2d(4, outputs, **CONVOLUTIONS[name]).double()


def gradient_sum(module, inputs, gradients):
    """Σ_t g_t a_tᵀ as autograd sees it: the gradient of weight and bias."""
    names = [name for name, _ in module.named_parameters()]

    def outputs(*values):
        return functional_call(module, dict(zip(names, values, strict=True)), (inputs,))

    found = torch.autograd.functional.vjp(outputs, tuple(module.parameters()), gradients)[1]
    return dict(zip(names, found, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_of_a_convolution_equal_those_of_autograd(name, generator):
    """Rows a_t one at a time: the weight gradient for a unit gradient at one place."""
    module = convolution(name)
    form = layer_form(module)
    size = (6, 7) if "wide" in name else (5, 6)
    x = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)
    outputs = module(x)
    rows = [[] for _ in range(form.groups)]
    for n in range(2):
        for i in range(outputs.shape[2]):
            for j in range(outputs.shape[3]):
                unit = torch.zeros_like(outputs)
                unit[n, :: form.outputs, i, j] = 1
                found = gradient_sum(module, x, unit)
                matrix = form.matrix(found["weight"], found.get("bias"))
                for g in range(form.groups):
                    rows[g].append(matrix[g, 0])
    rows = torch.stack([torch.stack(group) for group in rows])
    moment, count = reading_of(module).input_moment(form, x)
    assert count == rows.shape[1]
    assert_close(moment, rows.mT @ rows)
    g = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    split = g.unflatten(1, (form.groups, form.outputs)).permute(1, 0, 3, 4, 2).flatten(1, 3)
    assert_close(reading_of(module).output_moment(form, g), split.mT @ split)


def test_an_image_without_a_batch_axis_is_a_batch_of_one(generator):
    module = convolution("grouped")
    form = layer_form(module)
    x = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    assert_close(
        reading_of(module).input_moment(form, x)[0],
        reading_of(module).input_moment(form, x[None])[0],
    )
    g = torch.randn(6, 5, 6, generator=generator, dtype=torch.float64)
    assert_close(
        reading_of(module).output_moment(form, g), reading_of(module).output_moment(form, g[None])
    )


def test_moments_of_a_linear_layer_run_over_all_extra_axes(generator):
    module = nn.utils.skip_init(nn.Linear, 3, 2).double()
    form = layer_form(module)
    x = torch.randn(4, 5, 6, 3, generator=generator, dtype=torch.float64)
    moment, rows = reading_of(module).input_moment(form, x)
    flat = torch.cat([x.reshape(-1, 3), torch.ones(120, 1, dtype=torch.float64)], 1)
    assert rows == 120
    assert_close(moment[0], flat.T @ flat)
    g = torch.randn(4, 5, 6, 2, generator=generator, dtype=torch.float64)
    assert_close(
        reading_of(module).output_moment(form, g)[0], g.reshape(-1, 2).T @ g.reshape(-1, 2)
    )


TURNED = {
    "1d": (nn.ConvTranspose1d, {"kernel_size": 3, "padding": 1}, (5,)),
    "2d": (nn.ConvTranspose2d, {"kernel_size": (3, 2), "stride": (2, 1), "groups": 2}, (3, 4)),
    "3d": (nn.ConvTranspose3d, {"kernel_size": 2, "dilation": 2, "bias": False}, (2, 3, 2)),
}


@pytest.mark.parametrize("name", TURNED)
def test_moments_of_a_transposed_convolution_equal_those_of_autograd(name, generator):
    kind, settings, size = TURNED[name]
    with torch.random.fork_rng():
        module = kind(4, 6, **settings).double()
    form = layer_form(module)
    x = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64)
    outputs = module(x)
    rows = [[] for _ in range(form.groups)]
    flat = outputs.flatten(2)
    for n in range(2):
        for place in range(flat.shape[2]):
            unit = torch.zeros_like(flat)
            unit[n, :: form.outputs, place] = 1
            found = gradient_sum(module, x, unit.view(outputs.shape))
            matrix = form.matrix(found["weight"], found.get("bias"))
            for g in range(form.groups):
                rows[g].append(matrix[g, 0])
    rows = torch.stack([torch.stack(group) for group in rows])
    moment, count = reading_of(module).input_moment(form, x)
    assert count == rows.shape[1]
    assert_close(moment, rows.mT @ rows)
    weight = module.weight.detach()
    assert torch.equal(form.weight_part(form.matrix(weight, None)).reshape(weight.shape), weight)


@pytest.mark.parametrize(("uses", "m", "k"), [(1, 2, 3), (2, 3, 2), (3, 2, 4)])
def test_the_nearest_product_is_that_of_the_rearranged_matrix(uses, m, k, generator):
    """Van Loan and Pitsianis: the leading singular pair of the rearrangement; both factors PSD."""
    rows = torch.randn(uses, 9, k, generator=generator, dtype=torch.float64)
    gradients = 1e-6 * torch.randn(uses, 9, m, generator=generator, dtype=torch.float64)
    a = torch.einsum("rnk,snl->rskl", rows, rows).unsqueeze(2)
    b = torch.einsum("rnk,snl->rskl", gradients, gradients).unsqueeze(2)
    matrix = torch.einsum("rsij,rskl->ikjl", b[:, :, 0], a[:, :, 0])
    turned = matrix.permute(0, 2, 1, 3).reshape(m * m, k * k)
    u, s, v = torch.linalg.svd(turned)
    left, right = nearest_product(a, b)
    best = s[0] * torch.outer(u[:, 0], v[0])
    found = torch.outer(right[0].flatten(), left[0].flatten())
    assert float((found - best).norm()) < 1e-10 * float(best.norm())
    for factor in (left[0], right[0]):
        values = torch.linalg.eigvalsh(factor)
        assert float(values[0]) > -1e-12 * float(values[-1])
    if uses == 1:
        assert_close(left[0] / left[0].norm(), a[0, 0, 0] / a[0, 0, 0].norm())


@pytest.mark.parametrize(("rows", "width"), [(3, 2), (300, 400), (1100, 801)])
def test_gram_of_wide_matrices(rows, width, generator):
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    assert_close(gram(x), x.T @ x)
    # Whether XᵀX is symmetric to the bit is up to the processor's product.
    assert_close(gram(x), gram(x).T)


def test_forms_of_layers():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    assert layer_form(nn.utils.skip_init(Named, 3, 2)).inputs == 4
    assert layer_form(nn.utils.skip_init(nn.Linear, 3, 2), bias=False).inputs == 3
    assert layer_form(nn.utils.skip_init(Scaled, 3, 2)) is None
    assert layer_form(nn.LayerNorm(3)) is None
    form = layer_form(convolution("grouped"))
    assert (form.groups, form.outputs, form.inputs, form.bias) == (2, 3, 19, True)


def test_matrices_and_their_parts(generator):
    form = layer_form(convolution("grouped"))
    weight = torch.randn(6, 2, 3, 3, generator=generator)
    bias = torch.randn(6, generator=generator)
    matrix = form.matrix(weight, bias)
    assert matrix.shape == (2, 3, 19)
    assert torch.equal(form.weight_part(matrix).reshape(weight.shape), weight)
    assert torch.equal(form.bias_part(matrix).flatten(), bias)
    assert torch.equal(form.bias_part(form.matrix(weight, None)), torch.zeros(2, 3))


def stack(generator, sizes=(2, 3, 4), rank=None, dtype=torch.float64):
    s, m, k = sizes
    a = torch.randn(s, rank or 2 * k, k, generator=generator, dtype=dtype)
    b = torch.randn(s, rank or 2 * m, m, generator=generator, dtype=dtype)
    return KroneckerFactors(inputs=a.mT @ a, outputs=0.01 * b.mT @ b)


def test_products_and_inverses_equal_dense_ones(generator):
    factors, damping = stack(generator), 0.3
    v = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    flat = v.flatten(1).unsqueeze(2)
    assert_close(factors.product(v), (factors.dense() @ flat).reshape(v.shape))
    inverse = factors.inverse(damping)
    for i in range(2):
        a, b = factors.inputs[i], factors.outputs[i]
        pi = math.sqrt(a.trace() / 4 / (b.trace() / 3))
        dense = torch.kron(
            b + math.sqrt(damping) / pi * torch.eye(3).double(),
            a + pi * math.sqrt(damping) * torch.eye(4).double(),
        )
        assert_close(inverse.product(v)[i].flatten(), torch.linalg.solve(dense, v[i].flatten()))
    assert inverse.status.tolist() == [0, 0]


def test_the_balance_does_not_depend_on_how_scale_is_split(generator):
    """(cA) ⊗ (B/c) is the same block and has the same damped inverse."""
    factors = stack(generator)
    moved = KroneckerFactors(inputs=100 * factors.inputs, outputs=factors.outputs / 100)
    v = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    assert_close(factors.inverse(0.1).product(v), moved.inverse(0.1).product(v))


def test_a_vanishing_factor_leaves_the_damping(generator):
    """No output gradients, or certain predictions: the block is λ I."""
    factors = stack(generator)
    for outputs in (torch.zeros_like(factors.outputs), 1e-300 * factors.outputs):
        empty = KroneckerFactors(inputs=factors.inputs, outputs=outputs)
        v = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
        assert_close(0.2 * empty.inverse(0.2).product(v), v, 1e-2)


def test_singular_factors_are_inverted_in_float64_and_say_so(generator):
    factors = stack(generator, sizes=(3, 8, 30), rank=2, dtype=torch.float32)
    inverse = factors.inverse(1e-14)
    assert set(inverse.status.tolist()) <= {1, 2}
    assert bool(torch.isfinite(inverse.inputs).all())
    assert inverse.inputs.dtype == torch.float32


def test_factors_that_are_not_finite_fail_alone(generator):
    factors = stack(generator)
    factors.inputs[1, 0, 0] = math.nan
    inverse = factors.inverse(0.1)
    assert inverse.status.tolist()[1] == 3
    assert inverse.status.tolist()[0] < 3
    assert not bool(inverse.inputs[1].any())
    assert bool(torch.isfinite(inverse.inputs).all())


@given(scale=st.floats(-8, 8), other=st.floats(-8, 8), damping=st.floats(-10, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_inverses_are_finite_and_positive_at_every_scale(scale, other, damping):
    factors = stack(torch.Generator().manual_seed(0), rank=1, dtype=torch.float32)
    factors = KroneckerFactors(
        inputs=10**scale * factors.inputs, outputs=10**other * factors.outputs
    )
    inverse = factors.inverse(10**damping)
    assert int(inverse.status.max()) < 3
    v = torch.ones(2, 3, 4)
    size = (v * inverse.product(v)).sum()
    assert bool(torch.isfinite(size))
    assert float(size) > 0


@pytest.mark.parametrize("damping", [0.0, -1.0, math.nan, math.inf])
def test_damping_must_be_positive(damping, generator):
    with pytest.raises(ValueError, match="damping"):
        stack(generator).inverse(damping)
