"""Robust factorisations: the ladder, its rungs, and what it says about each matrix."""

import numpy as np
import pytest
import torch

from kobai.linalg import JITTERS, cholesky, cholesky_many, eigh, eigh_many, lu
from laws.operators import close

F64 = torch.float64


def _definite(size: int, seed: int = 0, condition: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64)).Q
    matrix = (
        basis * torch.logspace(0, -torch.log10(torch.tensor(condition)), size, dtype=F64)
    ) @ basis.T
    return (matrix + matrix.T) / 2


def test_solve_inverse_logdet_of_a_definite_matrix():
    matrix, b = _definite(7), torch.arange(14.0, dtype=F64).reshape(7, 2)
    factor = cholesky(matrix, damping=0.1)
    damped = matrix + 0.1 * torch.eye(7, dtype=F64)
    assert factor.status == "ok"
    assert float(factor.jitter) == 0.0
    close(factor.solve(b), torch.linalg.solve(damped, b))
    close(factor.solve(b[:, 0]), torch.linalg.solve(damped, b[:, 0]))
    close(factor.inverse(), torch.linalg.inv(damped))
    close(factor.logdet(), torch.linalg.slogdet(damped).logabsdet)


def test_batch_jitters_each_matrix_for_itself():
    singular = torch.ones(4, 4, dtype=F64)
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=F64))
    broken = torch.full((4, 4), torch.nan, dtype=F64)
    batch = torch.stack([_definite(4), singular, indefinite, broken, _definite(4, 1)])
    factor = cholesky(batch)
    assert factor.statuses == ("ok", "jittered", "indefinite", "non-finite", "ok")
    assert factor.status == "non-finite"
    assert factor.jitter.tolist()[0] == factor.jitter.tolist()[4] == 0.0
    # The mean diagonal of the singular matrix is 1.
    assert float(factor.jitter[1]) in JITTERS
    solved = factor.solve(torch.ones(5, 4, dtype=F64))
    close(solved[0], torch.linalg.solve(batch[0], torch.ones(4, dtype=F64)))
    close(solved[4], torch.linalg.solve(batch[4], torch.ones(4, dtype=F64)))
    assert bool(solved[2:4].isnan().all())


def test_singular_matrices_do_not_pass_by_luck():
    """A rank-deficient Gram matrix often has tiny positive pivots left by rounding."""
    statuses = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        low = torch.randn(8, 3, generator=generator, dtype=F64)
        statuses.add(cholesky(low @ low.T).status)
    assert statuses == {"jittered"}


def test_bad_scaling_is_not_singularity():
    scales = torch.tensor([1.0, 1e-12, 1e8], dtype=F64)
    plain = _definite(3) + torch.eye(3, dtype=F64)
    factor = cholesky(scales[:, None] * plain * scales)
    assert factor.status == "ok"
    close(scales[:, None] * factor.inverse() * scales, torch.linalg.inv(plain))


def test_float32_that_fails_is_repeated_in_float64():
    """The second pivot is one rounding of float32: invisible there, plain in float64."""
    near = 1 - 2.0**-24
    matrix = torch.tensor([[1.0, near], [near, 1.0]])
    factor = cholesky(matrix, precision=torch.float32)
    assert factor.triangle.dtype == F64
    assert factor.status == "ok"
    b = torch.tensor([1.0, -1.0])
    solved = factor.solve(b)
    assert solved.dtype == torch.float32
    close(solved, torch.linalg.solve(matrix.to(F64), b.to(F64)).to(torch.float32), 1e-6)


def test_float32_first_stays_in_float32_when_it_can():
    matrix = _definite(6).to(torch.float32)
    assert cholesky(matrix, precision=torch.float32).triangle.dtype == torch.float32
    assert cholesky(matrix).triangle.dtype == F64
    assert cholesky(matrix).inverse().dtype == torch.float32


def test_damping_one_for_each_matrix():
    batch = torch.stack([_definite(3), _definite(3, 1)])
    factor = cholesky(batch, damping=torch.tensor([0.0, 5.0], dtype=F64))
    close(factor.inverse()[0], torch.linalg.inv(batch[0]))
    close(factor.inverse()[1], torch.linalg.inv(batch[1] + 5 * torch.eye(3, dtype=F64)))


def test_many_of_mixed_shapes_come_back_in_order():
    matrices = [_definite(3), _definite(5, 1), _definite(3, 2), _definite(5, 3), _definite(1, 4)]
    factors = cholesky_many(matrices, damping=[0.1 * i for i in range(5)])
    for i, (matrix, factor) in enumerate(zip(matrices, factors, strict=True)):
        size = matrix.shape[0]
        close(factor.inverse(), torch.linalg.inv(matrix + 0.1 * i * torch.eye(size, dtype=F64)))
    for matrix, spectral in zip(matrices, eigh_many(matrices), strict=True):
        close(spectral.values, torch.linalg.eigvalsh(matrix))


def test_eigh_reproduces_and_orders():
    batch = torch.stack([_definite(5), -_definite(5, 1)])
    spectral = eigh(batch)
    assert spectral.status == "ok"
    rebuilt = (spectral.vectors * spectral.values[:, None, :]) @ spectral.vectors.mT
    close(rebuilt, batch)
    assert bool((spectral.values.diff(dim=-1) >= 0).all())


def test_eigh_says_which_matrix_is_not_finite():
    batch = torch.stack([_definite(3), torch.full((3, 3), torch.inf, dtype=F64)])
    spectral = eigh(batch)
    assert spectral.statuses == ("ok", "non-finite")
    close(spectral.values[0], torch.linalg.eigvalsh(batch[0]))
    assert bool(spectral.values[1].isnan().all())


def test_eigh_climbs_when_a_decomposition_fails(monkeypatch):
    """Non-convergence and silent loss of orthogonality both lead to the next rung."""
    matrix = _definite(4).to(torch.float32)
    real, calls = torch.linalg.eigh, []

    def failing(stack):
        calls.append(stack.dtype)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("did not converge")
        return real(stack)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    assert eigh(matrix, precision=torch.float32).status == "ok"
    assert calls == [torch.float32, F64]

    def crooked(stack):
        calls.append(stack.dtype)
        values, vectors = real(stack)
        return values, vectors + (1e-2 if stack.dtype == torch.float32 else 0.0)

    calls.clear()
    monkeypatch.setattr(torch.linalg, "eigh", crooked)
    assert eigh(matrix, precision=torch.float32).status == "ok"
    assert calls == [torch.float32, F64]

    def broken(stack):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    failed = eigh(matrix)
    assert failed.status == "not-converged"
    assert bool(failed.values.isnan().all())


def test_lu_solves_indefinite_and_names_singular():
    matrix = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=F64)
    factor = lu(matrix)
    assert factor.status == "ok"
    close(factor.solve(torch.tensor([1.0, 2.0], dtype=F64)), torch.tensor([2.0, 1.0], dtype=F64))
    singular = lu(torch.ones(3, 3, dtype=F64))
    assert singular.status == "singular"
    assert bool(singular.solve(torch.ones(3, 2, dtype=F64)).isnan().all())
    assert lu(torch.full((2, 2), torch.nan, dtype=F64)).status == "non-finite"


@pytest.mark.parametrize("function", [cholesky, eigh, lu])
def test_matrices_must_be_square(function):
    with pytest.raises((ValueError, TypeError)):
        function(torch.ones(2, 3, dtype=F64))


def test_empty_batches_and_matrices_pass():
    assert cholesky(torch.zeros(0, 3, 3, dtype=F64)).statuses == ()
    assert cholesky(torch.zeros(0, 3, 3, dtype=F64)).status == "ok"
    assert eigh(torch.zeros(0, 3, 3, dtype=F64)).values.shape == (0, 3)


def test_large_float32_matrices_are_factorised_by_blocks(generator):
    """Against NumPy in float64; a singular one goes on up the ladder."""
    rows = torch.randn(1100, 1500, generator=generator)
    matrix = rows @ rows.T / 1500
    factor = cholesky(matrix, damping=0.1, precision=torch.float32)
    assert factor.status == "ok"
    assert factor.triangle.dtype == torch.float32
    damped = matrix.double().numpy() + 0.1 * np.eye(1100)
    expected = torch.from_numpy(np.linalg.cholesky(damped))
    assert float((factor.triangle - expected).abs().max()) < 1e-5
    short = rows[:, :40]
    singular = cholesky(short @ short.T, precision=torch.float32)
    assert singular.status == "jittered"
    assert singular.triangle.dtype == torch.float64
