"""Spellings, levels, clipping, the accuracy axis, bands over seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_results import a_history
from kobai.plots import accuracy_axis, contour_levels, field_range, percent, seed_band, spell, tick

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.012345, 3, "0.0123"),
        (0.0, 3, "0"),
        (1234.5, 3, "1,230"),
        (99.96, 3, "100"),
        (0.99996, 3, "1.00"),
        (-0.5, 2, "−0.50"),
        (1.23e-7, 3, "1.23×10⁻⁷"),
        (123456.0, 3, "1.23×10⁵"),
        (NAN, 3, "–"),
        (math.inf, 3, "∞"),
        (-math.inf, 3, "−∞"),
    ],
)
def test_spellings(value, digits, text):
    assert spell(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.10, "0.1"), (20.0, "20"), (1e-7, "10⁻⁷"), (5e-7, "5×10⁻⁷"), (100.0, "100")],
)
def test_ticks_are_short(value, text):
    assert tick(value) == text


def test_percent():
    assert percent(0.995) == "99.5 %"
    assert percent(1.0) == "100 %"


@given(
    st.floats(1e-8, 1e3),
    st.floats(1.0001, 1e8),
    st.booleans(),
    st.integers(3, 12),
)
def test_levels_lie_inside_and_rise(low, ratio, log, count):
    levels = contour_levels(low, low * ratio, log=log, count=count)
    assert 1 <= len(levels) <= 2 * count + 3
    assert np.all(np.diff(levels) > 0)
    assert levels[0] > low
    assert levels[-1] < low * ratio


def test_levels_are_round_numbers():
    assert contour_levels(0.009, 11.0, log=True).tolist() == pytest.approx(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
    )
    assert contour_levels(0.0, 1.0, log=False, count=5).tolist() == pytest.approx(
        [0.2, 0.4, 0.6, 0.8]
    )
    assert contour_levels(1.0, 1.0, log=False).size == 0


def test_only_an_exploding_field_is_clipped():
    calm = np.linspace(0.1, 3, 100).reshape(10, 10)
    assert field_range(calm).clipped == 0
    assert field_range(calm).log
    wild = calm.copy()
    wild[0, 0], wild[0, 1] = 1e6, NAN
    shown = field_range(wild)
    assert (shown.clipped, shown.missing) == (1, 1)
    assert 3 < shown.high < 10
    text = shown.sentence("loss", "hatched")
    assert "1 value above, up to 1.00×10⁶" in text
    assert "1 value is not finite (hatched)" in text
    assert field_range(calm).sentence("loss", "hatched") == ""


def test_the_caller_decides_if_it_wants():
    field = np.array([[0.1, 1.0], [2.0, 50.0]])
    assert field_range(field, clip=1.5).clipped == 2
    assert not field_range(field, log=False).log
    assert not field_range(field - 1, log=True).log, "no logarithm of what is not positive"
    with pytest.raises(ValueError, match=r"clip=0\.05 is not above the least value 0\.1"):
        field_range(field, clip=0.05)
    with pytest.raises(ValueError, match="no value of this field is finite"):
        field_range(np.full((2, 2), NAN))
    constant = field_range(np.ones((2, 2)))
    assert constant.high > constant.low


def test_accuracy_axis_gives_each_halving_of_the_error_one_step():
    axis = accuracy_axis(np.array([0.1, 0.9, 0.999, 1.0, NAN]))
    assert axis is not None
    assert axis.floor == pytest.approx(0.0005)
    values = np.array([0.0, 0.5, 0.9, 0.999, 1.0])
    assert axis.inverse(axis.forward(values)) == pytest.approx(values)
    far = accuracy_axis(np.array([0.99999]))
    steps = np.diff(far.forward(1 - 0.5 ** np.arange(5.0)))
    assert steps == pytest.approx(np.full(4, math.log10(2)), rel=1e-3)
    assert np.isfinite(axis.forward(np.array(1.0)))
    ticks = axis.ticks(0.1, 1.0)
    assert ticks[-1] == 1
    assert ticks == sorted(ticks)
    assert accuracy_axis(np.array([0.1, 0.7])) is None
    assert accuracy_axis(np.array([NAN])) is None


def test_bands_are_mean_and_sample_deviation():
    runs = [a_history("sgd", seed, test_loss=np.arange(9.0) + seed) for seed in range(3)]
    band = seed_band(runs, "test_loss")
    assert band.mean == pytest.approx(np.arange(9.0) + 1)
    assert band.sd == pytest.approx(np.ones(9))
    assert band.count.tolist() == [3] * 9
    assert band.seconds == pytest.approx(np.arange(9.0) / 2)


def test_bands_join_runs_of_different_length_and_leave_diverged_ones_out():
    short = a_history(
        "sgd",
        1,
        status="early-stopped",
        test_loss=np.where(np.arange(9) < 4, 2.0, NAN),
    )
    lost = a_history("sgd", 2, status="diverged", test_loss=np.full(9, 1e30))
    whole = a_history("sgd", 0, test_loss=np.full(9, 4.0))
    band = seed_band([short, lost, whole], "test_loss")
    assert band.count.tolist() == [2] * 4 + [1] * 5
    assert band.mean.tolist() == [3.0] * 4 + [4.0] * 5
    assert band.sd[-1] == 0
    assert seed_band([lost], "test_loss") is None
    assert seed_band([whole], "validation_loss") is None
