"""Inverses by conjugate gradients: as accurate as they say, and they say how they went."""

import math

import pytest
import torch

from kobai.linalg import Dense, IterativeInverse, iterative_inverse
from laws.operators import close

F64 = torch.float64


def _definite(size: int, low: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64)).Q
    return (basis * torch.linspace(low, 1, size, dtype=F64)) @ basis.T


def test_solves_to_its_tolerance_and_counts():
    matrix = _definite(60)
    inverse = iterative_inverse(Dense(matrix, positive_semidefinite=True), 0.01)
    assert inverse.status == "unsolved"
    assert math.isnan(inverse.log_determinant)
    b = torch.linspace(-1, 1, 120, dtype=F64).view(60, 2)
    x = inverse @ b
    close(x, torch.linalg.solve(matrix + 0.01 * torch.eye(60), b), 1e-4)
    assert inverse.status == "ok"
    operator = inverse.operator
    assert isinstance(operator, IterativeInverse)
    assert operator.solution is not None
    spent = operator.num_products
    assert spent == operator.solution.num_products <= 120
    inverse @ b[:, 0]
    assert operator.num_products == spent + operator.solution.num_products


def test_a_solve_that_did_not_converge_is_said():
    operator = Dense(_definite(60, low=1e-9), positive_semidefinite=True)
    inverse = IterativeInverse(operator, 0.0, max_iterations=3)
    inverse @ torch.ones(60, dtype=F64)
    assert inverse.solve_status == "max-iterations"
    inverse @ torch.zeros(60, dtype=F64)
    assert inverse.solve_status == "ok"


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_tolerance_follows_the_precision(dtype):
    operator = Dense(_definite(40).to(dtype), positive_semidefinite=True)
    inverse = iterative_inverse(operator, 0.1)
    b = torch.ones(40, dtype=dtype)
    rest = operator @ (inverse @ b) + 0.1 * (inverse @ b) - b
    assert inverse.status == "ok"
    assert float(rest.norm() / b.norm()) <= 3e-6
