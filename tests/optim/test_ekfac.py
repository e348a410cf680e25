"""EKFAC against explicit matrices: second moments in eigenbases, steps, nearness to the Fisher."""

import copy

import kfac_oracle as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kfac_exactness import PROBLEMS
from torch import nn

import cases
from kobai.curvature.blocks.interface import past_weight
from kobai.optim import EKFAC, KFAC
from kobai.optim.kfac.plan import plan_blocks
from tolerances import assert_close

NAMES = ["mlp", "cnn", "convolutional", "tokens", "segmentation", "tied", "lstm", "transformer"]


def made(name):
    return PROBLEMS.get(name, lambda: cases.problem(name))()


def settled(name, steps=1, **settings):
    """A problem, an optimizer that knows its bases there, and the dense Fisher matrix."""
    problem = made(name)
    optimizer = EKFAC(
        problem.model, problem.likelihood, lr=1e-12, damping=0.05, momentum=0.0, labels="exact",
        output_damping=0.0, kl_bound=None, statistics_every=1, **settings,
    )  # fmt: skip
    for _ in range(steps):
        optimizer.step(problem.objective())
    return problem, optimizer, oracle.dense_fisher(made(name).objective())


def bases(problem, optimizer):
    """Eigenbases (Q_B, Q_A) by position in the plan; of tables (Q_B, None)."""
    found = {}
    for position, layer in enumerate(plan_blocks(problem.model).layers):
        entry = oracle.saved(optimizer)[layer.parameters[0]]
        if layer.form.lookup:
            found[position] = entry["table_basis"][0].clone(), None
        else:
            found[position] = entry["output_basis"].clone(), entry["input_basis"].clone()
    return found


def observed(problem, optimizer, bases):
    """The sums of one exact pass, with second moments in these bases, and the plan's layers.

    The optimizer is closed: what backward passes for one observer bring is not another's.
    """
    optimizer.close()
    observer = oracle.observer(
        problem.model, problem.likelihood, labels="exact", output_damping=0.0, structure="ekfac",
        bases=bases,
    )  # fmt: skip
    problem.objective()()
    sums = observer.take().sums
    observer.close()
    return sums, enumerate(observer.statistics.plan.layers)


def places(problem, layer):
    """Coordinates of a layer's matrices, (G, MK)."""
    indices = {b.name: b.indices for b in problem.space.blocks("parameter")}
    own = dict(problem.model.named_parameters())
    tensors = [indices[name].view(own[name].shape) for name in layer.parameters]
    if layer.bias is None and layer.form.bias:
        return tensors[0].view(1, -1)
    matrix = layer.form.matrix(tensors[0], tensors[1] if layer.bias is not None else None)
    return matrix.flatten(1)


@pytest.mark.parametrize("name", NAMES)
def test_second_moments_are_the_diagonal_of_the_exact_block_in_the_basis(name):
    problem, optimizer, fisher = settled(name)
    known = bases(problem, optimizer)
    sums, layers = observed(problem, optimizer, known)
    for position, layer in layers:
        outer, inner = known[position]
        squares = sums.squares[position] / sums.weight
        if inner is None:
            index = places(problem, layer)[0].view(layer.form.outputs, -1).T.flatten()
            turn = torch.kron(torch.eye(layer.form.inputs).double(), outer)
            expected = (turn.T @ fisher[index[:, None], index] @ turn).diagonal()
            assert_close(squares.flatten(), expected, 1e-8)
            continue
        for g, index in enumerate(places(problem, layer)):
            turn = torch.kron(outer[g], inner[g])
            expected = (turn.T @ fisher[index[:, None], index] @ turn).diagonal()
            assert_close(squares[g], expected.view(layer.form.outputs, -1), 1e-8)
    assert sums.squares


@pytest.mark.parametrize("name", ["mlp", "convolutional", "transformer"])
def test_steps_equal_those_of_explicit_matrices(name):
    """(F̂ + λ)⁻¹g with F̂ = Q diag(s) Qᵀ; s: Kronecker eigenvalues, then one exact observation."""
    # Bases are renewed in the first five steps and not in the sixth.
    problem, optimizer, fisher = settled(name, steps=5)
    known, before = bases(problem, optimizer), problem.space.theta()
    saved = oracle.saved(optimizer)
    layers = plan_blocks(problem.model).layers
    products = [saved[layer.parameters[0]]["squares"].clone() for layer in layers]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    inversions = optimizer.diagnostics()["inversions"]
    optimizer.step(problem.objective())
    assert optimizer.diagnostics()["inversions"] == inversions
    gradient = problem.space.flatten({n: p.grad for n, p in problem.model.named_parameters()})
    step = (before - problem.space.theta()) / 0.1
    past = past_weight(2)
    for position, layer in enumerate(layers):
        outer, inner = known[position]
        if inner is None:
            continue
        for g, index in enumerate(places(problem, layer)):
            turn = torch.kron(outer[g], inner[g])
            exact = (turn.T @ fisher[index[:, None], index] @ turn).diagonal()
            s = past * products[position][g].flatten() + (1 - past) * exact
            matrix = turn @ torch.diag(s + 0.05) @ turn.T
            assert_close(step[index], torch.linalg.solve(matrix, gradient[index]), 1e-7)


@pytest.mark.parametrize("name", ["mlp", "cnn", "binary", "segmentation", "lstm"])
def test_it_is_nearer_to_the_exact_blocks_than_kfac(name):
    """Frobenius distance to the layer-block Fisher, layer by layer; and it is another matrix."""
    problem, optimizer, fisher = settled(name)
    known = bases(problem, optimizer)
    sums, layers = observed(problem, optimizer, known)
    nearer = 0
    for position, layer in layers:
        outer, inner = known[position]
        a, b = sums.moments[position].factors(sums.weight)
        for g, index in enumerate(places(problem, layer)):
            block = fisher[index[:, None], index]
            turn = torch.kron(outer[g], inner[g])
            squares = sums.squares[position][g].flatten() / sums.weight
            corrected = turn @ torch.diag(squares) @ turn.T
            plain = torch.kron(b[g], a[g])
            mine, theirs = (corrected - block).norm(), (plain - block).norm()
            # Both are exact where there is no approximation to make (the last layer's bias).
            assert float(mine) <= float(theirs) + 1e-10 * float(block.norm())
            nearer += float(mine) < 0.99 * float(theirs)
    assert nearer


def test_it_is_kfac_with_the_structure_to_the_bit():
    ends = []
    for optimizer_of in (EKFAC, lambda *a, **k: KFAC(*a, structure="ekfac", **k)):
        problem = made("mlp")
        optimizer = optimizer_of(problem.model, problem.likelihood)
        for _ in range(6):
            optimizer.step(problem.objective())
        ends.append((problem.space.theta(), oracle.saved(optimizer), optimizer.diagnostics()))
    (one, state, told), (other, twin, found) = ends
    assert torch.equal(one, other)
    assert told == found
    for name, entry in state.items():
        torch.testing.assert_close(entry, twin[name], rtol=0, atol=0)


def test_state_resumes_to_the_bit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        x, y = torch.randn(8, 5).double(), torch.randint(0, 3, (8,))

    def loop(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    optimizer = EKFAC(net, lr=0.03, damping=0.03)
    loop(net, optimizer, 4)
    twin = copy.deepcopy(net)
    other = EKFAC(twin, lr=0.03, damping=0.03)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(loop(net, optimizer, 5), loop(twin, other, 5))
    with pytest.raises(ValueError, match="not saved by KFAC"):
        KFAC(net, lr=0.03, damping=0.03).load_state_dict(optimizer.state_dict())


@given(
    scale=st.floats(-8, 8),
    kind=st.sampled_from(["normal", "zero", "constant", "one-hot"]),
    rows=st.integers(1, 5),
    damping=st.floats(-10, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_degenerate_data_never_break_it(scale, kind, rows, damping, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3))
        model = model.to(dtype)
        x = torch.randn(rows, 4, dtype=dtype)
    if kind != "normal":
        x = {"zero": 0 * x, "constant": 0 * x + 1, "one-hot": torch.eye(5, 4, dtype=dtype)[:rows]}[
            kind
        ]
    x, y = x * 10**scale, torch.zeros(rows, dtype=torch.int64)
    optimizer = EKFAC(model, lr=0.03, damping=10**damping, kl_bound=0.03)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert optimizer.diagnostics()["inversions_failed"] == 0


def test_the_table_names_its_blocks():
    optimizer = EKFAC(made("transformer").model, lr=0.1, damping=0.1)
    text = repr(optimizer)
    assert text.startswith("EKFAC(")
    assert "ekfac 3 × 4×4 ⊗ 5×5" in " ".join(text.split())
    assert "multiplications to refresh" in text
