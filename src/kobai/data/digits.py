"""The default data set: 1,797 handwritten digits that come with scikit-learn."""

import numpy as np
from torch import Generator

from kobai.data.arrays import from_arrays
from kobai.data.named import NamedData
from kobai.data.splits import DataSplits

__all__ = ["DIGITS", "digits"]


def digits(*, generator: Generator, test_fraction: float | None = None) -> DataSplits:
    """Load the 8 × 8 grey digits embedded in scikit-learn, scaled from 0 … 16 to [0, 1].

    They are the test set of the Optical Recognition of Handwritten Digits data (Alpaydin and
    Kaynak 1998, UCI Machine Learning Repository). No file and no network is needed.

    Args:
        generator: Draws the test set, stratified by class.
        test_fraction: Share to test on, by default 0.2 (359 of 1,797).
    """
    from sklearn.datasets import load_digits  # a second of import that nothing else here needs

    pixels, labels = load_digits(return_X_y=True)
    return from_arrays(
        "digits",
        (np.asarray(pixels, np.float32).reshape(-1, 1, 8, 8) / 16, labels),
        generator=generator,
        test_fraction=test_fraction,
        source="digits (scikit-learn)",
    )


DIGITS = NamedData(
    description="handwritten digits in scikit-learn, 1,797 grey images of 8 × 8, 10 classes",
    make=digits,
    takes=frozenset({"test_fraction"}),
)
