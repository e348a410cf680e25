"""Pictures sorted into folders by class, in a directory or a zip file."""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Generator

from kobai.data.arrays import from_arrays
from kobai.data.splits import DataError, DataSplits

__all__ = ["ENDINGS", "read_image_folder", "read_pictures"]

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


def read_image_folder(
    path: Path, *, generator: Generator, test_fraction: float | None = None
) -> DataSplits:
    """Read `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or `CLASS/*.jpg`, from a folder or zip file.

    Endings read are those of `ENDINGS`; other and hidden files are passed over. Classes are sorted
    by name (by value where all are numbers), pictures by name. All pictures must have one size;
    they become grey (1 channel) if all of them are, else RGB; transparency is dropped.

    Args:
        path: The folder or zip file, which may have one more folder around it all.
        generator: Draws the test set, stratified by class, where there is no folder `test`.
        test_fraction: Share to draw, by default 0.2; 0 for none.

    Raises:
        DataError: If there are no pictures, fewer than two classes, several sizes, an unreadable
            picture (named), or folders beside `train` and `test`.
    """
    arrays = read_pictures(path)
    return from_arrays(
        str(path),
        (arrays["x_train"], arrays["y_train"]),
        (arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None,
        generator=generator,
        classes=arrays["classes"].tolist(),
        test_fraction=test_fraction,
        source=path.name,
    )


def read_pictures(path: Path) -> dict[str, np.ndarray]:
    """Decode a folder or zip file of pictures into plain arrays.

    Returns:
        `x_train` uint8 (N, channels, height, width), `y_train` int64 (N,), and `x_test`, `y_test`
        if there are folders `train` and `test`; `classes` (K,) and `endings`, the distinct
        endings of the files, as text.

    Raises:
        DataError: As `read_image_folder`.
    """
    with _open(path) as (names, read):
        splits = _arrange(names, str(path))
        classes = sorted(splits[0], key=_by_name)
        if len(classes) < 2:
            raise DataError(f"{path} has one class folder, {classes[0]}; expected two or more")
        if len(splits) == 2 and not splits[1].keys() <= splits[0].keys():
            extra = ", ".join(sorted(splits[1].keys() - splits[0].keys()))
            raise DataError(f"{path}: the test set has classes not trained on: {extra}")
        labels = [
            np.concatenate([np.full(len(group), classes.index(c)) for c, group in split.items()])
            for split in splits
        ]
        pictures = [name for split in splits for group in split.values() for name in group]
        images = _decode(pictures, read, str(path))
    endings = sorted({PurePosixPath(name).suffix.lower() for name in pictures})
    arrays = {"classes": np.array(classes), "endings": np.array(endings)}
    start = 0
    for split, ys in zip(("train", "test"), labels, strict=False):
        arrays[f"x_{split}"] = images[start : start + len(ys)]
        arrays[f"y_{split}"] = ys
        start += len(ys)
    return arrays


@contextmanager
def _open(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names of the files in a directory or zip file, and how to read one; unpacks nothing."""
    if path.is_dir():
        walk = os.walk(path, followlinks=True)
        names = [
            Path(base, name).relative_to(path).as_posix() for base, _, ns in walk for name in ns
        ]
        yield names, lambda name: (path / name).read_bytes()
        return
    if not path.is_file():
        raise DataError(f"there is no folder or zip file {path}; check the path")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path} is no readable zip file ({error}); is it cut off?") from error
    with archive:
        yield [name for name in archive.namelist() if not name.endswith("/")], archive.read


def _arrange(names: Iterable[str], where: str) -> list[dict[str, list[str]]]:
    """The training split, or both: class → names of its pictures, by the folders they are in."""
    paths = {
        path: name
        for path, name in sorted((PurePosixPath(name), name) for name in names)
        if path.suffix.lower() in ENDINGS
        and not any(part.startswith((".", "__MACOSX")) for part in path.parts)
    }
    if not paths:
        raise DataError(f"{where} holds no pictures ({' '.join(ENDINGS)})")
    shortest = min(len(path.parts) for path in paths)
    depth = 0  # of a folder around it all
    while len(tops := {path.parts[depth] for path in paths}) == 1 and depth + 2 < shortest:
        if tops & {"train", "test"}:
            break
        depth += 1
    divided = "train" in tops
    if divided and not tops <= {"train", "test"}:
        raise DataError(
            f"{where} holds {', '.join(sorted(tops))}; beside train there may only be a folder test"
        )
    splits: dict[str, dict[str, list[str]]] = {}
    for path, name in paths.items():
        parts = path.parts[depth:]
        if len(parts) < 2 + divided:
            raise DataError(
                f"{where}: {path} is in no class folder; expected CLASS/NAME, or train/CLASS/NAME "
                "and test/CLASS/NAME"
            )
        split = splits.setdefault(parts[0] if divided else "train", {})
        split.setdefault(parts[divided], []).append(name)
    return [splits[name] for name in ("train", "test") if name in splits]


def _by_name(name: str) -> tuple[int, str]:
    """Orders "2" before "10", and text by the alphabet."""
    return (int(name), name) if name.isdecimal() else (0, name)


def _decode(
    names: list[str], read: Callable[[str], bytes], where: str
) -> UInt8[np.ndarray, "N C H W"]:
    images = []
    for name in names:
        try:
            with Image.open(io.BytesIO(read(name))) as image:
                if image.mode not in _GREY | _COLOUR:
                    raise DataError(f"its pixels are {image.mode}; convert it to 8 bits a channel")
                images.append(np.asarray(image.convert("L" if image.mode in _GREY else "RGB")))
        except Exception as error:  # damaged files make readers raise nearly anything
            raise DataError(f"{where}: {name} is no readable picture ({error})") from error
        if images[-1].shape[:2] != images[0].shape[:2]:
            (h, w), (height, width) = images[-1].shape[:2], images[0].shape[:2]
            raise DataError(
                f"{where}: {name} has {w} × {h} pixels and {names[0]} {width} × {height}; bring "
                "all pictures to one size"
            )
    channels = 3 if any(image.ndim == 3 for image in images) else 1
    stacked = np.empty((len(images), channels, *images[0].shape[:2]), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return stacked
