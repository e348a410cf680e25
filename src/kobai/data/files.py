"""Files of the named data sets: where they are looked for, how they are fetched and checked."""

import gzip
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from kobai.data.splits import DataError

__all__ = [
    "RemoteFile",
    "atomic",
    "download",
    "read_arrays",
    "read_verified",
    "search_folders",
    "user_cache",
    "verify_file",
]


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One original file of a data set.

    Attributes:
        name: Its name at the mirrors and on disk.
        md5: MD5 of the file, or of what is in it where `compressed`.
        mirrors: Addresses of the folders that serve it, tried in this order.
        compressed: The file is gzipped and the MD5 is that of the content, so that the unpacked
            file and other compressions of it are good as well.
        aliases: Other names it goes by on disk.
    """

    name: str
    md5: str
    mirrors: tuple[str, ...]
    compressed: bool = False
    aliases: tuple[str, ...] = ()

    def find(self, folders: tuple[Path, ...]) -> Path | None:
        """The first file of this name, or of an alias, in the folders; None if there is none."""
        paths = (folder / name for folder in folders for name in (self.name, *self.aliases))
        return next((path for path in paths if path.is_file()), None)


def user_cache() -> Path:
    """The user's cache folder of kobai, by the customs of the operating system."""
    return Path(pooch.os_cache("kobai")).expanduser()


def search_folders(dataset: str, root: Path | str | None) -> tuple[Path, ...]:
    """Folders in which the files of a data set are looked for, in order.

    With `root` only there; otherwise in the folder that the environment variable KOBAI_DATA names
    and then in the user cache; in each, first in the subfolder of the data set's name. Files are
    fetched into the first of these.
    """
    places = [_base(root)] if root is not None else [_base(None), user_cache()]
    return tuple(dict.fromkeys(path for place in places for path in (place / dataset, place)))


def _base(root: Path | str | None) -> Path:
    root = root if root is not None else os.environ.get("KOBAI_DATA")
    return Path(root).expanduser() if root else user_cache()


def download(
    file: RemoteFile, folder: Path, *, base_url: str | None = None, progress: bool = True
) -> Path:
    """Fetch one file over HTTP, check it, and only then give it its name.

    Args:
        file: What to fetch.
        folder: Folder to put it in; made if absent.
        base_url: Address of a folder to fetch from instead of the file's mirrors.
        progress: Draw a progress bar on standard error.

    Returns:
        The path of the file.

    Raises:
        DataError: If no mirror gave a file of the right content, or the folder cannot be written.
            No part of a file is left behind.
    """
    failures = []
    for mirror in (base_url,) if base_url is not None else file.mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}"
        try:
            with atomic(folder / file.name) as partial, _bar(file.name, shown=progress) as bar:
                fetch = pooch.HTTPDownloader(
                    progressbar=bar,  # pyright: ignore[reportArgumentType]
                    chunk_size=1 << 16,
                    timeout=(10, 60),
                )
                fetch(url, str(partial), None)
                verify_file(file, partial, shown_as=url)
            return folder / file.name
        except DataError as error:
            failures.append(str(error))
        except OSError as error:
            if error.errno is not None:  # the disk; errors of the network carry no number
                raise DataError(f"{folder} cannot be written: {error.strerror}") from error
            response = getattr(error, "response", None)
            why = type(error).__name__ if response is None else f"HTTP {response.status_code}"
            failures.append(f"{url}: {why}")
    raise DataError(f"{file.name} could not be fetched ({'; '.join(failures)})")


def verify_file(file: RemoteFile, path: Path, *, shown_as: str | None = None) -> None:
    """Check the MD5 of a file on disk.

    Raises:
        DataError: If it is not the expected one or the file cannot be read to its end.
    """
    if file.compressed:
        read_verified(file, path, shown_as=shown_as)
        return
    where = shown_as or str(path)
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, _md5).hexdigest()
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror})") from error
    _compare(file, digest, where)


def read_verified(file: RemoteFile, path: Path, *, shown_as: str | None = None) -> bytes:
    """Read the content of a compressed file, unpacked or not, and check its MD5.

    Raises:
        DataError: If it is empty, cut off, or not the expected content.
    """
    where = shown_as or str(path)
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # gzip, whatever the name says
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where} cannot be read ({error}); remove it and fetch again") from error
    _compare(file, _md5(content).hexdigest(), where)
    return content


def _compare(file: RemoteFile, digest: str, where: str) -> None:
    if digest != file.md5:
        raise DataError(
            f"{where} is damaged or not the original {file.name}: its MD5 is {digest}, expected "
            f"{file.md5}; remove it and fetch again"
        )


def _md5(content: bytes = b""):
    return hashlib.md5(content, usedforsecurity=False)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an .npz file, checked by the checksums in it; nothing is unpickled.

    Raises:
        DataError: If it is damaged, no .npz file, or holds Python objects.
    """
    try:
        with path.open("rb") as stream:  # np.load leaks the files it opens itself and then refuses
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one bare array")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no readable .npz file of plain arrays ({error})") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it becomes `path` only on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name
        yield partial
        os.replace(partial, path)


class _Bar:
    """A progress bar as pooch wants it, drawn by rich."""

    def __init__(self, display: Progress, name: str):
        self.total = 0
        self._display = display
        self._task = display.add_task(name, total=None)

    def update(self, size: int) -> None:
        self._display.update(self._task, total=self.total or None, advance=size)

    def reset(self) -> None:
        self._display.update(self._task, completed=0)

    def close(self) -> None:
        """The surrounding display ends it."""


@contextmanager
def _bar(name: str, *, shown: bool) -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not shown) as display:
        yield _Bar(display, name)
