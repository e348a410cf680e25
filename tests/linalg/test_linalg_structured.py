"""Kronecker products, eigenbases and blocks against their dense forms, damped and solved."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kobai.linalg import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Function,
    Identity,
    Kronecker,
    KroneckerEigen,
    SolvableOperator,
    inverses,
    kronecker_product,
)
from laws.operators import check_operator, check_solvable, close

F64 = torch.float64


def _gram(size: int, seed: int, rank: int | None = None, dtype: torch.dtype = F64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank or 2 * size, generator=generator, dtype=F64)
    return (factor @ factor.T / factor.shape[1]).to(dtype)


def _eigen(m: int, n: int, seed: int = 0) -> KroneckerEigen:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=F64)).Q
    right = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64)).Q
    return KroneckerEigen(left, right, torch.rand(m, n, generator=generator, dtype=F64))


def _blocks() -> BlockDiagonal:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    return BlockDiagonal(
        [
            Kronecker(_gram(2, 0), _gram(3, 1)),
            Diagonal(torch.tensor([1.0, 2.0], dtype=F64)),
            Dense(_gram(4, 2), positive_semidefinite=True),
        ],
        [order[:6], order[6:8], order[8:]],
    )


STRUCTURES: dict[str, SolvableOperator] = {
    "dense": Dense(_gram(5, 0), positive_semidefinite=True),
    "diagonal": Diagonal(torch.tensor([1.0, 0.0, 3.0], dtype=F64)),
    "identity": Identity(4, dtype=F64),
    "kronecker": Kronecker(_gram(3, 0), _gram(4, 1)),
    "kronecker of singular factors": Kronecker(_gram(3, 0, rank=1), _gram(4, 1, rank=2)),
    "kronecker with a scalar factor": Kronecker(_gram(1, 0), _gram(4, 1)),
    "eigen": _eigen(3, 4),
    "blocks": _blocks(),
    "blocks in blocks": BlockDiagonal([_blocks(), _eigen(2, 2)]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_laws(name, generator):
    check_operator(STRUCTURES[name], generator=generator)
    check_solvable(STRUCTURES[name], generator=generator)


def test_kronecker_is_torch_kron(generator):
    left, right = _gram(3, 0), _gram(4, 1)
    check_operator(Kronecker(left, right), torch.kron(left, right), generator=generator)
    close(Kronecker(left, right).eigen().dense(), torch.kron(left, right))


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_products_of_any_shapes(shape, count, seed):
    p, m, q, n = shape
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(p, m, generator=generator, dtype=F64)
    right = torch.randn(q, n, generator=generator, dtype=F64)
    columns = torch.randn(m * n, count, generator=generator, dtype=F64)
    close(kronecker_product(left, columns, right), torch.kron(left, right) @ columns, 1e-12)


def test_eigen_form_is_the_corrected_basis():
    operator = _eigen(3, 4)
    basis = torch.kron(operator.left, operator.right)
    close(operator.dense(), (basis * operator.values.reshape(-1)) @ basis.T)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(1e-4, 10.0),
    st.sampled_from(["exact", "pi", "each"]),
    st.integers(0, 10_000),
)
def test_damping_forms_mean_what_they_say(m, n, damping, form, seed):
    left, right = _gram(m, seed), _gram(n, seed + 1)
    eye = [torch.eye(size, dtype=F64) for size in (m, n)]
    pi = math.sqrt(float(left.trace() / m / (right.trace() / n)))
    damped = {
        "exact": torch.kron(left, right) + damping * torch.eye(m * n, dtype=F64),
        "pi": torch.kron(
            left + pi * math.sqrt(damping) * eye[0], right + math.sqrt(damping) / pi * eye[1]
        ),
        "each": torch.kron(left + damping * eye[0], right + damping * eye[1]),
    }[form]
    operator = Kronecker(left, right)
    b = torch.linspace(-1, 2, m * n, dtype=F64)
    close(operator.solve(b, damping, form), torch.linalg.solve(damped, b), 1e-8)
    logdet = float(torch.linalg.slogdet(damped).logabsdet)
    assert math.isclose(operator.logdet(damping, form), logdet, rel_tol=1e-9, abs_tol=1e-9)
    root = operator.power(-0.5, damping, form)
    close(root @ (root @ b), torch.linalg.solve(damped, b), 1e-8)


def test_pi_balances_traces_and_survives_a_zero_factor():
    operator = Kronecker(100 * _gram(3, 0), _gram(4, 1))
    left, right = operator.damped_factors(0.01, "pi")
    assert math.isclose(left * right, 0.01)
    ratio = float(operator.left.trace() / 3 / (operator.right.trace() / 4))
    assert math.isclose(left / right, ratio)
    zero = Kronecker(torch.zeros(2, 2, dtype=F64), _gram(2, 0))
    assert zero.damped_factors(0.04, "pi") == (0.2, 0.2)
    assert zero.inverse(0.04, "pi").status == "ok"


def test_inverses_in_one_batch_equal_one_by_one():
    operators = [
        Kronecker(_gram(3, 0), _gram(4, 1)),
        Diagonal(torch.ones(3, dtype=F64)),
        Kronecker(_gram(3, 2), _gram(4, 3)),
        Kronecker(_gram(4, 4), _gram(3, 5)),
    ]
    for form in ("exact", "pi", "each"):
        for one, together in zip(operators, inverses(operators, 0.1, form), strict=True):
            b = torch.ones(one.shape[0], dtype=F64)
            close(together @ b, one.solve(b, 0.1, form), 1e-12)
            assert math.isclose(together.log_determinant, one.logdet(0.1, form))


def test_singular_without_damping_is_jittered_and_says_so():
    operator = Kronecker(_gram(3, 0, rank=1), _gram(4, 1))
    for form in ("exact", "pi"):
        inverse = operator.inverse(0.0, form)
        assert inverse.status == "jittered"
        assert inverse.jitter > 0
        assert bool(torch.isfinite(inverse @ torch.ones(12, dtype=F64)).all())
    assert BlockDiagonal([operator, Identity(2, dtype=F64)]).inverse().status == "jittered"


def test_failures_are_a_status_and_nan():
    broken = Kronecker(torch.full((2, 2), torch.nan, dtype=F64), torch.eye(2, dtype=F64))
    for form in ("exact", "pi"):
        assert broken.inverse(0.1, form).status == "non-finite"
        assert bool(broken.solve(torch.ones(4, dtype=F64), 0.1, form).isnan().all())
    indefinite = Dense(torch.diag(torch.tensor([1.0, -1.0], dtype=F64)))
    assert indefinite.inverse(0.1).status == "indefinite"
    assert math.isnan(indefinite.logdet(0.1))
    assert indefinite.power(-0.5, 0.1).status == "indefinite"
    assert Diagonal(torch.tensor([1.0, -1.0], dtype=F64)).inverse(0.5).status == "indefinite"


def test_results_keep_the_input_dtype_at_float64_quality():
    left, right = _gram(6, 0, dtype=torch.float32), _gram(5, 1, dtype=torch.float32)
    operator = Kronecker(left, right)
    exact = Kronecker(left.to(F64), right.to(F64))
    b = torch.linspace(-1, 1, 30)
    for form in ("exact", "pi", "each"):
        solved = operator.solve(b, 1e-4, form)
        assert solved.dtype == torch.float32
        close(solved.to(F64), exact.solve(b.to(F64), 1e-4, form), 1e-4)


def test_blocks_on_scattered_coordinates(generator):
    order = torch.tensor([3, 0, 4, 1, 2, 5])
    parts = [Kronecker(_gram(2, 0), _gram(2, 1)), Diagonal(torch.tensor([5.0, 7.0], dtype=F64))]
    operator = BlockDiagonal(parts, [order[:4], order[4:]])
    expected = torch.zeros(6, 6, dtype=F64)
    expected[order[:4, None], order[:4]] = torch.kron(_gram(2, 0), _gram(2, 1))
    expected[2, 2], expected[5, 5] = 5.0, 7.0
    check_operator(operator, expected, generator=generator)
    check_solvable(operator, generator=generator)


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ([slice(0, 2), slice(1, 3)], "belong"),
        ([slice(0, 2), slice(0, 2)], "belong"),
        ([slice(0, 3), slice(3, 4)], "coordinates"),
        ([slice(0, 2)], "indices"),
    ],
)
def test_blocks_partition_the_coordinates(indices, match):
    parts = [Identity(2, dtype=F64), Identity(2, dtype=F64)]
    with pytest.raises(ValueError, match=match):
        BlockDiagonal(parts, indices)


def test_blocks_that_cannot_be_inverted_multiply_all_the_same():
    free = Function(lambda v: 2 * v, (2, 2), dtype=F64, symmetric=True)
    operator = BlockDiagonal([free, Identity(1, dtype=F64)])
    close(operator @ torch.ones(3, dtype=F64), torch.tensor([2.0, 2.0, 1.0], dtype=F64))
    with pytest.raises(TypeError, match="Function"):
        operator.inverse(0.1)


def test_wrong_factors_are_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        Kronecker(torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=F64), torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match="square"):
        Kronecker(torch.ones(2, 3, dtype=F64), torch.eye(2, dtype=F64))
    with pytest.raises(TypeError, match="share"):
        Kronecker(torch.eye(2), torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match="bases"):
        KroneckerEigen(torch.eye(2), torch.eye(3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="symmetric"):
        Dense(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).solve(torch.ones(2))
