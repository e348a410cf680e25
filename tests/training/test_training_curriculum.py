"""Curricula: which examples a stage holds, and that steps and refusals are as said."""

import pytest
import torch
from torch import nn

from kobai.training import curriculum_indices, train_by_curriculum

HARDNESS = torch.arange(100).flip(0).double()


def test_easiest_first_takes_the_easiest(generator):
    chosen = curriculum_indices(HARDNESS, 0.2, generator=generator)
    assert sorted(chosen.tolist()) == list(range(80, 100))
    assert curriculum_indices(HARDNESS, 0.0, generator=generator).tolist() == [99]


def test_a_finished_curriculum_is_the_whole_data(generator):
    for strategy in ("easiest", "stochastic", "mixed"):
        chosen = curriculum_indices(HARDNESS, 1.0, strategy=strategy, generator=generator)
        assert chosen.tolist() == list(range(100))


@pytest.mark.parametrize(("strategy", "expected"), [("stochastic", 0.2), ("mixed", 0.35)])
def test_the_share_of_hard_examples_is_the_one_asked_for(strategy, expected, generator):
    """From the harder half: half of the draws from all, which are 0.4 and (1 + 0.4)/2 of them."""
    hardness = torch.arange(20_000).double()
    chosen = curriculum_indices(hardness, 0.4, strategy=strategy, generator=generator)
    share = float((chosen >= 10_000).double().mean())
    error = (expected * (1 - expected) / 20_000) ** 0.5
    assert abs(share - expected) < 4 * error


def test_stages_take_equal_steps_and_learn(make_problem, generator):
    problem = make_problem(nn.Tanh(), examples=60)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.3)
    hardness = torch.rand(60, generator=generator)
    records = train_by_curriculum(problem, optimizer, hardness, (0.3, 1.0), epochs=4,
                                  batch_size=20, generator=generator)  # fmt: skip
    assert [int(r.step[-1]) for r in records] == [12, 12]
    assert records[-1].test_loss[-1] < records[0].test_loss[0]


def test_refusals(make_problem, generator):
    problem = make_problem(nn.Tanh(), examples=60)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.3)
    with pytest.raises(ValueError, match="one score for each of the 60"):
        train_by_curriculum(problem, optimizer, torch.zeros(5), (1.0,), generator=generator)
    with pytest.raises(ValueError, match="progress in"):
        curriculum_indices(HARDNESS, 1.5, generator=generator)
