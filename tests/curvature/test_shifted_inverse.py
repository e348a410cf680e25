"""Damped inverses by three methods against SciPy, and what is said where one of them fails."""

import numpy as np
import pytest
import scipy.linalg
import torch

from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.curvature.blocks.shifted_inverse import METHODS, REPLACED, shifted_inverse


def factors(generator, size=12, count=3, rank=None, dtype=torch.float64):
    rows = torch.randn(count, rank or 2 * size, size, generator=generator, dtype=torch.float64)
    return (rows.mT @ rows / rows.shape[1]).to(dtype)


def exact(matrices, shifts):
    return np.stack([
        scipy.linalg.inv(m + float(s) * np.eye(len(m)))
        for m, s in zip(matrices.double().numpy(), shifts, strict=True)
    ])  # fmt: skip


def worst(found, matrices, shifts):
    """Largest error of an inverse, relative to it in the spectral norm."""
    expected = exact(matrices, shifts)
    return max(
        np.linalg.norm(f - e, 2) / np.linalg.norm(e, 2)
        for f, e in zip(found.double().numpy(), expected, strict=True)
    )


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 2e-8), (torch.float32, 5e-4)])
def test_inverses_equal_scipys(method, dtype, bound, rank, generator):
    """Also of matrices of low rank: their condition is that of the damping."""
    matrices = factors(generator, rank=rank, dtype=dtype)
    shifts = torch.tensor([1e-2, 0.1, 3.0], dtype=dtype)
    found, status = shifted_inverse(matrices, shifts, method)
    assert status.tolist() == [0, 0, 0]
    assert found.dtype == dtype
    assert worst(found, matrices, shifts) < bound


def test_newton_schulz_begins_at_what_is_near_and_only_there(generator, monkeypatch):
    matrices, shifts = factors(generator), torch.full((3,), 0.05, dtype=torch.float64)
    rounds = []
    plain = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: rounds.append(1) or plain(*a, **k))
    shifted_inverse(matrices, shifts, "newton-schulz")
    cold = len(rounds)
    near = torch.as_tensor(exact(matrices * 1.02, shifts))
    rounds.clear()
    found, status = shifted_inverse(matrices, shifts, "newton-schulz", near)
    assert len(rounds) < cold / 2
    far = near.clone()
    far[1] = 0.0
    other, _ = shifted_inverse(matrices, shifts, "newton-schulz", far)
    for inverse in (found, other):
        assert worst(inverse, matrices, shifts) < 1e-10
    assert not status.any()


def test_what_does_not_converge_is_left_to_cholesky_and_says_so(generator):
    """In single precision a condition number of 10⁶ leaves a residual of rounding."""
    matrices = factors(generator, rank=5, dtype=torch.float32)
    shifts = torch.tensor([0.1, 1e-6, 0.1])
    found, status = shifted_inverse(matrices, shifts, "newton-schulz")
    assert [int(code) // REPLACED for code in status] == [0, 1, 0]
    assert torch.isfinite(found).all()
    expected, codes = shifted_inverse(matrices[1:2], shifts[1:2])
    assert torch.equal(found[1], expected[0])
    assert int(status[1]) == REPLACED + int(codes)


@pytest.mark.parametrize("method", METHODS)
def test_matrices_that_are_not_finite_are_refused_alone(method, generator):
    matrices, shifts = factors(generator), torch.full((3,), 0.1, dtype=torch.float64)
    matrices[1, 2, 3] = matrices[1, 3, 2] = torch.nan
    found, status = shifted_inverse(matrices, shifts, method)
    assert [int(code) % REPLACED for code in status] == [0, 3, 0]
    assert not found[1].any()
    assert worst(found[::2], matrices[::2], shifts[::2]) < 1e-7


def test_a_block_is_replaced_if_either_of_its_factors_is(generator):
    a = factors(generator, rank=5, dtype=torch.float32)
    b = torch.eye(4).expand(3, 4, 4) * 1e-5
    found = KroneckerFactors(inputs=a, outputs=b.contiguous()).inverse(1e-12, "newton-schulz")
    assert (found.status >= REPLACED).all()
