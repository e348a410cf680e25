"""What every result does with its fields: copy, shape-check and freeze them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_KINDS = {"f": np.float64, "i": np.int64}


def frozen_array(values: Any, dtype: type[np.generic] = np.float64) -> np.ndarray:
    """A read-only copy of ``values``.

    A copy, so that freezing a result never freezes an array that its maker still writes to.

    Args:
        values: Anything NumPy can read, of any shape.
        dtype: Element type of the copy.

    Returns:
        The array, with its write flag off.

    Raises:
        ValueError: The values are not numbers or are ragged.
    """
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def coerce_fields(
    result: Any,
    *,
    arrays: Mapping[str, str] | None = None,
    floats: Iterable[str] = (),
    integers: Iterable[str] = (),
    booleans: Iterable[str] = (),
) -> None:
    """Bring the fields of a frozen dataclass to their declared types; called in ``__post_init__``.

    Args:
        result: The dataclass instance being made.
        arrays: Field name to ``"kind dimensions"``, such as ``"f T"`` or ``"f T 2"``: kind ``f``
            (float64) or ``i`` (int64), then one size a dimension; a letter stands for the same
            size wherever it occurs, a digit for itself.
        floats: Fields brought to ``float``.
        integers: Fields brought to ``int``; a fractional value is refused.
        booleans: Fields brought to ``bool``.

    Raises:
        ValueError: A field has another shape, or is no number; the message names class and field.
    """
    owner = type(result).__name__
    sizes: dict[str, tuple[int, str]] = {}
    for name, declared in (arrays or {}).items():
        kind, *dimensions = declared.split()
        try:
            array = frozen_array(getattr(result, name), _KINDS[kind])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{owner}.{name} must be an array of numbers: {error}") from None
        expected = " × ".join(dimensions)
        if array.ndim != len(dimensions):
            raise ValueError(
                f"{owner}.{name} has shape {array.shape}; expected {len(dimensions)} "
                f"dimension(s): {expected}"
            )
        for size, dimension in zip(array.shape, dimensions, strict=True):
            wanted, where = (
                (int(dimension), "its definition")
                if dimension.isdigit()
                else sizes.setdefault(dimension, (size, name))
            )
            if size != wanted:
                raise ValueError(
                    f"{owner}.{name} has shape {array.shape} (expected {expected}); "
                    f"{dimension} is {wanted} by {where}"
                )
        object.__setattr__(result, name, array)
    for names, convert in ((floats, float), (integers, _integer), (booleans, bool)):
        for name in names:
            try:
                object.__setattr__(result, name, convert(getattr(result, name)))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{owner}.{name}: {error}") from None


def one_of(result: Any, name: str, allowed: tuple[str, ...]) -> None:
    """Refuse a text field outside its list of values.

    Args:
        result: The dataclass instance being made.
        name: The field.
        allowed: The values it may have.

    Raises:
        ValueError: The field has another value.
    """
    got = getattr(result, name)
    if got not in allowed:
        raise ValueError(
            f"{type(result).__name__}.{name} is {got!r}; expected one of {', '.join(allowed)}"
        )


def _integer(value: Any) -> int:
    whole = int(value)
    if whole != value:
        raise ValueError(f"got {value!r}, expected a whole number")
    return whole
