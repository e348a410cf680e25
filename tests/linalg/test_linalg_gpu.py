"""The same code on a CUDA device: results agree with the CPU's from the same CPU generator."""

import pytest
import torch

from kobai.linalg import (
    Dense,
    Kronecker,
    conjugate_gradient,
    density,
    eigenvalues,
    minres,
    trace,
)

pytestmark = pytest.mark.gpu


def _definite(size: int) -> torch.Tensor:
    factor = torch.randn(
        size, 2 * size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return factor @ factor.T / size


@pytest.mark.parametrize("method", ["lanczos", "lobpcg", "dense"])
def test_eigenvalues(method):
    matrix = _definite(120)
    found = []
    for place in (matrix, matrix.cuda()):
        seeded = torch.Generator().manual_seed(1)
        found.append(eigenvalues(Dense(place, symmetric=True), 4, method=method, generator=seeded))
    assert torch.allclose(found[0].values, found[1].values, rtol=1e-6)


def test_density_and_traces():
    matrix = _definite(120)
    for place in (matrix, matrix.cuda()):
        operator = Dense(place, symmetric=True)
        found = density(operator, num_steps=20, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(found.weights.sum(dim=1), torch.ones(10, dtype=torch.float64))
        for method in ("hutchinson", "hutch++", "xtrace"):
            estimate = trace(operator, method=method, generator=torch.Generator().manual_seed(1))
            low, high = estimate.interval(0.999)
            assert low <= float(matrix.trace()) <= high


def test_solves():
    matrix = _definite(60).cuda()
    b = torch.ones(60, 2, dtype=torch.float64, device="cuda")
    for solver in (conjugate_gradient, minres):
        found = solver(Dense(matrix, symmetric=True), b, tol=1e-10)
        assert found.value.is_cuda
        assert torch.allclose(matrix @ found.value, b, atol=1e-8)
    operator = Kronecker(_definite(6).cuda(), _definite(5).cuda())
    for form in ("exact", "pi", "each"):
        solved = operator.solve(b[:30], 0.1, form)
        assert solved.is_cuda
