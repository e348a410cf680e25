"""Lines and volumes save and load to the bit, and refuse what does not fit."""

import numpy as np
import pytest

from kobai.results import Check, Line, Volume, identical, load, save


def a_line(**changes) -> Line:
    fields = {
        "label": "line", "kind": "random", "a": np.array([-1.0, 0.0, 2.0]), "axis_name": "d",
        "fields": {"loss": np.array([np.nan, 0.0, np.inf])}, "direction_norm": 2.0, "origin": "end",
        "points": {"end": 0.0}, "checks": (Check(name="c", passed=True, value=0.0, tolerance=1.0),),
    }  # fmt: skip
    return Line(**{**fields, **changes})


def a_volume(**changes) -> Volume:
    fields = {
        "label": "volume", "kind": "random", "a": np.arange(2.0), "b": np.arange(3.0),
        "c": np.arange(4.0), "axis_names": ("u", "v", "w"),
        "fields": {"loss": np.arange(24.0).reshape(2, 3, 4)}, "direction_norms": np.ones(3),
        "cosines": np.eye(3), "origin": "end", "points": {"end": np.zeros(3)},
    }  # fmt: skip
    return Volume(**{**fields, **changes})


@pytest.mark.parametrize("make", [a_line, a_volume])
def test_what_is_loaded_is_what_was_saved(tmp_path, make):
    result = make()
    save(result, tmp_path, "result")
    assert identical(load(tmp_path, "result"), result)
    with pytest.raises(ValueError, match="read-only"):
        result.fields["loss"][...] = 0


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (a_line, {"a": np.array([0.0, 0.0, 1.0])}, "increasing"),
        (a_volume, {"b": np.array([0.0, 1.0, np.inf])}, "Volume.b"),
    ],
)
def test_what_does_not_fit_is_refused(make, changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_a_slice_is_the_plane_at_a_node():
    plane = a_volume().slice("b", -1)
    np.testing.assert_array_equal(plane.fields["loss"], np.arange(24.0).reshape(2, 3, 4)[:, 2])
    assert plane.axis_names == ("u", "w")
    with pytest.raises(ValueError, match="'d'"):
        a_volume().slice("d", 0)
