"""Ways between minima on surfaces where the best way is known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

import cases
from kobai.landscape import barrier, connect, project_trajectory, true_minimum
from kobai.problem import Analytic
from kobai.results import load, save


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def ring(t):
    """A circular valley of radius 1: zero on the circle, 1 at its centre."""
    return (t @ t - 1) ** 2


def valley() -> Analytic:
    return Analytic(ring, vector(1.0, 0.0))


def mean_loss(c):
    """∫ L(γ(t)) dt for a Bézier curve bent towards (0, c), by quadrature."""
    t = np.linspace(0, 1, 2001)
    x, y = (t**2 - (1 - t) ** 2), 2 * t * (1 - t) * c
    return float(np.trapezoid((x**2 + y**2 - 1) ** 2, t))


def test_the_trained_curve_is_the_best_bezier_curve(tmp_path):
    # Started a little off the axis of symmetry, where the slope towards either side is zero.
    objective = Analytic(lambda t: ring(t) - 0.02 * t[1], vector(1.0, 0.0))
    found = connect(
        objective, vector(-1.0, 0.0), vector(1.0, 0.0), steps=300, points=8, label="ring",
        generator=seeded(),
    )  # fmt: skip
    best = minimize_scalar(
        lambda c: mean_loss(c) - 0.02 * c / 3, bounds=(0.5, 3), method="bounded"
    ).x
    assert found.control.numpy() == pytest.approx([0.0, best], abs=0.05)
    connection = found.connection
    assert connection.straight_barrier == pytest.approx(1.0, abs=1e-9)
    assert connection.curve_barrier < 0.1
    assert connection.distance == pytest.approx(2.0)
    assert 2.0 < connection.length < math.pi
    assert connection.status == "finished"
    assert len(connection.losses) == 300
    save(connection, tmp_path, "connection")
    assert np.array_equal(load(tmp_path, "connection").curve, connection.curve)


def test_ends_are_kept_to_the_bit_and_the_length_is_that_of_the_curve():
    """A quadratic Bézier curve with control (0, 1) is the parabola y = (1 − x²)/2."""
    start, end = vector(-1.0, 0.0), vector(1.0, 0.0)
    found = connect(valley(), start, end, steps=0, generator=seeded())
    assert torch.equal(found.at(0.0), start)
    assert torch.equal(found.at(1.0), end)
    assert found.connection.length == pytest.approx(2.0)
    assert np.array_equal(found.connection.curve, found.connection.straight)
    import dataclasses

    bent = dataclasses.replace(found, control=vector(0.0, 1.0))
    points = torch.stack(bent.path(101))
    assert points[:, 1].numpy() == pytest.approx((1 - points[:, 0] ** 2).numpy() / 2)


def test_a_polygon_passes_through_its_control_point():
    objective = Analytic(lambda t: ring(t) - 0.1 * t[1], vector(1.0, 0.0))
    found = connect(
        objective, vector(-1.0, 0.0), vector(1.0, 0.0), kind="polygon", steps=200, points=8,
        generator=seeded(),
    )  # fmt: skip
    assert torch.allclose(found.at(0.5), found.control)
    assert found.connection.curve_barrier < 0.5 * found.connection.straight_barrier
    half = torch.stack([found.at(0.1), found.at(0.2), found.at(0.3)])
    assert torch.allclose(half[2] - half[1], half[1] - half[0])


def test_a_convex_loss_has_no_barrier():
    found = connect(
        Analytic(lambda t: t @ t, vector(1.0, 0.0)), vector(-1.0, 0.5), vector(2.0, 0.0),
        steps=20, generator=seeded(),
    )  # fmt: skip
    assert found.connection.straight_barrier == 0.0


@pytest.mark.parametrize(
    ("losses", "height"),
    [([0, 1, 0], 1.0), ([0, 1, 2], 0.0), ([2, 1.5, 0], 0.5), ([1, 0, 1], 0.0), ([0, math.inf, 0],
     math.inf)],
)  # fmt: skip
def test_the_barrier_is_the_height_above_the_line(losses, height):
    assert barrier(np.array([0.0, 0.5, 1.0]), np.array(losses, dtype=float)) == height


def test_the_plane_of_a_curve_holds_it():
    problem = cases.problem("mlp")
    risk = problem.objective()
    start = risk.theta()
    end = start + torch.randn(len(start), generator=seeded(), dtype=torch.float64)
    found = connect(risk, start, end, steps=30, generator=seeded(1))
    assert found.connection.curve.mean() <= found.connection.straight.mean()
    path = project_trajectory(risk, found.directions(), found.path(9), label="curve")
    assert path.off_plane.max() < 1e-10
    assert path.coordinates[0] == pytest.approx([0.0, 0.0])
    assert path.coordinates[-1] == pytest.approx([1.0, 0.0])


def test_between_two_true_minima_both_ends_are_exact():
    """On data relabelled by one network another one is not at its floor, and the curve says so."""
    made = true_minimum(cases.problem("mlp"), curvature=False)
    risk = made.problem.objective()
    other = made.theta + 0.5
    found = connect(risk, made.theta, other, steps=0, resolution=5, generator=seeded())
    assert found.connection.straight[0] < 1e-28
    assert found.connection.straight[-1] == pytest.approx(float(risk.value(other)))


def test_a_curve_that_runs_away_ends_with_a_status():
    objective = Analytic(lambda t: -((t @ t) ** 3), vector(1.0, 0.0))
    found = connect(
        objective, vector(-1.0, 0.1), vector(1.0, 0.0), steps=400, lr=5.0, generator=seeded()
    )
    assert found.connection.status == "diverged"


def test_wrong_use_is_refused():
    a, b = vector(1.0, 0.0), vector(0.0, 1.0)
    with pytest.raises(ValueError, match="same point"):
        connect(valley(), a, a, generator=seeded())
    with pytest.raises(ValueError, match="steps=-1"):
        connect(valley(), a, b, steps=-1, generator=seeded())
    straight = connect(valley(), a, b, steps=0, generator=seeded())
    with pytest.raises(ValueError, match="lie on a line"):
        straight.directions()
