"""Figures of studies show the good trials, whichever way the metric points."""

import numpy as np
import pytest

from kobai import plots
from kobai.results import Trials


def some_trials(values, *, metric, maximise) -> Trials:
    values = np.asarray(values)
    count = len(values)
    return Trials(
        label="study", optimizer="sgd", metric=metric, maximise=maximise, budget=count,
        number=np.arange(count), state=("finished",) * count, value=values,
        parameters={"lr": np.logspace(-3, 0, count)}, log=("lr",),
        final={metric: values[:, None]}, seconds=np.ones((count, 1)), epoch=np.array([1.0]),
        curve=values[:, None, None],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "maximise", "best", "worst"),
    [("test_accuracy", True, 0.9, 0.0), ("test_loss", False, 0.1, 50.0)],
)
def test_the_best_trial_is_on_the_figure_and_the_worst_is_not(metric, maximise, best, worst):
    values = np.r_[worst, np.linspace(0.3, 0.5, 8), best]
    trials = some_trials(values, metric=metric, maximise=maximise)
    for draw in (plots.search_history, plots.sensitivity):
        low, high = draw(trials).axes[0].get_ylim()
        assert low < best < high
        assert not low < worst < high


def test_trials_are_counted_in_whole_numbers_and_the_best_as_many_as_there_are():
    trials = some_trials([0.1, 0.2, 0.3], metric="test_accuracy", maximise=True)
    ticks = plots.search_history(trials).axes[0].get_xticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))
    axes = plots.top_distribution([("sgd", trials)], k=100).axes[0]
    assert "best 3 and their mean" in axes.get_xlabel()
