"""Training through an augmentation: what a step sees, what resumes, what an evaluation sees."""

import pytest
import torch
from torch import nn

from kobai import Problem
from kobai.problem import Batch
from kobai.training import Checkpoint, SelfPacedAugmentation, Shift, train


def pictures(dtype=torch.float64) -> Problem:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.01)
    source = torch.Generator().manual_seed(1)
    x = torch.rand(24, 1, 4, 4, generator=source, dtype=dtype)
    return Problem(model, "categorical", train=(x, (x.flatten(1).mean(1) > 0.5).long()))


def run(problem, augment=None, **options):
    return train(
        problem,
        torch.optim.SGD(problem.model.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(0),
        batch_size=8,
        augment=augment,
        **{"epochs": 2, **options},
    )


def test_a_step_trains_on_what_the_augmentation_returns():
    plain, doubled = pictures(), pictures()
    run(plain, steps=1, epochs=None)

    def shifted(x, y, *, generator):
        return x + 1.0, y

    before = doubled.space.theta()
    run(doubled, shifted, steps=1, epochs=None)
    assert not torch.equal(doubled.space.theta(), plain.space.theta())
    # The first minibatch, shifted by one, gives this step.
    order = torch.Generator().manual_seed(0)
    doubled.space.assign(before)
    batch = next(iter(doubled.minibatches(8, generator=order)))
    gradient = doubled.objective(Batch(batch.inputs + 1.0, batch.targets)).grad(before)
    expected = before - 0.1 * gradient
    run(doubled, shifted, steps=1, epochs=None)
    torch.testing.assert_close(doubled.space.theta(), expected)


def test_no_example_selected_is_training_without_augmentation():
    plain, paced = pictures(), pictures()
    run(plain)
    augment = SelfPacedAugmentation(Shift(pixels=1), paced.model, threshold=float("inf"))
    run(paced, augment)
    assert torch.equal(plain.space.theta(), paced.space.theta())
    assert set(augment.selected) == {0.0}


def test_an_interrupted_run_draws_on_as_an_uninterrupted_one(tmp_path):
    whole, part = pictures(), pictures()

    def paced(problem):
        return SelfPacedAugmentation(Shift(pixels=1), problem.model, threshold=-1.0)

    run(whole, paced(whole))
    calls = iter(range(100))
    saved = {"checkpoint": Checkpoint(folder=tmp_path, resume=True)}
    stopped = run(part, paced(part), stop=lambda: next(calls) == 4, **saved)
    assert stopped.status == "interrupted"
    again = pictures()
    run(again, paced(again), **saved)
    assert torch.equal(again.space.theta(), whole.space.theta())
    with pytest.raises(ValueError, match="augmentation"):
        run(pictures(), None, **saved)


def test_dictionaries_of_inputs_cannot_be_augmented():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.utils.skip_init(nn.Linear, 3, 2, dtype=torch.float64)
            with torch.no_grad():
                for p in self.parameters():
                    p.zero_()

        def forward(self, a):
            return self.layer(a)

    inputs = {"a": torch.zeros(8, 3, dtype=torch.float64)}
    problem = Problem(Sum(), "categorical", train=(inputs, torch.zeros(8, dtype=torch.long)))
    with pytest.raises(TypeError, match="one tensor"):
        run(problem, lambda x, y, *, generator: (x, y))
