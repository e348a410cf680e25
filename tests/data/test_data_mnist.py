"""MNIST: the IDX format, its damages, and small stand-ins for the four files."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_files import idx

from kobai.data import DataError, fetch, load, mnist, registry, verify
from kobai.data.mnist import parse_idx


def test_parses_sizes_and_order():
    array = np.arange(12).reshape(2, 3, 2)
    parsed = parse_idx(idx(array), "x")
    assert parsed.dtype == torch.uint8
    assert parsed.tolist() == array.tolist()


GOOD = idx(np.zeros((2, 3)))
BAD = {
    "empty": (b"", "starts with -"),
    "short": (b"\x00\x00", "starts with 0000"),
    "floats": (b"\x00\x00\x0d\x01" + bytes(8), "expected 000008"),
    "no axes": (b"\x00\x00\x08\x00\x01", "number of axes"),
    "cut off in the header": (GOOD[:9], "9 bytes long"),
    "cut off": (GOOD[:-1], "17 bytes long; its header says 18"),
    "too long": (GOOD + b"!", "19 bytes long; its header says 18"),
    "no elements": (idx(np.zeros((0, 3))), "cut off, empty"),
    "absurd": (GOOD[:4] + b"\xff" * 8, "12 bytes long"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_refuses_what_is_not_idx(content, message):
    with pytest.raises(DataError, match=message):
        parse_idx(content, "file")


@pytest.mark.parametrize("compressed", [True, False])
def test_reads_the_four_files(compressed, write_mnist, tiny_mnist, tmp_path):
    data = load("mnist", root=write_mnist(tmp_path / "mnist", compressed=compressed).parent)
    x, y = data.train
    expected = tiny_mnist.arrays["train-images-idx3-ubyte"].astype(np.float32) / 255
    assert torch.equal(x, torch.from_numpy(expected)[:, None])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.tolist() == (np.arange(30) % 10).tolist()
    assert data.test is not None
    assert data.test[0].shape == (20, 1, 28, 28)
    assert (data.num_classes, data.source, data.input_shape) == (10, "MNIST", (1, 28, 28))


def test_reads_the_names_some_unpackers_give(write_mnist, tmp_path):
    write_mnist(tmp_path, compressed=False)
    for path in tmp_path.glob("*-ubyte"):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert load("mnist", root=tmp_path).num_classes == 10


def damage(path, how):
    content = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    else:
        unpacked = bytearray(gzip.decompress(content))
        unpacked[-1] ^= 1
        path.write_bytes(gzip.compress(bytes(unpacked)))


@pytest.mark.parametrize("how", ["empty", "cut off", "one bit"])
def test_refuses_damaged_files(how, write_mnist, tmp_path):
    write_mnist(tmp_path)
    damage(tmp_path / "t10k-images-idx3-ubyte.gz", how)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz .*fetch again"):
        load("mnist", root=tmp_path)
    checks = {check.name: check for check in verify("mnist", root=tmp_path)}
    assert [check.ok for check in checks.values()] == [True, True, False, True]
    assert "fetch again" in checks["t10k-images-idx3-ubyte.gz"].detail
    assert checks["t10k-labels-idx1-ubyte.gz"].detail == "its MD5 is the published one"


def test_fetches_only_what_is_absent_or_damaged(write_mnist, served, tmp_path):
    write_mnist(served.folder)
    here = write_mnist(tmp_path / "root" / "mnist")
    damage(here / "train-labels-idx1-ubyte.gz", "one bit")
    (here / "t10k-images-idx3-ubyte.gz").unlink()
    kept = (here / "train-images-idx3-ubyte.gz").stat().st_mtime_ns
    (served.folder / "train-images-idx3-ubyte.gz").unlink()
    paths = fetch("mnist", root=here.parent, base_url=served.url, progress=False)
    assert [path.name for path in paths] == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ]
    assert (here / "train-images-idx3-ubyte.gz").stat().st_mtime_ns == kept
    assert all(check.ok for check in verify("mnist", root=here.parent))


def test_load_fetches_into_the_cache_from_the_mirrors(
    write_mnist, tiny_mnist, served, isolated, monkeypatch
):
    write_mnist(served.folder)
    files = tuple(replace(file, mirrors=(served.url,)) for file in tiny_mnist.files)
    monkeypatch.setattr(mnist, "FILES", files)
    entry = replace(registry.DATA_SETS["mnist"], files=files)
    monkeypatch.setitem(registry.DATA_SETS, "mnist", entry)
    first = load("mnist")
    assert len(list((isolated / "mnist").iterdir())) == 4
    again = load("mnist", download=False)
    assert torch.equal(first.train[0], again.train[0])


def test_says_which_files_to_put_where(isolated, write_mnist, tiny_mnist, served):
    with pytest.raises(DataError) as caught:
        load("mnist", download=False)
    for name in (
        "train-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        str(isolated / "mnist"),
    ):
        assert name in str(caught.value)
    assert "KOBAI_DATA" in str(caught.value)
    assert "\n" not in str(caught.value)
    write_mnist(isolated / "mnist")
    (isolated / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", download=False)
    assert "put train-labels-idx1-ubyte.gz (gzipped" in str(caught.value)
    with pytest.raises(DataError, match=r"put train-labels-idx1-ubyte.gz .*HTTP 404"):
        fetch("mnist", base_url=served.url, progress=False)
