"""Each test is a defect that a published landscape tool has or had; none may appear here."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cases
from example_results import a_plane
from kobai import plots, report
from kobai.landscape import (
    evaluate_line,
    evaluate_plane,
    project_trajectory,
    raise_if_failed,
    random_directions,
    vector_directions,
)
from kobai.problem import Analytic, Problem
from kobai.results import save

P = 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def probe():
    """A function that tells its arguments apart, on unit directions: values name their node."""
    objective = Analytic(lambda t: t[0] + 100 * t[1], torch.zeros(2, dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    return objective, vector_directions(objective.theta(), {"x": eye[0], "y": eye[1]})


def test_a_grid_that_is_not_square_is_not_transposed():
    objective, directions = probe()
    a, b = np.linspace(-1, 1, 3), np.linspace(0, 5, 7)
    plane = evaluate_plane(objective, directions, a=a, b=b)
    assert np.allclose(plane.fields["loss"], a[:, None] + 100 * b[None])


def test_no_row_is_shifted_by_a_step():
    objective, directions = probe()
    plane = evaluate_plane(objective, directions, a=np.arange(6.0), b=np.arange(5.0))
    for i, row in enumerate(plane.fields["loss"]):
        assert np.allclose(row - row[0], 100 * np.arange(5)), f"row {i}"


def test_the_first_point_of_a_line_is_its_start_and_the_last_its_end():
    objective, directions = probe()
    line = evaluate_line(objective, directions.take(0), a=np.linspace(2, 3, 4))
    assert line.fields["loss"] == pytest.approx(np.linspace(2, 3, 4))


@pytest.mark.parametrize("axis", [np.linspace(0, 1, 5), np.linspace(-1, 0, 5)])
def test_a_range_may_start_or_end_at_zero(axis):
    objective, directions = probe()
    plane = evaluate_plane(objective, directions, a=axis, b=[0.0, 1.0])
    assert plane.fields["loss"][:, 0] == pytest.approx(axis)


def test_seed_zero_is_a_seed_like_any_other():
    objective = cases.objective("mlp")
    zero, again, one = (
        random_directions(objective, generator=seeded(s)).vectors for s in (0, 0, 1)
    )
    assert torch.equal(zero, again)
    assert not torch.equal(zero, one)


def test_random_directions_are_gaussian_and_not_positive():
    """Uniform draws from [0, 1) have a cosine of 3/4 with each other."""
    with torch.random.fork_rng():
        net = nn.Linear(200, 50).double()
        data = torch.randn(3, 200).double(), torch.randn(3, 50).double()
    objective = Problem(net, "gaussian", train=data).objective()
    directions = random_directions(objective, generator=seeded(), norm="none", exclude=())
    assert abs(float(directions.cosine_matrix()[0, 1])) < 5 / len(directions.origin) ** 0.5
    assert abs(float(directions.vectors.mean())) < 5 / directions.vectors.numel() ** 0.5


@pytest.mark.parametrize("exclude", [(), ("bias", "norm")])
def test_a_filter_is_all_weights_into_a_channel(exclude):
    """Not the weights over input channels only, and not the whole layer."""
    objective = cases.objective("cnn")
    directions = random_directions(objective, generator=seeded(), exclude=exclude)
    theta = objective.space.unflatten(directions.origin)
    for vector in directions.vectors.T:
        for name, part in objective.space.unflatten(vector).items():
            if part.ndim > 1:
                assert torch.allclose(
                    part.flatten(1).norm(dim=1), theta[name].flatten(1).norm(dim=1)
                )
            elif exclude:
                assert not part.any()  # biases stay where they are
            else:
                assert part.norm() == pytest.approx(float(theta[name].norm()))


def test_trajectories_are_right_on_directions_that_are_neither_unit_nor_orthogonal():
    """A cosine projection gives lengths, which are coordinates for unit directions only."""
    vectors = torch.tensor([[3.0, 0, 0, 0], [1.0, 0.1, 0, 0]], dtype=torch.float64)
    objective = Analytic(lambda t: (t * t).sum(), torch.zeros(P, dtype=torch.float64))
    directions = vector_directions(objective.theta(), {"u": vectors[0], "v": vectors[1]})
    off = torch.tensor([0, 0, 0, 2.0], dtype=torch.float64)
    path = torch.stack([0.5 * vectors[0] - 2 * vectors[1] + off, vectors[1]])
    found = project_trajectory(objective, directions, path, label="run")
    assert found.coordinates == pytest.approx(np.array([[0.5, -2.0], [0.0, 1.0]]))
    assert found.off_plane == pytest.approx([2.0, 0.0], abs=1e-12)
    assert found.loss == pytest.approx((path * path).sum(1).numpy())  # not that of the shadow


def test_the_whole_data_counts_and_not_one_batch():
    problem = cases.problem("mlp")
    objective = problem.objective(chunk=2)
    directions = random_directions(objective, generator=seeded())
    plane = evaluate_plane(objective, directions, a=[0.0, 0.3], b=[0.0, 0.3])
    x, y = problem.train.all.inputs, problem.train.all.targets
    with torch.no_grad():
        whole = nn.functional.cross_entropy(problem.model(x), y)
    assert plane.fields["loss"][0, 0] == pytest.approx(float(whole), rel=1e-12)


def test_a_last_batch_that_is_smaller_does_not_count_more():
    problem = cases.problem("mlp")
    losses = [
        evaluate_plane(
            objective, random_directions(objective, generator=seeded()), a=[-0.2, 0.4], b=[0.0, 1.0]
        ).fields["loss"]
        for objective in (problem.objective(chunk=4), problem.objective())
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_parameters_do_not_drift_with_the_number_of_points():
    """In-place additions leave rounding behind, more with every point."""
    objective = cases.objective("mlp")
    before = objective.theta()
    directions = random_directions(objective, generator=seeded())
    plane = evaluate_plane(objective, directions, a=15, b=14)
    assert torch.equal(objective.theta(), before)
    assert {c.name: c.passed for c in plane.checks}["model untouched"]


@pytest.mark.parametrize("training", [False, True])
def test_modes_and_buffers_are_left_as_they_were(training):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
        data = torch.randn(20, 3).double(), torch.randint(0, 2, (20,))
    net[0].train(training)  # a mode of its own, which eval() and train() would lose
    state = {name: t.clone() for name, t in net.state_dict().items()}
    assert any(t.dtype == torch.int64 for t in state.values())  # num_batches_tracked
    objective = Problem(net, "categorical", train=data).objective()
    directions = random_directions(objective, generator=seeded())
    for batchnorm in ("frozen", "recalibrated"):
        raise_if_failed(evaluate_plane(objective, directions, a=3, b=4, batchnorm=batchnorm))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert [m.training for m in net] == [training, False, False]


def test_parameters_of_no_axis_and_of_one_move_too():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
            self.shift = nn.Parameter(torch.tensor([0.5, -1.0], dtype=torch.float64))

        def forward(self, x):
            return self.scale * x + self.shift

    x = torch.ones(3, 2, dtype=torch.float64)
    objective = Problem(Odd(), "gaussian", train=(x, torch.zeros_like(x))).objective()
    directions = random_directions(objective, generator=seeded(), exclude=())
    plane = evaluate_plane(objective, directions, a=[-1.0, 1.0], b=[0.0, 0.5])
    for i, a in enumerate(plane.a):
        for j, b in enumerate(plane.b):
            s, *t = directions.at((a, b)).tolist()
            wanted = 0.5 * sum((s + shift) ** 2 for shift in t)
            assert plane.fields["loss"][i, j] == pytest.approx(wanted, rel=1e-12)


def test_tied_weights_move_once():
    objective = cases.objective("tied")
    directions = random_directions(objective, generator=seeded(), exclude=())
    plane = evaluate_plane(objective, directions, a=[-0.5, 0.5], b=[0.0, 0.5])
    for i, a in enumerate(plane.a):
        for j, b in enumerate(plane.b):
            nn.utils.vector_to_parameters(directions.at((a, b)), objective.model.parameters())
            batch = next(iter(objective.batches))
            with torch.no_grad():
                residual = objective.model(batch.inputs) - batch.targets
            wanted = 0.5 * residual.square().sum() / len(residual)
            assert plane.fields["loss"][i, j] == pytest.approx(float(wanted), rel=1e-11)
            nn.utils.vector_to_parameters(directions.origin, objective.model.parameters())


def test_zero_and_negative_losses_are_kept_when_a_grid_is_resumed(tmp_path):
    """Values of exactly zero were taken for nodes that are still to be done."""
    calls = []

    def counted(t):
        calls.append(1)
        return t[0] * t[1]

    objective = Analytic(counted, torch.zeros(2, dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    directions = vector_directions(objective.theta(), {"x": eye[0], "y": eye[1]})
    axis = np.linspace(-1, 1, 5)
    options = {"a": axis, "b": axis, "folder": tmp_path, "checks": False}
    first = evaluate_plane(objective, directions, **options)
    assert (first.fields["loss"] == 0).sum() == 9
    assert (first.fields["loss"] < 0).sum() == 8
    done = len(calls)
    again = evaluate_plane(objective, directions, **options)
    assert np.array_equal(first.fields["loss"], again.fields["loss"])
    assert len(calls) - done < 6  # an estimate of the time and the identity; none of the 25 nodes


def test_gradients_are_there_where_gradients_are_asked_for():
    """A wrapper that switched gradients off for good made gradient fields impossible."""
    objective = cases.objective("mlp")
    directions = random_directions(objective, generator=seeded())
    with torch.no_grad():
        plane = evaluate_plane(
            objective, directions, a=[0.0, 0.1], b=[0.0, 0.1], fields=["gradient_norm"]
        )
    wanted = float(objective.grad(directions.origin).norm())
    assert plane.fields["gradient_norm"][0, 0] == pytest.approx(wanted, rel=1e-12)


def test_a_cell_that_is_not_a_number_spoils_no_other():
    objective = Analytic(lambda t: torch.log(t[0]) + t[1], torch.ones(2, dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    directions = vector_directions(objective.theta(), {"x": eye[0], "y": eye[1]})
    a, b = np.array([-3.0, -0.5, 0.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    plane = evaluate_plane(objective, directions, a=a, b=b)
    assert np.isnan(plane.fields["loss"][0]).all()
    assert plane.fields["loss"][1:] == pytest.approx(np.log(1 + a[1:])[:, None] + 1 + b[None])
    assert "3 of 12 nodes are not finite" in plane.note


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "lstm", "transformer"])
def test_every_self_check_passes_on_every_kind_of_network(name):
    objective = cases.objective(name)
    directions = random_directions(objective, generator=seeded())
    fields = ("accuracy", "stderr", "gradient_norm", "curvature_min", "curvature_max")
    plane = evaluate_plane(objective, directions, a=4, b=3, fields=fields)
    raise_if_failed(plane)
    assert len(plane.checks) == 8
    assert all(np.isfinite(plane.fields[name]).all() for name in plane.fields)


def test_a_surface_in_three_dimensions_is_not_blank():
    """Axes that were made past the figure drew nothing."""
    plane = a_plane()
    figure = plots.landscape_surface(plane)
    pixels = np.asarray(Image.open(io.BytesIO(plots.to_png(figure, dpi=60))).convert("RGB"))
    # Viridis has hundreds of shades; grey axes and letters have three equal channels.
    coloured = pixels[np.ptp(pixels.astype(int), axis=2) > 40]
    assert len(coloured) > 0.05 * pixels.shape[0] * pixels.shape[1]
    assert len(np.unique(coloured, axis=0)) > 50


def test_twenty_surfaces_share_one_stage(tmp_path):
    """Browsers keep about eight WebGL contexts: a page with a chart for each surface went blank."""
    for k in range(20):
        save(a_plane(label=f"plane {k}"), tmp_path, f"plane_{k}")
    page = report.build(tmp_path).read_text("utf-8")
    assert page.count('id="chart-stage"') == 1
    assert all(f"plane {k}" in page for k in range(20))
