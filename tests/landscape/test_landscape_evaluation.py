import hashlib

import numpy as np
import pytest
import torch
from torch import nn

import cases
from kobai.landscape import (
    evaluate_line,
    evaluate_plane,
    evaluate_volume,
    gradient_directions,
    raise_if_failed,
    random_directions,
    vector_directions,
)
from kobai.problem import Analytic, Problem

P = 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def quadratic():
    matrix = normal(P, P, seed=1)
    matrix, gradient = matrix + matrix.T, normal(P, seed=2)
    objective = Analytic(lambda t: 0.5 * t @ matrix @ t + gradient @ t, normal(P, seed=3))
    return objective, matrix, gradient


def fingerprint(result):
    return hashlib.sha256(np.ascontiguousarray(result.fields["loss"]).tobytes()).hexdigest()


def test_a_volume_of_a_quadratic_is_its_closed_form():
    objective, matrix, gradient = quadratic()
    vectors = {name: normal(P, seed=7 + i) for i, name in enumerate("uvw")}
    directions = vector_directions(objective.theta(), vectors)
    axes = {"a": [-1.0, 0.0, 2.0], "b": [0.0, 1.0], "c": [-0.5, 0.0, 0.5, 1.5]}
    fields = ["slope_c", "curvature_ac", "curvature_cc", "curvature_min", "curvature_max"]
    volume = evaluate_volume(objective, directions, **axes, fields=fields)
    raise_if_failed(volume)
    assert volume.fields["loss"].shape == (3, 2, 4)
    u, v, w = directions.vectors.T
    basis = torch.linalg.qr(directions.vectors)[0]
    restricted = torch.linalg.eigvalsh(basis.T @ matrix @ basis)
    for i, x in enumerate(axes["a"]):
        for j, y in enumerate(axes["b"]):
            for k, z in enumerate(axes["c"]):
                theta = directions.origin + x * u + y * v + z * w
                slope = matrix @ theta + gradient
                wanted = {
                    "loss": 0.5 * theta @ matrix @ theta + gradient @ theta,
                    "slope_c": slope @ w,
                    "curvature_ac": u @ matrix @ w,
                    "curvature_cc": w @ matrix @ w,
                    "curvature_min": restricted[0],
                    "curvature_max": restricted[-1],
                }
                for name, value in wanted.items():
                    found = volume.fields[name][i, j, k]
                    assert found == pytest.approx(float(value), rel=1e-9, abs=1e-9), name
    cut = volume.slice("b", 1)
    plane = evaluate_plane(
        objective,
        vector_directions(directions.origin + v, {"u": u, "w": w}),
        a=axes["a"],
        b=axes["c"],
    )
    assert cut.fields["loss"] == pytest.approx(plane.fields["loss"], rel=1e-12)
    assert cut.axis_names == ("u", "w")


def test_the_grid_of_the_source_starts_at_the_origin_in_unit_steps():
    objective, matrix, gradient = quadratic()
    directions = random_directions(objective, generator=seeded(), norm="global", exclude=())
    plane = evaluate_plane(objective, directions, a=4, b=3, grid="source")
    assert plane.a.tolist() == [0, 1, 2, 3]
    assert plane.b.tolist() == [0, 1, 2]
    assert plane.direction_norms == pytest.approx([1.0, 1.0])
    u, v = directions.vectors.T
    for i in range(4):
        for j in range(3):
            theta = directions.origin + i * u + j * v
            value = 0.5 * theta @ matrix @ theta + gradient @ theta
            assert plane.fields["loss"][i, j] == pytest.approx(float(value), rel=1e-11)
    with pytest.raises(ValueError, match="number of nodes"):
        evaluate_plane(objective, directions, a=[0.0, 1.0], b=3, grid="source")


def classifier(dtype=torch.float64, n=60, tanh=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh() if tanh else nn.ReLU(), nn.Linear(8, 4))
        net = net.to(dtype)
        data = (torch.randn(n, 6, dtype=dtype), torch.arange(n) % 3)
        test = (torch.randn(20, 6, dtype=dtype), torch.arange(20) % 4)
    return Problem(net, "categorical", train=data, test=test)


def test_classes_and_splits_are_means_over_their_examples():
    problem = classifier()
    objective, test = problem.objective(), problem.objective(split="test")
    directions = random_directions(objective, generator=seeded())
    plane = evaluate_plane(
        objective, directions, a=[-0.5, 0.5], b=[0.0, 0.1, 0.2],
        fields=("class_loss", "accuracy", "stderr"), splits={"test": test},
    )  # fmt: skip
    x, y = next(iter(objective.batches)).inputs, next(iter(objective.batches)).targets
    for i, a in enumerate(plane.a):
        for j, b in enumerate(plane.b):
            theta = directions.at((a, b))
            with torch.no_grad():
                nll = nn.functional.cross_entropy(
                    torch.func.functional_call(
                        objective.model, objective.space.unflatten(theta), (x,)
                    ),
                    y,
                    reduction="none",
                )
            for k in range(3):
                found = plane.fields[f"class_loss_{k}"][i, j]
                assert found == pytest.approx(float(nll[y == k].mean()), rel=1e-11)
            assert np.isnan(plane.fields["class_loss_3"][i, j])  # no example has this class
            stderr = float(nll.std() / len(nll) ** 0.5)
            assert plane.fields["stderr"][i, j] == pytest.approx(stderr, rel=1e-10)
            metrics = test.metrics(theta)
            assert plane.fields["test_loss"][i, j] == pytest.approx(metrics["loss"], rel=1e-11)
            assert plane.fields["test_accuracy"][i, j] == pytest.approx(metrics["accuracy"])
    assert "test_class_loss_3" in plane.fields
    assert "warning: the standard error" in plane.note


def test_refinement_keeps_its_promise_and_marks_what_it_evaluated():
    objective = classifier().objective()
    directions = random_directions(objective, generator=seeded())
    axis = np.linspace(-1.2, 1.0, 31)
    full = evaluate_plane(objective, directions, a=axis, b=axis[:27], backend="loop")
    some = evaluate_plane(objective, directions, a=axis, b=axis[:27], backend="loop", tol=0.01)
    mask = some.fields["evaluated"] == 1
    assert 49 <= mask.sum() < 0.5 * mask.size
    assert np.array_equal(some.fields["loss"][mask], full.fields["loss"][mask])
    error = np.abs(some.fields["loss"] / full.fields["loss"] - 1)
    assert error.max() < 0.01
    assert "by a spline" in some.note
    check = {c.name: c for c in some.checks}["interpolation"]
    assert check.passed
    assert check.value <= 0.01
    raise_if_failed(some)


def test_a_rough_surface_is_evaluated_wherever_a_spline_would_lie():
    def rough(t):
        return 2.0 + torch.sin(7.0 * t[0]) * torch.cos(5.0 * t[1])

    objective = Analytic(rough, torch.zeros(2, dtype=torch.float64))
    directions = vector_directions(
        objective.theta(), {"x": torch.eye(2).double()[0], "y": torch.eye(2).double()[1]}
    )
    axis = np.linspace(-3, 3, 21)  # about two nodes a half wave: nothing can be left out
    plane = evaluate_plane(objective, directions, a=axis, b=axis, tol=0.01)
    wanted = 2 + np.sin(7 * axis)[:, None] * np.cos(5 * axis)[None]
    assert np.abs(plane.fields["loss"] / wanted - 1).max() < 0.01
    mask = plane.fields.get("evaluated", np.ones((21, 21)))
    assert mask.mean() > 0.9


def test_gaps_are_never_filled_by_a_spline():
    objective = Analytic(lambda t: -torch.log(t).sum(), torch.ones(2, dtype=torch.float64))
    directions = vector_directions(
        objective.theta(), {"x": torch.eye(2).double()[0], "y": torch.eye(2).double()[1]}
    )
    axis = np.linspace(-1.5, 2.0, 15)
    plane = evaluate_plane(objective, directions, a=axis, b=axis, tol=0.05)
    inside = 1 + axis > 0
    assert np.array_equal(np.isfinite(plane.fields["loss"]), inside[:, None] & inside[None])
    assert "evaluated" not in plane.fields
    assert "no spline was drawn" in plane.note


def test_a_budget_bounds_the_nodes_and_says_so():
    objective = classifier().objective()
    directions = random_directions(objective, generator=seeded())
    axis = np.linspace(-1, 1, 41)
    told = []
    short = evaluate_plane(
        objective, directions, a=axis, b=axis, budget=1e-6, backend="loop", announce=told.append
    )
    assert 49 <= (short.fields["evaluated"] == 1).sum() <= 60
    assert "when the budget ended" in short.note
    assert told[0].nodes == 1681
    assert told[0].seconds == pytest.approx(1681 * told[0].each)
    long = evaluate_plane(objective, directions, a=axis[::8], b=axis[::8], budget=600.0)
    assert "evaluated" not in long.fields  # it fits: all nodes are values


@pytest.mark.parametrize("options", [{}, {"tol": 0.02}], ids=["exact", "tol"])
def test_an_interrupt_at_any_block_resumes_to_the_same_bits(tmp_path, options):
    objective = classifier(torch.float32).objective()
    directions = random_directions(objective, generator=seeded())
    grid = {"a": np.linspace(-1, 1, 13), "b": np.linspace(0, 1, 11)}
    whole = evaluate_plane(
        objective, directions, **grid, folder=tmp_path / "whole", fields=["accuracy"], **options
    )
    for k in range(1, 5):
        folder = tmp_path / str(k)
        # The same decisions, as another machine or moment might choose another back-end.
        folder.mkdir()
        plan = (tmp_path / "whole" / "plan.json").read_text()
        (folder / "plan.json").write_text(plan)
        asked = []
        stopped = evaluate_plane(
            objective, directions, **grid, folder=folder, fields=["accuracy"],
            stop=lambda asked=asked, k=k: asked.append(1) or len(asked) > k, **options,
        )  # fmt: skip
        if len(asked) > k:
            assert np.isnan(stopped.fields["loss"]).any()
        again = evaluate_plane(
            objective, directions, **grid, folder=folder, fields=["accuracy"], **options
        )
        assert fingerprint(again) == fingerprint(whole)
        raise_if_failed(again)


def test_a_damaged_block_is_measured_again_and_another_landscape_is_refused(tmp_path):
    objective = classifier().objective()
    directions = random_directions(objective, generator=seeded())
    grid = {"a": [-1.0, 0.0, 1.0], "b": [0.0, 0.5]}
    first = evaluate_plane(objective, directions, **grid, folder=tmp_path)
    block = next(tmp_path.glob("*.npy"))
    block.write_bytes(block.read_bytes()[:40])
    again = evaluate_plane(objective, directions, **grid, folder=tmp_path)
    assert fingerprint(first) == fingerprint(again)
    other = random_directions(objective, generator=seeded(1))
    with pytest.raises(ValueError, match="another landscape"):
        evaluate_plane(objective, other, **grid, folder=tmp_path)
    with pytest.raises(ValueError, match="another landscape"):
        evaluate_plane(classifier(n=59).objective(), directions, **grid, folder=tmp_path)


def batch_normed():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.BatchNorm1d(6),
            nn.Tanh(), nn.Linear(6, 3),
        ).double()  # fmt: skip
        data = (2 + torch.randn(40, 5).double(), torch.randint(0, 3, (40,)))
        net(data[0])
    return Problem(net.eval(), "categorical", train=data)


def test_recalibrated_statistics_are_those_of_torch():
    problem = batch_normed()
    objective = problem.objective()
    directions = random_directions(objective, generator=seeded())
    buffers = {n: b.clone() for n, b in problem.model.named_buffers()}
    plane = evaluate_plane(
        objective, directions, a=[-0.4, 0.0, 0.4], b=[0.0, 0.3], batchnorm="recalibrated"
    )
    raise_if_failed(plane)
    x, y = problem.train.all.inputs, problem.train.all.targets
    for i, a in enumerate(plane.a):
        for j, b in enumerate(plane.b):
            with torch.random.fork_rng():
                model = nn.Sequential(
                    nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Linear(6, 6),
                    nn.BatchNorm1d(6, momentum=None), nn.Tanh(), nn.Linear(6, 3),
                ).double()  # fmt: skip
            nn.utils.vector_to_parameters(directions.at((a, b)), model.parameters())
            with torch.no_grad():
                torch.optim.swa_utils.update_bn([x], model)
                wanted = nn.functional.cross_entropy(model.eval()(x), y)
            assert plane.fields["loss"][i, j] == pytest.approx(float(wanted), rel=1e-12)
    for name, buffer in problem.model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    frozen = evaluate_plane(objective, directions, a=plane.a, b=plane.b)
    assert not np.allclose(frozen.fields["loss"], plane.fields["loss"])
    with pytest.raises(ValueError, match="frozen"):
        evaluate_plane(
            objective, directions, a=3, b=3, batchnorm="recalibrated", fields=["slope_a"]
        )
    with pytest.raises(ValueError, match="none"):
        evaluate_plane(
            classifier().objective(), random_directions(classifier().objective(),
            generator=seeded()), a=3, b=3, batchnorm="recalibrated",
        )  # fmt: skip


def test_interpolated_statistics_are_exact_at_both_runs():
    from kobai.landscape import between_directions

    problem = batch_normed()
    objective = problem.objective()
    start = {n: t.clone() for n, t in problem.model.state_dict().items()}
    theta = problem.space.theta()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        other = theta + 0.3 * torch.randn_like(theta)
        end = {n: t + torch.rand_like(t) if t.is_floating_point() else t for n, t in start.items()}
    directions = between_directions({"first": theta, "second": other}, count=1)
    line = evaluate_line(
        objective, directions, a=[0.0, 0.5, 1.0], batchnorm="interpolated",
        statistics={"first": start, "second": end},
    )  # fmt: skip
    raise_if_failed(line)
    x, y = problem.train.all.inputs, problem.train.all.targets
    for index, (vector, state) in ((0, (theta, start)), (2, (other, end))):
        problem.model.load_state_dict(state)
        problem.space.assign(vector)
        with torch.no_grad():
            wanted = nn.functional.cross_entropy(problem.model(x), y)
        assert line.fields["loss"][index] == pytest.approx(float(wanted), rel=1e-12)


def test_bfloat16_is_for_overviews():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
        data = (torch.randn(200, 6), torch.randint(0, 4, (200,)))
    objective = Problem(net, "categorical", train=data).objective()
    directions = random_directions(objective, generator=seeded())
    wide = np.linspace(-4, 4, 7)
    plane = evaluate_plane(objective, directions, a=wide, b=wide, precision="bfloat16")
    full = evaluate_plane(objective, directions, a=wide, b=wide)
    gap = np.abs(plane.fields["loss"] - full.fields["loss"])
    assert 0 < gap.max() < 0.02 * np.ptp(full.fields["loss"])
    raise_if_failed(plane)
    with pytest.raises(ValueError, match="zoom"):
        evaluate_plane(objective, directions, a=wide / 1e4, b=wide / 1e4, precision="bfloat16")
    with pytest.raises(ValueError, match="overviews"):
        evaluate_plane(
            objective, directions, a=wide, b=wide, precision="bfloat16", fields=["curvature_min"]
        )
    soft = Problem(net, "categorical", train=(data[0], torch.softmax(net(data[0]), 1).detach()))
    with pytest.raises(ValueError, match="soft targets"):
        evaluate_plane(soft.objective(), directions, a=wide, b=wide, precision="bfloat16")


def test_wrong_settings_are_refused_at_once():
    objective = cases.objective("mlp")
    directions = random_directions(objective, generator=seeded())
    for options, words in (
        ({"backend": "graph"}, "CUDA"),
        ({"tol": 0.0}, "tol"),
        ({"budget": -1.0}, "budget"),
        ({"statistics": {"a": {}}}, "interpolated"),
        ({"splits": {"test": cases.objective("cnn")}}, "another model"),
        ({"fields": ["slope_c"]}, "third"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_plane(objective, directions, a=3, b=3, **options)
    regression = cases.objective("regression")
    directions = random_directions(regression, generator=seeded())
    with pytest.raises(ValueError, match="categorical"):
        evaluate_plane(regression, directions, a=3, b=3, fields=["class_loss"])


def test_steepest_descent_has_the_slope_of_the_gradient():
    objective = cases.objective("mlp")
    theta, gradient = objective.theta(), objective.grad(objective.theta())
    update = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    directions = gradient_directions(objective, update=update, count=3, generator=seeded())
    volume = evaluate_volume(
        objective, directions, a=[0.0, 0.1], b=[0.0, 0.1], c=[0.0, 0.1],
        fields=["slope_a", "slope_b", "slope_c", "gradient_norm"],
    )  # fmt: skip
    at = {name: values[0, 0, 0] for name, values in volume.fields.items()}
    assert at["slope_a"] == pytest.approx(-float(gradient.norm()))
    assert at["slope_b"] == pytest.approx(float(gradient @ update / update.norm()))
    assert at["slope_c"] == pytest.approx(0.0, abs=1e-12)  # orthogonal to those before
    assert directions.norms == pytest.approx((1.0, 1.0, 1.0))
    cosine = float(-gradient @ update / gradient.norm() / update.norm())
    assert directions.report().cosines[0][1] == pytest.approx(cosine)


def test_only_the_layers_named_move():
    objective = cases.objective("mlp")
    directions = random_directions(objective, generator=seeded(), only=("4.*",), exclude=())
    moved = objective.space.unflatten(directions.vectors[:, 0])
    assert {name for name, part in moved.items() if part.any()} == {"4.weight", "4.bias"}
    plane = evaluate_plane(objective, directions, a=[0.0, 1.0], b=[0.0, 1.0], backend="prefix")
    wanted = float(objective.value(directions.at((1.0, 1.0))))
    assert plane.fields["loss"][1, 1] == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="no parameter"):
        random_directions(objective, generator=seeded(), only=("conv*",))
