"""Scores of a search against closed forms and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kobai.studies import (
    expected_best,
    performance_profile,
    ranking,
    time_to,
    top_k,
)

values = st.lists(st.floats(-100, 100), min_size=1, max_size=8)


def test_ranking_keeps_the_order_of_equals_and_puts_nan_last():
    value = np.array([0.3, np.nan, 0.9, 0.3, 0.1])
    assert ranking(value, maximise=True).tolist() == [2, 0, 3, 4, 1]
    assert ranking(value, maximise=False).tolist() == [4, 0, 3, 2, 1]


def test_top_k_of_an_arithmetic_sequence():
    # Scores 1 … 300: the best 100 are 201 … 300, their mean 250.5, their variance (n² − 1)/12 with
    # n = 100, times n/(n − 1) for the sample.
    value = np.random.default_rng(0).permutation(np.arange(1.0, 301.0))
    mean, sd, error = top_k(value, value, k=100, maximise=True)
    assert mean == 250.5
    assert sd == pytest.approx(np.sqrt((100**2 - 1) / 12 * 100 / 99), rel=1e-12)
    assert error == pytest.approx(sd / 10, rel=1e-12)


def test_top_k_averages_another_measure_over_the_trials_the_score_ranks():
    score = np.array([3.0, 1.0, 2.0])
    other = np.array([10.0, 20.0, 60.0])
    assert top_k(score, other, k=2, maximise=True)[0] == 35.0
    assert top_k(score, other, k=2, maximise=False)[0] == 40.0
    assert top_k(score, other, k=9, maximise=True)[0] == 30.0


def test_top_k_wants_trials():
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(np.ones(2), np.ones(2), k=0, maximise=True)
    with pytest.raises(ValueError, match="no trials"):
        top_k(np.empty(0), np.empty(0), k=1, maximise=True)


@given(values, st.booleans())
def test_expected_best_is_the_average_over_all_subsets(value, maximise):
    best = max if maximise else min
    found = expected_best(np.array(value), maximise=maximise)
    for k in range(1, len(value) + 1):
        subsets = [best(subset) for subset in itertools.combinations(value, k)]
        assert found[k - 1] == pytest.approx(np.mean(subsets), rel=1e-9, abs=1e-9)


def test_expected_best_of_a_uniform_ladder():
    # The expected maximum of k out of 1 … T is k (T + 1)/(k + 1).
    total = 300
    found = expected_best(np.arange(1.0, total + 1), maximise=True)
    k = np.arange(1, total + 1)
    np.testing.assert_allclose(found, k * (total + 1) / (k + 1), rtol=1e-9)


def test_a_lost_trial_makes_the_expected_best_of_one_infinite_but_not_that_of_two():
    found = expected_best(np.array([np.inf, 2.0, 1.0]), maximise=False)
    assert found[0] == np.inf
    assert found[1] == pytest.approx((2 + 1 + 1) / 3)
    assert found[2] == 1.0


def test_performance_profile_of_two_methods():
    cost = np.array([[1.0, 4.0, np.nan], [2.0, 2.0, np.inf]])
    profile = performance_profile(cost, np.array([1.0, 2.0, 10.0]))
    np.testing.assert_allclose(profile, [[1 / 3, 2 / 3, 2 / 3], [1 / 3, 2 / 3, 2 / 3]])


def test_time_to_target_is_the_first_record_that_reaches_it():
    epoch = np.array([0.0, 0.5, 1.0, 1.5])
    curve = np.array([[0.1, 0.8, 0.7, 0.9], [0.1, 0.2, 0.3, 0.4], [np.nan, np.nan, 0.9, np.nan]])
    np.testing.assert_array_equal(time_to(epoch, curve, 0.75, maximise=True), [0.5, np.inf, 1.0])
    np.testing.assert_array_equal(time_to(epoch, curve, 0.15, maximise=False), [0.0, 0.0, np.inf])
