"""Planes by a recorded CUDA graph agree with the plain loop, point after point."""

import pytest
import torch
from torch import nn

import cases
from kobai.landscape import evaluate_plane, raise_if_failed, random_directions
from kobai.landscape.backends.choice import choose
from kobai.landscape.options import Settings
from kobai.problem import Problem

pytestmark = pytest.mark.gpu

POINTS = [(0.0, 0.0), (0.5, -0.25), (0.5, 1.0), (-1.0, 0.125)]


def directions_of(objective):
    return random_directions(objective, generator=torch.Generator().manual_seed(0))


def on_cuda(name):
    objective = cases.objective(name)
    batches = [batch.to("cuda") for batch in objective.batches]
    return type(objective)(objective.model.cuda(), objective.likelihood, batches)


@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer", "lstm"])
def test_replays_give_the_loss_of_the_objective(name):
    objective = on_cuda(name)
    directions = directions_of(objective)
    evaluator = choose(objective, directions, Settings(backend="graph")).evaluator
    wanted = torch.tensor([float(objective.value(directions.at(p))) for p in POINTS]).double()
    for _ in range(2):
        found = evaluator.measure(POINTS)[:, 0]
        assert torch.allclose(found, wanted, rtol=1e-6)


def test_a_plane_proves_itself_and_leaves_the_model_alone():
    objective = on_cuda("resnet")
    plane = evaluate_plane(objective, directions_of(objective), a=5, b=4, backend="graph")
    raise_if_failed(plane)
    assert "CUDA graph" in plane.note


class Talks(nn.Module):
    """Asks the host for a value, which no graph can record."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x)
        return h if float(h.sum()) > 0 else 2 * h


def test_a_pass_that_talks_to_the_host_is_refused():
    with torch.random.fork_rng(devices=["cuda"]):
        torch.manual_seed(0)
        model = Talks().double().cuda()
        data = (torch.randn(40, 4).double().cuda(), torch.randint(0, 3, (40,)).cuda())
    objective = Problem(model, "categorical", train=data).objective()
    directions = directions_of(objective)
    with pytest.raises(ValueError, match="does not apply"):
        choose(objective, directions, Settings(backend="graph"))
    evaluator = choose(objective, directions).evaluator
    wanted = float(objective.value(directions.at(POINTS[1])))
    assert evaluator.loss(*POINTS[1]) == pytest.approx(wanted)
