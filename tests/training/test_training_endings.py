import math

import numpy as np
import pytest
import torch
from torch import nn

from kobai import Problem
from kobai.training import EarlyStopping, train


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sgd(problem, lr=0.1):
    return torch.optim.SGD(problem.model.parameters(), lr=lr)


def test_a_diverging_run_stops_is_marked_and_kept(generator):
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    problem = Problem(model, "gaussian", train=(x, x[:, :2]))
    history = train(problem, _sgd(problem, lr=1e3), generator=_generator(), epochs=50, batch_size=8)
    assert history.status == "diverged"
    assert "stopped after step" in history.note
    assert 1 <= len(history.step_loss) < 250
    assert history.step[-1] == len(history.step_loss)
    # It stopped at the first loss over the bound, not later.
    bound = 1e4 * max(history.step_loss[0], 1.0)
    assert (history.step_loss[:-1] <= bound).all()


def test_a_loss_that_is_not_a_number_ends_the_run(make_problem):
    problem = make_problem()

    class Breaking(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            loss = super().step(closure)
            self.steps += 1
            if self.steps == 3:
                for group in self.param_groups:
                    for p in group["params"]:
                        p.data.fill_(math.nan)
            return loss

    optimizer = Breaking(problem.model.parameters(), lr=0.1)
    history = train(problem, optimizer, generator=_generator(), epochs=9, batch_size=10)
    assert history.status == "diverged"
    assert len(history.step_loss) == 4
    assert math.isnan(history.step_loss[-1])
    assert "nan" in history.note


def test_a_last_step_that_explodes_is_seen_by_the_evaluation(make_problem):
    problem = make_problem()
    history = train(problem, _sgd(problem, lr=1e9), generator=_generator(), steps=1, batch_size=50)
    assert history.status == "diverged"
    assert "train loss" in history.note


def test_stop_is_asked_before_every_step(make_problem):
    problem, asked = make_problem(), []

    def stop():
        asked.append(True)
        return len(asked) > 5

    history = train(problem, _sgd(problem), generator=_generator(), batch_size=10, stop=stop)
    assert history.status == "interrupted"
    assert len(history.step_loss) == 5
    assert "interrupted after step 5 of 50" in history.note


def test_stop_at_once_leaves_the_model_as_it_was(make_problem):
    problem = make_problem()
    theta = problem.space.theta()
    history = train(
        problem, _sgd(problem), generator=_generator(), batch_size=10, stop=lambda: True
    )
    assert history.status == "interrupted"
    assert history.step.tolist() == [0]
    assert torch.equal(problem.space.theta(), theta)


def _overfitting(seed=0):
    """Labels are noise, so the validation loss rises soon."""
    source = _generator(seed)
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=source, dtype=p.dtype))
    x = torch.randn(60, 4, generator=source, dtype=torch.float64)
    y = torch.randint(2, (60,), generator=source)
    return Problem(
        model, "categorical", train=(x[:30], y[:30]), validation=(x[30:], y[30:]), test=(x, y)
    )


@pytest.mark.parametrize("measure", ["loss", "accuracy"])
def test_early_stopping_goes_back_to_the_best(measure):
    problem = _overfitting()
    options = EarlyStopping(patience=4, measure=measure)
    history = train(
        problem,
        torch.optim.Adam(problem.model.parameters(), lr=0.05),
        generator=_generator(),
        epochs=200,
        batch_size=10,
        early_stopping=options,
    )
    values = getattr(history, f"validation_{measure}")
    best = values[:-1].min() if measure == "loss" else values[:-1].max()
    index = int(np.flatnonzero(values[:-1] == best)[0])
    assert history.status == "early-stopped"
    # It waited exactly `patience` evaluations, and the last record is the best point again.
    assert len(values) == index + 1 + 4 + 1
    assert values[-1] == best
    assert history.test_loss[-1] == history.test_loss[index]
    assert problem.objective(split="validation").metrics()[measure] == best
    assert f"at step {history.step[index]}" in history.note
    assert "no better validation" in history.note


def test_a_finished_run_goes_back_to_the_best_too():
    problem = _overfitting()
    history = train(
        problem,
        torch.optim.Adam(problem.model.parameters(), lr=0.05),
        generator=_generator(),
        epochs=30,
        batch_size=10,
        early_stopping=EarlyStopping(patience=1000),
    )
    assert history.status == "finished"
    assert history.validation_loss[-1] == history.validation_loss[:-1].min()
    assert "went back to the best parameters" in history.note


def test_batch_statistics_go_back_with_the_parameters(make_problem):
    problem = make_problem(nn.BatchNorm1d(8), nn.ReLU())
    history = train(
        problem,
        _sgd(problem, lr=2.0),
        generator=_generator(),
        epochs=30,
        batch_size=16,
        early_stopping=EarlyStopping(patience=3),
    )
    assert "went back" in history.note
    metrics = problem.objective.__call__  # the objective needs evaluation mode
    problem.model.eval()
    assert metrics(split="validation").metrics()["loss"] == history.validation_loss.min()


def test_a_small_gain_does_not_count():
    problem = _overfitting()
    history = train(
        problem,
        torch.optim.SGD(problem.model.parameters(), lr=1e-6),
        generator=_generator(),
        epochs=50,
        batch_size=10,
        early_stopping=EarlyStopping(patience=3, min_delta=0.1),
    )
    assert history.status == "early-stopped"
    assert history.step.tolist() == [0, 3, 6, 9, 9]
    assert history.validation_loss[-1] == history.validation_loss[0]


def test_early_stopping_needs_a_validation_split(make_problem):
    held = make_problem()
    problem = Problem(held.model, "categorical", train=held.train)
    with pytest.raises(ValueError, match="validation split"):
        train(problem, _sgd(problem), generator=_generator(), early_stopping=EarlyStopping())


@pytest.mark.parametrize("options", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan}])
def test_bad_early_stopping_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EarlyStopping(**options)
