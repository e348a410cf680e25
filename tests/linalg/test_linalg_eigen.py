"""Extreme eigenvalues: exact spectra, repeated ones, few products, and what goes wrong by name."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from kobai.linalg import (
    Counted,
    Dense,
    Diagonal,
    Function,
    Lanczos,
    LinearOperator,
    Lobpcg,
    eigenvalues,
)
from laws.operators import close

F64 = torch.float64


def _diagonal(values: torch.Tensor) -> Diagonal:
    return Diagonal(values, positive_semidefinite=bool((values >= 0).all()))


def _rotated(values: torch.Tensor, seed: int = 0) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    size = values.numel()
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64)).Q
    matrix = (basis * values) @ basis.T
    return Dense((matrix + matrix.T) / 2)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _outliers() -> Dense:
    """A noise matrix of 403 rows with three outliers; careless Lanczos returns dozens of them."""
    noise = torch.randn(403, 403, generator=_seeded(1), dtype=F64)
    matrix = (noise + noise.T) / np.sqrt(8 * 403)
    matrix += _rotated(torch.tensor([100.0, 50.0, 20.0] + [0.0] * 400, dtype=F64)).matrix
    return Dense((matrix + matrix.T) / 2)


@pytest.mark.parametrize("method", [Lanczos(), Lanczos(block_size=4), Lobpcg(), "dense"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_three_outliers_are_returned_once_each(method, dtype):
    matrix = _outliers().matrix
    exact = torch.linalg.eigvalsh(matrix)
    operator = Dense(matrix.to(dtype))
    found = eigenvalues(operator, 6, method=method, generator=_seeded())
    assert found.status == "converged"
    close(found.values, exact[-6:], 1e-4)
    assert int((found.values > 10).sum()) == 3


def test_eighty_steps_do_not_make_ghosts():
    """The count of outliers stays three however long the iteration goes on."""
    found = eigenvalues(
        _outliers(), 40, tol=1e-8, method=Lanczos(max_basis=120), generator=_seeded()
    )
    assert found.num_products >= 80
    assert int((found.values > 10).sum()) == 3


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("method", ["lanczos", "dense"])
def test_each_end(which, method):
    values = torch.cat(
        [-torch.tensor([9.0, 7.0, 5.0]), torch.linspace(-1, 1, 90), torch.tensor([4.0, 6.0, 8.0])]
    ).to(F64)
    order = {
        "largest": values[-5:],
        "smallest": values[:5],
        "both": torch.cat([values[:2], values[-3:]]),
        "magnitude": torch.tensor([-9.0, -7.0, -5.0, 6.0, 8.0], dtype=F64),
    }
    found = eigenvalues(
        _rotated(values), 5, which=which, method=method, tol=1e-6, vectors=True, generator=_seeded()
    )
    assert (found.status, found.method) == ("converged", method)
    close(found.values, order[which], 1e-6)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_lobpcg_each_end(which):
    values = torch.cat(
        [torch.linspace(-9, -5, 4), torch.linspace(-1, 1, 90), torch.linspace(4, 8, 4)]
    )
    operator = _rotated(values.to(F64))
    found = eigenvalues(
        operator, 4, which=which, method="lobpcg", vectors=True, generator=_seeded()
    )
    assert (found.status, found.method) == ("converged", "lobpcg")
    close(found.values, values.to(F64)[-4:] if which == "largest" else values.to(F64)[:4], 1e-3)
    check_pairs(operator, found, 1e-8)


@pytest.mark.parametrize(
    "method", [Lanczos(), Lanczos(block_size=3), Lanczos(max_basis=40), Lobpcg(), "dense"]
)
def test_residuals_are_true_and_bound_the_error(method):
    values = torch.sort(1 / torch.arange(1.0, 301.0, dtype=F64)).values
    operator = _rotated(values)
    found = eigenvalues(operator, 8, method=method, vectors=True, generator=_seeded())
    assert found.status == "converged"
    check_pairs(operator, found, 1e-8)
    error = (found.values - values[-8:]).abs()
    assert bool((error <= found.residuals + 1e-12).all())
    assert bool((error <= 1e-3 * values[-8:]).all())


def check_pairs(operator: LinearOperator, found, tolerance: float) -> None:
    """Vectors orthonormal; residuals as stated, against products made afresh."""
    size = found.values.numel()
    close(found.vectors.T @ found.vectors, torch.eye(size, dtype=found.vectors.dtype), 1e-8)
    true = (operator @ found.vectors - found.vectors * found.values).norm(dim=0)
    scale = float(found.values.abs().max())
    assert float((true - found.residuals).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("copies", [2, 5, 9])
@pytest.mark.parametrize("method", [Lanczos(), Lanczos(block_size=4), Lobpcg()])
def test_repeated_eigenvalues_are_found_as_often_as_they_occur(copies, method):
    bulk = torch.rand(600, generator=_seeded(2), dtype=F64)
    values = torch.cat([bulk, torch.full((copies,), 20.0), torch.full((copies,), 30.0)]).to(F64)
    for seed in range(3):
        found = eigenvalues(_diagonal(values), 2 * copies, method=method, generator=_seeded(seed))
        assert found.status == "converged"
        close(found.values, values[-2 * copies :], 1e-3)


@pytest.mark.parametrize("block_size", [1, 3])
def test_certain_probes_find_copies_next_to_the_bulk_too(block_size):
    """Values rounded to tenths: copies everywhere, the innermost ones close to the rest."""
    for seed in range(6):
        values = (10 * torch.randn(150, generator=_seeded(seed), dtype=F64)).round() / 10
        found = eigenvalues(
            _diagonal(values),
            8,
            method=Lanczos(probe="certain", block_size=block_size),
            generator=_seeded(seed),
        )
        assert found.chance_missed <= 0.01
        close(found.values, values.sort().values[-8:], 2e-3)


def test_a_value_that_the_search_missed_is_found_by_a_quick_probe():
    """A start without a component along an eigenvector cannot see it; the residuals look fine."""
    values = torch.cat([torch.linspace(-1, 1, 1990), torch.linspace(2, 20, 10)]).to(F64)
    blind = torch.randn(2000, generator=_seeded(3), dtype=F64)
    blind[1993] = 0.0
    operator = _diagonal(values)
    plain = eigenvalues(operator, 5, start=blind, method=Lanczos(probe="none"), generator=_seeded())
    assert plain.status == "converged"
    close(plain.values, values[-5:], 1e-3)
    for k in (7, 10):
        missed = eigenvalues(
            operator, k, start=blind, method=Lanczos(probe="none"), generator=_seeded()
        )
        assert missed.status == "converged"
        assert float((missed.values - values[-k:]).abs().max()) > 0.5
        found = eigenvalues(operator, k, start=blind, generator=_seeded())
        assert found.status == "converged"
        close(found.values, values[-k:], 1e-3)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_basis_stays_orthogonal_through_restarts(dtype):
    """One pass of Gram-Schmidt after the recurrence suffices: eigenvectors at rounding's angle."""
    values = torch.exp(-torch.arange(600.0) / 20)
    operator = Diagonal(values.to(dtype))
    for method in (Lanczos(), Lanczos(max_basis=40), Lanczos(block_size=3)):
        found = eigenvalues(
            operator, 12, tol=1e-5, vectors=True, method=method, generator=_seeded()
        )
        assert found.status == "converged"
        gram = found.vectors.T @ found.vectors
        # Ritz vectors of a basis orthogonal to rounding; without any pass it is lost altogether.
        assert float((gram - torch.eye(12)).abs().max()) <= 100 * torch.finfo(dtype).eps
        rest = operator @ found.vectors - found.vectors * found.values.to(dtype)
        limit = 100 * torch.finfo(dtype).eps
        assert bool((rest.norm(dim=0) <= found.residuals.to(dtype) * (1 + 1e-3) + limit).all())


def test_what_a_probe_left_open_is_said():
    values = torch.cat([torch.linspace(0, 1, 3000), torch.tensor([5.0, 6.0])]).to(F64)
    clear = eigenvalues(_diagonal(values), 2, generator=_seeded())
    assert clear.chance_missed <= 0.01
    crowded = eigenvalues(
        _diagonal(values), 3, tol=1e-2, method=Lanczos(probe="quick"), generator=_seeded()
    )
    assert crowded.chance_missed > 0.5
    unprobed = eigenvalues(_diagonal(values), 2, method=Lanczos(probe="none"), generator=_seeded())
    assert np.isnan(unprobed.chance_missed)


def test_a_null_space_is_found_in_full():
    """Sixty zeros: relative accuracy has no meaning there, the norm's does."""
    values = torch.cat([torch.zeros(60), torch.linspace(1, 10, 240)]).to(F64)
    found = eigenvalues(_diagonal(values), 8, which="smallest", generator=_seeded())
    assert found.status == "converged"
    assert float(found.values.abs().max()) <= 1e-4


def test_multiples_of_the_identity_and_of_zero():
    for factor in (0.0, 3.0):
        values = torch.full((100,), factor, dtype=F64)
        found = eigenvalues(_diagonal(values), 5, method="lanczos", generator=_seeded())
        assert found.status == "converged"
        close(found.values, values[:5])


def test_the_whole_spectrum_by_lanczos():
    values = torch.linspace(-2, 5, 40, dtype=F64)
    found = eigenvalues(_rotated(values), 40, method="lanczos", tol=1e-9, generator=_seeded())
    close(found.values, values, 1e-9)
    assert found.num_products == 40


SPECTRA = {
    "outliers": torch.cat([torch.linspace(-1, 1, 1990), torch.linspace(2, 20, 10)]),
    "power law": 1 / torch.arange(1.0, 2001.0),
    "exponential": torch.exp(-torch.arange(2000.0) / 10),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_top_ten_needs_no_more_products_than_arpack(name):
    """Summed over three starts, without and with the search for further copies (a few more)."""
    values = SPECTRA[name].to(F64).sort().values
    plain = probed = peer = 0
    for seed in range(3):
        counted = Counted(_diagonal(values))
        start = np.random.default_rng(seed).standard_normal(2000)
        scipy.sparse.linalg.eigsh(
            counted.to_scipy(), k=10, which="LA", tol=1e-3, v0=start, return_eigenvectors=False
        )
        peer += counted.count
        for probe in ("none", "certain"):
            counted = Counted(_diagonal(values))
            found = eigenvalues(counted, 10, method=Lanczos(probe=probe), generator=_seeded(seed))
            assert found.status == "converged"
            assert found.num_products == counted.count
            close(found.values, values[-10:], 1e-3)
            if probe == "none":
                plain += counted.count
            else:
                probed += counted.count
    assert plain <= peer
    assert probed <= peer + 3 * 6


def test_a_small_basis_restarts_and_still_converges():
    values = torch.linspace(0, 1, 500, dtype=F64) ** 2
    roomy = eigenvalues(_diagonal(values), 3, tol=1e-4, generator=_seeded())
    tight = eigenvalues(
        _diagonal(values), 3, tol=1e-4, method=Lanczos(max_basis=20), generator=_seeded()
    )
    assert (roomy.status, tight.status) == ("converged", "converged")
    close(tight.values, values[-3:], 1e-4)
    assert tight.num_products > 20


def test_start_vectors_save_products():
    operator = _rotated(SPECTRA["power law"][:400].to(F64))
    cold = eigenvalues(operator, 5, vectors=True, generator=_seeded())
    warm = eigenvalues(operator, 5, start=cold.vectors, generator=_seeded())
    assert warm.status == "converged"
    assert warm.num_products < cold.num_products
    close(warm.values, cold.values, 1e-3)
    one = eigenvalues(operator, 5, start=cold.vectors[:, -1], generator=_seeded())
    close(one.values, cold.values, 1e-3)


def test_preconditioned_lobpcg_finds_the_smallest_sooner():
    values = torch.linspace(1, 1000, 400, dtype=F64)
    noise = torch.rand(400, generator=_seeded(5), dtype=F64)
    helper = Diagonal(1 / (values + noise))
    plain = eigenvalues(
        _diagonal(values), 3, which="smallest", method=Lobpcg(), generator=_seeded()
    )
    quick = eigenvalues(
        _diagonal(values),
        3,
        which="smallest",
        method=Lobpcg(preconditioner=helper),
        generator=_seeded(),
    )
    assert quick.status == "converged"
    close(quick.values, values[:3], 1e-3)
    assert quick.num_products < plain.num_products


def test_the_same_seed_gives_the_same_answer():
    operator = _rotated(SPECTRA["exponential"][:200].to(F64))
    first = eigenvalues(operator, 4, generator=_seeded(7))
    again = eigenvalues(operator, 4, generator=_seeded(7))
    assert torch.equal(first.values, again.values)


@pytest.mark.parametrize("method", ["lanczos", "lobpcg", "dense"])
def test_an_operator_that_is_not_symmetric_is_named(method):
    matrix = torch.randn(60, 60, generator=_seeded(), dtype=F64)
    found = eigenvalues(Dense(matrix, symmetric=True), 3, method=method, generator=_seeded())
    assert found.status == "not-symmetric"


def test_an_operator_that_is_not_deterministic_is_named():
    noise = _seeded(1)
    operator = Function(
        lambda v: v * (1 + 0.01 * torch.rand(v.shape[0], 1, generator=noise, dtype=F64)),
        (100, 100),
        dtype=F64,
        symmetric=True,
    )
    assert eigenvalues(operator, 3, generator=_seeded()).status == "not-symmetric"


@pytest.mark.parametrize("method", ["lanczos", "lobpcg", "dense"])
def test_products_that_are_not_finite_are_named(method):
    operator = Function(lambda v: v * torch.nan, (60, 60), dtype=F64, symmetric=True)
    assert eigenvalues(operator, 3, method=method, generator=_seeded()).status == "non-finite"


@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
def test_the_budget_is_kept(method):
    counted = Counted(_diagonal(torch.linspace(0, 1, 3000, dtype=F64)))
    found = eigenvalues(counted, 10, max_products=25, method=method, generator=_seeded())
    assert found.status == "max-products"
    assert counted.count == found.num_products <= 25
    assert found.residuals.shape == found.values.shape == (10,)


def test_small_matrices_are_solved_densely_and_say_so():
    found = eigenvalues(_diagonal(torch.arange(20.0, dtype=F64)), 2, generator=_seeded())
    assert (found.method, found.num_products) == ("dense", 20)


def test_wrong_use_is_refused():
    operator = _diagonal(torch.arange(50.0, dtype=F64))
    with pytest.raises(ValueError, match="declared symmetric"):
        eigenvalues(Dense(torch.triu(torch.ones(9, 9))), 2, generator=_seeded())
    for k in (0, 51):
        with pytest.raises(ValueError, match="counts eigenvalues"):
            eigenvalues(operator, k, generator=_seeded())
    with pytest.raises(ValueError, match="tol"):
        eigenvalues(operator, 2, tol=0.0, generator=_seeded())
    with pytest.raises(ValueError, match="max_products"):
        eigenvalues(operator, 2, max_products=0, generator=_seeded())
    with pytest.raises(ValueError, match="max_basis"):
        eigenvalues(operator, 10, method=Lanczos(max_basis=12), generator=_seeded())
    with pytest.raises(ValueError, match="block_size"):
        eigenvalues(operator, 2, method=Lanczos(block_size=0), generator=_seeded())
    with pytest.raises(ValueError, match="start"):
        eigenvalues(operator, 2, start=torch.ones(3, dtype=F64), generator=_seeded())
    with pytest.raises(ValueError, match="LOBPCG"):
        eigenvalues(operator, 2, which="both", method="lobpcg", generator=_seeded())
    with pytest.raises(ValueError, match="LOBPCG"):
        eigenvalues(operator, 20, method="lobpcg", generator=_seeded())
    with pytest.raises((ValueError, TypeError), match="which"):
        eigenvalues(operator, 2, which="middle", generator=_seeded())
