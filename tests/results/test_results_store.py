"""Save and load: exact, atomic, and clear about everything that is wrong with a file."""

import dataclasses
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kobai import results
from kobai.results import (
    Aggregate,
    Check,
    Comparison,
    ComparisonRow,
    History,
    Look,
    Plane,
    ResultError,
    Spectrum,
    Trajectory,
    atomic_write,
    identical,
    load,
    load_all,
    provenance,
    result_names,
    save,
)
from kobai.results.codec import decode, encode

NAN, INF = float("nan"), float("inf")


def a_plane() -> Plane:
    loss = np.arange(6.0).reshape(2, 3)
    loss[0, 1], loss[1, 2] = NAN, INF
    return Plane(
        label="between",
        kind="between",
        a=np.array([-1.0, 2.0]),
        b=np.array([0.0, 0.5, 1.0]),
        axis_names=("x", "y"),
        fields={"loss": loss, "train/accuracy ü": np.ones((2, 3))},
        direction_norms=np.array([1.0, 2.0]),
        cosine=NAN,
        origin="sgd 0",
        trajectories=(
            Trajectory(
                label="t",
                coordinates=np.ones((2, 2)),
                off_plane=np.array([0.0, 1.0]),
                loss=np.array([2.0, INF]),
            ),
        ),
        points={"$odd": np.array([0.0, 1.0]), "..": np.ones(2), "": np.zeros(2)},
        checks=(Check(name="centre", passed=True, value=1e-17, tolerance=1e-6, detail="d"),),
    )


def a_row() -> ComparisonRow:
    number = Aggregate(mean=0.1, sd=NAN, count=1)
    names = [f.name for f in dataclasses.fields(ComparisonRow) if f.type is Aggregate]
    return ComparisonRow(
        optimizer="sgd",
        seeds=1,
        statuses={"finished": 1},
        **dict.fromkeys(names, number),
        look=Look(label="SGD", color="#2b6cb8", dash="dot"),
    )


def every_kind():
    yield provenance(command="kobai compare --out 'a b'", seed=0)
    yield History(
        label="h",
        optimizer="sgd",
        seed=3,
        status="diverged",
        step=np.array([0, 5]),
        epoch=np.array([0.0, 1.0]),
        seconds=np.array([0.0, 0.1]),
        train_loss=np.array([1.0, INF]),
        step_loss=np.arange(5.0),
    )
    yield Spectrum(
        label="s",
        matrix="hessian",
        dimension=9,
        eigenvalues=np.array([-1.0, 0.0, 2.5]),
        residuals=np.array([0.0, 0.0, 1e-9]),
        trace=3.0,
        trace_error=0.1,
        gradient_norm=INF,
        loss=-INF,
        num_products=12,
        status="converged",
        seed=0,
    )
    yield Check(name="c", passed=False, value=1.0, tolerance=2.0)
    yield a_plane()
    yield Comparison(title="t", data="d", model="m", parameters=7, rows=(a_row(), a_row()))


@pytest.mark.parametrize("result", tuple(every_kind()), ids=lambda result: type(result).__name__)
def test_round_trip_to_the_bit(result, tmp_path):
    path = save(result, tmp_path / "made", "x.y-1")
    back = load(tmp_path / "made", "x.y-1")
    assert path == tmp_path / "made" / "x.y-1.json"
    assert type(back) is type(result)
    assert identical(back, result)
    assert "NaN" not in path.read_text()
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert not list(path.parent.glob(".*")), "temporary files stay behind"


def test_results_from_before_looks_load(tmp_path):
    path = save(a_plane(), tmp_path, "p")
    stored = json.loads(path.read_text())
    del stored["value"]["looks"]
    path.write_text(json.dumps(stored))
    assert identical(load(tmp_path, "p"), a_plane())


@pytest.mark.parametrize("wrong", [{"color": "red; x"}, {"color": "#abc"}, {"dash": "wavy"}])
def test_a_look_is_a_colour_and_a_known_dash(wrong):
    with pytest.raises(ValueError, match="expected"):
        Look(**wrong)


def test_same_result_same_bytes(tmp_path):
    for name in ("one", "two"):
        save(a_plane(), tmp_path, name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@given(
    hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int64, np.bool_, np.complex128]),
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
    ),
    st.dictionaries(st.text(max_size=5), st.floats() | st.none() | st.text(), max_size=4),
)
def test_anything_a_result_may_hold_survives(array, mapping):
    original = (array, {"inner": mapping, "more": (1, True, mapping)})
    value, arrays = encode(original)
    text = json.dumps(value, allow_nan=False)
    assert identical(decode(json.loads(text), dict(arrays)), original)


def test_key_paths_never_meet():
    _, arrays = encode({"a/b": np.zeros(1), "a": {"b": np.ones(1)}, "a%2Fb": np.ones(2)})
    assert len(arrays) == 3


def test_arrays_are_read_only_copies(tmp_path):
    mine = np.zeros((2, 3))
    plane = dataclasses.replace(a_plane(), fields={"loss": mine})
    mine[0, 0] = 1.0
    assert plane.fields["loss"][0, 0] == 0.0
    save(plane, tmp_path, "p")
    for result in (plane, load(tmp_path, "p")):
        for array in (result.a, result.fields["loss"], result.trajectories[0].loss):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        plane.label = "other"


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_truncated_files_are_refused_in_one_line(tmp_path, suffix, keep):
    save(a_plane(), tmp_path, "p")
    path = tmp_path / f"p.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ResultError) as caught:
        load(tmp_path, "p")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "p.json") in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert result_names(tmp_path) == ("p",)
    with pytest.raises(ResultError):
        load_all(tmp_path)


def edited(tmp_path, **changes):
    path = save(a_plane(), tmp_path, "p")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "schema 99.*upgrade"),
        ({"schema": "x"}, "schema x"),
        ({"format": "other"}, "not a kobai result"),
        ({"value": {"$class": "Pickle"}}, "unknown class 'Pickle'"),
        ({"value": {"$class": "Check", "name": "n"}}, "not a valid Check"),
        ({"value": {"$class": ["x"]}}, "damaged"),
        ({"value": {"$array": "nowhere"}}, "'nowhere' is missing"),
        ({"value": {"$float": "spam"}}, "damaged"),
        ({"value": 3}, "holds no result"),
        ({"arrays": {}, "value": {"$array": "a"}}, "missing"),
        ({"arrays": {"file": "p.npz"}}, "damaged"),
    ],
)
def test_edited_files_are_refused(tmp_path, changes, message):
    edited(tmp_path, **changes)
    with pytest.raises(ResultError, match=message):
        load(tmp_path, "p")


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ResultError, match="no such result"):
        load(tmp_path, "p")
    with pytest.raises(ResultError, match="no such folder"):
        load_all(tmp_path / "nowhere")
    save(a_plane(), tmp_path, "p")
    (tmp_path / "p.npz").unlink()
    with pytest.raises(ResultError, match=r"p\.npz"):
        load(tmp_path, "p")


def test_arrays_of_another_result_are_noticed(tmp_path):
    save(a_plane(), tmp_path, "p")
    save(dataclasses.replace(a_plane(), a=np.array([0.0, 1.0])), tmp_path, "q")
    os.replace(tmp_path / "q.npz", tmp_path / "p.npz")
    with pytest.raises(ResultError, match="another run"):
        load(tmp_path, "p")


def test_load_all_takes_results_and_only_those(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "list.json").write_text("[1]")
    assert load_all(tmp_path) == {}
    save(a_plane(), tmp_path, "b")
    save(next(iter(every_kind())), tmp_path, "a")
    assert list(load_all(tmp_path)) == ["a", "b"]


def test_replacing_by_a_result_without_arrays_leaves_no_stale_arrays(tmp_path):
    save(a_plane(), tmp_path, "p")
    save(Check(name="c", passed=True, value=0.0, tolerance=1.0), tmp_path, "p")
    assert not (tmp_path / "p.npz").exists()
    assert load(tmp_path, "p").name == "c"


@pytest.mark.parametrize("name", ["", ".", "../up", "a b", "a/b", "-x", "ü", "x\n"])
def test_names_are_portable(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a result"):
        save(a_plane(), tmp_path, name)
    with pytest.raises(ValueError, match="cannot name a result"):
        load(tmp_path, name)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="takes a result; got dict"):
        save({"a": 1}, tmp_path / "new", "x")
    with pytest.raises(TypeError, match=r"inner\.0 is a object"):
        encode({"inner": [object()]})
    with pytest.raises(TypeError, match="array of object"):
        encode({"x": np.array([None])})
    with pytest.raises(TypeError, match="keys must be text"):
        encode({1: 2})
    assert not (tmp_path / "new").exists()


def test_a_failing_write_keeps_the_old_result(tmp_path, monkeypatch):
    save(a_plane(), tmp_path, "p")

    def broken(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        save(dataclasses.replace(a_plane(), label="new"), tmp_path, "p")
    monkeypatch.undo()
    assert load(tmp_path, "p").label == "between"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p.npz"]


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = atomic_write(tmp_path / "deep" / "file.txt", "ü")
    assert atomic_write(str(path), b"two") == path
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o600 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_names_of_classes_are_unique():
    with pytest.raises(ValueError, match="two result classes are named History"):
        results.register(type("History", (), {"__module__": "elsewhere"}))
