"""Local, global and true minimum of made-up runs whose losses are known."""

import math

import numpy as np
import pytest

from example_results import a_history
from kobai.landscape import classify
from kobai.results import load, save


def run(train, validation=None, **changes):
    train = np.asarray(train, dtype=float)
    nothing = np.full(len(train), np.nan)
    return a_history(
        step=np.arange(len(train)), epoch=np.arange(len(train), dtype=float), train_loss=train,
        seconds=nothing, train_accuracy=nothing, test_loss=nothing, test_accuracy=nothing,
        learning_rate=nothing, validation_accuracy=nothing, gradient_norm=nothing,
        validation_loss=nothing if validation is None else np.asarray(validation, dtype=float),
        **changes,
    )  # fmt: skip


def test_a_run_that_stands_still_above_zero_is_local():
    found = classify(run([2.0, 1.0, 0.5, 0.49, 0.485, 0.48, 0.3]), plateau=0.01, patience=2)
    assert found.kind == "LM"
    # Changes of at most 0.02: epochs 3 and 4 are the first two in a row.
    assert found.local_epoch == 4.0
    assert found.local_loss == 0.485
    assert math.isnan(found.global_epoch)
    assert math.isnan(found.true_epoch)
    assert not found.trivial


def test_standing_still_at_zero_is_global_and_with_validation_true():
    train = [2.0, 0.5, 0.009, 0.008, 0.007, 0.006, 0.005]
    found = classify(run(train, [2.0, 1.0, 1.0, 0.5, 0.5, 0.2, 0.005]), patience=2)
    assert (found.local_epoch, found.global_epoch, found.true_epoch) == (4.0, 4.0, 6.0)
    assert found.kind == "TM"
    assert classify(run(train), patience=2).kind == "GM"
    assert classify(run(train, np.ones(7)), patience=2).kind == "GM"


def test_passing_through_zero_is_not_standing_still():
    assert classify(run([2.0, 0.5, 0.009, 0.3, 0.009, 0.3, 0.009])).kind == "none"


def test_a_dead_network_is_a_trivial_local_minimum():
    found = classify(run(np.full(6, math.log(10))), chance=math.log(10))
    assert found.kind == "LM"
    assert found.trivial
    assert found.local_epoch == 3.0


def test_a_meaningless_first_loss_does_not_set_the_scale():
    """A first loss of 97 would let changes of one nat pass for standing still."""
    train = [97.0, 2.0, 1.5, 1.0, 0.5, 0.3, 0.29, 0.28, 0.27]
    assert classify(run(train)).local_epoch == 4.0
    assert classify(run(train), chance=math.log(10)).local_epoch == 8.0


def test_the_end_of_a_run_that_broke_off_is_told():
    found = classify(run([2.0, 1.9, math.inf], status="diverged", note="the loss is inf"))
    assert found.kind == "none"
    assert found.note == "the loss is inf"
    assert found.least_loss == 1.9


def test_the_test_split_stands_in_for_validation(tmp_path):
    train = [1.0, 0.001, 0.001, 0.001, 0.001]
    history = a_history(
        step=np.arange(5), epoch=np.arange(5.0), seconds=np.arange(5.0),
        train_loss=np.array(train), test_loss=np.array(train),
        train_accuracy=np.ones(5), test_accuracy=np.ones(5), learning_rate=np.ones(5),
    )  # fmt: skip
    found = classify(history)
    assert found.kind == "TM"
    save(found, tmp_path, "solution")
    assert load(tmp_path, "solution") == found


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="positive"):
        classify(run([1.0, 1.0]), zero=0.0)
    with pytest.raises(ValueError, match="no training loss"):
        classify(run([math.nan, 1.0]))
