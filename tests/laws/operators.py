"""Laws of linear operators, stated once and run on every operator there is.

Each function raises AssertionError where the law is broken. ``check_operator`` runs those that any
operator obeys, ``check_solvable`` those of operators that can be damped and inverted. Tolerances
are relative and meant for float64.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kobai.linalg import LinearOperator, SolvableOperator

TOLERANCE = 1e-10


def check_operator(
    operator: LinearOperator,
    matrix: Tensor | None = None,
    *,
    generator: torch.Generator,
    tolerance: float = TOLERANCE,
) -> None:
    """All laws of an operator; against its dense form where the caller has it by another route."""
    check_linear(operator, generator=generator, tolerance=tolerance)
    check_columns(operator, generator=generator, tolerance=tolerance)
    check_adjoint(operator, generator=generator, tolerance=tolerance)
    check_declared_symmetry(operator, generator=generator, tolerance=tolerance)
    check_algebra(operator, generator=generator, tolerance=tolerance)
    check_scipy(operator, generator=generator, tolerance=tolerance)
    check_refusals(operator)
    if matrix is not None:
        check_dense(operator, matrix, generator=generator, tolerance=tolerance)


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal to within ``tolerance`` of the largest entry expected; shapes and dtypes equal."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 1e-300)
    error = float((actual - expected).abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * scale, f"differs by {error / scale:.2e} of {scale:.2e}"


def vectors(
    operator: LinearOperator, count: int, generator: torch.Generator, *, rows: bool = False
) -> Tensor:
    """Random columns of the length the operator takes (or returns)."""
    size = operator.shape[0 if rows else 1]
    return torch.randn(size, count, generator=generator, dtype=torch.float64).to(
        dtype=operator.dtype, device=operator.device
    )


def check_linear(
    operator: LinearOperator, *, generator: torch.Generator, tolerance: float = TOLERANCE
) -> None:
    """A(2u - 3v) = 2Au - 3Av, and the same product twice is the same to the bit."""
    u, v = vectors(operator, 2, generator).unbind(1)
    close(operator @ (2 * u - 3 * v), 2 * (operator @ u) - 3 * (operator @ v), tolerance)
    assert torch.equal(operator @ u, operator @ u)


def check_columns(
    operator: LinearOperator, *, generator: torch.Generator, tolerance: float = TOLERANCE
) -> None:
    """A block is multiplied column by column; methods and @ agree."""
    block = vectors(operator, 3, generator)
    product = operator @ block
    close(product, torch.stack([operator @ v for v in block.unbind(1)], dim=1), tolerance)
    close(operator.matvec(block[:, 0]), product[:, 0], tolerance)
    assert (operator @ block[:, :0]).shape == (operator.shape[0], 0)


def check_adjoint(
    operator: LinearOperator, *, generator: torch.Generator, tolerance: float = TOLERANCE
) -> None:
    """u·(Av) = (Aᵀu)·v, and the transpose has the mirrored shape."""
    v = vectors(operator, 3, generator)
    u = vectors(operator, 3, generator, rows=True)
    assert operator.T.shape == operator.shape[::-1]
    close(u.T @ (operator @ v), (operator.T @ u).T @ v, tolerance)


def check_declared_symmetry(
    operator: LinearOperator, *, generator: torch.Generator, tolerance: float = TOLERANCE
) -> None:
    """What is declared symmetric or positive semidefinite is."""
    if operator.positive_semidefinite:
        assert operator.symmetric
    if not operator.symmetric:
        return
    assert operator.T is operator
    v = vectors(operator, 4, generator)
    forms = v.T @ (operator @ v)
    close(forms, forms.T, tolerance)
    if operator.positive_semidefinite:
        assert bool((forms.diagonal() >= -tolerance * forms.abs().max()).all())


def check_algebra(
    operator: LinearOperator, *, generator: torch.Generator, tolerance: float = TOLERANCE
) -> None:
    """Sums, multiples, compositions, shifts and sub-blocks mean what they say."""
    v = vectors(operator, 2, generator)
    product = operator @ v
    close((operator + operator) @ v, 2 * product, tolerance)
    close((2.5 * operator) @ v, 2.5 * product, tolerance)
    close((operator / 4) @ v, product / 4, tolerance)
    close((-operator) @ v, -product, tolerance)
    close((operator - 0.5 * operator) @ v, 0.5 * product, tolerance)
    close((operator.T @ operator) @ v, operator.T @ product, tolerance)
    if operator.shape[0] != operator.shape[1]:
        return
    close(operator.damped(0.3) @ v, product + 0.3 * v, tolerance)
    size = operator.shape[0]
    block = slice(size // 3, size // 3 + max(size // 2, 1))
    positions = torch.arange(size)[block]
    inside = torch.zeros_like(v)
    inside[block] = v[block]
    expected = (operator @ inside)[block]
    close(operator[block] @ v[block], expected, tolerance)
    close(operator[positions] @ v[positions], expected, tolerance)


def check_scipy(
    operator: LinearOperator, *, generator: torch.Generator, tolerance: float = TOLERANCE
) -> None:
    """SciPy's form multiplies alike, in float64 on the CPU."""
    v = vectors(operator, 2, generator)
    scipy_form = operator.to_scipy()
    assert scipy_form.shape == operator.shape
    expected = (operator @ v).to(device="cpu", dtype=torch.float64)
    given = v.to(device="cpu", dtype=torch.float64).numpy()
    close(torch.from_numpy(np.asarray(scipy_form @ given)), expected, tolerance)
    close(torch.from_numpy(np.asarray(scipy_form @ given[:, 0])), expected[:, 0], tolerance)
    u = vectors(operator, 1, generator, rows=True)[:, 0]
    back = scipy_form.rmatvec(u.to(device="cpu", dtype=torch.float64).numpy())
    close(
        torch.from_numpy(np.asarray(back)),
        (operator.T @ u).to(device="cpu", dtype=torch.float64),
        tolerance,
    )


def check_refusals(operator: LinearOperator) -> None:
    """Wrong shapes and dtypes are refused, not converted."""
    size = operator.shape[1]
    empty = torch.zeros(0, dtype=operator.dtype, device=operator.device)
    with pytest.raises(ValueError, match="multiplies"):
        operator @ empty.new_zeros(size + 1)
    with pytest.raises(ValueError, match="multiplies"):
        operator @ empty.new_zeros(size, 1, 1)
    other = torch.float32 if operator.dtype == torch.float64 else torch.float64
    with pytest.raises(TypeError):
        operator @ empty.new_zeros(size, dtype=other)
    with pytest.raises(TypeError):
        operator @ np.zeros(size)


def check_dense(
    operator: LinearOperator,
    matrix: Tensor,
    *,
    generator: torch.Generator,
    tolerance: float = TOLERANCE,
) -> None:
    """Products and the dense form equal a matrix found by another route."""
    close(operator.dense(), matrix, tolerance)
    close(operator.dense(chunk=3), matrix, tolerance)
    v = vectors(operator, 3, generator)
    close(operator @ v, matrix @ v, tolerance)


def check_solvable(
    operator: SolvableOperator,
    *,
    generator: torch.Generator,
    damping: float = 0.1,
    tolerance: float = TOLERANCE,
) -> None:
    """Inverse, power, logdet, trace and diagonal agree with the dense matrix, damped exactly."""
    matrix = operator.dense()
    close(operator.diagonal(), matrix.diagonal(), tolerance)
    assert math.isclose(operator.trace(), float(matrix.trace()), rel_tol=tolerance, abs_tol=1e-300)
    damped = matrix + damping * torch.eye(matrix.shape[0], dtype=matrix.dtype)
    b = vectors(operator, 2, generator)
    close(operator.solve(b, damping), torch.linalg.solve(damped, b), tolerance)
    close(operator.solve(b[:, 0], damping), torch.linalg.solve(damped, b[:, 0]), tolerance)
    close(operator.damped(damping) @ operator.solve(b, damping), b, tolerance)
    logdet = float(torch.linalg.slogdet(damped).logabsdet)
    assert math.isclose(operator.logdet(damping), logdet, rel_tol=tolerance, abs_tol=tolerance)
    inverse = operator.inverse(damping)
    assert inverse.status == "ok"
    assert inverse.jitter == 0.0
    assert operator.inverse(damping) is inverse
    root = operator.power(-0.5, damping)
    close(root @ (root @ b), operator.solve(b, damping), tolerance)
    root = operator.power(0.5, damping)
    close(root @ (root @ b), damped @ b, tolerance)
    with pytest.raises(ValueError, match="damping"):
        operator.solve(b, -1.0)
    with pytest.raises((ValueError, TypeError), match="damping_form"):
        operator.solve(b, 1.0, "other")  # pyright: ignore[reportArgumentType]
