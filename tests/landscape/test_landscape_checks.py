"""The self-checks find the defects that landscape tools are known to have had."""

import numpy as np
import pytest
import torch
from torch import nn

import cases
from kobai.landscape import Directions, raise_if_failed, random_directions
from kobai.landscape.backends.evaluator import Evaluator, ValueEvaluator
from kobai.landscape.checks import shape as shape_checks
from kobai.landscape.checks import values as checks
from kobai.landscape.checks.differences import first_derivative, second_derivative
from kobai.landscape.grid.blocks import Collector, sweep
from kobai.problem import Analytic, Problem

AXES = (np.linspace(-0.5, 0.5, 5), np.linspace(-0.4, 0.6, 4))
HALF = (0.5, 0.5)


class Spoiled(Evaluator):
    """A right evaluator seen through a change of its points or values."""

    name = "spoiled"
    fields = ("loss",)

    def __init__(self, inner, points=lambda p: p, values=lambda v: v):
        self.inner, self.points, self.values = inner, points, values

    def measure(self, points):
        return self.values(self.inner.measure([self.points(p) for p in points])[:, :1])


@pytest.fixture(scope="module", params=["mlp", "regression"])
def setting(request):
    objective = cases.objective(request.param)
    directions = random_directions(objective, generator=torch.Generator().manual_seed(0))
    return objective, directions, ValueEvaluator(objective, directions)


def test_a_right_surface_passes(setting):
    objective, directions, evaluator = setting
    losses = sweep(AXES, Collector(evaluator)).fields["loss"]
    raise_if_failed(
        [
            checks.centre(objective, directions, evaluator),
            checks.nodes(objective, directions, AXES, losses),
            shape_checks.slope(objective, directions, evaluator, HALF),
            shape_checks.curvature(objective, directions, evaluator, HALF),
            checks.determinism(evaluator, (0.1, 0.2)),
            checks.orientation(directions, AXES),
            checks.direction_norms(directions),
        ]
    )


def test_rows_shifted_by_a_step_are_found(setting):
    objective, directions, evaluator = setting
    losses = sweep(AXES, Collector(evaluator)).fields["loss"]
    losses[1::2] = np.roll(losses[1::2], 1, axis=1)
    losses[0] = np.roll(losses[0], 1)
    assert not checks.nodes(objective, directions, AXES, losses).passed


def test_transposed_grids_are_found(setting):
    objective, directions, evaluator = setting
    losses = sweep(AXES, Collector(evaluator)).fields["loss"]
    assert not checks.nodes(objective, directions, AXES, losses.T.reshape(5, 4)).passed


def test_a_loss_from_elsewhere_is_found(setting):
    objective, directions, evaluator = setting
    # One batch for the data, another mode, other weights: the centre is off by a little.
    check = checks.centre(
        objective, directions, Spoiled(evaluator, values=lambda v: v * (1 + 1e-5))
    )
    assert not check.passed
    with pytest.raises(RuntimeError, match="centre"):
        raise_if_failed([check])


@pytest.mark.parametrize("factor", [1.1, 2.0])
def test_axes_in_wrong_units_are_found(setting, factor):
    objective, directions, evaluator = setting
    scaled = Spoiled(evaluator, points=lambda p: tuple(factor * c for c in p))
    assert not shape_checks.slope(objective, directions, scaled, HALF).passed
    assert not shape_checks.curvature(objective, directions, scaled, HALF).passed


def test_exchanged_axes_are_found(setting):
    objective, directions, evaluator = setting
    swapped = Spoiled(evaluator, points=lambda p: p[::-1])
    assert not shape_checks.slope(objective, directions, swapped, HALF).passed


def test_low_precision_is_found(setting):
    objective, directions, evaluator = setting
    rough = Spoiled(evaluator, values=lambda v: v.bfloat16().double())
    losses = sweep(AXES, Collector(rough)).fields["loss"]
    assert not checks.nodes(objective, directions, AXES, losses).passed


def test_noise_is_found(setting):
    _, _, evaluator = setting
    state = iter(range(10))
    noisy = Spoiled(evaluator, values=lambda v: v + 1e-12 * next(state))
    assert not checks.determinism(noisy, (0.0, 0.0)).passed


class Turned(Directions):
    """Directions whose points come out with their axes exchanged."""

    def at(self, coordinates):
        return Directions.at(self, tuple(coordinates)[::-1])


def test_the_orientation_probe_tells_axes_apart(setting):
    _, directions, _ = setting
    turned = Turned(origin=directions.origin, vectors=directions.vectors, names=directions.names)
    assert checks.orientation(directions, AXES).passed
    assert not checks.orientation(turned, AXES).passed
    square = (AXES[0], AXES[0])
    assert checks.orientation(directions, square).passed
    assert not checks.orientation(turned, square).passed


def test_directions_that_hardly_differ_are_found():
    theta = torch.ones(50, dtype=torch.float64)
    step = torch.linspace(0, 1, 50, dtype=torch.float64)
    vectors = torch.stack((step, step + 1e-3 * theta), dim=1)
    made = Directions(origin=theta, vectors=vectors, names=("u", "v"))
    assert not checks.direction_norms(made).passed


class Leaky(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.linear.weight.data.add_(1e-7), "linear.weight"),
        (lambda m: m.calls.add_(1), "calls"),
        (lambda m: m.linear.eval(), "mode of linear"),
        (lambda m: m.linear.weight.grad.add_(1), "linear.weight.grad"),
        (lambda m: setattr(m.linear.weight, "grad", None), "linear.weight.grad"),
    ],
)
def test_any_trace_on_the_model_is_found(change, named):
    with torch.random.fork_rng():
        model = Leaky()
    model.linear.weight.grad = torch.zeros(2, 3)
    before = checks.ModuleState.of(model)
    assert checks.untouched(before, model).passed
    change(model)
    check = checks.untouched(before, model)
    assert not check.passed
    assert named in check.detail


def test_a_moved_random_state_is_found():
    with torch.random.fork_rng():
        model = Leaky()
        before = checks.ModuleState.of(model)
        torch.rand(1)
        assert "random state" in checks.untouched(before, model).detail


def test_kinks_are_seen_and_said():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).double()
        data = (torch.randn(200, 6).double(), torch.randint(0, 3, (200,)))
    objective = Problem(net, "categorical", train=data).objective()
    directions = random_directions(objective, generator=torch.Generator().manual_seed(1))
    evaluator = ValueEvaluator(objective, directions)
    check = shape_checks.curvature(objective, directions, evaluator, (1.0, 1.0))
    assert check.passed
    assert "kinks" in check.detail
    doubled = Spoiled(evaluator, points=lambda p: tuple(1.5 * c for c in p))
    assert not shape_checks.curvature(objective, directions, doubled, (1.0, 1.0)).passed


def test_differences_find_derivatives_and_how_far_they_are_off():
    noise = 1e-16
    for step in (2.0, 1e-2):
        first = first_derivative(lambda t: float(np.exp(2 * t)), step, noise=noise)
        second = second_derivative(lambda t: float(np.exp(2 * t)), step, noise=noise)
        for (found, error), exact in ((first, 2.0), (second, 4.0)):
            assert abs(found - exact) <= 5 * error
            assert error < 1e-3


def test_a_quadratic_at_its_minimum_passes_though_nothing_slopes():
    objective = Analytic(lambda t: t.square().sum(), torch.zeros(4, dtype=torch.float64))
    directions = random_directions(
        objective, norm="global", generator=torch.Generator().manual_seed(0)
    )
    evaluator = ValueEvaluator(objective, directions)
    raise_if_failed(
        [
            checks.centre(objective, directions, evaluator),
            shape_checks.slope(objective, directions, evaluator, HALF),
            shape_checks.curvature(objective, directions, evaluator, HALF),
        ]
    )
