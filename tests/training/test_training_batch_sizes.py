"""Batch sizes that change from epoch to epoch: in the loop, the record, and across a resumption."""

import numpy as np
import pytest
import torch
from torch import nn

from kobai.training import (
    BATCH_SCHEDULES,
    Checkpoint,
    GeometricBatch,
    LinearBatch,
    StepBatch,
    train,
)

SCHEDULES = {
    "geometric": (GeometricBatch(factor=2.0, every=2, largest=40), [8, 8, 16, 16, 32, 32, 40]),
    "shrinking": (GeometricBatch(factor=0.5), [8, 4, 2, 1, 1, 1, 1]),
    "linear": (LinearBatch(add=5, every=3), [8, 8, 8, 13, 13, 13, 18]),
    "steps": (StepBatch(epochs=(1, 4), sizes=(20, 3)), [8, 20, 20, 20, 3, 3, 3]),
}


def _generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SCHEDULES)
def test_sizes_are_those_of_the_rule(name):
    rule, sizes = SCHEDULES[name]
    assert [rule.size(epoch, first=8) for epoch in range(7)] == sizes


def test_growth_does_not_overflow():
    assert GeometricBatch(factor=2.0, largest=64).size(10**6, first=8) == 64


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_epoch_uses_every_example_once_in_batches_of_its_size(make_problem, name):
    rule, sizes = SCHEDULES[name]
    problem = make_problem()
    seen = []
    problem.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].clone()) if module.training else None
    )
    history = train(
        problem,
        torch.optim.SGD(problem.model.parameters(), lr=0.1),
        generator=_generator(),
        epochs=7,
        batch_size=8,
        batch_schedule=rule,
    )
    position = 0
    for epoch, size in enumerate(sizes):
        lengths = [size] * (50 // size) + [50 % size] * (50 % size > 0)
        assert [len(x) for x in seen[position : position + len(lengths)]] == lengths
        used = torch.cat(seen[position : position + len(lengths)])
        assert len(used.unique(dim=0)) == 50
        position += len(lengths)
        assert history.step[epoch + 1] == position
        assert history.epoch[epoch + 1] == epoch + 1
        assert history.batch_size[epoch + 1] == size
    assert position == len(seen) == len(history.step_loss)


def test_fractions_of_epochs_are_counted_in_their_own_steps(make_problem):
    """50 examples: 5 steps of 10, then 2 of 25; half an epoch is 2.5 steps, then 1."""
    problem = make_problem()
    history = train(
        problem,
        torch.optim.SGD(problem.model.parameters(), lr=0.1),
        generator=_generator(),
        epochs=1.5,
        batch_size=10,
        batch_schedule=StepBatch(epochs=(1,), sizes=(25,)),
        evaluate_every=0.5,
    )
    assert history.step.tolist() == [0, 3, 5, 6]
    np.testing.assert_allclose(history.epoch, [0, 0.6, 1, 1.5], rtol=1e-15)


def test_a_constant_schedule_is_none(make_problem):
    ends = []
    for rule in (None, BATCH_SCHEDULES["constant"]()):
        problem = make_problem()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        train(problem, optimizer, generator=_generator(), epochs=2, batch_size=7,
              batch_schedule=rule)  # fmt: skip
        ends.append(problem.space.theta())
    assert torch.equal(*ends)


@pytest.mark.parametrize("cut", [0, 4, 7, 8, 9])
def test_a_resumed_run_goes_on_in_the_epoch_and_size_it_stopped_in(make_problem, tmp_path, cut):
    """7 steps of 8, then 4 of 16, then 2 of 32; cuts at starts, inside and at ends of epochs."""
    options = {"epochs": 4, "batch_size": 8, "batch_schedule": GeometricBatch()}

    def run(problem, **more):
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.02)
        return train(problem, optimizer, evaluate_every=0.5, **options, **more)

    whole = make_problem()
    expected = run(whole, generator=_generator())
    asked = iter(range(cut))
    run(
        make_problem(),
        generator=_generator(),
        checkpoint=Checkpoint(folder=tmp_path, max_snapshots=0),
        stop=lambda: next(asked, None) is None,
    )
    other = make_problem(seed=5)
    resumed = run(
        other,
        generator=_generator(99),
        checkpoint=Checkpoint(folder=tmp_path, resume=True, max_snapshots=0),
    )
    assert torch.equal(whole.space.theta(), other.space.theta())
    for name in ("step", "epoch", "batch_size", "train_loss", "test_loss", "step_loss"):
        assert np.array_equal(getattr(expected, name), getattr(resumed, name)), name


def test_another_schedule_cannot_take_a_run_over(make_problem, tmp_path):
    problem = make_problem()
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    train(problem, optimizer, generator=_generator(), epochs=1, batch_size=8,
          checkpoint=Checkpoint(folder=tmp_path))  # fmt: skip
    with pytest.raises(ValueError, match="batch_schedule was None"):
        train(problem, optimizer, generator=_generator(), epochs=2, batch_size=8,
              batch_schedule=GeometricBatch(),
              checkpoint=Checkpoint(folder=tmp_path, resume=True))  # fmt: skip


def test_single_last_examples_are_left_out_where_they_cannot_be_used(make_problem):
    """50 = 7 · 7 + 1: the first epoch has such a rest, the second, in batches of 14, has not."""
    problem = make_problem(nn.BatchNorm1d(8), nn.Tanh())
    history = train(
        problem,
        torch.optim.SGD(problem.model.parameters(), lr=0.1),
        generator=_generator(),
        epochs=2,
        batch_size=7,
        batch_schedule=GeometricBatch(),
    )
    assert history.step.tolist() == [0, 7, 11]
    assert "an epoch leaves out a last minibatch" in history.note


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: GeometricBatch(factor=0.0),
        lambda: GeometricBatch(every=0),
        lambda: LinearBatch(largest=0),
        lambda: StepBatch(epochs=(1, 2), sizes=(4,)),
        lambda: StepBatch(epochs=(2, 2), sizes=(4, 8)),
        lambda: StepBatch(epochs=(0,), sizes=(4,)),
        lambda: StepBatch(epochs=(1,), sizes=(0,)),
    ],
)
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()
