"""A named data set: what it is, how it is made, and the files it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kobai.data.files import RemoteFile, verify_file
from kobai.data.splits import DataSplits

__all__ = ["NamedData"]


@dataclass(frozen=True, kw_only=True)
class NamedData:
    """A row of the table of data sets; it stands in the data set's own file.

    Attributes:
        description: What the data set is, in one line.
        make: Makes it: from the paths of its files by their names if it has files, else called with
            ``generator=`` and the arguments that it takes.
        takes: Arguments of `kobai.data.load` that `make` takes besides: "test_fraction" where the
            data have no test set of their own, "likelihood" where their targets are not known.
        files: The original files, by whose names they are found, fetched and checked.
        or_else: The other forms in which the files may lie in a folder, for messages.
        find: Finds one of the files in some folders.
        check: Raises `DataError` where a file is not what it should be.
    """

    description: str
    make: Callable[..., DataSplits]
    takes: frozenset[str] = frozenset()
    files: tuple[RemoteFile, ...] = ()
    or_else: str = ""
    find: Callable[[RemoteFile, tuple[Path, ...]], Path | None] = RemoteFile.find
    check: Callable[[RemoteFile, Path], object] = verify_file
