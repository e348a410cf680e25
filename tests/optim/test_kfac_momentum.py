"""Momentum beside a learning rate in numbers: torch's recursion, and one with explicit matrices."""

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

import cases
from kobai.optim import EKFAC, KFAC, KFACConfig, build
from tolerances import assert_close


class Network(nn.Module):
    """A layer for every kind of block, one of which rests now and then."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.shift = nn.Parameter(torch.zeros(4))
        self.twin, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x, spare):
        h = self.norm(self.table(x).mean(1)) + self.shift
        h = torch.tanh(self.twin(h))
        return self.head(torch.tanh(self.spare(h)) if spare else h)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().double(), torch.randint(0, 5, (8, 2)), torch.randint(0, 3, (8,))


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def run(net, optimizer, x, y, steps=6):
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x, spare=step % 2 == 0), y).backward()
        optimizer.step()
    return flat(net)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("kind", "tolerance"), [(KFAC, 5e-3), (EKFAC, 1e-7)])
def test_so_much_damping_that_curvature_is_nothing_gives_sgd_of_torch(kind, tolerance, nesterov):
    """Every kind of block, and layers that rest: SGD passes over them, too.

    K-FAC's damping is shared out to factors, of which the damping hides one part in 10³ at most.
    """
    net, x, y = network()
    damping = 1e18
    optimizer = kind(
        net,
        lr=0.3 * damping,
        damping=damping,
        momentum=0.8,
        nesterov=nesterov,
        kl_bound=None,
        statistics_every=1,
        inverse_every=1,
    )
    assert {row.block for row in optimizer.coverage()} - {"ekfac", "kronecker"} == {
        "unit",
        "diagonal",
    }
    found = run(net, optimizer, x, y)
    twin, x, y = network()
    sgd = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.8, nesterov=nesterov)
    assert_close(found, run(twin, sgd, x, y), tolerance)


def test_nesterov_steps_equal_those_of_explicit_matrices():
    problem, reference = cases.problem("mlp"), cases.problem("mlp")
    lr, damping, mu = 0.2, 0.05, 0.7
    optimizer = KFAC(
        problem.model,
        problem.likelihood,
        lr=lr,
        damping=damping,
        momentum=mu,
        nesterov=True,
        kl_bound=None,
        output_damping=0.2,
        labels="exact",
        statistics_every=1,
        inverse_every=1,
    )
    model, space = reference.model, reference.space
    indices = {block.name: block.indices for block in space.blocks("parameter")}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    sums = dict.fromkeys(layers, (0, 0))
    momentum = torch.zeros_like(space.theta())
    for count in range(1, 5):
        optimizer.step(problem.objective())
        (batch,) = reference.objective().batches
        matrix = torch.zeros(space.dimension, space.dimension, dtype=torch.float64)
        for name, module in layers.items():
            bias = module.bias is not None
            new = oracle.factors(model, module, batch, problem.likelihood, bias, 0.2)
            sums[name] = tuple(old + own[0] for old, own in zip(sums[name], new, strict=True))
            where = indices[f"{name}.weight"].view(module.out_features, -1)
            if bias:
                where = torch.cat([where, indices[f"{name}.bias"].unsqueeze(1)], 1)
            index = where.flatten()
            a, b = (total / count for total in sums[name])
            matrix[index[:, None], index] = oracle.damped_block(a, b, damping)
        reference.objective()()
        gradient = space.flatten({n: p.grad for n, p in model.named_parameters()})
        momentum = mu * momentum + gradient
        ahead = gradient + mu * momentum
        direction = torch.linalg.solve(matrix, ahead)
        space.assign(space.theta() - lr * direction)
        assert_close(problem.space.theta(), space.theta(), 1e-8)
        size = lr**2 * float(ahead @ direction)
        assert optimizer.diagnostics()["kl"] == pytest.approx(size, rel=1e-8)


def test_a_run_with_nesterov_momentum_resumes_to_the_bit():
    settings = {"lr": 0.1, "damping": 0.1, "nesterov": True}
    net, x, y = network()
    whole = run(net, KFAC(net, **settings), x, y, 8)
    first, x, y = network()
    half = KFAC(first, **settings)
    run(first, half, x, y, 4)
    second, x, y = network()
    second.load_state_dict(first.state_dict())
    resumed = KFAC(second, **settings)
    resumed.load_state_dict(half.state_dict())
    assert torch.equal(run(second, resumed, x, y, 4), whole)


def test_it_belongs_to_a_learning_rate_in_numbers():
    net, _, _ = network()
    with pytest.raises(ValueError, match="nesterov"):
        KFAC(net, nesterov=True)
    with pytest.raises(ValueError, match="nesterov"):
        KFACConfig(nesterov=True)
    assert build("kfac", net, config=KFACConfig(lr=0.1, nesterov=True)).nesterov
