"""CIFAR-10 in each of its forms, with small stand-ins; pickles that want more are refused."""

import logging
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from data_files import picture, python2_batch

from kobai.data import DataError, available, cifar10, fetch, load, verify


@pytest.fixture
def archive(tiny_cifar10, tmp_path):
    path = tmp_path / "root" / "cifar10" / "cifar-10-python.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(tiny_cifar10.archive)
    return path


@pytest.fixture
def folder(tiny_cifar10, tmp_path):
    path = tmp_path / "root" / "cifar-10-batches-py"
    path.mkdir(parents=True)
    for name, content in tiny_cifar10.contents.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_reads_the_original_batches(form, tiny_cifar10, tmp_path, request):
    path = request.getfixturevalue(form)
    data = load("cifar10", root=tmp_path / "root")
    names = [f"data_batch_{n}" for n in range(1, 6)]
    pixels = np.concatenate([tiny_cifar10.data[name] for name in names]).astype(np.float32) / 255
    assert torch.equal(data.train[0], torch.from_numpy(pixels.reshape(50, 3, 32, 32)))
    assert data.train[1].tolist() == [y for name in names for y in tiny_cifar10.labels[name]]
    assert data.test is not None
    assert data.test[1].tolist() == tiny_cifar10.labels["test_batch"]
    assert (data.source, data.classes[3], data.num_classes) == ("CIFAR-10", "cat", 10)
    (check,) = verify("cifar10", root=tmp_path / "root")
    assert (check.ok, check.path) == (True, path)
    assert check.detail.startswith("50 training and 10 test")


def test_never_unpacks_to_the_disk(archive, tmp_path):
    load("cifar10", root=tmp_path / "root")
    assert list(archive.parent.iterdir()) == [archive]


def test_refuses_a_damaged_archive(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz is damaged.*fetch again"):
        load("cifar10", root=tmp_path / "root")
    (check,) = verify("cifar10", root=tmp_path / "root")
    assert not check.ok


def test_refuses_a_trusted_archive_that_is_no_archive_or_incomplete(
    archive, tiny_cifar10, tmp_path
):
    for content, message in (
        (b"plain", "no readable archive"),
        (tiny_cifar10.archive[:2000], "no readable archive"),
        (tiny_cifar10.pack({"data_batch_1": b""}), "lacks data_batch_2, "),
    ):
        archive.write_bytes(content)
        tiny_cifar10.trust(content, tiny_cifar10.contents)
        with pytest.raises(DataError, match=message):
            load("cifar10", root=tmp_path / "root")


def test_refuses_damaged_and_missing_batches(folder, tmp_path):
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[500] ^= 1
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_3 is damaged"):
        load("cifar10", root=tmp_path / "root")
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match=r"data_batch_2 cannot be read"):
        load("cifar10", root=tmp_path / "root")


class Malice:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


GOOD = python2_batch(np.zeros((2, 3072)), [0, 1])
EVIL = {
    "a call": pickle.dumps(Malice(), 2),
    "a builtin": b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
    "a method of NumPy": b"\x80\x02cnumpy\nload\nU\x01f\x85R.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.sum\x93.",
    "cut off": GOOD[:-3000],
    "empty": b"",
    "no batch": pickle.dumps([1, 2], 2),
    "other pixels": python2_batch(np.zeros((2, 3071)), [0, 1]),
    "unpaired labels": python2_batch(np.zeros((2, 3072)), [0]),
    "numbers of eight bytes": GOOD.replace(b"U\x02u1", b"U\x02f8"),
    "too few bytes": GOOD.replace(b"T\x00\x18\x00\x00", b"T\x00\x17\x00\x00"),
}


@pytest.mark.parametrize("content", EVIL.values(), ids=EVIL)
def test_a_pickle_gets_nothing_but_pixels_and_labels(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="batch is no batch of CIFAR-10"):
        cifar10._parse_batch(content, "batch")
    assert list(tmp_path.iterdir()) == []


def fill(folder, rng, *, ending="jpg", train=2, test=1, size=32, classes=cifar10.CLASSES):
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                content = picture(rng, size, size, 3, format={"jpg": "jpeg"}.get(ending, ending))
                (folder / split / name / f"{number:04}.{ending}").write_bytes(content)
    return folder


def pack(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(cifar10, "PER_CLASS", {"train": 2, "test": 1})


@pytest.mark.parametrize(
    ("ending", "source"), [("jpg", "CIFAR-10 (JPEG)"), ("png", "CIFAR-10 (image files)")]
)
@pytest.mark.parametrize("packed", [True, False])
def test_reads_image_files_and_says_so(ending, source, packed, isolated, few, rng, tmp_path):
    folder = fill(tmp_path / "here" / "cifar10", rng, ending=ending)
    root = folder.parent
    if packed:
        root = tmp_path / "zipped"
        root.mkdir()
        pack(folder, root / "cifar10-images.zip")
    data = load("cifar10", root=root)
    assert (data.source, data.classes) == (source, cifar10.CLASSES)
    assert data.train[0].shape == (20, 3, 32, 32)
    assert data.train[1].tolist() == [label for label in range(10) for _ in range(2)]
    assert data.test is not None
    assert data.test[1].tolist() == list(range(10))
    row = next(row for row in available(root=root) if row.name == "cifar10")
    assert row.found
    assert row.where == str(root / "cifar10-images.zip" if packed else folder)


def test_decoded_pictures_are_kept_and_checked(isolated, few, rng, tmp_path, monkeypatch, caplog):
    folder = fill(tmp_path / "cifar10", rng)
    first = load("cifar10", root=tmp_path)
    (kept,) = (isolated / "decoded").iterdir()
    decode = cifar10.read_pictures
    monkeypatch.setattr(cifar10, "read_pictures", lambda path: pytest.fail("decoded again"))
    second = load("cifar10", root=tmp_path)
    assert torch.equal(first.train[0], second.train[0])
    assert second.source == first.source
    monkeypatch.setattr(cifar10, "read_pictures", decode)
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    with caplog.at_level(logging.WARNING, "kobai.data"):
        third = load("cifar10", root=tmp_path)
    assert "decoding again" in caplog.text
    assert torch.equal(first.train[0], third.train[0])
    assert kept.read_bytes() != content
    (folder / "train" / "cat" / "0000.jpg").write_bytes(picture(rng, 32, 32, 3, format="jpeg"))
    changed = load("cifar10", root=tmp_path)
    assert len(list((isolated / "decoded").iterdir())) == 2
    assert not torch.equal(first.train[0], changed.train[0])


def test_a_cache_that_cannot_be_written_is_said(isolated, few, rng, tmp_path, caplog):
    isolated.write_text("a file where the cache should be")
    fill(tmp_path / "cifar10", rng)
    with caplog.at_level(logging.WARNING, "kobai.data"):
        assert load("cifar10", root=tmp_path).num_classes == 10
    assert "are not kept" in caplog.text


BAD = {
    "a picture too few": ({"train": 1}, "train has 1 to 1 pictures a class"),
    "no test pictures": ({"test": 0}, "has no folder test"),
    "another size": ({"size": 31}, r"shape \(3, 31, 31\); expected 2 of shape \(3, 32, 32\)"),
    "another class": ({"classes": ("airplane", *"bcdefghij")}, "expected airplane, automobile"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_refuses_what_is_not_cifar10(changes, message, isolated, few, rng, tmp_path):
    fill(tmp_path / "cifar10", rng, **changes)
    with pytest.raises(DataError, match=message):
        load("cifar10", root=tmp_path)


def test_refuses_a_zip_file_cut_off(isolated, few, rng, tmp_path):
    path = pack(fill(tmp_path / "pictures", rng), tmp_path / "cifar10.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cifar10.zip is no readable zip file"):
        load("cifar10", root=tmp_path)


def test_fetch_wants_the_original_even_beside_pictures(
    isolated, few, tiny_cifar10, served, rng, tmp_path
):
    fill(tmp_path / "cifar10", rng)
    (served.folder / "cifar-10-python.tar.gz").write_bytes(tiny_cifar10.archive)
    (path,) = fetch("cifar10", root=tmp_path, base_url=served.url, progress=False)
    assert path == tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    assert load("cifar10", root=tmp_path).source == "CIFAR-10"


def test_says_what_to_put_where(isolated):
    with pytest.raises(DataError) as caught:
        load("cifar10", download=False)
    for part in ("cifar-10-python.tar.gz", "cifar-10-batches-py", "zip", str(isolated / "cifar10")):
        assert part in str(caught.value)
