"""Folders and zip files of pictures, as people have them and as they break."""

import zipfile

import numpy as np
import pytest
import torch
from data_files import picture
from PIL import Image

from kobai import seeds
from kobai.data import DataError, load


def write(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(path, contents):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def pets(rng):
    """Twelve grey pictures in two splits of two classes."""
    return {
        f"{split}/{kind}/{number}.png": picture(rng, 4, 5)
        for split, count in (("train", 4), ("test", 2))
        for kind in ("dog", "cat")
        for number in range(count)
    }


def unsplit(pets, prefix=""):
    return {
        prefix + name.removeprefix("train/"): content
        for name, content in pets.items()
        if name.startswith("train")
    }


@pytest.mark.parametrize("wrapped", ["", "pets/", "./"])
@pytest.mark.parametrize("packed", [True, False])
def test_reads_splits_and_classes(wrapped, packed, pets, tmp_path):
    contents = {wrapped + name: content for name, content in pets.items()}
    noise = {"README.txt": b"hi", ".DS_Store": b"", "__MACOSX/train/cat/._0.png": b"junk"}
    contents |= {wrapped + name: content for name, content in noise.items()}
    path = pack(tmp_path / "p.zip", contents) if packed else write(tmp_path / "p", contents)
    data = load(f"folder:{path}")
    assert data.classes == ("cat", "dog")
    assert (data.num_classes, data.likelihood, data.source) == (2, "categorical", path.name)
    assert data.train[1].tolist() == [0] * 4 + [1] * 4
    assert data.test is not None
    assert data.test[1].tolist() == [0, 0, 1, 1]
    assert data.input_shape == (1, 4, 5)
    (tmp_path / "one.png").write_bytes(pets["test/dog/1.png"])
    expected = np.asarray(Image.open(tmp_path / "one.png")).astype(np.float32) / 255
    assert torch.equal(data.test[0][-1, 0], torch.from_numpy(expected))


def test_a_test_set_is_drawn_where_there_is_none(pets, tmp_path):
    flat = write(tmp_path / "flat", unsplit(pets))
    only = write(tmp_path / "only", unsplit(pets, "train/"))
    for path in (flat, only):
        data = load(f"folder:{path}", test_fraction=0.25)
        assert data.train[1].bincount().tolist() == [3, 3]
        assert data.test is not None
        assert data.test[1].bincount().tolist() == [1, 1]
    again, same, other = (
        load(f"folder:{flat}", test_fraction=0.25, generator=g and seeds.generator(g, "split"))
        for g in (1, 1, 3)
    )
    assert torch.equal(again.train[0], same.train[0])
    assert not torch.equal(again.train[0], other.train[0])
    assert load(f"folder:{flat}", test_fraction=0.0).test is None


def test_classes_that_are_numbers_are_in_order(rng, tmp_path):
    contents = {f"{number}/a.png": picture(rng, 2, 2) for number in (10, 9, 2)}
    data = load(f"folder:{write(tmp_path, contents)}", test_fraction=0.0)
    assert data.classes == ("2", "9", "10")
    assert sorted(data.train[1].tolist()) == [0, 1, 2]
    assert data.train[1].tolist() == [2, 0, 1]  # files by name, labels by value


def test_colour_anywhere_makes_all_colour(rng, tmp_path):
    grey = picture(rng, 3, 3)
    modes = {"LA": picture(rng, 3, 3, mode="LA"), "1": picture(rng, 3, 3, mode="1")}
    contents = {"a/1.png": grey, "a/2.png": modes["LA"], "b/1.png": modes["1"]}
    data = load(f"folder:{write(tmp_path, contents)}", test_fraction=0.0)
    assert data.input_shape == (1, 3, 3)
    for mode in ("RGBA", "P"):
        contents["b/2.png"] = picture(rng, 3, 3, 3, mode=mode)
        data = load(f"folder:{write(tmp_path, contents)}", test_fraction=0.0)
        assert data.input_shape == (3, 3, 3)
        assert torch.equal(data.train[0][0, 0], data.train[0][0, 2])


def test_lossless_colour_keeps_every_pixel(rng, tmp_path):
    pixels = rng.integers(0, 256, (2, 6, 4, 3)).astype(np.uint8)
    for name, array in zip("ab", pixels, strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(array).save(tmp_path / name / "x.png")
    x = load(f"folder:{tmp_path}", test_fraction=0.0).train[0]
    assert torch.equal(
        (x * 255).round().to(torch.uint8), torch.from_numpy(pixels.transpose(0, 3, 1, 2))
    )


def test_refuses(pets, rng, tmp_path):
    sixteen = tmp_path / "sixteen.png"
    Image.fromarray(rng.integers(0, 60000, (4, 5)).astype(np.uint16)).save(sixteen)
    bad = {
        "no pictures": ({"cat/readme.txt": b"?"}, "holds no pictures"),
        "one class": ({"cat/0.png": b"", "cat/1.png": b""}, "one class folder, cat"),
        "no class": (unsplit(pets) | {"0.png": b""}, "0.png is in no class folder"),
        "no class in a split": (pets | {"test/0.png": b""}, "test/0.png is in no class folder"),
        "a third split": (pets | {"val/cat/0.png": b""}, "holds test, train, val"),
        "a new test class": (pets | {"test/emu/0.png": b""}, "not trained on: emu"),
        "another size": (pets | {"train/cat/9.png": picture(rng, 5, 5)}, "has 5 × 5 pixels"),
        "cut off": (
            pets | {"train/cat/9.png": pets["train/cat/0.png"][:-30]},
            "train/cat/9.png is no readable picture",
        ),
        "empty": (pets | {"train/cat/9.png": b""}, "cat/9.png is no readable picture"),
        "no picture": (pets | {"train/cat/9.png": b"<html>"}, "cat/9.png is no readable picture"),
        "16 bits": (pets | {"train/cat/9.png": sixteen.read_bytes()}, "convert it to 8 bits"),
    }
    for number, (contents, message) in enumerate(bad.values()):
        with pytest.raises(DataError, match=message):
            load(f"folder:{write(tmp_path / str(number), contents)}")
        with pytest.raises(DataError, match=message):
            load(f"folder:{pack(tmp_path / f'{number}.zip', contents)}")


def test_refuses_zip_files_that_are_damaged(pets, tmp_path):
    path = pack(tmp_path / "pets.zip", pets)
    content = path.read_bytes()
    for bad, message in (
        (b"", "no readable zip file"),
        (content[: len(content) // 2], "no readable zip file"),
        (content[:60] + bytes([content[60] ^ 255]) + content[61:], "is no readable picture"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            load(f"folder:{path}")


def test_refuses_paths_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="no folder or zip file"):
        load(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="holds no pictures"):
        load(f"folder:{tmp_path}")


def test_a_test_set_of_its_own_takes_no_fraction(pets, tmp_path):
    with pytest.raises(DataError, match="leave test_fraction out"):
        load(f"folder:{write(tmp_path, pets)}", test_fraction=0.3)
