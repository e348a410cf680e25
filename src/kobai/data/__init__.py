"""Named data sets as tensors: digits, MNIST, CIFAR-10, pictures, tables, arrays, synthetic ones.

`load` gives `DataSplits`; `available`, `fetch` and `verify` look after the files.
"""

from kobai.data.prepare import standardize, subset
from kobai.data.registry import (
    DATA_SETS,
    FORMS,
    Availability,
    FileCheck,
    available,
    fetch,
    load,
    register_data,
    verify,
)
from kobai.data.splits import DataError, DataSplits, Standardization
from kobai.data.synthetic import blobs, spirals, teacher

__all__ = [
    "DATA_SETS",
    "FORMS",
    "Availability",
    "DataError",
    "DataSplits",
    "FileCheck",
    "Standardization",
    "available",
    "blobs",
    "fetch",
    "load",
    "register_data",
    "spirals",
    "standardize",
    "subset",
    "teacher",
    "verify",
]
