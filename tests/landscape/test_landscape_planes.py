import numpy as np
import pytest
import torch
from torch import nn

import cases
from kobai import results
from kobai.landscape import (
    between_directions,
    evaluate_line,
    evaluate_plane,
    pca_directions,
    project_trajectory,
    raise_if_failed,
    random_directions,
    vector_directions,
)
from kobai.landscape.grid.fields import all_fields
from kobai.problem import Analytic, Problem, WeightedSum

P = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def quadratic():
    """½ θᵀAθ + gᵀθ with A indefinite, and two oblique directions of unequal length."""
    matrix = normal(P, P, seed=1)
    matrix, gradient = matrix + matrix.T, normal(P, seed=2)
    objective = Analytic(lambda t: 0.5 * t @ matrix @ t + gradient @ t, normal(P, seed=3))
    vectors = {"u": 3 * normal(P, seed=4), "v": 0.1 * normal(P, seed=5)}
    return objective, matrix, gradient, vector_directions(objective.theta(), vectors)


def test_every_field_of_a_quadratic_is_its_closed_form(quadratic):
    objective, matrix, gradient, directions = quadratic
    a, b = np.linspace(0, 2, 4), np.linspace(-1, 3, 7)
    fields = [name for name in all_fields(2) if name not in ("accuracy", "stderr", "class_loss")]
    plane = evaluate_plane(objective, directions, a=a, b=b, fields=fields)
    u, v = directions.vectors.T
    basis = torch.linalg.qr(directions.vectors)[0]
    restricted = torch.linalg.eigvalsh(basis.T @ matrix @ basis)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            theta = directions.origin + x * u + y * v
            slope = matrix @ theta + gradient
            wanted = {
                "loss": 0.5 * theta @ matrix @ theta + gradient @ theta,
                "gradient_norm": slope.norm(),
                "slope_a": slope @ u,
                "slope_b": slope @ v,
                "curvature_aa": u @ matrix @ u,
                "curvature_ab": u @ matrix @ v,
                "curvature_bb": v @ matrix @ v,
                "curvature_min": restricted[0],
                "curvature_max": restricted[1],
                "hessian_min": torch.linalg.eigvalsh(matrix)[0],
                "hessian_max": torch.linalg.eigvalsh(matrix)[-1],
            }
            for name, value in wanted.items():
                found = plane.fields[name][i, j]
                assert found == pytest.approx(float(value), rel=1e-10, abs=1e-10), name
    raise_if_failed(plane.checks)
    assert plane.fields["loss"].shape == (4, 7)
    assert plane.direction_norms == pytest.approx(directions.norms)
    assert plane.cosine == pytest.approx(float(torch.dot(u, v) / u.norm() / v.norm()))


def test_a_linear_gaussian_problem_is_an_exact_paraboloid():
    with torch.random.fork_rng():
        model = nn.Linear(5, 2).double()
    x, y = normal(30, 5, seed=1), normal(30, 2, seed=2)
    objective = Problem(model, "gaussian", train=(x, y)).objective()
    directions = random_directions(objective, generator=seeded())
    plane = evaluate_plane(objective, directions, a=9, b=5)
    assert set(plane.fields) == {"loss"}  # regression has no accuracy
    grid_a, grid_b = np.meshgrid(plane.a, plane.b, indexing="ij")
    terms = [grid_a**0, grid_a, grid_b, grid_a**2, grid_a * grid_b, grid_b**2]
    design = np.stack([t.ravel() for t in terms], axis=1)
    loss = plane.fields["loss"].ravel()
    fitted, *_ = np.linalg.lstsq(design, loss, rcond=None)
    assert np.abs(design @ fitted - loss).max() < 1e-12 * loss.max()
    # The quadratic part is the mean of ½‖x D‖² over examples.
    u, v = (d[:10].view(2, 5) for d in directions.vectors.T)
    assert fitted[3] == pytest.approx(float(0.5 * (x @ u.T).square().sum() / 30))
    assert fitted[4] == pytest.approx(float(((x @ u.T) * (x @ v.T)).sum() / 30))
    raise_if_failed(plane.checks)


@pytest.mark.parametrize("name", cases.CASES)
def test_every_network_proves_its_plane(name):
    objective = cases.objective(name)
    directions = random_directions(objective, generator=seeded(), exclude=())
    axes = {"a": np.linspace(-0.5, 0.5, 4), "b": np.linspace(0, 0.7, 3)}
    plane = evaluate_plane(objective, directions, **axes, backend="loop")
    raise_if_failed(plane.checks)
    assert {c.name for c in plane.checks} == {
        "centre",
        "nodes",
        "determinism",
        "slope",
        "curvature",
        "orientation",
        "directions",
        "model untouched",
    }
    for i, x in enumerate(plane.a):
        for j, y in enumerate(plane.b):
            metrics = objective.metrics(directions.at((x, y)))
            assert plane.fields["loss"][i, j] == pytest.approx(metrics["loss"], rel=1e-11)


@pytest.mark.parametrize("backend", ["auto", "prefix"])
def test_float32_networks_prove_their_planes(backend):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.Tanh())
        net.append(nn.Linear(30, 5))
        data = (torch.randn(300, 20), torch.randint(0, 5, (300,)))
    objective = Problem(net, "categorical", train=data).objective()
    directions = random_directions(objective, generator=seeded())
    plane = evaluate_plane(objective, directions, a=5, b=4, backend=backend)
    raise_if_failed(plane.checks)


def test_seed_zero_gives_the_same_surface_again():
    objective = cases.objective("cnn")
    first, again = (
        evaluate_plane(
            objective, random_directions(objective, generator=seeded(0)), a=4, b=3, backend="loop"
        )
        for _ in range(2)
    )
    assert results.identical(first.fields["loss"], again.fields["loss"])
    assert results.identical(first.a, again.a)


def test_the_model_in_training_mode_is_refused_and_left_alone():
    objective = cases.objective("resnet")
    directions = random_directions(objective, generator=seeded())
    buffers = {name: b.clone() for name, b in objective.model.named_buffers()}
    assert any(b.dtype == torch.int64 for b in buffers.values())  # num_batches_tracked
    objective.model.train()
    with pytest.raises(ValueError, match="norm1"):
        evaluate_plane(objective, directions, a=3, b=3)
    assert objective.model.training
    objective.model.eval()
    evaluate_plane(objective, directions, a=3, b=3)
    assert not objective.model.training
    for name, buffer in objective.model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_cells_that_are_not_finite_are_kept_and_counted():
    objective = Analytic(lambda t: -torch.log(t).sum(), torch.ones(2, dtype=torch.float64))
    directions = vector_directions(
        objective.theta(), {"x": torch.eye(2).double()[0], "y": torch.eye(2).double()[1]}
    )
    axis = np.array([-2.0, -1.0, 0.0, 1.0])
    plane = evaluate_plane(objective, directions, a=axis, b=axis[1:])
    loss = plane.fields["loss"]
    assert np.isnan(loss[0]).all()  # the logarithm of a negative number
    assert np.isposinf(loss[1]).all()
    assert loss[2, 1] == 0.0  # a loss of zero is a value, not a gap
    assert loss[3, 2] < 0.0  # and so is a negative one
    assert "8 of 12 nodes are not finite" in plane.note
    assert {c.name: c.passed for c in plane.checks}["nodes"]


def test_a_sweep_that_is_stopped_says_so():
    objective = cases.objective("mlp")
    directions = random_directions(objective, generator=seeded())
    told = []
    plane = evaluate_plane(
        objective,
        directions,
        a=[0.0, 1.0, 2.0],
        b=[-1.0, 1.0],
        progress=lambda done, total: told.append((done, total)),
        stop=lambda: bool(told),
    )
    done = told[-1][0]
    assert 0 < done < 6
    assert told[-1][1] == 6
    flat = plane.fields["loss"].ravel()
    assert np.isfinite(flat[:done]).all()
    assert np.isnan(flat[done:]).all()
    assert f"stopped after {done} of 6 nodes" in plane.note
    assert [check.name for check in plane.checks] == ["model untouched"]


def test_progress_reaches_the_end():
    objective = cases.objective("mlp")
    told = []
    evaluate_plane(
        objective,
        random_directions(objective, generator=seeded()),
        a=5,
        b=4,
        checks=False,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1] == (20, 20)


def test_trajectories_keep_their_true_loss_and_distance(quadratic):
    objective, _, _, directions = quadratic
    path = normal(5, P, seed=9)
    plane = evaluate_plane(objective, directions, a=3, b=3, trajectories={"sgd s0": path})
    (trajectory,) = plane.trajectories
    assert trajectory.label == "sgd s0"
    for theta, c, off, loss in zip(
        path, trajectory.coordinates, trajectory.off_plane, trajectory.loss, strict=True
    ):
        foot = directions.at(c)
        assert float((theta - foot).norm()) == pytest.approx(off)
        assert float((directions.vectors.T @ (theta - foot)).abs().max()) < 1e-10
        assert loss == pytest.approx(float(objective.value(theta)))
    # The automatic range holds the whole path and the origin.
    for axis, column in ((plane.a, 0), (plane.b, 1)):
        assert axis[0] < min(0, trajectory.coordinates[:, column].min())
        assert axis[-1] > max(0, trajectory.coordinates[:, column].max())
    with pytest.raises(ValueError, match="no points"):
        project_trajectory(objective, directions, [], label="empty")


def test_planes_between_runs_hold_their_ends():
    objective = cases.objective("cnn")
    theta = objective.theta()
    ends = {k: theta + 0.1 * normal(len(theta), seed=i) for i, k in enumerate("abc")}
    directions = between_directions(ends)
    plane = evaluate_plane(objective, directions, a=4, b=3)
    assert set(plane.points) == set("abc")
    assert plane.origin == "a"
    for name, (x, y) in plane.points.items():
        assert plane.a[0] < x < plane.a[-1]
        assert plane.b[0] < y < plane.b[-1]
        assert float(objective.value(directions.at((x, y)))) == pytest.approx(
            float(objective.value(ends[name]))
        )
    raise_if_failed(plane.checks)


def test_pca_planes_name_their_variance():
    objective = cases.objective("mlp")
    path = objective.theta() + 0.05 * normal(6, objective.space.dimension).cumsum(0)
    plane = evaluate_plane(objective, pca_directions(path), a=3, b=3, trajectories={"run": path})
    assert plane.kind == "pca"
    assert "explained variance" in plane.note
    assert "random walk" in plane.note
    assert plane.trajectories[0].off_plane[-1] == pytest.approx(0.0, abs=1e-12)


def test_the_automatic_range_ends_where_the_loss_has_risen_enough():
    # L = 1 + ½ r² along unit directions: five times the centre's loss at r = √8.
    origin = torch.zeros(3, dtype=torch.float64)
    objective = Analytic(lambda t: 1 + 0.5 * t.square().sum(), origin)
    directions = vector_directions(
        origin, {"x": torch.eye(3).double()[0], "y": 2 * torch.eye(3).double()[1]}
    )
    plane = evaluate_plane(objective, directions, a=5, b=3)
    assert plane.a[-1] == pytest.approx(8**0.5, rel=0.03)
    assert plane.b[-1] == pytest.approx(8**0.5 / 2, rel=0.03)
    assert plane.a[2] == 0.0
    # A flat loss, and one that is zero at the centre, leave no scale: one length of the origin.
    one = torch.ones(3, dtype=torch.float64)
    for function in (lambda t: 0 * t.sum() + 2.0, lambda t: (t - 1).square().sum()):
        flat = Analytic(function, one)
        made = vector_directions(
            one, {"x": torch.eye(3).double()[0], "y": torch.eye(3).double()[1]}
        )
        plane = evaluate_plane(flat, made, a=3, b=3, checks=False)
        assert plane.a[-1] == pytest.approx(3**0.5)


@pytest.mark.parametrize(
    ("axis", "error"),
    [
        (1, ValueError),
        ([0.0], ValueError),
        ([0.0, 0.0], ValueError),
        ([1.0, 0.0], ValueError),
        ([0.0, float("nan")], ValueError),
        (True, TypeError),
    ],
)
def test_axes_that_are_none_are_refused(quadratic, axis, error):
    objective, _, _, directions = quadratic
    with pytest.raises(error, match="a "):
        evaluate_plane(objective, directions, a=axis, b=3)


def test_fields_that_have_no_meaning_are_refused(quadratic):
    objective, _, _, directions = quadratic
    with pytest.raises(ValueError, match="EmpiricalRisk"):
        evaluate_plane(objective, directions, fields=["accuracy"])
    with pytest.raises(ValueError, match="unknown fields"):
        evaluate_plane(objective, directions, fields=["lost"])
    with pytest.raises(TypeError, match="sequence"):
        evaluate_plane(objective, directions, fields="loss")
    with pytest.raises(ValueError, match="evaluate_line"):
        evaluate_plane(objective, directions.take(0))
    regression = cases.objective("regression")
    with pytest.raises(ValueError, match="no accuracy"):
        evaluate_plane(
            regression, random_directions(regression, generator=seeded()), fields=["accuracy"]
        )


def test_sums_of_objectives_have_landscapes_too():
    risk = cases.objective("mlp")
    penalty = Analytic(lambda t: 0.5 * t.square().sum(), risk.model)
    total = WeightedSum([(1.0, risk), (0.1, penalty)])
    directions = random_directions(total, generator=seeded())
    plane = evaluate_plane(total, directions, a=3, b=4, fields=["loss", "gradient_norm"])
    raise_if_failed(plane.checks)
    wanted = total.grad(directions.at((plane.a[2], plane.b[0]))).norm()
    assert plane.fields["gradient_norm"][2, 0] == pytest.approx(float(wanted))


def test_a_line_between_two_runs(tmp_path):
    objective = cases.objective("mlp")
    start = objective.theta()
    ends = {"a": start, "b": start + 0.3 * normal(len(start))}
    line = evaluate_line(
        objective,
        between_directions(ends, count=1),
        a=np.linspace(0, 1, 5),
        fields=["loss", "accuracy", "slope_a", "curvature_aa"],
    )
    raise_if_failed(line.checks)
    for t, loss, slope in zip(line.a, line.fields["loss"], line.fields["slope_a"], strict=True):
        theta = (1 - t) * ends["a"] + t * ends["b"]
        assert loss == pytest.approx(float(objective.value(theta)))
        assert slope == pytest.approx(float(objective.grad(theta) @ (ends["b"] - ends["a"])))
    assert line.points == {"a": 0.0, "b": 1.0}
    results.save(line, tmp_path, "line")
    assert results.identical(results.load(tmp_path, "line"), line)
    with pytest.raises(ValueError, match="second direction"):
        evaluate_line(objective, between_directions(ends, count=1), fields=["slope_b"])


def test_planes_are_results(tmp_path, quadratic):
    objective, _, _, directions = quadratic
    path = {"run": normal(3, P)}
    plane = evaluate_plane(objective, directions, a=3, b=2, label="bowl", trajectories=path)
    results.save(plane, tmp_path, "bowl")
    assert results.identical(results.load(tmp_path, "bowl"), plane)
    assert plane.seconds > 0
