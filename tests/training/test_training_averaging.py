"""Polyak averaging: closed forms, statistics of batch normalisation, what is left alone."""

import io

import pytest
import torch
from torch import nn

from kobai.models.normalization import BatchNorm, MeanSubtraction
from kobai.problem import Problem, surfaces
from kobai.training import PolyakAverage


class _Point(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([value]).double())

    def forward(self, x):
        return x * self.theta


def _feed(average, model, values):
    taken = []
    for value in values:
        with torch.no_grad():
            model.theta.fill_(value)
        taken.append(average.update(model))
    return taken


def test_the_running_mean_is_the_mean():
    model = _Point(9.0)
    average = PolyakAverage(model)
    assert average.model.theta.item() == 9.0
    values = [1.0, 5.0, 2.0, 8.0]
    for t in range(1, 5):
        _feed(average, model, values[t - 1 : t])
        assert average.model.theta.item() == pytest.approx(sum(values[:t]) / t, rel=1e-14)
    assert average.count == 4


def test_the_exponential_mean_is_its_recursion():
    model, alpha = _Point(0.0), 0.9
    average = PolyakAverage(model, decay=alpha)
    values = [1.0, 5.0, 2.0, 8.0]
    _feed(average, model, values)
    expected = values[0]
    for value in values[1:]:
        expected = alpha * expected + (1 - alpha) * value
    assert average.model.theta.item() == pytest.approx(expected, rel=1e-14)


def test_it_starts_late_and_skips():
    model = _Point(0.0)
    average = PolyakAverage(model, start=2, every=3)
    taken = _feed(average, model, [float(k) for k in range(10)])
    assert [k for k, t in enumerate(taken) if t] == [2, 5, 8]
    assert average.model.theta.item() == pytest.approx(5.0)
    assert model.theta.item() == 9.0


def test_swings_across_a_valley_average_to_its_floor():
    """At a step of 1.98/κ gradient descent swings across the steep axis; the mean does not."""
    surface = surfaces.quadratic(100.0)
    objective = surface.objective(torch.tensor([0.0, 1.0]).double())
    module = objective.space.module
    optimizer = torch.optim.SGD(module.parameters(), lr=1.98 / 100)
    average = PolyakAverage(module)
    for _ in range(60):
        optimizer.step(objective)
        average.update(module)
    # Geometric series of ratio −0.98.
    ratio = -0.98
    mean = ratio * (1 - ratio**60) / (1 - ratio) / 60
    assert average.model.theta[1].item() == pytest.approx(mean, rel=1e-10)
    assert abs(module.theta[1].item()) > 20 * abs(mean)


def test_the_mean_of_noisy_steps_beats_the_last_one(generator):
    """Noise of variance s² a step: the last iterate keeps ηs²/(2 − η), the mean of T has s²/T."""
    lr, steps = 0.5, 400
    x, mean, last = torch.zeros(2000).double(), torch.zeros(2000).double(), None
    models = _Point(0.0)
    models.theta = nn.Parameter(x.clone())
    average = PolyakAverage(models)
    for _ in range(steps):
        noise = torch.randn(2000, generator=generator).double()
        with torch.no_grad():
            models.theta -= lr * (models.theta + noise)
        average.update(models)
    last, mean = models.theta.detach(), average.model.theta.detach()
    # Sample variances of 2,000 draws have a relative standard error of √(2/2000) = 3.2 %.
    assert float(last.var()) == pytest.approx(lr / (2 - lr), rel=0.15)
    assert float(mean.var()) == pytest.approx(1 / steps, rel=0.15)


def _normalised():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 2)
        ).double()
        x, y = torch.randn(33, 3).double() + 2.0, torch.randint(0, 2, (33,))
    return Problem(model, "categorical", train=(x, y))


def test_statistics_are_those_of_the_averaged_parameters():
    problem = _normalised()
    model = problem.model
    average = PolyakAverage(model)
    for scale in (1.0, 3.0):
        with torch.no_grad():
            model[0].weight.mul_(scale)
        average.update(model)
    averaged = average.model.train()
    assert average.refresh_statistics(problem, batch_size=64) == 1
    with torch.no_grad():
        hidden = averaged[0](problem.train.all.inputs)
    torch.testing.assert_close(averaged[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(averaged[1].running_var, hidden.var(0))
    assert averaged[1].momentum == 0.1
    assert all(part.training for part in averaged.modules())
    # A last batch of one example is passed over.
    assert average.refresh_statistics(problem, batch_size=32) == 1
    torch.testing.assert_close(averaged[1].running_mean, hidden[:32].mean(0))


def test_kobais_own_layers_are_refreshed_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), BatchNorm(4), MeanSubtraction(4)).double()
        x = torch.randn(20, 3).double() + 1.0
    problem = Problem(model, "gaussian", train=(x, torch.zeros(20, 4).double()))
    average = PolyakAverage(model)
    average.update(model)
    assert average.refresh_statistics(problem) == 2
    hidden = average.model[0](x).detach()
    torch.testing.assert_close(average.model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(average.model[1].running_var, hidden.var(0))


def test_without_batch_normalisation_nothing_is_run():
    average = PolyakAverage(_Point(1.0))
    assert average.refresh_statistics(iter(())) == 0


def test_a_model_borrows_the_average_and_gets_its_own_back():
    model = _Point(1.0)
    average = PolyakAverage(model)
    _feed(average, model, [2.0, 4.0])
    with average.swapped_into(model):
        assert model.theta.item() == 3.0
    assert model.theta.item() == 4.0


@pytest.mark.parametrize("decay", [None, 0.8])
def test_it_goes_on_from_a_saved_state(decay):
    model = _Point(0.0)
    average, fresh = (PolyakAverage(_Point(7.0), decay=decay, every=2) for _ in range(2))
    _feed(average, model, [1.0, 2.0, 3.0])
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for a in (average, fresh):
        _feed(a, model, [4.0, 5.0, 6.0])
    assert torch.equal(average.model.theta, fresh.model.theta)
    assert (average.steps, average.count) == (fresh.steps, fresh.count) == (6, 3)


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"start": -1}, {"every": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"decay|start"):
        PolyakAverage(_Point(0.0), **wrong)
