"""Planes for several runs at once, and planes that follow one run."""

import numpy as np
import pytest
import torch

from kobai.landscape import frame_directions, joint_directions, moving_frame, project_trajectory
from kobai.problem import Analytic
from kobai.results import load, save


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def circle(count=9, size=6):
    """Points on a circle in a random plane of a larger space."""
    basis = torch.linalg.qr(normal(size, 2, seed=7))[0]
    angles = torch.linspace(0, 1.0, count, dtype=torch.float64)
    return [basis @ torch.stack([torch.cos(x), torch.sin(x)]) for x in angles], basis


def bowl(size=6):
    return Analytic(lambda t: 0.5 * t @ t, torch.zeros(size, dtype=torch.float64))


def test_a_joint_plane_holds_its_point_and_is_best_for_the_rest():
    point, runs = normal(40, seed=1), {}
    for k, name in enumerate(("adam", "kfac")):
        steps = normal(6, 40, seed=10 + k).cumsum(0)
        runs[name] = [point + step for step in steps]
    found = joint_directions(point, runs)
    assert torch.equal(found.origin, point)
    assert found.points["true minimum"] == (0.0, 0.0)
    offsets = torch.stack([theta - point for run in runs.values() for theta in run])
    # The best plane through the point: squared singular values of the offsets.
    singular = torch.linalg.svdvals(offsets) ** 2
    assert found.explained == pytest.approx((singular / singular.sum())[:2].tolist())
    shown = found.project(offsets + point)[0].square().sum()
    assert float(shown) == pytest.approx(float(singular[:2].sum()))


def test_a_joint_plane_refuses_a_run_with_the_points_name():
    point = normal(5)
    with pytest.raises(ValueError, match="rename"):
        joint_directions(point, {"true minimum": [point + 1, point + 2]})


def test_a_frame_is_the_tangent_and_the_bend():
    """On a circle the tangent is known, and the bend points to the centre."""
    path, basis = circle()
    found = frame_directions(path, 4)
    angle = torch.tensor(0.5, dtype=torch.float64)
    tangent = basis @ torch.stack([-torch.sin(angle), torch.cos(angle)])
    assert torch.allclose(found.vectors[:, 0], tangent, atol=1e-12)
    assert torch.allclose(found.vectors[:, 1], -path[4], atol=1e-12)
    assert found.cosine_matrix()[0, 1].abs() < 1e-12
    # The neighbours lie in the frame.
    assert project_trajectory(bowl(), found, path, label="run").off_plane.max() < 1e-12
    assert set(found.points) == {"step 3", "step 5"}
    assert found.points["step 5"][0] == pytest.approx(np.sin(0.125))


def test_a_straight_path_needs_another_direction():
    path = [torch.full((6,), float(k), dtype=torch.float64) for k in range(4)]
    with pytest.raises(ValueError, match="straight at step 1"):
        frame_directions(path, 1)
    gradient = normal(6, seed=3)
    found = frame_directions(path, 1, across=gradient)
    plane = torch.linalg.matrix_rank(torch.column_stack([found.vectors, gradient]))
    assert int(plane) == 2
    drawn = frame_directions(path, -1, generator=seeded())
    assert drawn.origin_label == "step 3"
    assert "random" in drawn.names[1]
    with pytest.raises(ValueError, match="stands still"):
        frame_directions([path[0], path[0]], 0)
    with pytest.raises(ValueError, match="no frame"):
        frame_directions(path, 4)


def test_a_moving_frame_shows_the_bowl_from_each_point(tmp_path):
    path, _ = circle()
    found = moving_frame(bowl(), path, count=3, nodes=5, reach=1.0, label="run", generator=seeded())
    assert found.steps == (0, 4, 8)
    for step, frame in zip(found.steps, found.frames, strict=True):
        assert frame.fields["loss"][2, 2] == pytest.approx(0.5)
        assert frame.direction_norms == pytest.approx([1.0, 1.0])
        assert frame.a[-1] == pytest.approx(2 * np.sin(0.0625), rel=1e-2), step
    # In the middle the second axis points to the centre: ½ (1 − b)².
    middle = found.frames[1]
    assert middle.fields["loss"][2] == pytest.approx(0.5 * (1 - middle.b) ** 2)
    save(found, tmp_path, "frames")
    assert load(tmp_path, "frames").steps == found.steps


def test_a_run_that_stands_still_has_no_frame():
    point = normal(6)
    with pytest.raises(ValueError, match="does not move"):
        moving_frame(bowl(), [point, point.clone()], generator=seeded())
