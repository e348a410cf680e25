"""The one door: names, arguments and the table of what is here."""

import pytest
import torch

from kobai import seeds
from kobai.data import (
    DATA_SETS,
    FORMS,
    DataError,
    available,
    blobs,
    fetch,
    load,
    register_data,
    verify,
)

pytestmark = pytest.mark.usefixtures("isolated")


def test_digits_are_always_there_and_always_the_same():
    data = load("digits")
    x, y = data.train
    assert data.test is not None
    xt, yt = data.test
    assert (x.shape, xt.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert (data.num_classes, data.source) == (10, "digits (scikit-learn)")
    # A fifth of the 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 images of each digit.
    assert yt.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    again = load("digits")
    assert torch.equal(again.train[0], x)
    # The default split may not move from release to release: results are compared on it.
    assert yt[:20].tolist() == [3, 6, 1, 4, 7, 8, 5, 4, 4, 4, 1, 8, 2, 0, 7, 3, 8, 0, 9, 4]
    drawn = load("digits", generator=seeds.generator(1, "data"))
    assert not torch.equal(drawn.train[0], x)


def test_synthetic_sets_have_a_default_draw():
    for name in ("spirals", "blobs", "teacher"):
        assert torch.equal(load(name).train[0], load(name).train[0])
        drawn = load(name, generator=seeds.generator(5, "data"))
        assert not torch.equal(load(name).train[0], drawn.train[0])


def test_limit_and_standardisation():
    whole = load("digits")
    small = load("digits", limit=50)
    assert small.train[1].bincount().tolist() == [5] * 10
    assert small.test is not None
    assert whole.test is not None
    assert len(small.test[0]) == len(whole.test[0])
    both = load("digits", limit=(50, 20), standardize=True)
    assert both.test is not None
    assert (len(both.train[0]), len(both.test[0])) == (50, 20)
    info = both.standardization
    assert info is not None
    torch.testing.assert_close(both.train[0] * info.std + info.mean, small.train[0])
    torch.testing.assert_close(info.mean, small.train[0].mean((0, 2, 3)))
    drawn = load("digits", limit=50, generator=seeds.generator(0, "limit"))
    assert drawn.train[1].bincount().tolist() == [5] * 10
    assert not torch.equal(drawn.train[0], small.train[0])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("minst", {}, "no data set 'minst'; did you mean mnist"),
        ("", {}, "no data set ''"),
        ("nothing like it", {}, "Known: digits, mnist"),
        ("blobs", {"test_fraction": 0.5}, "test set of its own"),
        ("mnist", {"test_fraction": 0.5}, "test set of its own"),
        ("digits", {"likelihood": "gaussian"}, "targets of digits are known"),
        ("digits", {"limit": 0}, "expected at least 1"),
        ("digits", {"limit": (5, -1)}, "-1 test examples"),
        ("digits", {"test_fraction": 1.5}, "between 0 and 1"),
    ],
)
def test_refuses(name, arguments, message):
    with pytest.raises(DataError, match=message):
        load(name, **arguments)


def test_a_bare_folder_gets_a_hint(tmp_path):
    with pytest.raises(DataError, match=f"did you mean folder:{tmp_path}"):
        load(str(tmp_path))


def test_the_table_says_what_is_here(isolated, write_mnist):
    rows = {row.name: row for row in available()}
    assert list(rows) == ["digits", "mnist", "cifar10", "spirals", "blobs", "teacher"]
    assert (rows["digits"].found, rows["digits"].where, rows["digits"].files) == (
        True, "built in", (),
    )  # fmt: skip
    assert not rows["mnist"].found
    assert rows["mnist"].where == str(isolated / "mnist")
    assert len(rows["mnist"].files) == 4
    assert all(row.description for row in rows.values())
    write_mnist(isolated / "mnist")
    assert next(row for row in available() if row.name == "mnist").found
    assert set(FORMS) == {"folder:PATH", "PATH.npz", "PATH.csv", "package.module:factory"}


def test_fetch_and_verify_of_what_needs_no_files(tmp_path):
    assert fetch("digits") == ()
    with pytest.raises(DataError, match="no data set 'digit'"):
        fetch("digit")
    (check,) = verify("digits")
    assert (check.ok, check.path) == (True, None)
    assert "1438 training" in check.detail
    (check,) = verify(str(tmp_path / "absent.csv"))
    assert not check.ok
    assert "there is no file" in check.detail
    with pytest.raises(DataError, match="no data set"):
        verify("nonsense")


def test_data_of_ones_own_get_a_name(monkeypatch):
    monkeypatch.setattr("kobai.data.registry.DATA_SETS", dict(DATA_SETS))
    pair = (torch.arange(20.0).reshape(10, 2), torch.arange(10) % 2)
    register_data("mine", lambda: pair, description="ten points")
    register_data("drawn", lambda generator: blobs(train=6, test=4, generator=generator))
    data = load("mine", test_fraction=0.2)
    assert (data.name, len(data.train[0]), data.num_classes) == ("mine", 8, 2)
    assert load("mine", likelihood="gaussian").likelihood == "gaussian"
    assert len(load("drawn").train[0]) == 6
    row = next(row for row in available() if row.name == "mine")
    assert (row.found, row.where, row.description) == (True, "built in", "ten points")
    assert fetch("mine") == ()
    assert verify("mine")[0].ok
    with pytest.raises(DataError, match="did you mean mine"):
        load("mime")
    with pytest.raises(DataError, match="kobai's own"):
        register_data("digits", lambda: pair)


def test_verify_names_the_missing_files():
    checks = verify("mnist")
    assert [check.ok for check in checks] == [False] * 4
    assert all(check.detail == "missing; fetch it" for check in checks)
