import pytest
import torch
from torch import nn

import cases
from kobai.landscape import random_directions, vector_directions
from kobai.landscape.backends.choice import choose
from kobai.landscape.backends.data import DeviceData
from kobai.landscape.backends.evaluator import RiskEvaluator
from kobai.landscape.backends.loop import LoopBackend
from kobai.landscape.backends.reusable_calls import find_reusable_calls
from kobai.landscape.backends.reuse import ReusedCalls
from kobai.landscape.backends.vmap import VmapBackend
from kobai.landscape.options import Settings
from kobai.problem import Analytic, Batch, Problem

POINTS = [(0.0, 0.0), (0.5, -0.25), (0.5, 1.0), (-1.0, 0.125)]


def directions_of(objective, exclude=("bias", "norm"), count=2):
    generator = torch.Generator().manual_seed(0)
    return random_directions(objective, generator=generator, exclude=exclude, count=count)


def calls_of(objective, directions):
    return find_reusable_calls(objective, directions, next(iter(objective.batches)))


def reusing(objective, directions):
    reuse = ReusedCalls(objective, directions, calls_of(objective, directions))
    return LoopBackend(objective, directions, reuse=reuse)


def plain(objective, directions, points=POINTS):
    return torch.stack([objective.value(directions.at(p)).double() for p in points])


def measure(objective, directions, backend, *, chunk=4, layout="given", points=POINTS):
    data = DeviceData(objective)
    evaluator = RiskEvaluator(objective, data, backend, chunk=chunk, layout=layout)
    evaluator.measure(points[:1])  # what is kept must serve again
    return evaluator.measure(points)


@pytest.mark.parametrize("exclude", [("bias", "norm"), ()])
@pytest.mark.parametrize("name", cases.CASES)
def test_every_backend_gives_the_loss_of_the_objective(name, exclude):
    objective = cases.objective(name)
    directions = directions_of(objective, exclude)
    wanted = plain(objective, directions)
    backends = [LoopBackend(objective, directions)]
    if calls_of(objective, directions):
        backends.append(reusing(objective, directions))
    if name not in ("lstm", "gru"):  # recurrent layers cannot be vectorised over weights
        backends.append(VmapBackend(objective, directions, width=3))
    for backend in backends:
        found = measure(objective, directions, backend)
        assert torch.allclose(found[:, 0], wanted, rtol=1e-11), backend.name
        for point, row in zip(POINTS, found, strict=True):
            accuracy = objective.metrics(directions.at(point))["accuracy"]
            assert float(row[2]) == pytest.approx(accuracy, nan_ok=True)


@pytest.mark.parametrize("name", ["cnn", "resnet", "segmentation"])
def test_the_memory_layout_does_not_matter(name):
    objective = cases.objective(name)
    directions = directions_of(objective)
    for backend in (
        LoopBackend(objective, directions),
        reusing(objective, directions),
    ):
        found = measure(objective, directions, backend, layout="channels_last")[:, 0]
        assert torch.allclose(found, plain(objective, directions), rtol=1e-11)


def test_small_batches_are_joined_and_the_sum_stays():
    objective = cases.objective("mlp", chunk=2)
    assert len(objective.batches) == 5
    data = DeviceData(objective)
    assert len(data.batches) == 1
    assert [chunk.batch.size for chunk in data.chunks(4)] == [4, 4, 1]
    directions = directions_of(objective)
    found = measure(objective, directions, LoopBackend(objective, directions))[:, 0]
    assert torch.allclose(found, plain(objective, directions), rtol=1e-12)


def test_batches_of_unequal_shape_are_kept():
    objective = cases.objective("transformer")
    (batch,) = objective.batches
    short = Batch(batch.inputs[:, :2], batch.targets[:, :2])
    mixed = type(objective)(objective.model, objective.likelihood, (batch, short))
    directions = directions_of(mixed)
    assert len(DeviceData(mixed).batches) == 2
    found = measure(mixed, directions, LoopBackend(mixed, directions))[:, 0]
    assert torch.allclose(found, plain(mixed, directions), rtol=1e-12)


def test_the_standard_error_is_that_of_the_mean():
    objective = cases.objective("mlp")
    directions = directions_of(objective)
    (batch,) = objective.batches
    with torch.no_grad():
        nll = objective.likelihood.nll(objective.forward(directions.origin, batch), batch.targets)
    wanted = float(nll.std() / batch.size**0.5)
    found = measure(objective, directions, LoopBackend(objective, directions))[0, 1]
    assert float(found) == pytest.approx(wanted)


def test_the_first_layer_is_linear_and_what_comes_before_is_constant():
    objective = cases.objective("mlp")
    kinds = [(call.path, call.kind) for call in calls_of(objective, directions_of(objective))]
    assert kinds == [("0", "linear")]
    last = directions_of(objective, exclude=("bias", "0.*", "2.*"))
    kinds = [(call.path, call.kind) for call in calls_of(objective, last)]
    # In a Sequential only the input of the first moving layer would be needed, and not even that.
    assert kinds == [(path, "bypass") for path in "0123"] + [("4", "linear")]


def test_what_only_other_directions_move_is_linear_all_the_same():
    objective = cases.objective("mlp")
    one = directions_of(objective, exclude=("bias", "2.*", "4.*"), count=1).vectors[:, 0]
    other = directions_of(objective, exclude=("bias", "0.*"), count=1).vectors[:, 0]
    for u, v in ((one, other), (other, one)):
        directions = vector_directions(objective.theta(), {"u": u, "v": v})
        backend = reusing(objective, directions)
        found = measure(objective, directions, backend)[:, 0]
        assert torch.allclose(found, plain(objective, directions), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_lines_and_volumes_reuse_as_well(count):
    objective = cases.objective("cnn")
    directions = directions_of(objective, count=count)
    points = [tuple(p * (k + 1) for k in range(count)) for p in (0.0, 0.5, -0.3)]
    backend = reusing(objective, directions)
    found = measure(objective, directions, backend, points=points)[:, 0]
    assert torch.allclose(found, plain(objective, directions, points), rtol=1e-11)


class Tangle(nn.Module):
    """Shared, repeated and in-place parts around a frozen trunk, called in functional order."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.rectify = nn.ReLU(inplace=True)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.trunk(x)
        skip = h
        h = self.rectify(h)  # changes skip as well
        h = self.mix(h) + skip
        h = self.rectify(self.mix(h) * 2)
        return self.head(h + self.trunk(x + 1))


@pytest.mark.parametrize("exclude", [("trunk.*",), ("trunk.*", "mix.*"), (), ("head.*",)])
def test_shared_repeated_and_inplace_modules(exclude):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Tangle().double().eval()
        data = (torch.randn(10, 4).double(), torch.randint(0, 3, (10,)))
    objective = Problem(model, "categorical", train=data).objective()
    directions = directions_of(objective, exclude)
    assert calls_of(objective, directions)
    backend = reusing(objective, directions)
    assert backend.reuse.holds(next(iter(objective.batches)), POINTS)
    for _ in range(2):
        found = measure(objective, directions, backend, chunk=3)[:, 0]
        assert torch.allclose(found, plain(objective, directions), rtol=1e-12)
    assert all("forward" not in part.__dict__ for part in model.modules())


class Routed(nn.Module):
    """A choice that autograd does not see: which row, by argmax of something that moves."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.Embedding(3, 3)

    def forward(self, x):
        return self.experts(self.gate(x).argmax(-1))


def test_reuse_that_autograd_wrongly_allows_is_refused():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Routed().double()
        data = (torch.randn(40, 4).double(), torch.randint(0, 3, (40,)))
    objective = Problem(model, "categorical", train=data).objective()
    directions = directions_of(objective)
    calls = calls_of(objective, directions)
    assert any(call.path == "experts" for call in calls)
    reuse = ReusedCalls(objective, directions, calls)
    assert not reuse.holds(next(iter(objective.batches)), POINTS)
    with pytest.raises(ValueError, match="does not apply"):
        choose(objective, directions, Settings(backend="prefix"))


def test_a_failing_forward_leaves_no_trace():
    objective = cases.objective("mlp")
    directions = directions_of(objective)
    backend = reusing(objective, directions)
    wrong = DeviceData(objective).chunks(4)
    object.__setattr__(wrong[0], "batch", Batch(torch.ones(2, 7).double(), torch.zeros(2).long()))
    with pytest.raises(RuntimeError):
        backend.sums(POINTS, wrong, lambda outputs, targets, weights: outputs.sum((1, 2)))
    assert all("forward" not in part.__dict__ for part in objective.model.modules())


def test_hooks_of_the_user_still_run():
    objective = cases.objective("mlp")
    directions = directions_of(objective)
    handle = objective.model[0].register_forward_hook(lambda m, a, out: 2 * out)
    try:
        backend = reusing(objective, directions)
        found = measure(objective, directions, backend)[:, 0]
        assert torch.allclose(found, plain(objective, directions), rtol=1e-12)
    finally:
        handle.remove()


@pytest.mark.parametrize("backend", ["auto", "loop", "prefix", "vmap"])
def test_the_choice_is_noted(backend):
    objective = cases.objective("mlp")
    choice = choose(objective, directions_of(objective), Settings(backend=backend))
    assert choice.evaluator.name in choice.note
    assert "by measurement" in choice.note
    if backend != "auto":
        assert backend in choice.evaluator.name


def test_formulas_have_one_way_only():
    objective = Analytic(lambda t: t.square().sum(), torch.ones(3, dtype=torch.float64))
    directions = directions_of(objective)
    choice = choose(objective, directions)
    assert choice.note == "value of the objective at each point"
    assert choice.evaluator.loss(0.5, 2.0) == float(objective.value(directions.at((0.5, 2.0))))
    with pytest.raises(ValueError, match="needs an EmpiricalRisk"):
        choose(objective, directions, Settings(backend="prefix"))
