"""The user's own arrays and tables: what their targets are taken for, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kobai.data import DataError, load


@pytest.fixture
def npz(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return str(tmp_path / "mine.npz")

    return save


@pytest.fixture
def table(tmp_path):
    def save(text, name="mine.csv", **how):
        (tmp_path / name).write_text(text, **how)
        return str(tmp_path / name)

    return save


X = np.random.default_rng(0).normal(size=(20, 3))
LABELS = np.arange(20) % 4


def test_splits_as_stored(npz):
    data = load(npz(x_train=X, y_train=LABELS, x_test=X[:5], y_test=LABELS[:5]))
    assert torch.equal(data.train[0], torch.from_numpy(X.astype(np.float32)))
    assert torch.equal(data.train[1], torch.from_numpy(LABELS))
    assert data.test is not None
    assert len(data.test[0]) == 5
    assert (data.num_classes, data.likelihood, data.source) == (4, "categorical", "mine.npz")


def test_a_test_set_is_drawn_from_x_and_y(npz):
    for arrays in ({"x": X, "y": LABELS}, {"x_train": X, "y_train": LABELS}):
        data = load(npz(**arrays))
        assert data.train[1].bincount().tolist() == [4, 4, 4, 4]
        assert data.test is not None
        assert data.test[1].bincount().tolist() == [1, 1, 1, 1]
        assert load(npz(**arrays), test_fraction=0.0).test is None


TARGETS = {
    "labels": (LABELS, "categorical", (), torch.int64),
    "a column of labels": (LABELS[:, None].astype(np.uint8), "categorical", (), torch.int64),
    "booleans": (LABELS > 1, "categorical", (), torch.int64),
    "numbers": (X[:, 0], "gaussian", (1,), torch.float32),
    "several numbers": (X[:, :2], "gaussian", (2,), torch.float32),
    "zeros and ones": ((X > 0).astype(int), "bernoulli", (3,), torch.float32),
}


@pytest.mark.parametrize(("y", "likelihood", "shape", "dtype"), TARGETS.values(), ids=TARGETS)
def test_what_targets_are_taken_for(y, likelihood, shape, dtype, npz):
    data = load(npz(x=X, y=y))
    assert data.likelihood == likelihood
    assert data.train[1].shape[1:] == shape
    assert data.train[1].dtype == dtype
    assert (data.num_classes is None) == (likelihood != "categorical")


def test_the_likelihood_can_be_said(npz):
    ages = np.arange(20) * 7
    assert load(npz(x=X, y=ages), likelihood="gaussian").train[1].shape[1:] == (1,)
    assert load(npz(x=X, y=LABELS.astype(float)), likelihood="categorical").num_classes == 4
    one_hot = np.eye(4)[LABELS].astype(int)
    with pytest.raises(DataError, match="look one-hot"):
        load(npz(x=X, y=one_hot))
    assert load(npz(x=X, y=one_hot), likelihood="bernoulli").output_size == 4
    with pytest.raises(DataError, match="whole numbers"):
        load(npz(x=X, y=X[:, 0]), likelihood="categorical")


def test_names_of_classes(npz):
    words = np.array(["ant", "bee", "cow", "dog"])
    assert load(npz(x=X, y=LABELS, classes=words)).classes == ("ant", "bee", "cow", "dog")
    data = load(npz(x_train=X, y_train=words[::-1][LABELS], x_test=X[:1], y_test=words[:1]))
    assert data.classes == ("ant", "bee", "cow", "dog")
    assert data.train[1][:4].tolist() == [3, 2, 1, 0]
    with pytest.raises(DataError, match="label 'emu' is not among the classes"):
        load(npz(x_train=X, y_train=words[LABELS], x_test=X[:1], y_test=np.array(["emu"])))


def test_eight_bits_are_pictures(npz):
    pixels = np.arange(20 * 6 * 5, dtype=np.uint8).reshape(20, 6, 5)
    data = load(npz(x=pixels, y=LABELS), test_fraction=0.0)
    assert torch.equal(data.train[0], torch.from_numpy(pixels[:, None].astype(np.float32) / 255))
    assert load(npz(x=np.stack([pixels] * 3, 1), y=LABELS)).input_shape == (3, 6, 5)
    with pytest.raises(DataError, match="channels last"):
        load(npz(x=np.stack([pixels] * 3, 3), y=LABELS))


def test_other_integers_are_tokens(npz):
    tokens = np.arange(40, dtype=np.int16).reshape(20, 2)
    assert load(npz(x=tokens, y=LABELS)).train[0].dtype == torch.int64


def test_big_endian_and_column_order_are_read(npz):
    data = load(npz(x=np.asfortranarray(X.astype(">f8")), y=LABELS), test_fraction=0.0)
    assert torch.equal(data.train[0], torch.from_numpy(X.astype(np.float32)))


REFUSED = {
    "other arrays": ({"images": X, "y": LABELS}, "holds the arrays images, y; expected x and y"),
    "no arrays": ({}, r"holds the arrays \(none\)"),
    "half a test set": ({"x_train": X, "y_train": LABELS, "x_test": X}, "holds the arrays"),
    "unpaired": ({"x": X, "y": LABELS[:7]}, "20 inputs but 7 targets"),
    "empty": ({"x": X[:0], "y": LABELS[:0]}, "no training examples"),
    "NaN": ({"x": np.where(X > 1, np.nan, X), "y": LABELS}, "are NaN or infinite"),
    "too large for float32": ({"x": X * 1e300, "y": LABELS}, "infinite \\(in float32"),
    "objects": ({"x": X.astype(object), "y": LABELS}, "plain arrays"),
    "text inputs": ({"x": X.astype(str), "y": LABELS}, "expected numbers"),
    "complex": ({"x": X.astype(complex), "y": LABELS}, "complex128; expected numbers"),
    "flat inputs": ({"x": X[:, 0], "y": LABELS}, "expected \\(examples"),
    "negative labels": ({"x": X, "y": LABELS - 1}, "number the classes from 0"),
    "labels that count": ({"x": X, "y": LABELS * 1000}, "labels run to 3000 in 20 examples"),
    "one class": ({"x": X, "y": LABELS * 0}, "two or more"),
    "more labels than names": ({"x": X, "y": LABELS, "classes": ["a", "b"]}, "expected 0 to 1"),
    "integer grids": ({"x": X, "y": np.full((20, 3), 7)}, "integer targets of shape"),
    "new test labels": (
        {"x_train": X, "y_train": LABELS, "x_test": X[:1], "y_test": np.array([4])},
        "test: labels run from 4 to 4; expected 0 to 3",
    ),
    "other test width": (
        {"x_train": X, "y_train": LABELS, "x_test": X[:1, :2], "y_test": LABELS[:1]},
        "train and test inputs differ",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_arrays(arrays, message, npz):
    with pytest.raises(DataError, match=message):
        load(npz(**arrays))


def test_refuses_damaged_archives(npz, tmp_path):
    path = Path(npz(x=X, y=LABELS))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[300] ^= 1
    for bad in (b"", b"text", content[:-40], content[:100], bytes(flipped), b"\x80\x04N."):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="no readable"):
            load(str(path))
    np.save(tmp_path / "array.npy", X)
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(DataError, match="no readable"):
        load(str(path))
    with pytest.raises(DataError, match="there is no file"):
        load(str(tmp_path / "absent.npz"))


ROWS = "".join(f"{a},{b},{'yes' if a > b else 'no'}\n" for a in range(4) for b in range(3))


@pytest.mark.parametrize("header", ["", "a,b,c\n", "height, width, answer\n"])
def test_reads_a_table_with_and_without_a_header(header, table):
    data = load(table(header + ROWS), test_fraction=0.0)
    assert data.train[0].shape == (12, 2)
    assert data.train[0][5].tolist() == [1.0, 2.0]
    assert data.classes == ("no", "yes")
    assert data.train[1].tolist() == [int(a > b) for a in range(4) for b in range(3)]


@pytest.mark.parametrize("name", ["target", "Label"])
def test_the_target_column_can_be_named(name, table):
    lines = "".join(f"{a / 4},{b},{a * b}\n" for a in range(4) for b in range(3))
    data = load(table(f"{name},u,v\n{lines}"), test_fraction=0.0)
    assert data.likelihood == "gaussian"
    assert data.train[1][:, 0].tolist() == [a / 4 for a in range(4) for _ in range(3)]
    assert data.train[0][7].tolist() == [1.0, 2.0]


def test_whole_numbers_are_classes_in_numeric_order(table):
    text = "".join(f"{a}.5,{(10, 9, 2)[a % 3]}\n" for a in range(12))
    data = load(table(text), test_fraction=0.0)
    assert data.classes == ("2", "9", "10")
    assert data.train[1][:3].tolist() == [2, 1, 0]
    assert load(table(text), likelihood="gaussian").train[1].max() == 10


def test_marks_blank_lines_and_quotes(table):
    text = '\n"1.5", 2 , "a, b"\n\n2,3,c\n1e-3,+4,c\n'
    data = load(table(text, encoding="utf-8-sig"), test_fraction=0.0)
    assert data.classes == ("a, b", "c")
    assert data.train[0].tolist() == [[1.5, 2.0], [2.0, 3.0], [float(np.float32(1e-3)), 4.0]]


BAD_TABLES = {
    "empty": ("", "is empty"),
    "blank": ("\n  \n", "is empty"),
    "one column": ("1\n2\n", "one column"),
    "ragged": ("1,2,a\n3,b\n", "line 2: 2 cells; the first row has 3"),
    "text": ("u,v,t\n1,2,a\n1,x,b\n", "line 3, column v: 'x' is no finite number"),
    "a gap": ("1,2,a\n1,,b\n", "line 2, column 2: '' is no finite number"),
    "a gap first": ("1,,a\n1,2,b\n", "mixes numbers, titles and empty cells"),
    "NaN": ("1,2,a\n1,nan,b\n", "'nan' is no finite number"),
    "infinity": ("1,2,a\n1,inf,b\n", "'inf' is no finite number"),
    "half a header": ("u,2,t\n1,2,a\n1,2,b\n", "mixes numbers"),
    "no target": ("1,2,a\n1,2,\n", "line 2: the target is empty"),
    "a gap in a regression": ("1,2,0.5\n1,2,inf\n", "line 2, column target: 'inf'"),
    "two targets": ("target,u,label\n1,2,3\n", "2 target columns"),
    "one class": ("1,2,a\n1,3,a\n", "two or more"),
    "numbers that count": (
        "".join(f"{n}.0,{n}\n" for n in range(30)),
        "30 different whole-number targets in 30 rows",
    ),
    "a quotation without end": ('1,2,"a\n1,2,b\n', "no readable UTF-8 table .unexpected end"),
}


@pytest.mark.parametrize(("text", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_refuses_tables(text, message, table):
    with pytest.raises(DataError, match=message):
        load(table(text))


def test_refuses_files_that_are_no_text(table, tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(DataError, match="no readable UTF-8 table"):
        load(str(tmp_path / "image.csv"))
    with pytest.raises(DataError, match="there is no file"):
        load(str(tmp_path / "absent.csv"))
