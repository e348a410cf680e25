"""Conjugate gradients and MINRES against direct solutions and SciPy."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from kobai.linalg import (
    Counted,
    Dense,
    Diagonal,
    Function,
    Identity,
    LinearOperator,
    conjugate_gradient,
    minres,
)
from laws.operators import close

F64 = torch.float64


def _with_spectrum(values: torch.Tensor, seed: int = 0) -> Dense:
    generator = torch.Generator().manual_seed(seed)
    size = values.numel()
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64)).Q
    return Dense((basis * values) @ basis.T, symmetric=True)


def _right(size: int, count: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(size, count, generator=torch.Generator().manual_seed(seed), dtype=F64)


DEFINITE = _with_spectrum(torch.logspace(-3, 1, 40, dtype=F64))
INDEFINITE = _with_spectrum(
    torch.cat([-torch.logspace(-1, 1, 15, dtype=F64), torch.logspace(-1, 1, 25, dtype=F64)])
)


def _preconditioner(operator: Dense, shift: float = 0.05) -> Dense:
    values, vectors = torch.linalg.eigh(operator.matrix)
    return Dense((vectors / (values.abs() + shift)) @ vectors.T, positive_semidefinite=True)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(
    ("solver", "operator"),
    [(conjugate_gradient, DEFINITE), (minres, DEFINITE), (minres, INDEFINITE)],
)
def test_solves_many_right_hand_sides(solver, operator, preconditioned):
    b = _right(40, 3)
    helper = _preconditioner(operator) if preconditioned else None
    found = solver(operator, b, tol=1e-9, preconditioner=helper, max_iterations=1000)
    assert found.status == "converged"
    residuals = (b - operator @ found.value).norm(dim=0)
    assert bool((residuals <= 1.01e-9 * b.norm(dim=0) + 1e-12).all())
    # The recursion's residuals are the true ones.
    close(found.residual_norms[-1], residuals, 1e-2)
    assert found.residual_norms.shape == (found.iterations + 1, 3)
    single = solver(operator, b[:, 1], tol=1e-9, preconditioner=helper, max_iterations=1000)
    assert single.value.shape == (40,)
    close(single.value, found.value[:, 1], 1e-6)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_cost_is_one_product_a_column_and_step(solver):
    counted = Counted(DEFINITE)
    b = _right(40, 2)
    # The second column is an eigenvector: done in one step, then no longer multiplied.
    b[:, 1] = torch.linalg.eigh(DEFINITE.matrix).eigenvectors[:, 5]
    found = solver(counted, b, tol=1e-8, max_iterations=500)
    assert counted.count == found.num_products
    assert found.num_products <= found.iterations + 2
    counted = Counted(DEFINITE)
    warm = solver(counted, b, tol=1e-8, max_iterations=500, start=found.value)
    assert counted.count == warm.num_products
    assert warm.iterations <= 1


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradient_takes_scipys_steps(preconditioned):
    b = _right(40, 1)[:, 0]
    helper = _preconditioner(DEFINITE) if preconditioned else None
    path: list[np.ndarray] = []
    scipy.sparse.linalg.cg(
        DEFINITE.to_scipy(),
        b.numpy(),
        rtol=1e-4,
        M=None if helper is None else helper.to_scipy(),
        callback=lambda x: path.append(x.copy()),
    )
    found = conjugate_gradient(DEFINITE, b, tol=1e-4, preconditioner=helper, keep="all")
    # Rounding parts the two recursions in the end, long after the path is settled.
    assert abs(found.iterations - len(path)) <= 0.05 * len(path)
    for ours, theirs in zip(found.iterates[:16], path[:16], strict=True):
        close(ours, torch.from_numpy(theirs), 1e-6)


def test_minres_takes_scipys_steps():
    b = _right(40, 1)[:, 0]
    path: list[np.ndarray] = []
    scipy.sparse.linalg.minres(
        INDEFINITE.to_scipy(),
        b.numpy(),
        rtol=1e-14,
        maxiter=12,
        callback=lambda x: path.append(x.copy()),
    )
    for steps in (1, 2, 5, 12):
        found = minres(INDEFINITE, b, tol=0.0, max_iterations=steps)
        assert found.status == "max-iterations"
        close(found.value, torch.from_numpy(path[steps - 1]), 1e-8)


def test_minres_residuals_never_grow():
    found = minres(INDEFINITE, _right(40, 3), tol=1e-10, max_iterations=500)
    assert bool((found.residual_norms.diff(dim=0) <= 1e-12).all())


def test_warm_start_continues():
    b = _right(40, 1)[:, 0]
    rough = conjugate_gradient(DEFINITE, b, tol=1e-2)
    warm = conjugate_gradient(DEFINITE, b, tol=1e-8, start=rough.value)
    assert warm.status == "converged"
    close(DEFINITE @ warm.value, b, 1e-6)
    assert float(warm.residual_norms[0, 0]) == pytest.approx(
        float(rough.residual_norms[-1, 0]), rel=1e-6
    )


def test_negative_curvature_is_a_status_with_its_direction():
    b = _right(40, 3)
    # The middle column lies among the positive eigenvectors and converges.
    vectors = torch.linalg.eigh(INDEFINITE.matrix).eigenvectors
    b[:, 1] = vectors[:, -3:].sum(dim=1)
    found = conjugate_gradient(INDEFINITE, b, tol=1e-8)
    assert found.statuses == ("negative-curvature", "converged", "negative-curvature")
    assert found.status == "negative-curvature"
    assert found.directions is not None
    for column in (0, 2):
        direction = found.directions[:, column]
        assert float(direction.norm()) == pytest.approx(1.0)
        assert float(direction @ (INDEFINITE @ direction)) < 0
    assert float(found.directions[:, 1].norm()) == 0.0
    assert bool(torch.isfinite(found.value).all())
    # The iterate before the bad direction still improved the model.
    assert bool((found.model_values[-1] <= 0).all())


def test_model_values_fall_and_are_the_quadratic():
    b = _right(40, 1)[:, 0]
    found = conjugate_gradient(DEFINITE, b, tol=1e-8, keep="all")
    assert found.model_values is not None
    assert bool((found.model_values.diff(dim=0) <= 1e-9).all())
    assert found.iterate_steps == tuple(range(1, found.iterations + 1))
    for step, x in zip(found.iterate_steps[::7], found.iterates[::7], strict=True):
        model = float(0.5 * x @ (DEFINITE @ x) - b @ x)
        assert float(found.model_values[step, 0]) == pytest.approx(model, rel=1e-9)


def test_geometric_iterates_end_with_the_last():
    found = conjugate_gradient(DEFINITE, _right(40, 2), tol=1e-8, keep="geometric")
    steps = found.iterate_steps
    assert steps[:6] == (1, 2, 3, 4, 6, 8)
    assert steps[-1] == found.iterations
    close(found.iterates[-1], found.value)


def test_progress_stops_before_the_residual_does():
    b = _right(40, 1)[:, 0]
    full = conjugate_gradient(DEFINITE, b, tol=1e-12, max_iterations=1000)
    early = conjugate_gradient(DEFINITE, b, tol=1e-12, progress=5e-4, max_iterations=1000)
    assert early.status == "little-progress"
    assert early.iterations < full.iterations
    assert float(early.model_values[-1, 0]) <= 0.98 * float(full.model_values[-1, 0])


def test_singular_systems():
    values = torch.cat(
        [
            torch.zeros(10, dtype=F64),
            torch.linspace(1, 3, 20, dtype=F64),
            -torch.ones(10, dtype=F64),
        ]
    )
    operator = _with_spectrum(values)
    consistent = operator @ _right(40, 2)
    solved = minres(operator, consistent, tol=1e-9)
    assert solved.status == "converged"
    close(operator @ solved.value, consistent, 1e-8)
    b = _right(40, 2)
    least = minres(operator, b, tol=1e-7)
    assert least.status == "least-squares"
    best = b - operator @ (torch.linalg.pinv(operator.matrix, hermitian=True, rtol=1e-10) @ b)
    close((b - operator @ least.value).norm(dim=0), best.norm(dim=0), 1e-6)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_easy_ends(solver):
    b = torch.stack([torch.zeros(5, dtype=F64), torch.ones(5, dtype=F64)], dim=1)
    found = solver(Identity(5, dtype=F64), b, start=torch.full_like(b, 3.0))
    assert found.status == "converged"
    close(found.value, b)
    zero = solver(Identity(5, dtype=F64), b[:, 0])
    assert (zero.iterations, zero.num_products, zero.status) == (0, 0, "converged")
    exact = solver(Diagonal(torch.arange(1.0, 6.0, dtype=F64)), b[:, 1], tol=0.0, max_iterations=30)
    close(exact.value, 1 / torch.arange(1.0, 6.0, dtype=F64))
    short = solver(DEFINITE, _right(40, 1)[:, 0], tol=1e-10, max_iterations=3)
    assert (short.status, short.iterations) == ("max-iterations", 3)


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_breakdowns_are_statuses(solver):
    b = _right(40, 2)
    bad = _preconditioner(DEFINITE)
    negative = Dense(-bad.matrix, symmetric=True)
    assert solver(DEFINITE, b, preconditioner=negative).status == "indefinite-preconditioner"
    broken: LinearOperator = Function(
        lambda v: v * math.nan, (40, 40), dtype=F64, positive_semidefinite=True
    )
    assert solver(broken, b).status == "non-finite"
    b[3, 1] = math.inf
    found = solver(DEFINITE, b, tol=1e-8, max_iterations=300)
    assert found.statuses == ("converged", "non-finite")


def test_float32_reaches_what_float32_can():
    operator = Dense(DEFINITE.matrix.to(torch.float32))
    b = _right(40, 2).to(torch.float32)
    found = conjugate_gradient(operator, b, tol=1e-4, max_iterations=1000)
    assert found.status == "converged"
    assert found.value.dtype == torch.float32
    assert float((b - operator @ found.value).norm() / b.norm()) < 1e-3


@pytest.mark.parametrize("solver", [conjugate_gradient, minres])
def test_wrong_use_is_refused(solver):
    b = torch.ones(40, dtype=F64)
    with pytest.raises(ValueError, match="symmetric"):
        solver(Dense(torch.triu(torch.ones(40, 40, dtype=F64))), b)
    with pytest.raises(ValueError, match="b is"):
        solver(DEFINITE, torch.ones(3, dtype=F64))
    with pytest.raises(TypeError):
        solver(DEFINITE, torch.ones(40))
    with pytest.raises((ValueError, TypeError), match="start"):
        solver(DEFINITE, b, start=torch.ones(40, 2, dtype=F64))
    with pytest.raises(ValueError, match="preconditioner"):
        solver(DEFINITE, b, preconditioner=Identity(3, dtype=F64))
    with pytest.raises(ValueError, match="tol"):
        solver(DEFINITE, b, tol=-1.0)
    with pytest.raises(ValueError, match="max_iterations"):
        solver(DEFINITE, b, max_iterations=0)
