"""Stationary points of functions whose stationary points are known, in the slice and around it."""

import numpy as np
import pytest
import torch

import cases
from kobai.landscape import (
    critical_points,
    evaluate_plane,
    true_minimum,
    vector_directions,
)
from kobai.landscape.critical_points import locate
from kobai.problem import Analytic
from kobai.results import load, save


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(index, size):
    vector = torch.zeros(size, dtype=torch.float64)
    vector[index] = 1.0
    return vector


def himmelblau(t):
    """Four minima of value 0, four saddles, one maximum."""
    return (t[0] ** 2 + t[1] - 11) ** 2 + (t[0] + t[1] ** 2 - 7) ** 2 + (t[2:] ** 2).sum()


MINIMA = [(3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)]


def plane_of(function, size, *, a, b, shift=None):
    origin = torch.zeros(size, dtype=torch.float64) if shift is None else shift
    objective = Analytic(function, origin)
    directions = vector_directions(origin, {"x": unit(0, size), "y": unit(1, size)})
    return evaluate_plane(objective, directions, a=a, b=b, fields=("loss",)), objective, directions


def test_every_stationary_point_of_himmelblaus_function(tmp_path):
    axis = np.linspace(-5, 5, 25)
    plane, objective, directions = plane_of(himmelblau, 4, a=axis, b=axis)
    found = critical_points(plane, objective, directions, generator=seeded())
    kinds = [point.plane_kind for point in found.points]
    assert kinds.count("minimum") == 4
    assert kinds.count("saddle") == 4
    assert kinds.count("maximum") == 1
    for minimum in MINIMA:
        nearest = min(np.abs(p.coordinates - minimum).max() for p in found.points)
        assert nearest < 1e-5
    # In four dimensions the maximum of the slice is a saddle; all are stationary there.
    for point in found.points:
        assert point.genuine
        assert point.status == "refined"
        assert point.gradient_norm < 1e-6
        assert point.kind == ("minimum" if point.plane_kind == "minimum" else "saddle")
    top = max(found.points, key=lambda point: point.loss)
    assert top.coordinates == pytest.approx([-0.270845, -0.923039], abs=1e-5)
    assert top.loss == pytest.approx(181.617, abs=1e-3)
    save(found, tmp_path, "points")
    assert load(tmp_path, "points").points[0].loss == found.points[0].loss


def test_a_minimum_of_the_slice_alone_is_called_an_artefact():
    """½(x² + y² + (z − 1)²) on the plane z = 0: gradient 1 across it, and nothing in it."""

    def shifted(t):
        return 0.5 * (t[0] ** 2 + t[1] ** 2 + (t[2] - 1) ** 2)

    axis = np.linspace(-1, 1.5, 9)
    plane, objective, directions = plane_of(shifted, 3, a=axis, b=axis)
    found = critical_points(plane, objective, directions, generator=seeded())
    assert len(found.points) == 1
    point = found.points[0]
    assert point.plane_kind == "minimum"
    assert point.gradient_norm == pytest.approx(1.0)
    assert point.plane_gradient_norm < 1e-10
    assert not point.genuine


def test_polishing_leads_to_the_minimum_beside_the_plane_and_leaves_the_model_alone():
    def shifted(t):
        return 0.5 * (t[0] ** 2 + 3 * t[1] ** 2 + (t[2] - 1) ** 2)

    axis = np.linspace(-1, 1.5, 9)
    plane, objective, directions = plane_of(shifted, 3, a=axis, b=axis)
    before = objective.theta()
    found = critical_points(
        plane, objective, directions, 
        polish=lambda model: torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe"),
        polish_steps=2, generator=seeded(),
    )  # fmt: skip
    point = found.points[0]
    assert point.polished_gradient_norm < 1e-6
    assert point.polished_off_plane == pytest.approx(1.0, abs=1e-5)
    assert point.polished_coordinates == pytest.approx([0.0, 0.0], abs=1e-5)
    assert point.polished_loss < 1e-10
    assert torch.equal(objective.theta(), before)


def test_the_true_minimum_is_found_as_one():
    made = true_minimum(cases.problem("mlp"), curvature=False)
    objective = made.problem.objective()
    g = seeded(3)
    vectors = {n: torch.randn(len(made.theta), generator=g, dtype=torch.float64) for n in "uv"}
    directions = vector_directions(made.theta, vectors)
    axis = np.linspace(-0.25, 0.25, 11)
    plane = evaluate_plane(objective, directions, a=axis, b=axis, fields=("loss",))
    found = critical_points(plane, objective, directions, generator=seeded())
    lowest = found.points[0]
    assert lowest.coordinates == pytest.approx([0.0, 0.0], abs=1e-3)
    assert lowest.genuine
    assert lowest.plane_kind == lowest.kind == "minimum"


def test_a_slope_has_no_stationary_point():
    axis = np.linspace(-1, 1, 7)
    plane, objective, directions = plane_of(lambda t: t[0] + 0.1 * t[1] ** 2, 2, a=axis, b=axis)
    assert critical_points(plane, objective, directions, generator=seeded()).points == ()


def test_points_beside_holes_are_left_out():
    axis = np.linspace(-5, 5, 25)
    plane, *_ = plane_of(himmelblau, 2, a=axis, b=axis)
    values = plane.fields["loss"].copy()
    values[18:, :] = np.nan  # the two minima and saddles with x > 2.5
    import dataclasses

    places, holes = locate(dataclasses.replace(plane, fields={"loss": values}))
    assert holes == values[18:].size
    assert all(place[0] < 2.6 for place in places)
    assert any(np.abs(place - MINIMA[1]).max() < 0.05 for place in places)


def test_the_lowest_points_are_verified_and_the_rest_counted():
    axis = np.linspace(-5, 5, 25)
    plane, objective, directions = plane_of(himmelblau, 3, a=axis, b=axis)
    found = critical_points(
        plane, objective, directions, max_points=2, curvature=False, generator=seeded()
    )
    assert len(found.points) == 2
    assert "7 more" in found.note
    assert all(point.kind == "unknown" for point in found.points)


def test_wrong_use_is_refused():
    axis = np.linspace(-1, 1, 5)
    plane, objective, directions = plane_of(lambda t: t @ t, 3, a=axis, b=axis)
    with pytest.raises(ValueError, match="norms differ"):
        critical_points(plane, objective, vector_directions(
            objective.theta(), {"x": 2 * unit(0, 3), "y": unit(1, 3)}
        ), generator=seeded())  # fmt: skip
    with pytest.raises(ValueError, match="two directions"):
        critical_points(plane, objective, directions.take(0), generator=seeded())
    small, objective, directions = plane_of(lambda t: t @ t, 3, a=axis[:3], b=axis)
    with pytest.raises(ValueError, match="four nodes"):
        critical_points(small, objective, directions, generator=seeded())
