"""Operators and the expressions they build, against the dense matrices they stand for."""

import numpy as np
import pytest
import torch

from kobai.linalg import (
    Counted,
    Dense,
    Diagonal,
    Function,
    Identity,
    LinearOperator,
    Product,
    Sub,
    Sum,
    rademacher,
    sphere,
)
from laws.operators import check_dense, check_operator, close

F64 = torch.float64


def _matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=F64)


def _symmetric(size: int, seed: int = 0) -> torch.Tensor:
    matrix = _matrix(size, size, seed)
    return (matrix + matrix.T) / 2


def _expressions() -> dict[str, tuple[LinearOperator, torch.Tensor]]:
    """Every kind of operator with the matrix it stands for."""
    wide, square, symmetric = _matrix(4, 6), _matrix(6, 6, 1), _symmetric(6, 2)
    entries = torch.arange(1.0, 7.0, dtype=F64)
    gram = wide.T @ wide
    index = torch.tensor([4, 0, 3])
    return {
        "dense wide": (Dense(wide), wide),
        "dense square": (Dense(square), square),
        "dense symmetric": (Dense(symmetric), symmetric),
        "diagonal": (Diagonal(entries), torch.diag(entries)),
        "identity": (Identity(6, dtype=F64), torch.eye(6, dtype=F64)),
        "function": (
            Function(lambda v: symmetric @ v, (6, 6), dtype=F64, symmetric=True),
            symmetric,
        ),
        "function of a vector": (
            Function(
                lambda v: wide.mv(v),
                (4, 6),
                dtype=F64,
                adjoint=lambda v: wide.T.mv(v),
                columns=False,
            ),
            wide,
        ),
        "sum": (
            Dense(symmetric) + Diagonal(entries) + Dense(square),
            symmetric + torch.diag(entries) + square,
        ),
        "difference": (Dense(symmetric) - Diagonal(entries), symmetric - torch.diag(entries)),
        "scaled": (-2.0 * Dense(wide), -2 * wide),
        "product": (Dense(wide) @ Dense(symmetric) @ Dense(wide).T, wide @ symmetric @ wide.T),
        "declared product": (
            Product((Dense(wide).T, Dense(wide)), positive_semidefinite=True),
            gram,
        ),
        "damped": (
            Dense(gram, positive_semidefinite=True).damped(0.5),
            gram + 0.5 * torch.eye(6, dtype=F64),
        ),
        "sub-block by slice": (Dense(symmetric)[1:4], symmetric[1:4, 1:4]),
        "sub-block by positions": (Dense(square)[index], square[index][:, index]),
        "counted": (Counted(Dense(square)), square),
    }


@pytest.mark.parametrize("name", _expressions())
def test_laws(name, generator):
    operator, matrix = _expressions()[name]
    check_operator(operator, matrix, generator=generator)


@pytest.mark.parametrize("name", _expressions())
def test_transpose_is_the_transpose(name, generator):
    operator, matrix = _expressions()[name]
    check_dense(operator.T, matrix.T, generator=generator)
    check_dense(operator.T.T, matrix, generator=generator)


def test_symmetry_is_inferred_where_it_is_certain():
    semidefinite = Dense(torch.eye(3, dtype=F64), positive_semidefinite=True)
    symmetric = Dense(_symmetric(3))
    general = Dense(_matrix(3, 3))
    assert symmetric.symmetric
    assert not symmetric.positive_semidefinite
    assert not general.symmetric
    assert (semidefinite + 2 * semidefinite).positive_semidefinite
    assert (semidefinite + symmetric).symmetric
    assert not (semidefinite + symmetric).positive_semidefinite
    assert not (-semidefinite).positive_semidefinite
    assert (-semidefinite).symmetric
    assert not (symmetric @ symmetric).symmetric
    assert semidefinite.damped(1.0).positive_semidefinite
    assert not semidefinite.damped(-1.0).positive_semidefinite
    assert semidefinite[0:2].positive_semidefinite


def test_sums_and_products_stay_flat():
    a = Dense(_matrix(3, 3))
    assert len((a + a + a + a).terms) == 4
    assert len((a @ a @ a).factors) == 3


def test_scalars_of_every_kind_scale():
    a = Dense(_symmetric(3))
    v = torch.ones(3, dtype=F64)
    for two in (2, 2.0, np.float64(2.0), torch.tensor(2.0)):
        close((two * a) @ v, 2 * (a @ v))
        close((a * two) @ v, 2 * (a @ v))
    with pytest.raises(TypeError):
        a * a  # composition is written @
    with pytest.raises(ValueError, match="finite"):
        float("nan") * a


def test_count_includes_blocks_and_transposes():
    counted = Counted(Dense(_matrix(4, 6)))
    counted @ torch.zeros(6, dtype=F64)
    counted @ torch.zeros(6, 5, dtype=F64)
    counted.T @ torch.zeros(4, 2, dtype=F64)
    assert counted.count == 8
    assert counted.T.T.dense().shape == (4, 6)
    assert counted.count == 14


def test_operators_are_not_iterable():
    with pytest.raises(TypeError):
        iter(Dense(_matrix(2, 2)))  # pyright: ignore[reportArgumentType]


def test_repr_says_what_it_is():
    assert repr(Diagonal(torch.ones(3))) == "Diagonal(3 x 3, positive semidefinite, float32, cpu)"


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: Dense(torch.ones(3, dtype=F64)), (ValueError, TypeError)),
        (lambda: Dense(torch.ones(3, 3, dtype=torch.int64)), (ValueError, TypeError)),
        (lambda: Dense(_matrix(2, 3), symmetric=True), ValueError),
        (lambda: Dense(_matrix(2, 3)) + Dense(_matrix(3, 2)), ValueError),
        (lambda: Dense(_matrix(2, 3)) @ Dense(_matrix(2, 3)), ValueError),
        (lambda: Dense(_matrix(2, 2)) + Dense(torch.ones(2, 2)), TypeError),
        (lambda: Dense(_matrix(2, 3)).damped(1.0), ValueError),
        (lambda: Dense(_matrix(2, 2)).damped(float("inf")), ValueError),
        (lambda: Dense(_matrix(2, 3))[0:1], ValueError),
        (lambda: Dense(_matrix(3, 3))[3:], ValueError),
        (lambda: Dense(_matrix(3, 3))[torch.tensor([0, 3])], ValueError),
        (lambda: Dense(_matrix(3, 3))[torch.tensor([0, 0])], ValueError),
        (lambda: Dense(_matrix(3, 3))[torch.tensor([0.0])], TypeError),
        (lambda: Sum(()), ValueError),
        (lambda: Product(()), ValueError),
        (lambda: Dense(_matrix(3, 3)).dense(chunk=0), ValueError),
        (lambda: Function(lambda v: v, (2, 2), dtype=F64).T, ValueError),
    ],
)
def test_wrong_use_is_refused(build, error):
    with pytest.raises(error):
        build()


def test_sub_of_a_sub_block():
    matrix = _symmetric(6)
    operator = Sub(Sub(Dense(matrix), torch.tensor([5, 1, 3])), slice(1, 3))
    close(operator.dense(), matrix[[1, 3]][:, [1, 3]])


def test_probes_repeat_and_follow_the_operator(generator):
    operator = Identity(50, dtype=torch.float32)
    first = rademacher(operator, 4, generator=torch.Generator().manual_seed(3))
    again = rademacher(operator, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    unit = sphere(operator, 4, generator=generator)
    close(unit.norm(dim=0), torch.ones(4), 1e-6)
