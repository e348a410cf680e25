"""Gradient rows from captured layers: every layer kind, and what happens where capture is wrong."""

import pytest
import torch
import torch.nn.functional as F
from test_curvature_matrices import dense_ggn, dense_jacobian
from torch import nn

import cases
from kobai import Problem
from kobai.curvature import GGN, Fisher, dual_eigenvalues, layer_grams
from kobai.curvature.fisher import STRUCTURES
from kobai.curvature.rows import OuterRows, network
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.scores import Scores
from kobai.layers import slots
from kobai.models import NTKLinear
from kobai.models.normalization import BatchNorm
from kobai.optim import KFAC
from tolerances import assert_close


def build(make, shape, outputs=None, likelihood="gaussian", n=5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        for p in model.parameters():
            if p.ndim < 2:
                nn.init.normal_(p)
        x = torch.randn(n, *shape).double() if shape is not None else torch.randint(0, 6, (n, 4))
        with torch.no_grad():
            y = torch.randn_like(model(x))
    return Problem(model, likelihood, train=(x, y)).objective(chunk=3)


def kinds(operator):
    return {n: part.kind for part in operator.source.parts for n in part.parameters}


def assert_blocks_exact(objective):
    """Layer and diagonal structures against the dense Gauss-Newton matrix."""
    matrix = dense_ggn(objective, objective.theta())
    expected = torch.zeros_like(matrix)
    for block in objective.space.blocks("layer"):
        place = (block.indices[:, None], block.indices)
        expected[place] = matrix[place]
    assert_close(Fisher(objective, "layer").dense(), expected)
    assert_close(Fisher(objective, "diagonal").diagonal(), matrix.diagonal())


def flat(*layers):
    return lambda: nn.Sequential(*[make() for make in layers], nn.Flatten())


CONVOLUTIONS = {
    "1d": (flat(lambda: nn.Conv1d(2, 3, 3, stride=2, dilation=2)), (2, 9)),
    "groups": (flat(lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1)), (4, 3, 3)),
    "depthwise": (flat(lambda: nn.Conv2d(3, 3, 2, groups=3)), (3, 3, 4)),
    "dilation": (flat(lambda: nn.Conv2d(2, 2, 2, dilation=2, bias=False)), (2, 4, 4)),
    "same": (flat(lambda: nn.Conv2d(1, 2, 4, padding="same")), (1, 3, 4)),
    "same-dilated": (flat(lambda: nn.Conv2d(1, 2, (2, 3), padding="same", dilation=2)), (1, 4, 3)),
    "circular": (flat(lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")), (2, 3, 3)),
    "reflect": (flat(lambda: nn.Conv1d(1, 2, 3, padding=2, padding_mode="reflect")), (1, 5)),
    "3d": (flat(lambda: nn.Conv3d(1, 2, (1, 2, 2), stride=(1, 1, 2))), (1, 2, 3, 3)),
    "transposed": (flat(lambda: nn.ConvTranspose2d(2, 3, 2)), (2, 2, 2)),
    "transposed-1d": (flat(lambda: nn.ConvTranspose1d(2, 3, 3, padding=2, bias=False)), (2, 5)),
    "transposed-strided": (
        flat(lambda: nn.ConvTranspose2d(4, 2, (3, 2), (2, 3), 1, (1, 2), 2, dilation=(1, 2))),
        (4, 2, 2),
    ),
    "transposed-3d": (
        flat(lambda: nn.ConvTranspose3d(2, 2, (1, 2, 2), stride=(2, 1, 2), groups=2)),
        (2, 2, 1, 2),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_captured_and_exact(name):
    make, shape = CONVOLUTIONS[name]
    objective = build(make, shape)
    assert set(kinds(Fisher(objective)).values()) == {"matrix"}
    assert_blocks_exact(objective)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_kfac_sees_the_patches_of_a_dilated_grouped_convolution(groups, dilation):
    objective = build(
        flat(lambda: nn.Conv2d(4, 2, 2, groups=groups, dilation=dilation, bias=False)), (4, 4, 4)
    )
    operator = Fisher(objective, "kronecker").operator
    x = torch.cat([batch.inputs for batch in objective.batches])
    patches = F.unfold(x, 2, dilation).transpose(1, 2).reshape(-1, groups, 16 // groups)
    assert len(operator.blocks) == groups
    for group, block in enumerate(operator.blocks):
        own = patches[:, group]
        assert_close(block.right, own.T @ own / len(own))
        places = patches.shape[0] / len(x)
        assert_close(block.left, places * torch.eye(2 // groups, dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm2d(2),
        lambda: nn.GroupNorm(2, 2),
        lambda: nn.InstanceNorm2d(2, affine=True),
        lambda: nn.LayerNorm((3, 3)),
        lambda: nn.LayerNorm(3, bias=False),
        lambda: nn.RMSNorm(3),
        lambda: BatchNorm(2),
    ],
)
def test_scale_and_shift_layers_are_captured_and_exact(make):
    objective = build(flat(make), (2, 3, 3))
    operator = Fisher(objective, "kronecker")
    assert set(kinds(operator).values()) == {"scale"}
    assert {line.block for line in operator.coverage()} == {"unit"}
    assert_blocks_exact(objective)
    gradient = torch.ones(operator.shape[0], dtype=torch.float64)
    # Not passed through untouched.
    assert float((operator.solve(gradient, 1.0) - gradient).abs().max()) > 1e-3


class Language(nn.Module):
    """Embedding with padding and a head that may share its table."""

    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(6, 3, padding_idx=1)
        self.head = nn.Linear(3, 6)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)).mean(1))


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings(tied):
    objective = build(lambda: Language(tied), None)
    operator = Fisher(objective, "kronecker")
    assert kinds(operator)["embed.weight"] == ("jacobian" if tied else "embedding")
    assert_blocks_exact(objective)
    trace = float(dense_ggn(objective, objective.theta()).trace())
    assert abs(Fisher(objective, "ekfac").trace() / trace - 1) < 1e-12
    if not tied:
        tokens = torch.cat([batch.inputs for batch in objective.batches])
        counts = torch.bincount(tokens.flatten(), minlength=6).double() / tokens.numel()
        matrix = operator.dense()[:18, :18].view(6, 3, 6, 3)
        for i in range(6):
            assert_close(matrix[i, :, i] * counts[0], matrix[0, :, 0] * counts[i])


class SequenceFirst(nn.Module):
    """A linear layer that sees tokens before examples: its rows cannot be told by their place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x.transpose(0, 1))).sum(0)


class Functional(nn.Module):
    """A weight that is also used without its module."""

    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 3), nn.Linear(2, 2)

    def forward(self, x):
        return F.linear(torch.tanh(self.layer(x)), self.layer.weight)


class Named(nn.Module):
    """A layer called by keyword."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(input=x)


def test_rows_of_layers_that_mix_up_examples_take_the_jacobian_route():
    objective = build(SequenceFirst, (4, 3))
    assert set(kinds(Fisher(objective)).values()) == {"jacobian"}
    assert_blocks_exact(objective)


def test_weights_used_behind_the_modules_back_take_the_jacobian_route():
    objective = build(Functional, (3,))
    found = kinds(Fisher(objective))
    assert found["layer.weight"] == "jacobian"
    assert found["layer.bias"] == "bias"
    assert_blocks_exact(objective)
    reasons = {line.parameters: line.reason for line in Fisher(objective, "kronecker").coverage()}
    assert "not by calls alone" in reasons[("layer.weight",)]


def test_layers_called_by_keyword_and_unused_parameters():
    assert_blocks_exact(build(Named, (3,)))
    objective = build(Functional, (3,))
    for structure in STRUCTURES:
        operator = Fisher(objective, structure)
        names = sorted(n for line in operator.coverage() for n in line.parameters)
        assert names == sorted(objective.space.names)
        index = torch.arange(12, 18)
        assert float(operator.dense()[index].abs().max()) == 0.0


def test_attention_has_its_projections_factored():
    lines = Fisher(cases.objective("transformer"), "kronecker").coverage()
    found = {n: (line.block, line.size, line.reason) for line in lines for n in line.parameters}
    pair = "kronecker", "3 of 4×4 ⊗ 5×5", "MultiheadAttention in_proj"
    assert found["layer.self_attn.in_proj_weight"] == pair
    assert found["layer.self_attn.out_proj.bias"][2] == "MultiheadAttention out_proj"


def test_tied_weights_have_the_right_trace_in_every_exact_structure():
    objective = cases.objective("tied")
    trace = float(dense_ggn(objective, objective.theta()).trace())
    for structure in ("full", "layer", "tridiagonal", "chain", "unit", "ekfac", "diagonal"):
        assert abs(Fisher(objective, structure).trace() / trace - 1) < 1e-12
    shared = Fisher(objective, "kronecker").coverage()[0]
    assert "shared by first, head" in shared.reason


def test_coupled_batch_normalisation():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), BatchNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
        data = (torch.randn(6, 3).double(), torch.randn(6, 2).double())
    objective = Problem(net, "gaussian", train=data).objective(coupled=True)
    matrix = GGN(objective).dense()
    assert_close(Fisher(objective, "full").dense(), matrix)
    for block in objective.space.blocks("layer"):
        place = (block.indices[:, None], block.indices)
        assert_close(Fisher(objective, "layer").dense()[place], matrix[place])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_chunks_add_up_to_the_whole(name, structure):
    whole = Fisher(cases.objective(name, chunk=9), structure).dense()
    assert_close(Fisher(cases.objective(name, chunk=2), structure).dense(), whole, 1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_dtype_follows_the_module(structure):
    problem = cases.problem("mlp")
    double = Fisher(problem.objective(), structure)
    vector = torch.ones(double.shape[0], dtype=torch.float64)
    expected = double.solve(vector, 0.1)
    problem.model.float()
    batch = next(iter(problem.objective().batches)).to(dtype=torch.float32)
    single = Fisher(problem.objective(batch), structure)
    assert single.dtype == torch.float32
    found = single.solve(vector.float(), 0.1)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, 1e-4)


@pytest.mark.parametrize("name", cases.CASES)
def test_layer_grams_equal_dense_jacobians(name):
    objective = cases.objective(name, chunk=4)
    matrix = dense_jacobian(objective, objective.theta())
    grams = layer_grams(objective)
    for block in objective.space.blocks("layer"):
        own = matrix[:, block.indices]
        assert_close(grams[block.name], own @ own.T)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_cross_grams(name):
    problem = cases.problem(name)
    objective = problem.objective(chunk=4)
    batch = next(iter(problem.objective(chunk=99).batches)).take(slice(1, 4))
    other = problem.objective(batch)
    theta = objective.theta()
    left, right = dense_jacobian(objective, theta), dense_jacobian(other, theta)
    total = sum(layer_grams(objective, other).values())
    assert_close(total, left @ right.T)
    with pytest.raises(ValueError, match="one module"):
        layer_grams(objective, cases.objective(name))


@pytest.mark.parametrize("name", ["cnn", "resnet", "segmentation"])
def test_dual_spectrum_is_that_of_gauss_newton(name):
    objective = cases.objective(name)
    expected = torch.linalg.eigvalsh(GGN(objective).dense())
    found = dual_eigenvalues(objective)
    count = min(len(found), len(expected))
    assert_close(found[-count:], expected[-count:])


@pytest.mark.parametrize(("places", "outer", "inner"), [(1, 3, 4), (6, 2, 2), (2, 5, 7)])
def test_both_orders_of_contraction_agree(places, outer, inner, generator):
    def rows(examples):
        a = torch.randn(2, examples, places, inner, generator=generator, dtype=torch.float64)
        g = torch.randn(2, examples, 3, places, outer, generator=generator, dtype=torch.float64)
        return OuterRows(a, g, torch.arange(2 * outer * inner))

    first, second = rows(4), rows(5)
    expected = first.dense() @ second.dense().T
    assert_close(first.gram(second), expected, 1e-12)
    first._dearer = lambda other: False
    assert_close(first.gram(second), expected, 1e-12)
    assert_close(first.squares(), first.dense().square().sum(0), 1e-12)


def test_rows_follow_the_examples_then_the_outputs():
    objective = cases.objective("mlp", chunk=4)
    source = ScoreRows(objective, None, Scores(likelihood=objective.likelihood, labels="outputs"))
    matrix = dense_jacobian(objective, objective.theta())
    for part, rows in zip(source.parts, source.stacked(), strict=True):
        assert_close(rows.dense(), matrix[:, part.indices])


@pytest.mark.parametrize("labels", ["exact", "sampled", "observed"])
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_batches_are_cut_to_a_memory_bound(name, labels, monkeypatch):
    def matrix():
        generator = torch.Generator().manual_seed(2) if labels == "sampled" else None
        operator = Fisher(cases.objective(name, chunk=9), "layer", labels, generator=generator)
        return operator.dense(), len(list(operator.source))

    whole, batches = matrix()
    monkeypatch.setattr(network, "MEMORY_BOUND", 1)
    cut, pieces = matrix()
    assert batches == 1
    assert pieces == cases.objective(name).size
    assert_close(cut, whole, 1e-12)


@pytest.mark.parametrize("memory", [1, 2**30])
def test_compact_rows_are_the_same_matrix(memory, monkeypatch):
    """Many places: rows written out, a few examples at a time, beside layers kept in factors."""
    objective = build(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)
        ),
        (2, 6, 6),
    )  # fmt: skip
    matrix = dense_jacobian(objective, objective.theta())
    source = ScoreRows(
        objective, None, Scores(likelihood=objective.likelihood, labels="outputs")
    )  # fmt: skip
    monkeypatch.setattr(network, "_CACHED_BYTES", memory)
    (rows,) = source.compact()
    assert [type(own).__name__ for own in rows] == ["DenseRows", "OuterRows"]
    for own in rows:
        assert_close(own.dense(), matrix[:, own.indices])


def scaled(bias=True):
    def make():
        generator = torch.Generator().manual_seed(3)
        options = {"weight_variance": 1.7, "generator": generator, "bias": bias}
        return nn.Sequential(
            NTKLinear(4, 5, bias_variance=0.3, **options), nn.Tanh(),
            NTKLinear(5, 2, bias_variance=0.6, **options),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_layers_that_scale_themselves_are_captured_and_exact(shape, bias):
    objective = build(scaled(bias), shape)
    assert set(kinds(Fisher(objective, "layer")).values()) == {"matrix"}
    assert_blocks_exact(objective)


def test_kronecker_factors_of_a_layer_that_scales_itself():
    """With one layer and a Gaussian likelihood B is the identity and K-FAC exact."""
    generator = torch.Generator().manual_seed(3)
    objective = build(lambda: NTKLinear(4, 2, bias_variance=0.3, generator=generator), (4,))
    exact = dense_ggn(objective, objective.theta())
    assert_close(Fisher(objective, "kronecker").dense(), exact)
    assert [line.block for line in KFAC(objective.model, "gaussian").coverage()] == ["kronecker"]


def test_a_layer_with_a_function_of_its_own_is_not_taken_for_its_base():
    class Shifted(NTKLinear):
        def forward(self, h):
            return super().forward(h) + self.weight.sum()

    assert slots(Shifted(2, 3, generator=torch.Generator())) == ()
