"""The laws of operators on every matrix, structure and case; dense oracles are in other files.

The quick run has some cases with exact labels; --slow has them all.
"""

import pytest
import torch

import cases
from kobai.curvature import GGN, STRUCTURES, Fisher, Hessian, Jacobian
from laws.operators import check_dense, check_operator, check_solvable

QUICK = ("cnn", "norms")
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in cases.CASES
]


def _fisher(name: str, structure: str, labels: str) -> Fisher:
    generator = torch.Generator().manual_seed(0) if labels == "sampled" else None
    return Fisher(cases.objective(name), structure, labels=labels, generator=generator)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("matrix", [Hessian, GGN, Jacobian])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_of_the_data_give_the_same_matrix(name, matrix, generator):
    whole = matrix(cases.objective(name))
    if matrix is Jacobian:
        vectors = torch.randn(whole.shape[1], 2, generator=generator, dtype=torch.float64)
        chunked = matrix(cases.objective(name, chunk=2)) @ vectors
        assert float((chunked - whole @ vectors).abs().max()) <= 1e-9
        return
    for keep in (True, False):
        operator = matrix(cases.objective(name, chunk=2), keep=keep)
        check_dense(operator, whole.dense(), generator=generator, tolerance=1e-9)


@pytest.mark.parametrize("matrix", [Hessian, GGN, Jacobian])
@pytest.mark.parametrize("name", NAMES)
def test_laws_of_matrix_free_matrices(name, matrix, generator):
    check_operator(matrix(cases.objective(name)), generator=generator, tolerance=1e-8)


PAIRS = [
    pytest.param(
        name,
        structure,
        labels,
        marks=[] if labels == "exact" and name in QUICK else [pytest.mark.slow],
    )
    for name in cases.CASES
    for structure in STRUCTURES
    for labels in ("exact", "sampled", "observed")
]


@pytest.mark.parametrize(("name", "structure", "labels"), PAIRS)
def test_laws_of_structures(name, structure, labels, generator):
    operator = _fisher(name, structure, labels)
    check_operator(operator, generator=generator, tolerance=1e-8)
    if operator.positive_semidefinite:
        check_solvable(operator, generator=generator, tolerance=1e-7)
