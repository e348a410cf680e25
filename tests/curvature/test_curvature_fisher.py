"""Every kind × structure × case against matrices written out from plain Jacobians."""

import functools
import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from test_curvature_matrices import dense_ggn, jacobian
from torch import nn

import cases
from kobai.curvature import GGN, Fisher, Hessian
from kobai.curvature.fisher import STRUCTURES
from kobai.curvature.structures import KroneckerStructure, layers_of
from kobai.problem import pure
from laws.operators import check_operator, check_solvable
from tolerances import assert_close

KINDS = ["exact", "sampled", "observed"]
# The quick run has every case with exact labels and the other kinds on some; --slow has them all.
SOME = {"mlp", "transformer"}
PAIRS = [
    pytest.param(name, kind, marks=[] if kind == "exact" or name in SOME else [pytest.mark.slow])
    for name in cases.CASES
    for kind in KINDS
]
BLOCKED = {"layer": "layer", "unit": "unit"}


def assert_number(actual, expected, tolerance=1e-10):
    assert_close(
        torch.tensor(float(actual), dtype=torch.float64),
        torch.tensor(float(expected), dtype=torch.float64),
        tolerance,
    )


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(3)


def fisher(name, structure, labels="exact", chunk=4):
    objective = cases.objective(name, chunk=chunk)
    generator = seeded() if labels == "sampled" else None
    return Fisher(objective, structure, labels, samples=2, generator=generator)


@functools.cache
def score_rows(name, labels):
    """All gradient rows by one reverse pass an entry: the independent route."""
    operator = fisher(name, "full", labels)
    objective, theta = operator.objective, operator.theta
    likelihood, rows = objective.likelihood, []
    cotangents = operator.source.scores.start()
    for batch in objective.batches:
        with pure(objective.model):
            matrix = jacobian(lambda t, b=batch: objective.forward(t, b).flatten(1))(theta)
            with torch.no_grad():
                outputs = objective.forward(theta, batch)
        if labels == "observed":

            def nll(t, b=batch):
                return likelihood.nll(objective.forward(t, b), b.targets)

            with pure(objective.model):
                rows.append(jacobian(nll)(theta) / likelihood.scale**0.5)
            continue
        own = cotangents(outputs, batch.targets).flatten(2)
        rows.append(torch.einsum("qno,nop->nqp", own, matrix).flatten(0, 1))
    return torch.cat(rows) / objective.weight**0.5


@functools.cache
def dense(name, labels):
    if labels == "exact":
        objective = cases.objective(name, chunk=4)
        return dense_ggn(objective, objective.theta())
    rows = score_rows(name, labels)
    return rows.T @ rows


def layer_spans(space):
    return [block.indices for block in space.blocks("layer")]


def masked(matrix, spans, reach):
    """Zero the blocks of layers further apart than `reach`."""
    layer = torch.empty(len(matrix), dtype=torch.long)
    for i, span in enumerate(spans):
        layer[span] = i
    return matrix * ((layer[:, None] - layer[None, :]).abs() <= reach)


def chain_by_blocks(matrix, spans):
    """F_ij for |i − j| > 1 from neighbours, by pseudo-inverses of parameter blocks."""
    result = masked(matrix, spans, 1)
    for distance in range(2, len(spans)):
        for i in range(len(spans) - distance):
            j, k = i + distance, i + distance - 1
            middle = torch.linalg.pinv(matrix[spans[k]][:, spans[k]], hermitian=True, rtol=1e-11)
            block = result[spans[i]][:, spans[k]] @ middle @ matrix[spans[k]][:, spans[j]]
            result[spans[i][:, None], spans[j]] = block
            result[spans[j][:, None], spans[i]] = block.T
    return result


@pytest.mark.parametrize(("name", "labels"), PAIRS)
def test_full_equals_dense(name, labels):
    assert_close(fisher(name, "full", labels).dense(), dense(name, labels))


@pytest.mark.parametrize("structure", ["layer", "unit", "diagonal", "tridiagonal", "chain"])
@pytest.mark.parametrize(("name", "labels"), PAIRS)
def test_structures_equal_blocks_of_the_dense_matrix(name, structure, labels):
    operator = fisher(name, structure, labels)
    space, matrix = operator.objective.space, dense(name, labels)
    if structure == "diagonal":
        expected = torch.diag(matrix.diagonal())
    elif structure in BLOCKED:
        expected = torch.zeros_like(matrix)
        for block in space.blocks(BLOCKED[structure]):
            place = (block.indices[:, None], block.indices)
            expected[place] = matrix[place]
    elif structure == "tridiagonal":
        expected = masked(matrix, layer_spans(space), 1)
    else:
        expected = chain_by_blocks(matrix, layer_spans(space))
    assert_close(operator.dense(), expected, 1e-7 if structure == "chain" else 1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("name", "labels"), PAIRS)
def test_laws_of_an_operator_that_solves(name, structure, labels):
    operator = fisher(name, structure, labels)
    size = operator.shape[0]
    matrix = operator.dense()
    assert_close(matrix, matrix.T)
    assert_close(operator.diagonal(), matrix.diagonal())
    assert_number(operator.trace(), matrix.trace())
    vectors = torch.linspace(-1, 1, 2 * size, dtype=torch.float64).cos().view(size, 2)
    assert_close(operator @ vectors[:, 0], matrix @ vectors[:, 0])
    shifted = matrix + 0.1 * eye(size)
    assert_close(operator.solve(vectors, damping=0.1), torch.linalg.solve(shifted, vectors), 1e-8)
    assert operator.inverse(0.1).status == "ok"
    sign, logdet = torch.linalg.slogdet(shifted)
    definite = bool(torch.linalg.eigvalsh(shifted)[0] > 0)
    found = operator.logdet(0.1)
    if definite:
        assert float(sign) == 1.0
        assert_number(found, logdet, 1e-8)
    else:
        assert structure == "tridiagonal"
        assert math.isnan(found)
    covered = sorted(n for line in operator.coverage() for n in line.parameters)
    assert covered == sorted(operator.objective.space.names)
    if operator.positive_semidefinite:
        values = torch.linalg.eigvalsh(matrix)
        assert float(values[0]) >= -1e-10 * float(values[-1])
        root = operator.power(-0.5, 0.1)
        assert_close(root @ (root @ vectors), torch.linalg.solve(shifted, vectors), 1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_common_laws_of_operators(name, structure, generator):
    operator = fisher(name, structure)
    check_operator(operator, generator=generator, tolerance=1e-9)
    if operator.positive_semidefinite:
        check_solvable(operator, generator=generator, tolerance=1e-8)


@pytest.mark.parametrize("matrix", [GGN, Hessian])
def test_common_laws_of_matrix_free_products(matrix, generator):
    check_operator(matrix(cases.objective("mlp")), generator=generator, tolerance=1e-9)


def captured_moments(objective, sharing):
    """K-FAC's factors of Linear and Conv2d layers by hooks on the tensors themselves."""
    model, theta = objective.model, objective.theta()
    sums: dict = {}
    for batch in objective.batches:
        seen = {}

        def hook(module, inputs, output, seen=seen):
            seen.setdefault(module, []).append((inputs[0].detach(), output))
            return output.clone()

        handles = [
            m.register_forward_hook(hook)
            for m in model.modules()
            if isinstance(m, nn.Linear | nn.Conv2d)
        ]
        leaf = theta.clone().requires_grad_()
        with pure(model):
            outputs = objective.forward(leaf, batch)
        for handle in handles:
            handle.remove()
        units = torch.eye(outputs[0].numel(), dtype=theta.dtype)
        for module, calls in seen.items():
            rows = []
            for x, _ in calls:
                if isinstance(module, nn.Conv2d):
                    x = F.unfold(
                        x, module.kernel_size, module.dilation,
                        0 if module.padding == "valid" else
                        tuple(k // 2 for k in module.kernel_size)
                        if module.padding == "same" else module.padding,
                        module.stride,
                    ).transpose(1, 2)  # fmt: skip
                x = x.reshape(len(batch.targets), -1, x.shape[-1])
                rows.append(torch.cat([x, torch.ones_like(x[..., :1])], 2))
            a = torch.cat(rows, 1)
            own = sums.setdefault(module, [0.0, 0.0, 0])
            places = a.mean(1) if sharing == "reduce" else a.flatten(0, 1)
            own[0] += places.T @ places
            own[2] += len(places)
            for unit in units:
                s = objective.likelihood.factor_product(
                    outputs.detach(), batch.targets,
                    unit.view(1, *outputs.shape[1:]).expand_as(outputs),
                )  # fmt: skip
                grads = torch.autograd.grad(outputs, [y for _, y in calls], s, retain_graph=True)
                gs = []
                for g in grads:
                    g = g.movedim(1, -1) if isinstance(module, nn.Conv2d) else g
                    gs.append(g.reshape(len(batch.targets), -1, g.shape[-1]))
                g = torch.cat(gs, 1)
                g = g.sum(1) if sharing == "reduce" else g.flatten(0, 1)
                own[1] += g.T @ g
    return {m: (a / n, b / objective.weight) for m, (a, b, n) in sums.items()}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(
    "name", ["mlp", "inplace", "binary", "mean-squared", "cnn", "segmentation", "keywords"]
)
def test_kronecker_blocks_from_hooks(name, sharing):
    objective = cases.objective(name, chunk=4)
    operator = Fisher(objective, KroneckerStructure(sharing))
    matrix = operator.dense()
    names = {m: n for n, m in objective.model.named_modules()}
    moments = captured_moments(objective, sharing)
    for part in operator.source.parts:
        (path, module) = part.modules[0]
        a, b = moments[module]
        assert names[module] == path
        if not part.bias:
            a = a[:-1, :-1]
        block = matrix[part.indices[:, None], part.indices]
        assert_close(block, torch.kron(b, a))


@pytest.mark.parametrize("form", ["pi", "each"])
def test_factored_damping_of_kronecker_blocks(form):
    objective = cases.objective("mlp")
    operator = Fisher(objective, "kronecker")
    moments = captured_moments(objective, "expand")
    vector = torch.linspace(0, 3, operator.shape[0], dtype=torch.float64).sin()
    solved = operator.solve(vector, damping=0.05, damping_form=form)
    for part in operator.source.parts:
        a, b = moments[part.modules[0][1]]
        left = right = 0.05
        if form == "pi":
            pi = float((a.trace() / len(a) / (b.trace() / len(b))).sqrt())
            left, right = 0.05**0.5 * pi, 0.05**0.5 / pi
        damped = torch.kron(b + right * eye(len(b)), a + left * eye(len(a)))
        assert_close(solved[part.indices], torch.linalg.solve(damped, vector[part.indices]), 1e-9)


@pytest.mark.parametrize("name", ["mlp", "regression", "cnn", "segmentation", "transformer"])
@pytest.mark.parametrize("labels", KINDS)
def test_ekfac_is_closer_than_kfac_to_the_layer_blocks(name, labels):
    target = fisher(name, "layer", labels).dense()
    kfac = fisher(name, "kronecker", labels)
    ekfac = fisher(name, "ekfac", labels)
    error = torch.linalg.norm(kfac.dense() - target)
    assert float(torch.linalg.norm(ekfac.dense() - target)) < float(error)
    vector = torch.ones(kfac.shape[0], dtype=torch.float64)
    assert float((kfac.solve(vector, 0.1) - ekfac.solve(vector, 0.1)).abs().max()) > 1e-3


def test_ekfac_is_the_best_diagonal_in_its_basis():
    operator = fisher("mlp", "ekfac")
    matrix = dense("mlp", "exact")
    for block, index in zip(operator.operator.blocks, operator.operator.indices, strict=True):
        basis = torch.kron(block.left, block.right)
        own = matrix[index[:, None], index]
        assert_close(block.values.flatten(), (basis.T @ own @ basis).diagonal())


@pytest.mark.parametrize("structure", ["layer", "kronecker", "ekfac"])
def test_a_single_datum_is_exact(structure):
    """One example: the input factor has rank one, so A ⊗ B is the block itself."""
    matrix = dense("single", "exact")
    operator = fisher("single", structure)
    layers = layers_of(operator.source)
    for layer in layers:
        index = torch.cat([operator.source.parts[i].indices for i in layer.positions])
        place = (index[:, None], index)
        assert_close(operator.dense()[place], matrix[place])


def test_kfac_is_exact_in_deep_linear_networks():
    matrix = fisher("deep-linear", "layer").dense()
    assert_close(fisher("deep-linear", "kronecker").dense(), matrix)
    assert_close(fisher("deep-linear", "ekfac").dense(), matrix)


class SharedLinear(nn.Module):
    """A linear map of every token; the loss sees all tokens, or their mean."""

    def __init__(self, mean):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.mean = mean

    def forward(self, x):
        y = self.second(self.first(x))
        return y.mean(1) if self.mean else y


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_weight_sharing_is_exact_in_its_linear_setting(sharing):
    from kobai import Problem

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = SharedLinear(sharing == "reduce").double()
        x = torch.randn(6, 5, 3).double()
        y = torch.randn(6, 2).double() if net.mean else torch.randn(6, 5, 2).double()
    objective = Problem(net, "gaussian", train=(x, y)).objective()
    exact = Fisher(objective, "layer").dense()
    assert_close(Fisher(objective, KroneckerStructure(sharing)).dense(), exact)
    other = KroneckerStructure("reduce" if sharing == "expand" else "expand")
    assert float((Fisher(objective, other).dense() - exact).abs().max()) > 1e-2


@pytest.mark.parametrize("labels", KINDS)
def test_sampled_labels_are_fixed_and_linear(labels):
    operator = fisher("mlp", "full", labels)
    vector = torch.ones(operator.shape[0], dtype=torch.float64)
    assert torch.equal(operator @ vector, operator @ vector)
    assert_close(operator @ (2.0 * vector), 2.0 * (operator @ vector), 1e-14)


def test_sampled_fisher_tends_to_the_exact_one():
    objective = cases.objective("mlp", chunk=9)
    many = Fisher(objective, "full", "sampled", samples=4000, generator=seeded())
    # A mean over 4,000 draws with a spread of about their size: 0.05 is three standard errors.
    assert_close(many.dense(), Fisher(objective).dense(), 0.05)


def test_exact_labels_are_gauss_newton():
    objective = cases.objective("cnn")
    assert_close(Fisher(objective).dense(), GGN(objective).dense(), 1e-14)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_cost_and_coverage_are_stated_before_anything_is_built(structure):
    operator = fisher("cnn", structure)
    text = str(operator.coverage())
    assert operator._operator is None
    assert "0.weight" in text
    assert "why" in text
    assert operator.cost.memory > 0
    assert operator.cost.passes == 3
    assert "backward passes" in str(operator.cost)


def test_wrong_use_is_refused():
    objective = cases.objective("mlp")
    # The type checker of the test run may speak first.
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="structure"):
        Fisher(objective, "kfac")
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="labels"):
        Fisher(objective, labels="empirical")
    with pytest.raises(ValueError, match="generator"):
        Fisher(objective, labels="sampled")
    with pytest.raises(ValueError, match="at least 1"):
        Fisher(objective, labels="sampled", samples=0, generator=seeded())
    with pytest.raises(ValueError, match="theta must have shape"):
        Fisher(objective, theta=torch.zeros(3, dtype=torch.float64))


def test_undamped_solves_say_that_they_were_jittered():
    operator = fisher("cnn", "layer")
    assert operator.inverse(0.0).status == "jittered"
    assert fisher("cnn", "tridiagonal").inverse(0.0).status == "singular"
