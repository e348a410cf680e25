"""Stochastic Lanczos quadrature against exact spectra, and the errors it states."""

import math

import pytest
import torch

from kobai.linalg import Counted, Curve, Dense, Density, Diagonal, Function, density
from kobai.linalg.spectra.density import _Probes
from laws.operators import close

F64 = torch.float64

# A semicircle-like bulk and five outliers.
BULK = torch.cos(torch.linspace(0, math.pi, 995, dtype=F64))
VALUES = torch.cat([BULK, torch.tensor([3.0, 4.0, 5.0, 6.0, 8.0], dtype=F64)])


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _diagonal(values: torch.Tensor) -> Diagonal:
    return Diagonal(values, positive_semidefinite=bool((values >= 0).all()))


def _smoothed(values: torch.Tensor, curve: Curve) -> torch.Tensor:
    """The exact density of known eigenvalues, smoothed alike."""
    distance = (curve.grid[:, None] - values) / curve.width
    kernel = torch.exp(-0.5 * distance.square()) / (curve.width * math.sqrt(2 * math.pi))
    return kernel.mean(dim=1)


def _found(**options) -> Density:
    return density(_diagonal(VALUES), generator=_seeded(), **options)


def test_quadratures_are_positive_and_sum_to_one():
    found = _found(num_probes=7, num_steps=30)
    assert found.nodes.shape == found.weights.shape == (7, 30)
    assert found.nodes.dtype == F64
    assert not found.weights.is_complex()
    assert bool((found.weights >= 0).all())
    close(found.weights.sum(dim=1), torch.ones(7, dtype=F64))
    assert bool((found.nodes.diff(dim=1) >= 0).all())
    assert found.status == "finished"


def test_a_probe_integrates_polynomials_up_to_degree_2m_minus_1_exactly():
    """Gauss quadrature: with m = n nodes the moments are those of the probe itself."""
    values = torch.linspace(-1, 1, 12, dtype=F64)
    matrix = torch.diag(values)
    found = density(Dense(matrix), num_probes=3, num_steps=5, generator=_seeded())
    full = density(Dense(matrix), num_probes=3, num_steps=12, generator=_seeded())
    for degree in range(10):
        moment = (found.weights * found.nodes**degree).sum(dim=1)
        exact = (full.weights * full.nodes**degree).sum(dim=1)
        close(moment, exact, 1e-9)
    assert not torch.allclose(
        (found.weights * found.nodes**10).sum(dim=1), (full.weights * full.nodes**10).sum(dim=1)
    )


def test_outliers_are_single_nodes():
    """Full re-orthogonalisation: eighty steps leave one node at each outlier, no ghosts."""
    found = _found(num_probes=4, num_steps=80)
    for outlier in (3.0, 4.0, 5.0, 6.0, 8.0):
        near = (found.nodes - outlier).abs() < 1e-6
        assert bool((near.sum(dim=1) == 1).all())


def test_all_probes_advance_together():
    blocks = []

    def product(columns):
        blocks.append(columns.shape[1])
        return VALUES[:, None] * columns

    operator = Function(product, (1000, 1000), dtype=F64, symmetric=True)
    found = density(operator, num_probes=6, num_steps=9, generator=_seeded())
    assert blocks == [6] * 9
    assert found.num_products == 54


def test_memory_bound_splits_probes_into_groups():
    counted = Counted(_diagonal(VALUES))
    bound = 4 * 20 * 1000 * 8
    found = density(counted, num_probes=10, num_steps=20, max_bytes=bound, generator=_seeded())
    assert found.nodes.shape == (10, 20)
    assert found.num_products == counted.count == 200
    with pytest.raises(ValueError, match="max_bytes"):
        density(counted, num_steps=20, max_bytes=1000, generator=_seeded())


def test_curve_matches_the_smoothed_spectrum_within_its_errors():
    curve = _found(num_probes=20, num_steps=50).curve()
    exact = _smoothed(VALUES, curve)
    assert float(torch.trapezoid(curve.value, curve.grid)) == pytest.approx(1.0, abs=1e-6)
    error = torch.trapezoid((curve.value - exact).abs(), curve.grid)
    assert float(error) <= 2 * curve.integrated_error()
    # Pointwise: three standard errors and a little smoothing bias cover nearly the whole grid.
    inside = (curve.value - exact).abs() <= 3 * curve.standard_error + 0.005
    assert float(inside.double().mean()) >= 0.97


def test_cumulative_form_rises_from_zero_to_one():
    curve = _found(num_probes=10, num_steps=50).curve(form="cumulative")
    assert curve.width == 0.0
    assert bool((curve.value.diff() >= -1e-12).all())
    assert float(curve.value[0]) == 0.0
    assert float(curve.value[-1]) == pytest.approx(1.0)
    exact = (VALUES[None, :] <= curve.grid[:, None]).double().mean(dim=1)
    assert float((curve.value - exact).abs().max()) <= 0.05
    smooth = _found(num_probes=10, num_steps=50).curve(form="cumulative", width=0.2)
    assert bool((smooth.value.diff() >= 0).all())


def test_log_scale_counts_decades():
    """Eigenvalues uniform over six decades: a flat density of one sixth per decade."""
    values = torch.logspace(-6, 0, 3000, dtype=F64)
    found = density(_diagonal(values), num_probes=10, num_steps=100, generator=_seeded())
    grid = torch.linspace(-2.5, -0.5, 20, dtype=F64)
    curve = found.curve(grid, scale="log", width=0.3)
    close(curve.value, torch.full_like(curve.value, 1 / 6), 0.2)
    whole = found.curve(scale="log")
    assert float(torch.trapezoid(whole.value, whole.grid)) == pytest.approx(1.0, abs=1e-6)


def test_parts_of_one_sign_integrate_to_their_share():
    found = _found(num_probes=10, num_steps=40)
    shares = []
    for part in ("positive", "negative"):
        curve = found.curve(scale="log", part=part)
        shares.append(float(torch.trapezoid(curve.value, curve.grid)))
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    assert shares[1] == pytest.approx(found.fraction_below(0.0).value, abs=1e-5)


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.02])
def test_adaptive_stopping_reaches_the_error_asked_for(tolerance):
    found = _found(num_probes=200, num_steps=50, tolerance=tolerance)
    assert found.status == "converged"
    curve = found.curve()
    assert curve.integrated_error() <= tolerance
    actual = torch.trapezoid((curve.value - _smoothed(VALUES, curve)).abs(), curve.grid)
    assert float(actual) <= 2 * tolerance
    assert found.num_products < 200 * 50 / 10


def test_a_budget_too_small_for_the_tolerance_is_said():
    assert _found(num_probes=4, num_steps=10, tolerance=1e-4).status == "max-products"


def test_negative_fraction_and_its_intervals():
    values = torch.cat([torch.linspace(-2, -1, 120), torch.linspace(1, 5, 280)]).to(F64)
    found = density(_diagonal(values), num_probes=20, num_steps=40, generator=_seeded())
    fraction = found.negative_fraction()
    assert fraction.low <= 0.3 <= fraction.high
    # Nothing lies near zero, so the quadrature resolves the question.
    low, high = fraction.bracket
    assert low <= fraction.value <= high
    assert high - low <= 0.02
    # In the middle of a bulk the bracket is as wide as the nodes' weights.
    low, high = found.fraction_below(3.0).bracket
    exact = float((values < 3.0).double().mean())
    assert low - 0.1 <= exact <= high + 0.1
    assert high - low > 0.01


def test_brackets_hold_for_every_probe():
    """Chebyshev-Markov-Stieltjes: a coarse quadrature brackets the probe's own measure."""
    operator = _diagonal(VALUES[::20].clone())
    exact = density(operator, num_probes=1, num_steps=50, generator=_seeded(4))
    coarse = density(operator, num_probes=1, num_steps=12, generator=_seeded(4))
    for threshold in torch.linspace(-1.2, 8.5, 40).tolist():
        low, high = coarse.fraction_below(threshold).bracket
        assert low - 1e-9 <= exact.fraction_below(threshold).value <= high + 1e-9


def test_small_and_degenerate_operators():
    two = density(_diagonal(torch.tensor([2.0, 2.0], dtype=F64)), num_probes=3, generator=_seeded())
    assert two.nodes.shape == (3, 2)
    assert float(two.curve().value.max()) > 0
    zero = density(_diagonal(torch.zeros(50, dtype=F64)), num_probes=3, generator=_seeded())
    assert zero.negative_fraction().value == 0.0
    alone = _found(num_probes=1, num_steps=10)
    assert math.isinf(float(alone.curve().standard_error[0]))
    assert alone.fraction_below(0.0).low == 0.0
    assert alone.fraction_below(0.0).high == 1.0


def test_float32_follows_float64():
    exact = _found(num_probes=4, num_steps=20)
    single = density(
        _diagonal(VALUES.to(torch.float32)), num_probes=4, num_steps=20, generator=_seeded()
    )
    assert single.nodes.dtype == F64
    close(single.nodes, exact.nodes, 1e-4)


def test_what_goes_wrong_is_named():
    broken = Function(lambda v: v * math.nan, (50, 50), dtype=F64, symmetric=True)
    assert density(broken, generator=_seeded()).status == "non-finite"
    crooked = Dense(torch.randn(50, 50, generator=_seeded(), dtype=F64), symmetric=True)
    assert density(crooked, generator=_seeded()).status == "not-symmetric"
    with pytest.raises(ValueError, match="symmetric"):
        density(Dense(torch.triu(torch.ones(5, 5))), generator=_seeded())
    for options in ({"num_probes": 0}, {"num_steps": 0}, {"tolerance": -1.0}):
        with pytest.raises(ValueError):
            _found(**options)
    found = _found(num_probes=2, num_steps=5)
    for options in ({"width": 0.0}, {"form": "other"}, {"scale": "other"}, {"part": "other"}):
        with pytest.raises((ValueError, TypeError)):
            found.curve(**options)
    with pytest.raises(ValueError, match="zero"):
        found.negative_fraction(-1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors_stay_orthogonal_to_half_of_the_precision_with_fewer_passes(dtype):
    """Outliers that converge within a few steps are what destroys orthogonality."""
    values = torch.cat([torch.linspace(-1, 1, 397), torch.tensor([100.0, 50.0, 20.0])]).to(dtype)
    probes = _Probes(Diagonal(values), 3, 60, torch.Generator().manual_seed(0))
    probes.run(60)
    assert probes.num_passes < 45
    bound = 4 * math.sqrt(torch.finfo(dtype).eps)
    for basis in probes.basis:
        assert float((basis @ basis.T - torch.eye(60, dtype=dtype)).abs().max()) <= bound
    nodes, _ = probes.quadrature()
    for outlier in (100.0, 50.0, 20.0):
        # Without re-orthogonalisation sixty steps return each of them many times.
        assert ((nodes - outlier).abs() < 1).sum(dim=1).tolist() == [1, 1, 1]
