"""CIFAR-10 (Krizhevsky 2009): the original Python batches, or the same pictures as image files."""

import hashlib
import io
import math
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from kobai.data.cache import cached_arrays
from kobai.data.files import RemoteFile, read_verified, verify_file
from kobai.data.image_folder import read_pictures
from kobai.data.named import NamedData
from kobai.data.splits import DataError, DataSplits

__all__ = ["ARCHIVE", "CIFAR10", "CLASSES", "find_cifar10", "read_cifar10"]

ARCHIVE = RemoteFile(
    name="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    mirrors=("https://www.cs.toronto.edu/~kriz",),
)
FOLDER = "cifar-10-batches-py"
BATCHES = tuple(
    RemoteFile(name=name, md5=md5, mirrors=())
    for name, md5 in {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }.items()
)
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
PER_CLASS = {"train": 5000, "test": 1000}
SHAPE = (3, 32, 32)


def find_cifar10(folders: tuple[Path, ...]) -> Path | None:
    """Find CIFAR-10 in one of its forms.

    In each folder, in this order: the original archive, its unpacked folder, a zip file
    `cifar10*.zip` or `cifar-10*.zip` of pictures, the pictures themselves (`train` and `test`).
    """
    for folder in folders:
        candidates = [folder / ARCHIVE.name, folder / FOLDER]
        candidates += sorted([*folder.glob("cifar10*.zip"), *folder.glob("cifar-10*.zip")])
        if (folder / "train" / CLASSES[0]).is_dir() and (folder / "test" / CLASSES[0]).is_dir():
            candidates.append(folder)
        for path in candidates:
            if path.exists():
                return path
    return None


def read_cifar10(path: Path) -> DataSplits:
    """Read 50,000 training and 10,000 test images of 32 × 32 RGB pixels.

    The original archive and its batches are checked by MD5, and read without unpacking to disk and
    without running what a pickle asks for. Image files have no published checksum: number, size
    and classes are checked, and `source` says so ("CIFAR-10 (JPEG)"). They take seconds to decode,
    so the decoded pixels (184 MB) are kept in the user cache, under a hash of the files.

    Args:
        path: What `find_cifar10` found.

    Raises:
        DataError: If it is damaged, cut off or not CIFAR-10.
    """
    if path.name == ARCHIVE.name:
        return _from_batches(_unpack(path))
    if path.name == FOLDER:
        return _from_batches({b.name: read_verified(b, path / b.name) for b in BATCHES})
    return _from_pictures(path)


def _unpack(path: Path) -> dict[str, bytes]:
    """The contents of the six batches, in memory; the archive never touches the disk."""
    verify_file(ARCHIVE, path)
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    contents[PurePosixPath(member.name).name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no readable archive ({error})") from error
    if missing := [batch.name for batch in BATCHES if batch.name not in contents]:
        raise DataError(f"{path} lacks {', '.join(missing)}")
    return contents


def _from_batches(contents: dict[str, bytes]) -> DataSplits:
    *train, test = (_parse_batch(contents[batch.name], batch.name) for batch in BATCHES)
    images, labels = zip(*train, strict=True)
    return _splits((torch.cat(images), torch.cat(labels)), test, "CIFAR-10")


class _Recorded:
    """A NumPy object as a pickle describes it, written down instead of built."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows the three names in a CIFAR-10 batch and calls nothing outside this file."""

    _KNOWN = frozenset(
        {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> type[_Recorded]:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return _Recorded


def _parse_batch(content: bytes, where: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels (N,) of one batch, a pickle of Python 2 and NumPy."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        labels = torch.tensor(batch[b"labels"], dtype=torch.int64)
        kind = batch[b"data"].state[2].arguments[0]
        _, shape, _, by_column, raw = batch[b"data"].state
        if kind != b"u1" or by_column or shape != (len(labels), math.prod(SHAPE)):
            raise ValueError(f"{len(labels)} labels, and data of type {kind} and shape {shape}")
        images = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, *SHAPE)
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        raise DataError(f"{where} is no batch of CIFAR-10 ({error})") from error
    return images, labels


def _from_pictures(path: Path) -> DataSplits:
    arrays = cached_arrays(_content_hash(path), lambda: read_pictures(path))
    classes = tuple(arrays["classes"].tolist())
    if classes != CLASSES:
        raise DataError(
            f"{path} has the classes {', '.join(classes)}; expected {', '.join(CLASSES)}"
        )
    for split, count in PER_CLASS.items():
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if x is None or y is None:
            raise DataError(f"{path} has no folder {split}; it is cut off or not CIFAR-10")
        counts = np.bincount(y, minlength=len(CLASSES))
        if x.shape[1:] != SHAPE or (counts != count).any():
            raise DataError(
                f"{path}: {split} has {counts.min()} to {counts.max()} pictures a class of shape "
                f"{x.shape[1:]}; expected {count} of shape {SHAPE}: it is cut off or not CIFAR-10"
            )
    lossy = {".jpg", ".jpeg"} & set(arrays["endings"].tolist())
    train, test = (
        (torch.from_numpy(arrays[f"x_{split}"]), torch.from_numpy(arrays[f"y_{split}"]))
        for split in ("train", "test")
    )
    return _splits(train, test, "CIFAR-10 (JPEG)" if lossy else "CIFAR-10 (image files)")


def _content_hash(path: Path) -> str:
    """Hash of the files and of the decoder's version, whose rounding the pixels depend on."""
    digest = hashlib.sha256(f"1 pillow {PIL.__version__}".encode())
    trees = (path / split for split in PER_CLASS)
    inside = sorted(file for tree in trees for file in tree.rglob("*") if file.is_file())
    for file in inside or [path]:
        digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _splits(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], source: str) -> DataSplits:
    return DataSplits(
        name="cifar10",
        train=train,
        test=test,
        num_classes=len(CLASSES),
        classes=CLASSES,
        likelihood="categorical",
        source=source,
    )


CIFAR10 = NamedData(
    description="small photographs, 50,000 + 10,000 RGB images of 32 × 32, 10 classes",
    make=lambda found: read_cifar10(*found.values()),
    files=(ARCHIVE,),
    or_else="or its folder cifar-10-batches-py, or pictures in train/CLASS and test/CLASS, or "
    "a zip file cifar10*.zip of these",
    find=lambda _, folders: find_cifar10(folders),
    check=lambda _, path: read_cifar10(path),
)
