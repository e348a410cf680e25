"""The table of named data sets, and the one door to all of them: `load`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Generator

from kobai import seeds
from kobai.data import cifar10, files, mnist, prepare, synthetic
from kobai.data.arrays import read_csv, read_npz
from kobai.data.digits import digits
from kobai.data.factory import call_factory
from kobai.data.files import RemoteFile
from kobai.data.image_folder import read_image_folder
from kobai.data.splits import DataError, DataSplits, LikelihoodName

__all__ = ["FORMS", "Availability", "FileCheck", "available", "fetch", "load", "verify"]

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
    """What `verify` says of one file: its name, where it is, whether it is right, and why."""

    name: str
    path: Path | None
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A data set that lives in files, found, read and checked by their original names."""

    description: str
    files: tuple[RemoteFile, ...]
    or_else: str
    find: Callable[[RemoteFile, tuple[Path, ...]], Path | None]
    read: Callable[[Mapping[str, Path]], DataSplits]
    check: Callable[[RemoteFile, Path], object]


_STORED: Mapping[str, _Stored] = {
    "mnist": _Stored(
        description="handwritten digits, 60,000 + 10,000 grey images of 28 × 28, 10 classes",
        files=mnist.FILES,
        or_else="gzipped or unpacked",
        find=lambda file, folders: file.find(folders),
        read=mnist.read_mnist,
        check=files.verify_file,
    ),
    "cifar10": _Stored(
        description="small photographs, 50,000 + 10,000 RGB images of 32 × 32, 10 classes",
        files=(cifar10.ARCHIVE,),
        or_else="or its folder cifar-10-batches-py, or pictures in train/CLASS and test/CLASS, or "
        "a zip file cifar10*.zip of these",
        find=lambda _, folders: cifar10.find_cifar10(folders),
        read=lambda found: cifar10.read_cifar10(*found.values()),
        check=lambda _, path: cifar10.read_cifar10(path),
    ),
}
_SYNTHETIC: Mapping[str, Callable[..., DataSplits]] = {
    "spirals": synthetic.spirals,
    "blobs": synthetic.blobs,
    "teacher": synthetic.teacher,
}
_DESCRIPTIONS: Mapping[str, str] = {
    "digits": "handwritten digits in scikit-learn, 1,797 grey images of 8 × 8, 10 classes",
    **{name: stored.description for name, stored in _STORED.items()},
    "spirals": "two interleaved spirals in the plane, 2 classes (synthetic)",
    "blobs": "Gaussian blobs in the plane, 5 classes (synthetic)",
    "teacher": "regression on a random network of 20 inputs (synthetic)",
}


def load(
    name: str,
    *,
    root: Path | str | None = None,
    generator: Generator | None = None,
    download: bool = True,
    standardize: bool = False,
    limit: int | tuple[int, int] | None = None,
    test_fraction: float | None = None,
    likelihood: LikelihoodName | None = None,
) -> DataSplits:
    """Load a data set by name as tensors on the CPU.

    Names: `digits` (the default of the command line; always there), `mnist`, `cifar10`, `spirals`,
    `blobs`, `teacher`, and those of `FORMS` for data of one's own. Pictures are float32
    (N, channels, height, width) in [0, 1], labels int64.

    The files of `mnist` and `cifar10` are looked for in `root` if given, else in the folder that
    the environment variable KOBAI_DATA names and then in the user cache (and in the subfolder of
    the data set's name in each), and fetched into the first of these where they are missing. Image
    files of CIFAR-10 are decoded once (seconds) and kept decoded in the user cache (184 MB).

    Args:
        name: Which data set.
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
    arrays = {"generator": draw, "test_fraction": test_fraction, "likelihood": likelihood}
    form = _form(name)
    if form in {"stored", "synthetic"} and test_fraction is not None:
        raise DataError(f"{name} has a test set of its own; leave test_fraction out")
    if form in {"stored", "synthetic", "digits", "folder"} and likelihood is not None:
        raise DataError(f"the targets of {name} are known; leave likelihood out")
    match form:
        case "stored":
            splits = _STORED[name].read(_find(name, root, download=download))
        case "synthetic":
            splits = _SYNTHETIC[name](generator=draw)
        case "digits":
            splits = digits(generator=draw, test_fraction=test_fraction)
        case "folder":
            splits = read_image_folder(
                Path(name.removeprefix("folder:")).expanduser(),
                generator=draw,
                test_fraction=test_fraction,
            )
        case "npz":
            splits = read_npz(Path(name).expanduser(), **arrays)
        case "csv":
            splits = read_csv(Path(name).expanduser(), **arrays)
        case _:
            splits = call_factory(name, **arrays)
    train, test = limit if isinstance(limit, tuple) else (limit, None)
    splits = prepare.subset(splits, train=train, test=test, generator=generator)
    splits = prepare.scale_pixels(splits)
    return prepare.standardize(splits) if standardize else splits


def available(*, root: Path | str | None = None) -> tuple[Availability, ...]:
    """List the named data sets and whether they are here; reads no data and no network."""
    rows = []
    for name, description in _DESCRIPTIONS.items():
        stored = _STORED.get(name)
        where, found = "built in", True
        if stored is not None:
            paths = _locate(name, root)
            found = None not in paths.values()
            first = next(iter(paths.values()))
            where = str(files.search_folders(name, root)[0])
            if found and first is not None:
                where = str(first.parent if len(paths) > 1 else first)
        rows.append(
            Availability(
                name=name,
                description=description,
                found=found,
                where=where,
                files=tuple(file.name for file in stored.files) if stored else (),
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
    if name not in _DESCRIPTIONS:
        raise _unknown(name)
    if name not in _STORED:
        return ()
    folders, paths = files.search_folders(name, root), []
    for file in _STORED[name].files:
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
    if _form(name) != "stored":
        try:
            return (FileCheck(name=name, path=None, ok=True, detail=load(name).describe()),)
        except DataError as error:
            return (FileCheck(name=name, path=None, ok=False, detail=str(error)),)
    stored, found = _STORED[name], _locate(name, root)
    return tuple(_check(file, found[file.name], stored.check) for file in stored.files)


def _form(name: str) -> str:
    """Which of the ways of naming data this is."""
    for form, names in (("stored", _STORED), ("synthetic", _SYNTHETIC), ("digits", {"digits"})):
        if name in names:
            return form
    if name.startswith("folder:"):
        return "folder"
    for ending in ("npz", "csv"):
        if name.lower().endswith(f".{ending}"):
            return ending
    if ":" in name and not Path(name).exists():
        return "factory"
    raise _unknown(name)


def _unknown(name: str) -> DataError:
    close = difflib.get_close_matches(name, _DESCRIPTIONS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    if name and Path(name).exists():
        hint = f"; did you mean folder:{name}?"
    return DataError(
        f"there is no data set {name!r}{hint or ';'} Known: {', '.join([*_DESCRIPTIONS, *FORMS])}"
    )


def _locate(name: str, root: Path | str | None) -> dict[str, Path | None]:
    stored, folders = _STORED[name], files.search_folders(name, root)
    return {file.name: stored.find(file, folders) for file in stored.files}


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
        f"{name} is not here: put {', '.join(missing)} ({_STORED[name].or_else}) into "
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
