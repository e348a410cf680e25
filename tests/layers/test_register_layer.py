"""Layers of users' own: registered, recognised, or left to the routes that assume nothing."""

import pytest
import torch
from torch import nn

from kobai import Problem
from kobai.curvature import Fisher, register_layer
from kobai.layers import is_kind, is_plain_linear, kind_of, slots
from kobai.optim import KFAC
from tolerances import assert_close


class OwnLinear(nn.Module):
    """A linear layer that has nothing of torch's."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Dense(nn.Module):
    """A linear layer with names and a layout of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        self.offset = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.einsum("...i,io->...o", x, self.kernel) + self.offset


class Conv1D(nn.Module):
    """As in Hugging Face's transformers."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.nx = nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class OwnConvolution(nn.Conv2d):
    """Computes what its parent does in another way."""

    def forward(self, input):
        return self._conv_forward(input, self.weight, None) + self.bias.view(-1, 1, 1)


class OwnNorm(nn.Module):
    """A scale over the last axis that bears no mark of a normalisation."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()


class OwnTable(nn.Module):
    """An embedding without torch's options."""

    def __init__(self, lines, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(lines, width))

    def forward(self, tokens):
        return self.weight[tokens]


class Plain(nn.Linear):
    """A subclass that computes the same."""


class Doubled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, input):
        return 2 * super().forward(input)


class LeNet(nn.Module):
    """A registered convolution, a norm and a linear layer over images."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = OwnConvolution(2, 3, 2), OwnNorm(4), OwnLinear(12, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x).flatten(2))).flatten(1))


class Tokens(nn.Module):
    """A registered table with two linear layers of other layouts over tokens."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden, self.head = OwnTable(6, 3), Dense(3, 4), Conv1D(2, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.table(x))).sum(1))


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_layer(OwnLinear)
    register_layer(Dense, weight="kernel", bias="offset", transposed=True)
    register_layer(OwnConvolution, like=nn.Conv2d)
    register_layer(OwnNorm, like=nn.LayerNorm)
    register_layer(OwnTable, like=nn.Embedding)


def built(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double()


def problem_of(make, n=6):
    model = built(make)
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, Tokens):
        x = torch.randint(6, (n, 4), generator=generator)
    else:
        shape = (2, 3, 3) if isinstance(model, LeNet) else (3,)
        x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (n,), generator=generator)
    return Problem(model, "categorical", train=(x, y))


def dense_fisher(problem):
    """Jᵀ H J / N by torch.func, which knows nothing of layers."""
    objective = problem.objective()
    (batch,) = objective.batches
    theta = objective.theta()
    jacobian = torch.func.jacrev(lambda t: objective.forward(t, batch))(theta)
    p = objective.forward(theta, batch).softmax(-1)
    hessians = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, hessians, jacobian) / len(p)


def kinds(problem):
    parts = Fisher(problem.objective()).source.parts
    return {name: part.kind for part in parts for name in part.parameters}


EXPECTED = {
    LeNet: {
        "conv.weight": "matrix", "conv.bias": "matrix", "norm.weight": "scale",
        "head.weight": "matrix", "head.bias": "matrix",
    },
    Tokens: {
        "table.weight": "embedding", "hidden.kernel": "matrix", "hidden.offset": "matrix",
        "head.weight": "matrix", "head.bias": "matrix",
    },
}  # fmt: skip


@pytest.mark.parametrize("make", EXPECTED)
def test_rows_of_registered_layers_are_exact(make):
    problem = problem_of(make)
    assert kinds(problem) == EXPECTED[make]
    objective, dense = problem.objective(), dense_fisher(problem)
    assert_close(Fisher(objective).dense(), dense)
    assert_close(Fisher(objective, "diagonal").diagonal(), dense.diagonal())
    layers = torch.zeros_like(dense)
    for block in objective.space.blocks("layer"):
        place = (block.indices[:, None], block.indices)
        layers[place] = dense[place]
    assert_close(Fisher(objective, "layer").dense(), layers)


@pytest.mark.parametrize(
    "make", [lambda: Dense(3, 2), lambda: Conv1D(2, 3), lambda: OwnLinear(3, 2)]
)
def test_units_of_linear_layers_are_their_outputs(make):
    problem = problem_of(make)
    objective, dense = problem.objective(), dense_fisher(problem)
    units = torch.zeros_like(dense)
    for block in objective.space.blocks("unit"):
        assert block.size == 4
        place = (block.indices[:, None], block.indices)
        units[place] = dense[place]
    assert_close(Fisher(objective, "unit").dense(), units)


class Twin(nn.Module):
    """`Tokens` from torch's own layers."""

    def __init__(self, other):
        super().__init__()
        self.table = nn.Embedding(6, 3)
        self.hidden, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            for own, value in zip(self.parameters(), flat(other), strict=True):
                own.copy_(value)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.table(x))).sum(1))


def flat(model):
    """Parameters of `Tokens` as torch's layers store them."""
    return [
        model.table.weight, model.hidden.kernel.T, model.hidden.offset,
        model.head.weight.T, model.head.bias,
    ]  # fmt: skip


@pytest.mark.parametrize("structure", ["kronecker", "ekfac", "unit", "layer"])
def test_structures_of_registered_layers_are_those_of_torch_layers(structure):
    problem = problem_of(Tokens)
    own = Fisher(problem.objective(), structure).dense()
    twin = Problem(built(lambda: Twin(problem.model)), "categorical", train=problem.train)
    expected = Fisher(twin.objective(), structure).dense()
    numbers = problem.objective().space.unflatten(torch.arange(len(own)).double())
    order = torch.cat(
        [
            (numbers[name].T if numbers[name].ndim > 1 and "table" not in name else numbers[name])
            .reshape(-1)
            for name in numbers
        ]
    ).long()  # fmt: skip
    assert_close(own[order[:, None], order], expected)


def test_kronecker_block_of_one_registered_layer_is_the_fisher_matrix():
    """With one layer and a Gaussian likelihood B ⊗ A is exact."""
    model = built(lambda: Dense(3, 2))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    objective = Problem(model, "gaussian", train=(x, torch.zeros_like(x[:, :2]))).objective()
    (batch,) = objective.batches
    jacobian = torch.func.jacrev(lambda t: objective.forward(t, batch))(objective.theta())
    dense = torch.einsum("ncp,ncq->pq", jacobian, jacobian) / objective.weight
    assert_close(Fisher(objective, "kronecker").dense(), dense)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kfac_trains_registered_layers_as_it_trains_torch_layers(sharing):
    problem = problem_of(Tokens)
    model, twin = problem.model, built(lambda: Twin(problem.model))
    (batch,) = problem.objective().batches
    x, y = batch.inputs, batch.targets
    for net in (model, twin):
        optimizer = KFAC(net, "categorical", labels="exact", sharing=sharing)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        blocks = {name: row.block for row in optimizer.coverage() for name in row.parameters}
        assert set(blocks.values()) == {"kronecker"}
        optimizer.close()
    for own, expected in zip(flat(model), twin.parameters(), strict=True):
        # Sums in another order, and a learning rate that is measured: the same up to rounding.
        assert_close(own.detach(), expected.detach(), 1e-7)


def test_kfac_gives_registered_convolutions_and_norms_their_blocks():
    problem = problem_of(LeNet)
    optimizer = KFAC(problem.model, "categorical")
    blocks = {name: row.block for row in optimizer.coverage() for name in row.parameters}
    assert blocks == {
        "conv.weight": "kronecker", "conv.bias": "kronecker", "norm.weight": "unit",
        "head.weight": "kronecker", "head.bias": "kronecker",
    }  # fmt: skip


def test_subclasses_are_taken_for_the_layer_only_if_they_compute_it():
    assert is_plain_linear(built(lambda: Plain(2, 3)))
    assert kind_of(built(lambda: Doubled(2, 3))) is None
    problem = problem_of(lambda: Doubled(3, 2))
    assert set(kinds(problem).values()) == {"jacobian"}
    assert_close(Fisher(problem.objective(), "layer").dense(), dense_fisher(problem))
    optimizer = KFAC(problem.model, "categorical")
    assert {row.block for row in optimizer.coverage()} == {"diagonal"}
    # Its parameters lie where those of a linear layer do, all the same.
    assert is_kind(problem.model, "linear")


def test_wrong_claims_are_found_by_fisher():
    class Squared(nn.Linear):
        def forward(self, input):
            return super().forward(input).square()

    register_layer(Squared)
    problem = problem_of(lambda: Squared(3, 2))
    assert set(kinds(problem).values()) == {"jacobian"}
    assert_close(Fisher(problem.objective(), "layer").dense(), dense_fisher(problem))


def test_a_registered_layer_speaks_for_subclasses_that_compute_the_same():
    class Same(OwnLinear):
        pass

    class Other(OwnLinear):
        def forward(self, x):
            return super().forward(x).exp()

    assert len(slots(built(lambda: Same(2, 3)))) == 1
    assert slots(built(lambda: Other(2, 3))) == ()


def test_layers_that_only_resemble_conv1d_are_not_taken_for_it():
    layer = built(lambda: Conv1D(3, 2))
    assert slots(layer)[0].form.transposed
    layer.extra = nn.Parameter(torch.zeros(1))
    assert slots(layer) == ()


def test_wrong_registrations_say_what_is_wrong():
    with pytest.raises(TypeError, match="Module"):
        register_layer(int)
    with pytest.raises(ValueError, match="like=ReLU"):
        register_layer(OwnLinear, like=nn.ReLU)
    with pytest.raises(TypeError, match="axis"):
        register_layer(OwnLinear, axis=1)
    layer = built(lambda: OwnLinear(2, 3))
    layer.weight = nn.Parameter(torch.zeros(3))
    assert slots(layer) == ()
