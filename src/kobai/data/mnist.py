"""MNIST from its original IDX files (LeCun, Cortes and Burges 1998)."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from kobai.data.files import RemoteFile, read_verified
from kobai.data.named import NamedData
from kobai.data.splits import DataError, DataSplits

__all__ = ["FILES", "MNIST", "parse_idx", "read_mnist"]

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
# Of the unpacked files: the gzip wrapping differs from mirror to mirror.
_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FILES = tuple(
    RemoteFile(
        name=f"{name}.gz",
        md5=md5,
        mirrors=_MIRRORS,
        compressed=True,
        aliases=(name, name.replace("-idx", ".idx")),
    )
    for name, md5 in _MD5.items()
)


def read_mnist(found: Mapping[str, Path]) -> DataSplits:
    """Read 60,000 training and 10,000 test images of 28 × 28 grey pixels.

    Args:
        found: Path of each of the four files, gzipped or not, by its name in `FILES`.

    Raises:
        DataError: If a file is damaged or not the original.
    """
    contents = ((found[file.name], read_verified(file, found[file.name])) for file in FILES)
    x, y, xt, yt = (parse_idx(content, str(path)) for path, content in contents)
    return DataSplits(
        name="mnist",
        train=(x[:, None], y.to(torch.int64)),
        test=(xt[:, None], yt.to(torch.int64)),
        num_classes=10,
        likelihood="categorical",
        source="MNIST",
    )


def parse_idx(content: bytes, where: str) -> UInt8[Tensor, "N ..."]:
    """Parse an IDX file of unsigned bytes.

    The format: two zero bytes, the element type (8: unsigned byte), the number of axes, the size
    of each as a big-endian 32-bit integer, then the elements, last axis fastest.

    Args:
        content: The file, unpacked.
        where: What to call it in an error.

    Raises:
        DataError: If the header is another one or the length does not fit the sizes.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not content[3]:
        raise DataError(
            f"{where} is no IDX file of unsigned bytes: it starts with {content[:4].hex() or '-'}, "
            "expected 000008 and the number of axes"
        )
    start = 4 + 4 * content[3]
    sizes = [int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + math.prod(sizes)
    if len(content) != expected or expected == start:
        raise DataError(
            f"{where} is {len(content):,} bytes long; its header says {expected:,} for the sizes "
            f"{sizes}: it is cut off, empty or something else"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


MNIST = NamedData(
    description="handwritten digits, 60,000 + 10,000 grey images of 28 × 28, 10 classes",
    make=read_mnist,
    files=FILES,
    or_else="gzipped or unpacked",
)
