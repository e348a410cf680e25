import pytest
import torch
from torch import nn

import cases
from kobai.landscape import evaluate_plane, raise_if_failed, random_directions
from kobai.landscape.backends.candidates import Candidate
from kobai.landscape.backends.choice import choose
from kobai.landscape.backends.data import DeviceData
from kobai.landscape.backends.evaluator import RiskEvaluator
from kobai.landscape.backends.folding import Folded, find_folds
from kobai.landscape.backends.loop import LoopBackend
from kobai.models.resnet import ResNet, ResNetConfig
from kobai.problem import Problem

POINTS = [(0.0, 0.0), (0.4, -0.2), (-0.3, 0.5)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def folded(objective, directions):
    batch = next(iter(objective.batches))
    folds = find_folds(objective, batch)
    backend = LoopBackend(objective, directions, treatment=Folded(objective, folds))
    return folds, RiskEvaluator(objective, DeviceData(objective), backend, chunk=4)


def resnet():
    model = ResNet(
        ResNetConfig(depth=8), input_shape=(3, 8, 8), num_outputs=4, generator=seeded(),
        dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.running_mean.normal_(generator=seeded(1))
                module.running_var.uniform_(0.5, 2.0, generator=seeded(2))
                module.weight.uniform_(0.5, 2.0, generator=seeded(3))
    x = torch.randn(9, 3, 8, 8, generator=seeded(4), dtype=torch.float64)
    y = torch.randint(0, 4, (9,), generator=seeded(5))
    return Problem(model.eval(), "categorical", train=(x, y)).objective()


def test_folded_normalisation_gives_the_loss_of_the_objective():
    objective = resnet()
    directions = random_directions(objective, generator=seeded(), exclude=())
    folds, evaluator = folded(objective, directions)
    layers = [m for m in objective.model.modules() if hasattr(m, "running_mean")]
    assert len(folds.norms) == len(layers)  # every one, those of shortcuts too
    found = evaluator.measure(POINTS)[:, 0]
    wanted = torch.stack([objective.value(directions.at(p)) for p in POINTS])
    assert torch.allclose(found, wanted, rtol=1e-11)
    assert not any("forward" in m.__dict__ for m in objective.model.modules())


@pytest.mark.parametrize("name", cases.CASES)
def test_whatever_is_folded_changes_nothing(name):
    objective = cases.objective(name)
    directions = random_directions(objective, generator=seeded(), exclude=())
    _, evaluator = folded(objective, directions)
    wanted = torch.stack([objective.value(directions.at(p)).double() for p in POINTS])
    assert torch.allclose(evaluator.measure(POINTS)[:, 0], wanted, rtol=1e-11)
    state = {n: t.clone() for n, t in objective.model.state_dict().items()}
    evaluator.measure(POINTS)
    for key, value in objective.model.state_dict().items():
        assert torch.equal(value, state[key])


class Secret(nn.Module):
    """Reads the convolution's output a second time, in a way that no hook sees."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.relu, self.head = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x):
        h = self.conv(x)
        return self.head((self.relu(self.norm(h)) + h).mean((2, 3)))


def test_a_value_read_twice_in_secret_is_found_out():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Secret().double()
        x, y = torch.randn(12, 1, 6, 6).double(), torch.randint(0, 2, (12,))
        model(x)
    objective = Problem(model.eval(), "categorical", train=(x, y)).objective()
    directions = random_directions(objective, generator=seeded())
    _, evaluator = folded(objective, directions)
    wanted = float(objective.value(directions.at(POINTS[1])))
    assert evaluator.loss(*POINTS[1]) != pytest.approx(wanted, rel=1e-6)  # it would be wrong
    plane = evaluate_plane(objective, directions, a=5, b=4)
    raise_if_failed(plane)
    value = float(objective.value(directions.at((plane.a[3], plane.b[1]))))
    assert plane.fields["loss"][3, 1] == pytest.approx(value, rel=1e-11)


def test_a_candidate_that_folds_can_be_had_again():
    objective = resnet()
    directions = random_directions(objective, generator=seeded())
    choice = choose(objective, directions, candidate=Candidate("loop", 4, fold=True))
    assert "folded" in choice.evaluator.name
    wanted = float(objective.value(directions.origin))
    assert choice.evaluator.loss(0.0, 0.0) == pytest.approx(wanted, rel=1e-11)
