import numpy as np
import pytest
import torch
from torch import nn

import cases
from kobai.landscape import (
    Directions,
    between_directions,
    eigen_directions,
    evaluate_plane,
    pca_directions,
    random_directions,
    vector_directions,
)
from kobai.landscape.directions import pca as pca_module
from kobai.problem import Analytic, ParameterSpace


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Odd(nn.Module):
    """A scalar, a vector, a matrix with a zero row, a convolution and a normalisation layer."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(-2.0).double())
        self.offsets = nn.Parameter(torch.arange(1.0, 4.0).double())
        self.linear = nn.Linear(4, 3).double()
        self.conv = nn.Conv2d(2, 3, 3).double()
        self.norm = nn.LayerNorm(3).double()
        with torch.no_grad():
            self.linear.weight[1] = 0.0


@pytest.fixture
def space():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ParameterSpace(Odd())


@pytest.mark.parametrize("exclude", [(), ("bias", "norm")])
def test_every_filter_takes_the_norm_of_its_own(space, exclude):
    made = random_directions(space, generator=seeded(0), exclude=exclude)
    theta = space.theta()
    for block in space.blocks("filter"):
        still = bool(exclude) and (block.name.endswith("bias") or block.name.startswith("norm"))
        for direction in made.vectors.T:
            wanted = 0.0 if still else float(theta[block.indices].norm())
            assert float(direction[block.indices].norm()) == pytest.approx(wanted, rel=1e-12)


def test_a_convolution_counts_as_one_filter_an_output_channel(space):
    made = random_directions(space, generator=seeded(0), count=1)
    kernel = space.unflatten(made.vectors[:, 0])["conv.weight"]
    wanted = space.unflatten(space.theta())["conv.weight"].flatten(1).norm(dim=1)
    assert torch.allclose(kernel.flatten(1).norm(dim=1), wanted)
    assert kernel[0, 0].norm() != pytest.approx(float(kernel[0, 1].norm()))


def test_a_filter_of_norm_zero_stays(space):
    made = random_directions(space, generator=seeded(0))
    for direction in made.vectors.T:
        assert not space.unflatten(direction)["linear.weight"][1].any()
    with pytest.raises(ValueError, match="global"):
        random_directions(space, torch.zeros_like(space.theta()), generator=seeded(0))


def test_layers_and_the_whole_can_be_scaled_instead(space):
    layers = random_directions(space, generator=seeded(0), norm="layer", exclude=())
    for block in space.blocks("layer"):
        wanted = float(space.theta()[block.indices].norm())
        for direction in layers.vectors.T:
            assert float(direction[block.indices].norm()) == pytest.approx(wanted)
    unit = random_directions(space, generator=seeded(0), norm="global", exclude=())
    assert unit.norms == pytest.approx((1.0, 1.0))
    raw = random_directions(space, generator=seeded(0), norm="none", exclude=())
    assert torch.allclose(raw.vectors / raw.vectors.norm(dim=0), unit.vectors)


def test_exclusion_does_not_change_the_draws_and_takes_patterns(space):
    every = random_directions(space, generator=seeded(3), norm="none", exclude=())
    some = random_directions(space, generator=seeded(3), norm="none", exclude=("conv.*", "vectors"))
    moved = space.unflatten(some.vectors[:, 0])
    assert not moved["conv.weight"].any()
    assert not moved["gain"].any()
    same = space.unflatten(every.vectors[:, 0])["linear.weight"]
    assert torch.equal(moved["linear.weight"], same)
    with pytest.raises(ValueError, match="neither a filter"):
        random_directions(space, generator=seeded(0), exclude=("nothing",))
    with pytest.raises(ValueError, match="no parameter to move"):
        random_directions(space, generator=seeded(0), exclude=("*",))
    with pytest.raises(TypeError, match="sequence"):
        random_directions(space, generator=seeded(0), exclude="bias")


def test_seed_zero_is_a_seed_and_directions_hardly_overlap():
    space = cases.problem("deep-linear").space
    large = Analytic(lambda t: t.sum(), torch.ones(5000, dtype=torch.float64))
    first, again, other = (random_directions(space, generator=seeded(s)).vectors for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    made = random_directions(large, generator=seeded(0))
    # Gaussian draws: cosine of order 1/√P, mean zero (uniform draws on [0, 1] would give 3/4).
    assert abs(made.report().cosines[0][1]) < 5 / 5000**0.5
    assert abs(float(made.vectors.mean())) < 5 / 5000**0.5


def test_a_generator_means_one_direction_in_every_dtype():
    theta = torch.linspace(1, 2, 30, dtype=torch.float64)
    double = random_directions(Analytic(lambda t: t.sum(), theta), generator=seeded(1))
    single = random_directions(Analytic(lambda t: t.sum(), theta.float()), generator=seeded(1))
    assert torch.allclose(double.vectors.float(), single.vectors, rtol=1e-5)


def test_tied_weights_are_one_direction():
    space = cases.problem("tied").space
    made = random_directions(space, generator=seeded(0))
    assert made.vectors.shape[0] == space.dimension == 4 * 4 + 4 + 4


def oblique():
    g = seeded(5)
    origin = torch.randn(40, generator=g, dtype=torch.float64)
    u = torch.randn(40, generator=g, dtype=torch.float64)
    v = 0.9 * u + 0.1 * torch.randn(40, generator=g, dtype=torch.float64)
    return vector_directions(origin, {"long": 100 * u, "short": 0.01 * v}), g


def test_projection_is_right_for_directions_of_any_length_and_angle():
    made, g = oblique()
    wanted = torch.tensor([[0.3, -20.0], [0.0, 1.0], [-1e-3, 5.0]], dtype=torch.float64)
    away = torch.randn(40, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(made.vectors)[0]
    away -= basis @ (basis.T @ away)
    thetas = [made.at(c.tolist()) + k * away for k, c in enumerate(wanted)]
    coordinates, off = made.project(thetas)
    assert torch.allclose(coordinates, wanted, atol=1e-9)
    assert torch.allclose(off, torch.arange(3).double() * away.norm(), atol=1e-10)


def test_orthogonal_keeps_lengths_places_and_the_first_direction():
    made, _ = oblique()
    marked = Directions(
        origin=made.origin, vectors=made.vectors, names=made.names, points={"p": (0.3, -20.0)}
    )
    square = marked.orthogonal()
    assert square.norms == pytest.approx(made.norms)
    assert torch.equal(square.vectors[:, 0], made.vectors[:, 0])
    assert abs(square.report().cosines[0][1]) < 1e-12
    assert torch.allclose(square.at(square.points["p"]), made.at((0.3, -20.0)))
    assert marked.orthonormal().norms == pytest.approx((1.0, 1.0))
    assert "made orthogonal" in square.note
    assert not made.note  # and never unasked


def test_wrong_directions_are_refused():
    one = torch.ones(3, dtype=torch.float64)
    step = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="dependent"):
        vector_directions(one, {"u": step, "v": 2 * step})
    with pytest.raises(ValueError, match="norm 0"):
        vector_directions(one, {"u": 0 * step})
    with pytest.raises(ValueError, match="norm nan"):
        vector_directions(one, {"u": step * float("nan")})
    with pytest.raises(ValueError, match="diverge"):
        vector_directions(one * float("inf"), {"u": step})
    with pytest.raises(ValueError, match="shape"):
        vector_directions(one, {"u": torch.ones(4, dtype=torch.float64)})
    with pytest.raises(ValueError, match="one, two or three"):
        Directions(origin=one, vectors=torch.eye(3, 0).double(), names=())


def test_between_three_runs_the_plane_holds_all_of_them():
    g = seeded(2)
    ends = {name: torch.randn(20, generator=g, dtype=torch.float64) for name in "abc"}
    made = between_directions(ends)
    for name, theta in ends.items():
        assert torch.allclose(made.at(made.points[name]), theta, atol=1e-12)
    assert made.points["a"] == (0.0, 0.0)
    assert made.points["b"] == (1.0, 0.0)
    assert made.origin_label == "a"
    # To scale: equal lengths, right angle.
    assert made.norms[0] == pytest.approx(made.norms[1])
    assert abs(made.report().cosines[0][1]) < 1e-12


def test_between_two_runs_the_second_direction_is_random():
    objective = cases.objective("cnn")
    start = objective.theta()
    ends = {"sgd": start, "adam": start + 0.1 * torch.ones_like(start)}
    made = between_directions(ends, space=objective, generator=seeded(0))
    assert torch.allclose(made.at((1.0, 0.0)), ends["adam"])
    assert abs(made.report().cosines[0][1]) < 1e-12
    assert made.norms[0] == pytest.approx(made.norms[1])
    line = between_directions(ends, count=1)
    assert line.count == 1
    assert line.points == {"sgd": (0.0,), "adam": (1.0,)}
    with pytest.raises(ValueError, match="generator="):
        between_directions(ends)


def test_between_many_runs_the_plane_is_the_closest():
    g = seeded(4)
    flat = torch.randn(15, 2, generator=g, dtype=torch.float64)
    ends = {str(i): flat @ torch.randn(2, generator=g, dtype=torch.float64) + 1.0 for i in range(5)}
    made = between_directions(ends)
    for name, theta in ends.items():  # these five do lie in a plane
        assert torch.allclose(made.at(made.points[name]), theta, atol=1e-10)
    assert sum(made.explained) == pytest.approx(1.0)
    assert made.null == ()


def test_between_refuses_runs_that_span_no_plane():
    one = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="same point"):
        between_directions({"a": one, "b": one}, count=1)
    with pytest.raises(ValueError, match="on a line"):
        between_directions({"a": 0 * one, "b": one, "c": 2 * one})
    with pytest.raises(ValueError, match="at least two"):
        between_directions({"a": one})


@pytest.mark.parametrize("origin", ["last", "mean"])
def test_pca_is_that_of_the_snapshots_whatever_the_blocks(origin, monkeypatch):
    path = torch.randn(7, 50, generator=seeded(0), dtype=torch.float64).cumsum(0)
    monkeypatch.setattr(pca_module, "BLOCK", 60)  # eight coordinates at a time
    made = pca_directions(path, origin=origin)
    centred = path - (path[-1] if origin == "last" else path.mean(0))
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    shares = values**2 / (values**2).sum()
    assert made.explained == pytest.approx(shares[:2].tolist())
    overlap = (made.vectors.T @ vectors[:2].T).abs()
    assert torch.allclose(overlap, torch.eye(2, dtype=torch.float64), atol=1e-10)
    coordinates, _ = made.project(path)
    assert torch.all(coordinates[0] >= -1e-12)  # the sign is settled
    assert torch.allclose(coordinates, centred @ made.vectors, atol=1e-10)
    if origin == "last":
        assert torch.equal(made.at((0.0, 0.0)), path[-1])


@pytest.mark.parametrize(("origin", "shares"), [("mean", (0.608, 0.152)), ("last", (0.811, 0.090))])
def test_the_null_is_that_of_a_random_walk(origin, shares):
    # Antognini & Sohl-Dickstein 2018: 6/π² and 6/(4π²) centred, 8/π² and 8/(9π²) about the end.
    steps = torch.randn(300, 5_000, generator=seeded(0), dtype=torch.float32)
    made = pca_directions(steps.cumsum(0), origin=origin)
    assert made.null == pytest.approx(shares, abs=5e-3)
    assert np.allclose(made.explained, made.null, atol=0.03)


def test_pca_of_several_runs_is_joint():
    g = seeded(1)
    start = torch.randn(1, 30, generator=g, dtype=torch.float64)
    runs = {
        name: start + torch.randn(5, 30, generator=g, dtype=torch.float64).cumsum(0)
        for name in "ab"
    }
    runs = {name: torch.cat((start, run)) for name, run in runs.items()}
    made = pca_directions(runs)
    assert set(made.points) == {"a", "b"}
    assert made.points["a"] == pytest.approx((0.0, 0.0), abs=1e-12)
    assert len(made.null) == 2
    assert "random walk" in str(made.report())
    with pytest.raises(ValueError, match="more than 2 snapshots"):
        pca_directions([start[0], start[0] + 1])
    with pytest.raises(ValueError, match="do not move"):
        pca_directions([start[0]] * 4)
    with pytest.raises(ValueError, match="fewer than 2 directions"):
        pca_directions([start[0] * k for k in range(4)])


@pytest.mark.parametrize(
    ("which", "values"),
    [("largest", (9.0, 4.0)), ("smallest", (-3.0, -1.0)), ("both", (9.0, -3.0))],
)
def test_eigenvectors_of_the_hessian_span_the_plane_of_largest_bend(which, values):
    basis = torch.linalg.qr(torch.randn(5, 5, generator=seeded(0), dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor([-3.0, -1.0, 0.5, 4.0, 9.0]).double()) @ basis.T
    objective = Analytic(lambda t: 0.5 * t @ matrix @ t, torch.ones(5, dtype=torch.float64))
    made = eigen_directions(objective, which=which, generator=seeded(1))
    assert made.norms == pytest.approx((1.0, 1.0))
    assert "converged" in made.note
    fields = ("curvature_aa", "curvature_ab", "curvature_bb")
    plane = evaluate_plane(objective, made, a=2, b=2, fields=fields, checks=False)
    for name, value in zip(fields, (values[0], 0.0, values[1]), strict=True):
        assert np.allclose(plane.fields[name], value, atol=1e-8)
    assert f"{values[0]:.4g}" in made.names[0]


def test_directions_in_the_bulk_leave_the_outliers_out():
    """Ten eigenvalues of 50 and more beside a bulk of 1 to 2: every bend lies in the bulk."""
    basis = torch.linalg.qr(torch.randn(30, 30, generator=seeded(0), dtype=torch.float64))[0]
    values = torch.cat((torch.linspace(-90, -50, 4), torch.linspace(1, 2, 20)))
    values = torch.cat((values, torch.linspace(50, 90, 6))).double()
    matrix = basis @ torch.diag(values) @ basis.T
    objective = Analytic(lambda t: 0.5 * t @ matrix @ t, torch.ones(30, dtype=torch.float64))
    made = eigen_directions(objective, which="bulk", count=3, generator=seeded(1))
    assert torch.allclose(made.gram(), torch.eye(3, dtype=torch.float64), atol=1e-12)
    outliers = torch.cat((basis[:, :4], basis[:, -6:]), dim=1)
    assert float((outliers.T @ made.vectors).abs().max()) < 1e-3
    bends = torch.einsum("pi,pq,qi->i", made.vectors, matrix, made.vectors)
    assert bool(((bends > 1) & (bends < 2)).all())
    assert f"{float(bends[0]):.4g}" in made.names[0]
    small = Analytic(lambda t: t.square().sum(), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="no bulk"):
        eigen_directions(small, which="bulk", generator=seeded(1))
