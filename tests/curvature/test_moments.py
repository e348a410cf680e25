"""Second moments with rows rounded to bfloat16, against float64."""

import pytest
import torch

from kobai.layers import LayerForm, reading_of
from kobai.layers.moments import multiplies_bfloat16, rounded_rows

SHAPES = [(60, 90), (300, 450), (1100, 410)]


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_rounded_moments_are_definite_and_near(rows, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator) + 1.0
    form = LayerForm(groups=1, outputs=3, inputs=width + 1, bias=True)
    with rounded_rows():
        moment, count = reading_of(None).input_moment(form, x)
    bordered = torch.cat([x, torch.ones(rows, 1)], 1).double()
    exact = bordered.T @ bordered
    scale = exact.diagonal().sqrt()
    error = (moment[0].double() - exact).abs() / torch.outer(scale, scale)
    assert count == rows
    assert moment.dtype == torch.float32
    assert float(error.max()) < 2.0**-8
    # Were the products rounded instead, this would fail with fewer rows than columns.
    least = torch.linalg.eigvalsh(moment[0].double())[0]
    assert float(least) > -1e-6 * float(exact.diagonal().sum())


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no such instructions here")
def test_rounding_takes_place_and_ends():
    x = torch.rand(300, 250, generator=torch.Generator().manual_seed(0))
    exact = x.double().T @ x.double()
    form = LayerForm(groups=1, outputs=3, inputs=250, bias=False)
    before = torch.backends.mkldnn.matmul.fp32_precision

    def error():
        return float((reading_of(None).input_moment(form, x)[0][0] - exact).norm() / exact.norm())

    def interrupted():
        with rounded_rows():
            errors.append(error())
            raise ArithmeticError

    errors = []
    with pytest.raises(ArithmeticError):
        interrupted()
    errors.append(error())
    assert 1e-5 < errors[0] < 1e-3
    assert errors[1] < 1e-6
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_float64_is_not_rounded():
    x = torch.rand(300, 250, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    form = LayerForm(groups=1, outputs=3, inputs=250, bias=False)
    with rounded_rows():
        moment, _ = reading_of(None).input_moment(form, x)
    assert float((moment[0] - x.T @ x).abs().max()) < 1e-10
