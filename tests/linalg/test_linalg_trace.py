"""Trace, diagonal and Frobenius norm: unbiased, honest about their error, stopped by it."""

import functools
import math

import pytest
import torch

from kobai.linalg import (
    Counted,
    Dense,
    Diagonal,
    Estimate,
    Function,
    diagonal,
    squared_frobenius_norm,
    trace,
)
from laws.estimators import (
    check_budget,
    check_coverage,
    check_stated_error,
    check_stops_by_tolerance,
    check_unbiased,
    runs,
)
from laws.operators import close

F64 = torch.float64


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rotated(values: torch.Tensor, seed: int = 0) -> Dense:
    size = values.numel()
    basis = torch.linalg.qr(torch.randn(size, size, generator=_seeded(seed), dtype=F64)).Q
    matrix = (basis * values.to(F64)) @ basis.T
    return Dense((matrix + matrix.T) / 2)


MATRICES = {
    "flat": _rotated(torch.linspace(1, 3, 120)),
    "power law": _rotated(1 / torch.arange(1.0, 121.0) ** 2),
    "exponential": _rotated(torch.exp(-torch.arange(120.0) / 6)),
    "outliers": _rotated(torch.cat([torch.full((8,), 40.0), torch.full((112,), 0.1)])),
    "indefinite": _rotated(torch.cat([torch.linspace(2, 20, 10), torch.linspace(-1, 1, 110)])),
}
METHODS = ("hutchinson", "hutch++", "xtrace")


@functools.cache
def _runs(name: str, method: str, products: int = 48) -> tuple[list[Estimate], float]:
    operator = MATRICES[name]
    found = runs(
        lambda generator: trace(
            operator, method=method, tolerance=0.0, max_products=products, generator=generator
        ),
        120,
    )
    return found, operator.trace()


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_unbiased_and_covering(name, method):
    """At a fixed sample size the 90 % intervals cover the truth at least that often."""
    found, exact = _runs(name, method)
    check_unbiased(found, exact)
    check_coverage(found, exact, level=0.9)


@pytest.mark.parametrize("name", ["flat", "indefinite"])
def test_stated_errors_are_the_actual_ones(name):
    for method, high in (("hutchinson", 1.3), ("hutch++", 1.3), ("xtrace", 2.0)):
        check_stated_error(*_runs(name, method), low=0.8, high=high)


@pytest.mark.parametrize("name", ["power law", "exponential", "outliers"])
def test_a_low_rank_part_pays(name):
    """Where few eigenvalues carry the trace, sketching beats plain probes at equal cost."""

    def error(method: str) -> float:
        found, exact = _runs(name, method)
        return math.sqrt(sum((e.value - exact) ** 2 for e in found) / len(found)) / exact

    plain = error("hutchinson")
    assert error("hutch++") < 0.7 * plain
    assert error("xtrace") < 0.5 * plain


@pytest.mark.parametrize("method", METHODS)
def test_stopping_by_the_standard_error(method):
    operator = MATRICES["indefinite"]
    check_stops_by_tolerance(
        lambda tolerance, generator: trace(
            operator, method=method, tolerance=tolerance, max_products=10_000, generator=generator
        ),
        operator.trace(),
    )


def test_default_tolerance_is_kept_over_many_seeds():
    """A rule on successive running means stops far too early; this one stops by the error."""
    operator = MATRICES["exponential"]
    found = runs(lambda generator: trace(operator, tolerance=0.02, generator=generator), 40)
    errors = [abs(e.value / operator.trace() - 1) for e in found]
    assert all(e.status == "converged" for e in found)
    assert sum(errors) / len(errors) <= 0.02
    assert max(errors) <= 0.08


@pytest.mark.parametrize("method", METHODS)
def test_budget(method):
    check_budget(
        MATRICES["exponential"],
        lambda operator, budget: trace(
            operator, method=method, tolerance=0.0, max_products=budget, generator=_seeded()
        ),
    )


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_low_rank_is_exact_to_rounding(method):
    operator = _rotated(torch.cat([torch.linspace(1, 5, 6), torch.zeros(94)]))
    found = trace(operator, method=method, tolerance=1e-6, generator=_seeded())
    assert found.status == "converged"
    assert found.value == pytest.approx(operator.trace(), rel=1e-9)
    assert found.num_products <= 60


@pytest.mark.parametrize("method", METHODS)
def test_multiple_of_the_identity_has_no_error(method):
    found = trace(Diagonal(torch.full((80,), 2.5, dtype=F64)), method=method, generator=_seeded())
    assert found.value == pytest.approx(200.0)
    assert found.standard_error == pytest.approx(0.0, abs=1e-9)
    assert found.status == "converged"


def test_exact_trace_and_small_matrices():
    operator = Counted(MATRICES["indefinite"])
    found = trace(operator, method="exact", generator=_seeded())
    assert found.value == pytest.approx(MATRICES["indefinite"].trace())
    assert (found.status, found.standard_error, found.num_products) == ("exact", 0.0, 120)
    assert found.interval() == (found.value, found.value)
    small = trace(_rotated(torch.arange(20.0)), generator=_seeded())
    assert (small.status, small.num_products) == ("exact", 20)
    assert small.value == pytest.approx(190.0)


def test_any_square_matrix_has_a_hutchinson_trace():
    operator = Dense(torch.randn(100, 100, generator=_seeded(1), dtype=F64))
    found = trace(
        operator, method="hutchinson", tolerance=0.0, max_products=400, generator=_seeded()
    )
    low, high = found.interval(0.999)
    assert low <= float(operator.matrix.trace()) <= high
    with pytest.raises(ValueError, match="symmetric"):
        trace(operator, method="xtrace", generator=_seeded())


def test_squared_frobenius_norm():
    operator = Dense(torch.randn(60, 90, generator=_seeded(1), dtype=F64))
    exact = float(operator.matrix.square().sum())
    found = runs(
        lambda generator: squared_frobenius_norm(
            operator, tolerance=0.0, max_products=30, generator=generator
        ),
        120,
    )
    check_unbiased(found, exact)
    check_coverage(found, exact)
    check_stated_error(found, exact, low=0.85, high=1.2)
    one = squared_frobenius_norm(operator, tolerance=0.02, generator=_seeded())
    assert one.status == "converged"
    assert abs(one.value / exact - 1) <= 0.08


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
@pytest.mark.parametrize("name", ["flat", "exponential", "indefinite"])
def test_diagonals_lie_within_their_errors(method, name):
    operator = MATRICES[name]
    exact = operator.diagonal()
    squared, stated = torch.zeros_like(exact), torch.zeros_like(exact)
    total = torch.zeros_like(exact)
    for seed in range(30):
        found = diagonal(
            operator, method=method, tolerance=0.0, max_products=48, generator=_seeded(seed)
        )
        total += found.value / 30
        squared += (found.value - exact).square() / 30
        stated += found.standard_error.square() / 30
    spread = (squared / 30).sqrt()
    assert float(((total - exact).abs() <= 3.5 * spread).double().mean()) >= 0.95
    ratio = float((stated.sum() / squared.sum()).sqrt())
    assert 0.85 <= ratio <= (1.2 if method == "hutchinson" else 3.0)


def test_diagonal_stops_by_its_error_and_counts():
    operator = Counted(MATRICES["flat"])
    found = diagonal(operator, tolerance=0.05, generator=_seeded())
    assert found.status == "converged"
    assert operator.count == found.num_products
    assert float(found.standard_error.norm()) <= 0.05 * float(found.value.norm())
    close(found.value, MATRICES["flat"].diagonal(), 0.2)
    exact = diagonal(MATRICES["flat"], method="exact", generator=_seeded())
    assert exact.status == "exact"
    close(exact.value, MATRICES["flat"].diagonal())
    low_rank = _rotated(torch.cat([torch.linspace(1, 5, 6), torch.zeros(94)]))
    found = diagonal(low_rank, method="xdiag", tolerance=1e-8, generator=_seeded())
    assert found.status == "converged"
    close(found.value, low_rank.diagonal(), 1e-8)
    check_budget(
        MATRICES["exponential"],
        lambda counted, budget: diagonal(
            counted, method="xdiag", tolerance=0.0, max_products=budget, generator=_seeded()
        ),
        budgets=(20, 32),
    )


def test_products_that_are_not_finite_are_named():
    operator = Function(lambda v: v * math.nan, (60, 60), dtype=F64, symmetric=True)
    for method in (*METHODS, "exact"):
        found = trace(operator, method=method, generator=_seeded())
        assert found.status == "non-finite"
        assert math.isnan(found.value)
    for method in ("hutchinson", "xdiag", "exact"):
        assert diagonal(operator, method=method, generator=_seeded()).status == "non-finite"
    assert squared_frobenius_norm(operator, generator=_seeded()).status == "non-finite"


def test_the_same_seed_gives_the_same_number():
    for method in METHODS:
        first = trace(MATRICES["flat"], method=method, generator=_seeded(5))
        assert first == trace(MATRICES["flat"], method=method, generator=_seeded(5))


def test_float32_follows():
    operator = Dense(MATRICES["exponential"].matrix.to(torch.float32))
    for method in METHODS:
        found = trace(operator, method=method, tolerance=0.05, generator=_seeded())
        low, high = found.interval(0.999)
        assert low <= MATRICES["exponential"].trace() <= high
    assert diagonal(operator, method="xdiag", generator=_seeded()).value.dtype == torch.float32


def test_wrong_use_is_refused():
    operator = MATRICES["flat"]
    with pytest.raises(ValueError, match="square"):
        trace(Dense(torch.ones(2, 3)), generator=_seeded())
    with pytest.raises((ValueError, TypeError), match="method"):
        trace(operator, method="other", generator=_seeded())
    with pytest.raises(ValueError, match="tolerance"):
        trace(operator, tolerance=-1.0, generator=_seeded())
    with pytest.raises(ValueError, match="max_products"):
        trace(operator, max_products=0, generator=_seeded())
    with pytest.raises(ValueError, match="block"):
        trace(operator, block=0, generator=_seeded())
    with pytest.raises(ValueError, match="XTrace"):
        trace(operator, method="xtrace", max_products=3, generator=_seeded())
    with pytest.raises(ValueError, match="level"):
        trace(operator, generator=_seeded()).interval(1.0)


def test_without_a_leading_part_the_sketch_stays_small_and_little_is_kept():
    """Positive and negative eigenvalues that cancel: the budget ends, and memory does not grow."""
    values = torch.randn(20_000, generator=_seeded(4), dtype=F64)
    found = trace(Diagonal(values), generator=_seeded())
    assert (found.status, found.num_products) == ("max-products", 300)
    # One product in 300 for each sample but those of the sketch, twice 16 at the most.
    assert found.num_samples >= 300 - 2 * 2 * 16
    assert abs(found.value - float(values.sum())) <= 4 * found.standard_error
    expected = math.sqrt(2 * float(values.square().sum()) / found.num_samples)
    assert 0.8 <= found.standard_error / expected <= 1.25


def test_a_memory_bound_leaves_plain_probes():
    values = torch.exp(-torch.arange(500.0, dtype=F64) / 10)
    operator = _rotated(values)
    bounded = trace(operator, method="hutch++", max_bytes=1, tolerance=0.05, generator=_seeded())
    free = trace(operator, method="hutch++", tolerance=0.05, generator=_seeded())
    assert bounded.num_products == bounded.num_samples
    assert free.num_products < bounded.num_products
    for found in (bounded, free):
        assert abs(found.value - float(values.sum())) <= 4 * found.standard_error
    with pytest.raises(ValueError, match="max_bytes"):
        trace(operator, max_bytes=0, generator=_seeded())


def test_the_default_takes_any_square_matrix():
    matrix = torch.randn(80, 80, generator=_seeded(), dtype=F64) + 5 * torch.eye(80, dtype=F64)
    found = trace(Dense(matrix), tolerance=0.05, generator=_seeded())
    assert found.status == "converged"
    assert abs(found.value - float(matrix.trace())) <= 4 * found.standard_error
