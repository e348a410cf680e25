"""What every optimizer must do, kobai's and torch's alike.

Each law takes `make(model, likelihood)`, which returns an optimizer, and a `Problem`.
"""

import copy
import io

import torch

from kobai.curvature import Hessian
from kobai.problem import EmpiricalRisk


def _run(problem, optimizer, steps):
    objective = problem.objective()
    return [float(optimizer.step(objective)) for _ in range(steps)]


def descends(make, problem, *, steps=30, factor=0.9):
    """The full-batch loss falls, and never becomes NaN on the way."""
    optimizer = make(problem.model, problem.likelihood)
    start = float(problem.objective().value(problem.space.theta()))
    losses = _run(problem, optimizer, steps)
    end = float(problem.objective().value(problem.space.theta()))
    assert all(loss == loss for loss in losses)
    assert end < factor * start, f"loss went from {start:.4g} to {end:.4g}"


def keeps_the_closure_contract(make, problem):
    """`step(closure)` returns the closure's loss, enables gradients, and equals the plain loop."""
    twin = copy.deepcopy(problem)
    optimizer, other = (make(p.model, p.likelihood) for p in (problem, twin))
    for _ in range(3):
        first, second = problem.objective(), twin.objective()
        losses = []

        def closure(objective=first, losses=losses):
            assert torch.is_grad_enabled()
            losses.append(objective())
            return losses[-1]

        with torch.no_grad():
            returned = optimizer.step(closure)
        assert returned is losses[0]
        second()
        assert other.step() is None
    assert torch.equal(problem.space.theta(), twin.space.theta())


def leaves_the_rest_alone(make, problem):
    """Frozen parameters, parameters without gradient and buffers keep their values to the bit."""
    parameters = list(problem.model.named_parameters())
    frozen, unused = parameters[0][1], parameters[1][1]
    frozen.requires_grad_(False)
    optimizer = make(problem.model, problem.likelihood)
    before = {name: p.clone() for name, p in problem.model.state_dict().items()}
    objective = problem.objective()
    for _ in range(3):
        objective()
        unused.grad = None
        optimizer.step()
    after = problem.model.state_dict()
    still = {parameters[0][0], parameters[1][0]} | {n for n, _ in problem.model.named_buffers()}
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name in still), name


def resumes_to_the_bit(make, problem, *, before=4, after=4):
    """Saved, loaded as plain tensors into a fresh optimizer and gone on: as if never stopped."""
    optimizer = make(problem.model, problem.likelihood)
    _run(problem, optimizer, before)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(problem)
    fresh = make(twin.model, twin.likelihood)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(after):
        _run(problem, optimizer, 1)
        _run(twin, fresh, 1)
        assert torch.equal(problem.space.theta(), twin.space.theta())


def survives_copies(make, problem):
    """A deep copy of model and optimizer together goes the same way, and apart from the first."""
    optimizer = make(problem.model, problem.likelihood)
    _run(problem, optimizer, 2)
    twin, other = copy.deepcopy((problem, optimizer))
    _run(problem, optimizer, 2)
    middle = problem.space.theta()
    _run(twin, other, 2)
    assert torch.equal(middle, twin.space.theta())
    assert torch.equal(middle, problem.space.theta())


def obeys_schedulers(make, problem):
    """A torch scheduler sets the learning rate of every group; at zero nothing moves."""
    optimizer = make(problem.model, problem.likelihood)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (1.0, 0.5, 0.0)[min(k, 2)])
    initial = [group["lr"] for group in optimizer.param_groups]
    for share in (1.0, 0.5, 0.0):
        assert [g["lr"] for g in optimizer.param_groups] == [share * lr for lr in initial]
        before = problem.space.theta()
        _run(problem, optimizer, 1)
        assert torch.equal(before, problem.space.theta()) == (share == 0.0)
        scheduler.step()


def covers_the_parameters(make, problem):
    """Every trainable parameter is in exactly one group, and `zero_grad` clears it."""
    optimizer = make(problem.model, problem.likelihood)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for p in problem.model.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trainable)
    problem.objective()()
    optimizer.zero_grad()
    assert all(p.grad is None for p in problem.model.parameters())


LAWS = (
    descends,
    keeps_the_closure_contract,
    leaves_the_rest_alone,
    resumes_to_the_bit,
    survives_copies,
    obeys_schedulers,
    covers_the_parameters,
)


def counts_what_it_asks(make, problem, monkeypatch, *, steps=4):
    """Values, gradients and Hessian products in `diagnostics` are those asked of the objective."""
    asked = {"values": 0, "gradients": 0, "products": 0}

    def counted(kind, name, key, amount):
        plain = getattr(kind, name)

        def call(self, argument):
            asked[key] += amount(argument)
            return plain(self, argument)

        monkeypatch.setattr(kind, name, call)

    counted(EmpiricalRisk, "value", "values", lambda theta: 1)
    counted(EmpiricalRisk, "value_and_grad", "gradients", lambda theta: 1)
    counted(Hessian, "_matmat", "products", lambda columns: columns.shape[1])
    optimizer = make(problem.model, problem.likelihood)
    objective = problem.objective()
    for _ in range(steps):
        optimizer.step(objective)
    told = optimizer.diagnostics()
    assert {name: told[name] for name in asked} == asked
    assert told["gradients"] >= steps
