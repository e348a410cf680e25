"""Measures of a surface's shape against closed forms, and quantiles over random planes."""

import math

import numpy as np
import pytest
import torch

import cases
from kobai.landscape import evaluate_ensemble, evaluate_plane, median_smoothness, smoothness
from kobai.landscape import vector_directions as given
from kobai.problem import Analytic
from kobai.results import Plane, load, save


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def surface(function, n=41, half=2.0, norms=(1.0, 1.0), cosine=0.0, low=None) -> Plane:
    """A function of distances x, y in an orthonormal frame, on a grid in oblique coordinates."""
    a = np.linspace(-half if low is None else low, half, n)
    grid = np.meshgrid(a, a, indexing="ij")
    sine = math.sqrt(1 - cosine**2)
    x = grid[0] * norms[0] + grid[1] * norms[1] * cosine
    y = grid[1] * norms[1] * sine
    return Plane(
        label="surface", kind="given", a=a, b=a, axis_names=("a", "b"), cosine=cosine,
        fields={"loss": function(x, y)}, direction_norms=np.array(norms), origin="centre",
    )  # fmt: skip


OBLIQUE = {"norms": (2.0, 0.5), "cosine": 0.6}


@pytest.mark.parametrize("frame", [{}, OBLIQUE])
def test_curvature_of_a_quadratic_is_its_eigenvalues_in_any_frame(frame):
    found = smoothness(surface(lambda x, y: 1.5 * x**2 + 0.2 * x * y - 0.5 * y**2 + 3, **frame))
    low, high = np.linalg.eigvalsh([[3.0, 0.2], [0.2, -1.0]])
    assert found.curvature_low == pytest.approx(low, rel=1e-8)
    assert found.curvature_high == pytest.approx(high, rel=1e-8)
    assert found.nonconvex == 1.0
    assert found.asymmetry < 1e-12


@pytest.mark.parametrize("frame", [{}, OBLIQUE])
def test_a_bowl_has_the_radius_of_its_disc_and_nothing_rough(frame):
    found = smoothness(surface(lambda x, y: 5 * (x**2 + y**2) + 1, **frame), epsilon=0.05)
    assert found.radius == pytest.approx(0.1, rel=0.02)
    assert found.steepness == pytest.approx(0.5, rel=0.02)
    assert found.roughness < 1e-7
    assert found.nonconvex == 0.0
    assert found.anisotropy < 1e-7
    assert not found.cut_off
    assert found.missing == 0


def test_an_elliptic_bowl_has_the_area_of_its_ellipse_and_a_known_anisotropy():
    """On a circle p cos² + q sin² has mean (p+q)/2 and standard deviation |p−q|/√8."""
    p, q = 3.0, 1.0
    found = smoothness(surface(lambda x, y: p * x**2 + q * y**2), epsilon=0.5)
    assert found.radius == pytest.approx(math.sqrt(0.5 / math.sqrt(p * q)), rel=0.01)
    assert found.anisotropy == pytest.approx((p - q) / math.sqrt(8) / ((p + q) / 2), rel=1e-3)
    assert found.roughness == pytest.approx((2 * p - 2 * q) * 4 / (2 * 4 * (p + q)), rel=1e-6)


def test_a_wave_bends_down_over_half_its_period():
    found = smoothness(surface(lambda x, y: 1 - np.cos(np.pi * x), n=81))
    # κ = π² cos(π x): on 81 nodes over two periods, half of them.
    assert found.curvature_high == pytest.approx(math.pi**2, rel=0.03)
    assert found.curvature_low == pytest.approx(-(math.pi**2), rel=0.03)
    assert found.nonconvex == pytest.approx(0.5, abs=0.04)
    # Around the centre 1 − cos(πx) ≤ ε is a strip that leaves the grid above and below.
    assert found.cut_off


@pytest.mark.parametrize(("odd", "even", "share"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
def test_asymmetry_is_the_odd_share(odd, even, share):
    found = smoothness(surface(lambda x, y: odd * x + even * (x**2 + y**2)))
    assert found.asymmetry == pytest.approx(share, abs=1e-12)


def test_asymmetry_of_a_mixture_by_its_definition():
    plane = surface(lambda x, y: x**2 + y**2 + 0.3 * x)
    f = plane.fields["loss"] - plane.fields["loss"][20, 20]
    mirrored = f[::-1, ::-1]
    wanted = np.abs(f - mirrored).sum() / (np.abs(f) + np.abs(mirrored)).sum()
    assert smoothness(plane).asymmetry == pytest.approx(wanted, rel=1e-9)
    assert 0.0 < wanted < 0.3


def test_a_separate_basin_does_not_count():
    """Two wells of radius about √ε; only the one at the centre is its sublevel set."""
    found = smoothness(
        surface(lambda x, y: np.minimum(x**2 + y**2, (x - 1.5) ** 2 + y**2), n=81), epsilon=0.04
    )
    assert found.radius == pytest.approx(0.2, rel=0.03)


def test_a_corner_grid_is_measured_from_its_corner():
    """Half steps: on a quarter plane the area is a quarter disc, and it is cut off."""
    found = smoothness(surface(lambda x, y: x**2 + y**2, low=0.0), epsilon=0.25)
    assert found.radius == pytest.approx(0.5 / 2, rel=0.02)
    assert found.cut_off
    assert math.isnan(found.anisotropy)


def test_values_that_are_not_finite_are_left_out_and_counted():
    plane = surface(lambda x, y: np.where((x > 1.95) & (y > 1.95), np.inf, x**2 + y**2))
    found = smoothness(plane)
    assert found.missing == 1
    assert np.isfinite(found.asymmetry)
    hole = surface(lambda x, y: np.where(np.hypot(x, y) < 0.01, np.nan, x**2))
    with pytest.raises(ValueError, match="centre is not finite"):
        smoothness(hole)


def test_wrong_use_is_refused():
    plane = surface(lambda x, y: x**2)
    with pytest.raises(ValueError, match="no field 'accuracy'"):
        smoothness(plane, "accuracy")
    with pytest.raises(ValueError, match="positive"):
        smoothness(plane, epsilon=0.0)
    with pytest.raises(ValueError, match="four nodes"):
        smoothness(surface(lambda x, y: x, n=3))
    with pytest.raises(ValueError, match="inside the grid"):
        smoothness(surface(lambda x, y: x, low=0.5))


def test_it_agrees_with_the_hessian_fields_of_an_evaluated_plane():
    matrix = torch.diag(torch.tensor([4.0, 1.0, -2.0], dtype=torch.float64))
    objective = Analytic(lambda t: 0.5 * t @ matrix @ t, torch.zeros(3, dtype=torch.float64))
    vectors = {"u": torch.tensor([1.0, 1, 0]), "v": torch.tensor([0.0, 1, 1])}
    directions = given(objective.theta(), {k: v.double() for k, v in vectors.items()})
    plane = evaluate_plane(
        objective, directions, a=np.linspace(-1, 1, 7), b=np.linspace(-1, 1, 5),
        fields=("loss", "curvature_min", "curvature_max"),
    )  # fmt: skip
    found = smoothness(plane)
    assert found.curvature_low == pytest.approx(plane.fields["curvature_min"][0, 0], rel=1e-8)
    assert found.curvature_high == pytest.approx(plane.fields["curvature_max"][0, 0], rel=1e-8)


def test_an_ensemble_has_numpys_quantiles_and_common_axes(tmp_path):
    objective = cases.objective("mlp")
    found = evaluate_ensemble(objective, count=4, a=5, b=5, generator=seeded(), label="mlp")
    assert found.values.shape == (4, 5, 5)
    wanted = np.quantile(found.values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    assert found.quantiles == pytest.approx(wanted)
    # Every plane holds the point itself.
    assert found.values[:, 2, 2] == pytest.approx(float(objective.value(objective.theta())))
    assert found.rays().shape == (8, 5)
    assert found.rays()[:4] == pytest.approx(found.values[:, :, 2])
    again = evaluate_ensemble(objective, count=4, a=5, b=5, generator=seeded())
    assert np.array_equal(again.values, found.values)
    assert np.array_equal(found.a, found.b)
    median = median_smoothness(found)
    assert median.radius == np.median([entry.radius for entry in found.smoothness])
    assert "4 planes" in median.note
    save(found, tmp_path, "ensemble")
    assert np.array_equal(load(tmp_path, "ensemble").values, found.values)


def test_random_planes_of_a_round_bowl_are_all_alike():
    """In a bowl ½‖θ‖² every plane shows ½ r², whatever its directions: no spread over planes."""
    objective = Analytic(lambda t: 0.5 * t @ t, torch.zeros(400, dtype=torch.float64))
    found = evaluate_ensemble(
        objective, count=3, a=np.linspace(-1, 1, 5), b=np.linspace(-1, 1, 5), norm="global",
        exclude=(), generator=seeded(),
    )  # fmt: skip
    assert np.ptp(found.values[:, :, 2], axis=0).max() < 1e-12
    for entry in found.smoothness:
        assert entry.curvature_high == pytest.approx(1.0, rel=1e-6)


def test_an_ensemble_refuses_what_it_cannot_do():
    objective = cases.objective("mlp")
    with pytest.raises(ValueError, match="at least 2"):
        evaluate_ensemble(objective, count=1, generator=seeded())
    with pytest.raises(ValueError, match="increase"):
        evaluate_ensemble(objective, count=2, levels=(0.5, 0.1), generator=seeded())
    with pytest.raises(ValueError, match="first plane"):
        evaluate_ensemble(
            objective, count=2, a=np.linspace(-1, 1, 5), b=np.linspace(-1, 1, 5),
            stop=lambda: True, generator=seeded(),
        )  # fmt: skip
