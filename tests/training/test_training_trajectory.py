import itertools
import math

import pytest
import torch

from kobai.training import Checkpoint, EarlyStopping, snapshots, train


def _train(problem, folder, **options):
    return train(
        problem,
        torch.optim.Adam(problem.model.parameters(), lr=options.pop("lr", 0.02)),
        generator=torch.Generator().manual_seed(3),
        checkpoint=Checkpoint(folder=folder, max_snapshots=options.pop("max_snapshots", 50)),
        **{"batch_size": 25, **options},
    )


def test_snapshots_are_the_parameters_at_the_records(make_problem, tmp_path):
    problem = make_problem()
    begin = problem.space.theta()
    history = _train(problem, tmp_path, epochs=4)
    steps, thetas = snapshots(tmp_path)
    assert steps == history.step.tolist()
    assert torch.equal(thetas[0], begin)
    assert torch.equal(thetas[-1], problem.space.theta())
    for theta, loss in zip(thetas, history.train_loss, strict=True):
        assert problem.objective().metrics(theta)["loss"] == pytest.approx(loss, rel=1e-14)


@pytest.mark.parametrize("evaluations", [3, 7, 8, 19])
def test_there_are_few_and_they_are_evenly_spaced(make_problem, tmp_path, evaluations):
    problem = make_problem()
    _train(problem, tmp_path, steps=evaluations, evaluate_every=0.01, max_snapshots=8)
    steps, thetas = snapshots(tmp_path)
    assert 3 <= len(steps) <= 8
    assert steps[0] == 0
    assert steps[-1] == evaluations
    assert torch.equal(thetas[-1], problem.space.theta())
    gaps = {b - a for a, b in itertools.pairwise(steps[:-1])}
    assert len(gaps) == 1
    assert steps[-1] - steps[-2] <= 2 * gaps.pop()
    assert len(list((tmp_path / "snapshots").iterdir())) == len(steps)


def test_a_trajectory_ends_where_early_stopping_went_back_to(make_problem, tmp_path):
    problem = make_problem()
    history = _train(problem, tmp_path, epochs=60, lr=0.3, early_stopping=EarlyStopping(patience=3))
    assert "went back" in history.note
    steps, thetas = snapshots(tmp_path)
    assert steps == history.step.tolist()
    assert torch.equal(thetas[-1], problem.space.theta())
    assert not torch.equal(thetas[-1], thetas[-2])


def test_points_that_are_not_finite_are_left_out(make_problem, tmp_path):
    problem = make_problem()

    class Breaking(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            self.param_groups[0]["params"][0].data.fill_(math.nan)
            return loss

    history = train(
        problem,
        Breaking(problem.model.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(3),
        checkpoint=Checkpoint(folder=tmp_path),
        batch_size=25,
    )
    assert history.status == "diverged"
    assert snapshots(tmp_path)[0] == [0]


def test_none_are_kept_if_none_are_wanted(make_problem, tmp_path):
    _train(make_problem(), tmp_path, epochs=2, max_snapshots=0)
    with pytest.raises(ValueError, match="no snapshots"):
        snapshots(tmp_path)


def test_a_damaged_snapshot_is_named(make_problem, tmp_path):
    _train(make_problem(), tmp_path, epochs=2)
    (tmp_path / "snapshots" / "step_000002.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="step_000002"):
        snapshots(tmp_path)
