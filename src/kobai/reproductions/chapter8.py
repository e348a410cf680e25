"""The former name of `kobai.reproductions.deep_learning_book`."""

import sys
import warnings

from kobai.reproductions import deep_learning_book

warnings.warn(
    "kobai.reproductions.chapter8 is now kobai.reproductions.deep_learning_book",
    DeprecationWarning,
    stacklevel=2,
)
sys.modules[__name__] = deep_learning_book
