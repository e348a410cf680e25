"""Files that are there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(path: Path, data: bytes) -> Iterator[Path]:
    """Write ``data`` beside ``path`` and yield the temporary file, ready for ``os.replace``.

    The temporary file is on disk (fsync) before it is yielded and is removed when the block
    leaves it behind.

    Args:
        path: The file to be replaced; its folder must exist.
        data: The content.

    Yields:
        The temporary file, in the same folder so that the rename stays inside one file system.

    Raises:
        OSError: The folder is missing or cannot be written to.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; give them the rights an ordinary write would have given.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path | str, data: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: The file; its folder is made when missing.
        data: Bytes, or text to be written as UTF-8.

    Returns:
        The path written.

    Raises:
        OSError: The folder cannot be made or written to; an old file is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode() if isinstance(data, str) else data
    with staged(path, content) as temporary:
        temporary.replace(path)
    return path
