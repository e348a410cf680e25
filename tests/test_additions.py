"""Additions as a user makes them, from outside and in one place, held against the laws."""

import numpy as np
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
from kobai.landscape import Directions, evaluate_plane
from kobai.layers.table import KINDS
from kobai.linalg.operators.leaves import Diagonal
from kobai.linalg.operators.solvable import SolvableOperator
from kobai.optim import KFAC, NaturalGradient, OptimizerEntry, SGDConfig, build, default_space
from kobai.training import TrainingOptions, train
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


class SignDescent(torch.optim.Optimizer):
    """Steps of one length along the signs of the gradient."""

    def __init__(self, parameters, lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign())
        return loss


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
    known = Fisher(network("gaussian").objective(), structure)
    assert {line.reason for line in known.coverage()} == {"Transposed"}
    assert_close(known.dense().diagonal(), dense.diagonal())
    if unknown is not None:
        assert_close(known.dense(), unknown)


def test_a_layer_kind_has_kronecker_blocks_like_the_layer_it_stands_for():
    register_layer(Transposed, weight="kernel", bias=None, transposed=True)
    problem = network("gaussian")
    stock = nn.Sequential(
        nn.utils.skip_init(nn.Linear, 3, 4, bias=False, dtype=torch.float64),
        nn.Tanh(),
        nn.utils.skip_init(nn.Linear, 4, 2, bias=False, dtype=torch.float64),
    )
    with torch.no_grad():
        for own, other in zip(stock.parameters(), problem.model.parameters(), strict=True):
            own.copy_(other.T)
    batch = problem.train.first(20)
    objective = Problem(stock, "gaussian", train=(batch.inputs, batch.targets)).objective()
    found = Fisher(problem.objective(), "kronecker").dense()
    # The same matrix up to the order of a transposed weight's entries.
    order = torch.cat([torch.arange(12).view(4, 3).T.reshape(-1),
                       12 + torch.arange(8).view(2, 4).T.reshape(-1)])  # fmt: skip
    assert_close(found, Fisher(objective, "kronecker").dense()[order][:, order])
    assert {line.block for line in KFAC(problem.model, "gaussian").coverage()} == {"kronecker"}


def test_an_optimizer_is_an_entry_passed_where_names_are_taken(generator):
    entry = OptimizerEntry(
        name="signs",
        config=SGDConfig,
        make=lambda model, likelihood, config, draws: SignDescent(model.parameters(), config.lr),
        space={"lr": (1e-3, 1.0, "log")},
        label="Signs",
        color="#123456",
    )
    problem = network("gaussian")
    optimizer = build(entry, problem.model, "gaussian", SGDConfig(lr=0.01))
    options = TrainingOptions(epochs=3, batch_size=5)
    history = train(problem, optimizer, options, generator=generator)
    assert history.train_loss[-1] < history.train_loss[0]
    assert str(default_space(entry)["lr"]) == "log(0.001, 1.0)"
    with pytest.raises(ValueError, match="unknown optimizer 'signs'"):
        build("signs", problem.model)


def test_a_direction_is_an_object(generator):
    objective = cases.objective("mlp")
    theta = objective.theta()
    vectors = torch.randn(len(theta), 2, generator=generator, dtype=theta.dtype)
    directions = Directions(origin=theta, vectors=vectors, names=("one", "other"), kind="given")
    plane = evaluate_plane(objective, directions, a=np.array([0.0, 0.5]), b=np.array([0.0, 1.0]))
    moved = theta + 0.5 * vectors[:, 0] + vectors[:, 1]
    assert float(plane.fields["loss"][1, 1]) == pytest.approx(
        float(objective.value(moved)), rel=1e-9
    )


def test_a_data_set_is_loaded_by_its_name():
    x = torch.arange(10.0)[:, None]
    data.register_data("line", lambda: (x, x[:, 0]))
    assert len(data.load("line", test_fraction=0.2).train[0]) == 8
