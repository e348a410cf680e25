"""Arrays that are slow to make, kept in the user cache as .npz under a hash of what made them."""

import logging
from collections.abc import Callable

import numpy as np

from kobai.data import files
from kobai.data.splits import DataError

__all__ = ["cached_arrays"]

_LOG = logging.getLogger("kobai.data")


def cached_arrays(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read arrays from the user cache, or make them and leave them there.

    What is read is verified by the checksums inside the .npz file; a damaged one is made anew. A
    cache that cannot be written is no error. Both are said in the log `kobai.data` (a warning).

    Args:
        key: Hash of everything the arrays depend on, used as the file's name.
        make: Makes the arrays.
    """
    path = files.user_cache() / "decoded" / f"{key}.npz"
    if path.is_file():
        try:
            return files.read_arrays(path)
        except DataError as error:
            _LOG.warning("%s; decoding again", error)
    arrays = make()
    try:
        with files.atomic(path) as partial:
            np.savez(partial, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        _LOG.warning("decoded pictures are not kept: %s cannot be written (%s)", path, error)
    return arrays
