"""Additions as a user makes them, from outside and in one place, held against the laws."""

import pytest
import torch
from torch import Tensor, nn

import cases
from kobai import Problem, data
from kobai.curvature import (
    STRUCTURES,
    Fisher,
    Structure,
    register_layer,
    register_structure,
)
from kobai.curvature.coverage import Coverage
from kobai.curvature.structures import DiagonalStructure
from kobai.kernels import isotropy
from kobai.layers.table import KINDS
from kobai.linalg.operators.leaves import Diagonal
from kobai.linalg.operators.solvable import SolvableOperator
from kobai.optim import NaturalGradient
from laws.operators import check_operator, check_solvable
from tolerances import assert_close


@pytest.fixture(autouse=True)
def _undone():
    """Registrations end with the test that made them."""
    tables = [(STRUCTURES, dict(STRUCTURES)), (data.DATA_SETS, dict(data.DATA_SETS))]
    kinds = list(KINDS)
    yield
    for table, before in tables:
        table.clear()
        table.update(before)
    KINDS[:] = kinds


class Isotropic(Structure):
    """The mean of the diagonal times the identity."""

    def coverage(self, source) -> Coverage:
        return DiagonalStructure().coverage(source)

    def build(self, source) -> SolvableOperator:
        diagonal = DiagonalStructure().build(source).diagonal()
        return Diagonal(torch.full_like(diagonal, float(diagonal.mean())))


def test_a_structure_is_an_operator_a_row_and_a_preconditioner(generator):
    register_structure("isotropic", Isotropic())
    objective = cases.objective("mlp")
    fisher = Fisher(objective, "isotropic")
    check_operator(fisher, generator=generator)
    dense = Fisher(objective, "full").dense()
    assert_close(
        fisher.dense(), torch.eye(len(dense), dtype=dense.dtype) * dense.trace() / len(dense)
    )
    check_solvable(fisher.operator, generator=generator)
    assert "isotropic" in [row.structure for row in isotropy(objective).rows]
    problem = cases.problem("mlp")
    optimizer = NaturalGradient(problem.model, problem.likelihood, structure="isotropic", lr=0.1)
    losses = [float(optimizer.step(problem.objective())) for _ in range(5)]
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="kobai's own"):
        register_structure("full", Isotropic())


class Transposed(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs)."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.kernel = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel


def network(likelihood):
    g = torch.Generator().manual_seed(0)
    first = Transposed(torch.randn(3, 4, generator=g, dtype=torch.float64) / 2)
    last = Transposed(torch.randn(4, 2, generator=g, dtype=torch.float64) / 2)
    x = torch.randn(20, 3, generator=g, dtype=torch.float64)
    y = torch.rand(20, 2, generator=g, dtype=torch.float64)
    return Problem(nn.Sequential(first, nn.Tanh(), last), likelihood, train=(x, y))


@pytest.mark.parametrize("structure", ["layer", "unit", "diagonal"])
def test_a_layer_kind_has_the_blocks_of_the_dense_matrix(structure):
    objective = network("gaussian").objective()
    unknown = Fisher(objective, structure).dense() if structure != "unit" else None
    dense = Fisher(objective, "full").dense()
    register_layer(Transposed, weight="kernel", bias=None, transposed=True)
    known = Fisher(network("gaussian").objective(), structure).dense()
    assert_close(known.diagonal(), dense.diagonal())
    if unknown is not None:
        assert_close(known, unknown)


def test_a_data_set_is_loaded_by_its_name():
    x = torch.arange(10.0)[:, None]
    data.register_data("line", lambda: (x, x[:, 0]))
    assert len(data.load("line", test_fraction=0.2).train[0]) == 8
