"""K-FAC with other blocks than Kronecker products: steps against dense matrices of torch.func."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from kobai.optim import KFAC
from kobai.optim.kfac.plan import KroneckerLayer, UnitLayer, plan_blocks
from tolerances import assert_close

cross_entropy = nn.functional.cross_entropy
STRUCTURES = ("layer", "unit", "diagonal")
LR, DAMPING = 0.3, 0.07


class Table(nn.Module):
    """An embedding, a normalisation and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)

    def forward(self, tokens):
        h = self.norm(self.embed(tokens).mean(1))
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(h)))))


def perceptron():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)


def convolutions(norm):
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), norm(), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2, bias=False),
        nn.Tanh(), nn.Flatten(), nn.Linear(18, 3),
    )  # fmt: skip
    return net, torch.randn(5, 2, 4, 4)


def batch_normalised():
    net, x = convolutions(lambda: nn.BatchNorm2d(4))
    net(x)  # running averages that are not those of a fresh one
    return net.eval(), x


NETWORKS = {
    "perceptron": perceptron,
    "batch-norm": batch_normalised,
    "group-norm": lambda: convolutions(lambda: nn.GroupNorm(2, 4)),
    "embedding": lambda: (Table(), torch.randint(0, 7, (6, 3))),
}


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = NETWORKS[name]()
        for module in net.modules():
            if type(module).__name__.endswith("Norm") or isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2.0)
        x = x.double() if x.is_floating_point() else x
        return net.double(), x, torch.randint(0, 3, (len(x),))


def dense_fisher(net, x):
    """(1/N) Σ Jᵀ(diag p − p pᵀ)J."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    outputs = functional_call(net, parameters, (x,))
    jacobian = jacrev(lambda own: functional_call(net, own, (x,)))(parameters)
    j = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
    p = torch.softmax(outputs, 1)
    h = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", j, h, j) / len(x)


def pieces(net, structure):
    """Which coordinates lie in one block, for every block."""
    indices, start = {}, 0
    for name, p in net.named_parameters():
        indices[name] = torch.arange(start, start + p.numel()).view(p.shape)
        start += p.numel()
    for entry in plan_blocks(net).entries:
        own = [indices[name] for name in entry.parameters]
        if structure == "layer":
            yield torch.cat([i.flatten() for i in own])
        elif isinstance(entry, UnitLayer) and structure == "unit":
            yield from torch.stack(own, 1)
        elif isinstance(entry, KroneckerLayer) and structure == "unit" and not entry.form.lookup:
            yield from entry.form.matrix(own[0], own[1] if len(own) > 1 else None).flatten(0, 1)
        else:
            yield from torch.cat([i.flatten() for i in own]).unsqueeze(1)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_solves_with_the_blocks_of_the_dense_matrix(name, structure):
    net, x, y = made(name)
    fisher, before = dense_fisher(net, x), flat(net.parameters())
    optimizer = KFAC(
        net, structure=structure, lr=LR, damping=DAMPING, momentum=0.0, kl_bound=None,
        output_damping=0.0, labels="exact",
    )  # fmt: skip
    cross_entropy(net(x), y).backward()
    optimizer.step()
    gradient = flat(p.grad for p in net.parameters())
    expected, covered = torch.zeros_like(gradient), torch.zeros_like(gradient)
    for index in pieces(net, structure):
        block = fisher[index[:, None], index] + DAMPING * torch.eye(len(index)).double()
        expected[index] = -LR * torch.linalg.solve(block, gradient[index])
        covered[index] += 1
    assert bool((covered == 1).all())
    assert_close(flat(net.parameters()) - before, expected, 1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_kinds_of_blocks_are_told(structure):
    net, _, _ = made("embedding")
    table = {n: row for row in KFAC(net, structure=structure).coverage() for n in row.parameters}
    assert table["twice.weight"].block == structure
    assert table["twice.weight"].size == {"layer": "20×20", "unit": "4 of 5×5"}.get(structure, "20")
    assert table["embed.weight"].block == ("layer" if structure == "layer" else "diagonal")
    assert table["norm.weight"].block == structure


@pytest.mark.parametrize("structure", STRUCTURES)
def test_measured_steps_learn_and_resume_to_the_bit(structure):
    net, x, y = made("embedding")

    def train(net, optimizer, steps):
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    optimizer = KFAC(net, structure=structure)
    losses = train(net, optimizer, 15)
    assert losses[-1] < 0.5 * losses[0]
    twin = copy.deepcopy(net)
    other = KFAC(twin, structure=structure)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(net, optimizer, 5) == train(twin, other, 5)
    assert torch.equal(flat(net.parameters()), flat(twin.parameters()))


def test_the_state_of_another_structure_is_refused():
    net, x, y = made("perceptron")
    optimizer = KFAC(net, structure="layer")
    cross_entropy(net(x), y).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="another model or another optimizer"):
        KFAC(net, structure="unit").load_state_dict(optimizer.state_dict())


class Prompted(nn.Module):
    """Sends tokens of its own through a layer, as many whatever the batch is."""

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.ones(3, 4))
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x + torch.tanh(self.layer(self.own)).mean(0))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_layers_that_do_not_keep_examples_apart_are_named(structure):
    with torch.random.fork_rng():
        net = Prompted()
    x, y = torch.ones(5, 4), torch.zeros(5, dtype=torch.long)
    optimizer = KFAC(net, structure=structure)
    with pytest.raises(ValueError, match=r"layer \(Linear\): its inputs do not divide into the 5"):
        cross_entropy(net(x), y).backward()
    optimizer.close()
