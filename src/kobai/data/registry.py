"""The table of named data sets, and the one door to all of them: `load`."""

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator

from kobai import seeds
from kobai.data import files, prepare
from kobai.data.arrays import read_csv, read_npz
from kobai.data.cifar10 import CIFAR10
from kobai.data.digits import DIGITS
from kobai.data.factory import call_factory, import_factory
from kobai.data.files import RemoteFile
from kobai.data.image_folder import read_image_folder
from kobai.data.mnist import MNIST
from kobai.data.named import NamedData
from kobai.data.splits import DataError, DataSplits
from kobai.data.synthetic import BLOBS, SPIRALS, TEACHER

__all__ = [
    "DATA_SETS",
    "FORMS",
    "Availability",
    "FileCheck",
    "available",
    "fetch",
    "load",
    "register_data",
    "verify",
]

DATA_SETS: dict[str, NamedData] = {
    "digits": DIGITS,
    "mnist": MNIST,
    "cifar10": CIFAR10,
    "spirals": SPIRALS,
    "blobs": BLOBS,
    "teacher": TEACHER,
}
"""The named data sets; `register_data` adds the user's own."""
_OWN = frozenset(DATA_SETS)

FORMS: Mapping[str, str] = {
    "folder:PATH": "folder or zip file of pictures: train/CLASS/*.jpg and test/CLASS/*.jpg, or "
    "CLASS/*.jpg",
    "PATH.npz": "arrays x_train, y_train, x_test, y_test, or x and y; optionally classes",
    "PATH.csv": "table of numbers with a target in the column `target`, `label` or the last",
    "package.module:factory": "function that returns DataSplits, (x, y) or ((x, y), (xt, yt))",
}
"""The ways to name data of one's own, and what each expects."""


@dataclass(frozen=True, kw_only=True)
class Availability:
    """A row of the table of data sets.

    Attributes:
        name: What to ask for it by.
        description: What it is, in one line.
        found: It can be loaded now, without the network.
        where: The folder or file it was found in; "built in" if it needs none; else where `fetch`
            will put it.
        files: Names of the files it needs, in their original form; empty if it needs none.
    """

    name: str
    description: str
    found: bool
    where: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """A finding of `verify` on one file: its name, where it is, whether it is right, and why."""

    name: str
    path: Path | None
    ok: bool
    detail: str


def register_data(name: str, make: Callable[..., Any], *, description: str = "") -> None:
    """Make a data set of one's own known by a name, wherever kobai takes one.

    Args:
        name: The name; it may replace one registered before, but none of kobai's own.
        make: Function without arguments, or with ``generator``, that returns `DataSplits`, a pair
            (x, y) to draw a test set from, or ((x, y), (x_test, y_test)).
        description: What the data are, in one line.

    Raises:
        DataError: If the name is one of kobai's own.

    Example:
        >>> import torch
        >>> from kobai.data import load, register_data
        >>> register_data("line", lambda: (torch.arange(10.0)[:, None], torch.arange(10.0)))
        >>> len(load("line", test_fraction=0.2).train[0])
        8
    """
    if name in _OWN:
        raise DataError(f"{name} is a data set of kobai's own; take another name")
    DATA_SETS[name] = NamedData(
        description=description,
        make=functools.partial(call_factory, name, make),
        takes=frozenset({"test_fraction", "likelihood"}),
    )


def load(
    name: str,
    *,
    root: Path | str | None = None,
    generator: Generator | None = None,
    download: bool = True,
    standardize: bool = False,
    limit: int | tuple[int, int] | None = None,
    test_fraction: float | None = None,
    likelihood: str | None = None,
) -> DataSplits:
    """Load a data set by name as tensors on the CPU.

    Names: `digits` (the default of the command line; always there), `mnist`, `cifar10`, `spirals`,
    `blobs`, `teacher`, those given to `register_data`, and those of `FORMS`. Pictures are float32
    (N, channels, height, width) in [0, 1], labels int64.

    The files of `mnist` and `cifar10` are looked for in `root` if given, else in the folder that
    the environment variable KOBAI_DATA names and then in the user cache (and in the subfolder of
    the data set's name in each), and fetched into the first of these where they are missing. Image
    files of CIFAR-10 are decoded once (seconds) and kept decoded in the user cache (184 MB).

    Args:
        name: The data set, by one of these names.
        root: Folder of the files of a named data set.
        generator: Draws what has to be drawn, in this order: synthetic data or the test set of
            data that come without one, then the subset of `limit`. With None the draws are the
            same every time, and the subset is the first examples of each class.
        download: Fetch missing files; False makes them an error at once.
        standardize: Shift and scale the inputs to mean 0, variance 1 by the statistics of the
            training examples loaded; see `DataSplits.standardization`.
        limit: At most so many training examples, evenly from the classes; a pair limits the test
            examples too, which a single number leaves whole.
        test_fraction: Share of examples to test on where the data have no test set of their own,
            by default 0.2; 0 for no test set.
        likelihood: What the targets of one's own arrays are, where it is not plain from them: by
            default text and integers are classes, real numbers regression targets.

    Raises:
        DataError: If there is no such data set, files are absent (it says which to put where),
            damaged or not the originals, or the data or arguments contradict themselves.
    """
    draw = seeds.generator(0, "data") if generator is None else generator
    given = {"test_fraction": test_fraction, "likelihood": likelihood}
    form = _form(name)
    if form == "named":
        takes = DATA_SETS[name].takes
    else:
        takes = {"test_fraction"} if form == "folder" else set(given)
    if test_fraction is not None and "test_fraction" not in takes:
        raise DataError(f"{name} has a test set of its own; leave test_fraction out")
    if likelihood is not None and "likelihood" not in takes:
        raise DataError(f"the targets of {name} are known; leave likelihood out")
    arguments = {"generator": draw, **{key: given[key] for key in sorted(takes)}}
    match form:
        case "named" if DATA_SETS[name].files:
            splits = DATA_SETS[name].make(_find(name, root, download=download))
        case "named":
            splits = DATA_SETS[name].make(**arguments)
        case "folder":
            path = Path(name.removeprefix("folder:")).expanduser()
            splits = read_image_folder(path, **arguments)
        case "npz":
            splits = read_npz(Path(name).expanduser(), **arguments)
        case "csv":
            splits = read_csv(Path(name).expanduser(), **arguments)
        case _:
            splits = call_factory(name, import_factory(name), **arguments)
    train, test = limit if isinstance(limit, tuple) else (limit, None)
    splits = prepare.subset(splits, train=train, test=test, generator=generator)
    splits = prepare.scale_pixels(splits)
    return prepare.standardize(splits) if standardize else splits


def available(*, root: Path | str | None = None) -> tuple[Availability, ...]:
    """List the named data sets and whether they are here; reads no data and no network."""
    rows = []
    for name, row in DATA_SETS.items():
        where, found = "built in", True
        if row.files:
            paths = _locate(name, root)
            found = None not in paths.values()
            first = next(iter(paths.values()))
            where = str(files.search_folders(name, root)[0])
            if found and first is not None:
                where = str(first.parent if len(paths) > 1 else first)
        rows.append(
            Availability(
                name=name,
                description=row.description,
                found=found,
                where=where,
                files=tuple(file.name for file in row.files),
            )
        )
    return tuple(rows)


def fetch(
    name: str,
    *,
    root: Path | str | None = None,
    base_url: str | None = None,
    progress: bool = True,
) -> tuple[Path, ...]:
    """Fetch the original files of a data set that are not here yet or are damaged.

    Args:
        name: A named data set.
        root: Folder to put them in, in a subfolder of the data set's name; by default the folder
            that KOBAI_DATA names, else the user cache.
        base_url: Address of a folder that serves the files, instead of the public mirrors.
        progress: Draw a progress bar on standard error.

    Returns:
        Where the files are, all checked; empty for data sets that need none.

    Raises:
        DataError: If there is no such data set, or a file cannot be fetched or written. Files
            appear under their names only when complete and right.
    """
    if name not in DATA_SETS:
        raise _unknown(name)
    folders, paths = files.search_folders(name, root), []
    for file in DATA_SETS[name].files:
        path = file.find(folders)
        if path is None or not _check(file, path, files.verify_file).ok:
            try:
                path = files.download(file, folders[0], base_url=base_url, progress=progress)
            except DataError as error:
                absent = [key for key, found in _locate(name, root).items() if found is None]
                raise _absent(name, root, absent or [file.name], str(error)) from error
        paths.append(path)
    return tuple(paths)


def verify(name: str, *, root: Path | str | None = None) -> tuple[FileCheck, ...]:
    """Check the files of a data set in full: checksums, or where there are none, content.

    Args:
        name: Any name that `load` takes; data without files of known names give one check of the
            whole.
        root: As in `load`.

    Raises:
        DataError: If there is no such data set.
    """
    if _form(name) != "named" or not DATA_SETS[name].files:
        try:
            return (FileCheck(name=name, path=None, ok=True, detail=load(name).describe()),)
        except DataError as error:
            return (FileCheck(name=name, path=None, ok=False, detail=str(error)),)
    row, found = DATA_SETS[name], _locate(name, root)
    return tuple(_check(file, found[file.name], row.check) for file in row.files)


def _form(name: str) -> str:
    """Tell in which of the ways data are named here."""
    if name in DATA_SETS:
        return "named"
    if name.startswith("folder:"):
        return "folder"
    for ending in ("npz", "csv"):
        if name.lower().endswith(f".{ending}"):
            return ending
    if ":" in name and not Path(name).exists():
        return "factory"
    raise _unknown(name)


def _unknown(name: str) -> DataError:
    close = difflib.get_close_matches(name, DATA_SETS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if name and Path(name).exists():
        hint = f"; did you mean folder:{name}?"
    return DataError(
        f"there is no data set {name!r}{hint or ';'} Known: {', '.join([*DATA_SETS, *FORMS])}"
    )


def _locate(name: str, root: Path | str | None) -> dict[str, Path | None]:
    row, folders = DATA_SETS[name], files.search_folders(name, root)
    return {file.name: row.find(file, folders) for file in row.files}


def _find(name: str, root: Path | str | None, *, download: bool) -> dict[str, Path]:
    """The files of a data set, fetched if they must and may be."""
    missing = [file for file, path in _locate(name, root).items() if path is None]
    if missing and not download:
        raise _absent(name, root, missing, "downloading is off")
    if missing:
        fetch(name, root=root)
    return {file: path for file, path in _locate(name, root).items() if path is not None}


def _absent(name: str, root: Path | str | None, missing: list[str], why: str) -> DataError:
    folders = ", ".join(map(str, files.search_folders(name, root)))
    return DataError(
        f"{name} is not here: put {', '.join(missing)} ({DATA_SETS[name].or_else}) into "
        f"{files.search_folders(name, root)[0]}, or set KOBAI_DATA to the folder they are in "
        f"(looked in {folders}; {why})"
    )


def _check(
    file: RemoteFile, path: Path | None, check: Callable[[RemoteFile, Path], object]
) -> FileCheck:
    if path is None:
        return FileCheck(name=file.name, path=None, ok=False, detail="missing; fetch it")
    try:
        read = check(file, path)
    except DataError as error:
        return FileCheck(name=file.name, path=path, ok=False, detail=str(error))
    detail = read.describe() if isinstance(read, DataSplits) else "its MD5 is the published one"
    return FileCheck(name=file.name, path=path, ok=True, detail=detail)
