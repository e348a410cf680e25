"""Results as plain JSON values plus named arrays, and back.

Dataclasses become ``{"$class": name, field: …}``, arrays ``{"$array": key}``, numbers that JSON
has no word for ``{"$float": "nan" | "inf" | "-inf"}``, complex dictionaries ``{"$dict": …}``.
"""

import dataclasses
import math
from typing import Any
from urllib.parse import quote

import numpy as np

from kobai.results.registry import is_registered, registered

_ARRAY_KINDS = "biufcU"  # booleans, integers, reals, complex numbers, text; never pickled objects


class ResultError(ValueError):
    """A saved result is missing, damaged, or of a kind or version this kobai does not know."""


def encode(result: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Turn a result into JSON values and the arrays they refer to.

    Args:
        result: A registered dataclass, or anything one may hold.

    Returns:
        The JSON value, and the arrays by key; a key is the path of field names and positions
        joined by ``/``, each percent-quoted so that no two paths share a key.

    Raises:
        TypeError: Something in it cannot be saved; the message gives its path.
    """
    arrays: dict[str, np.ndarray] = {}
    return _encode(result, (), arrays), arrays


def decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Undo ``encode``; lists come back as tuples, arrays read-only.

    Args:
        value: The JSON value.
        arrays: The arrays by key.

    Returns:
        The result.

    Raises:
        ResultError: An unknown class, a missing array, or fields the class does not accept.
    """
    if isinstance(value, list):
        return tuple(decode(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    if "$array" in value:
        if value["$array"] not in arrays:
            raise ResultError(f"the array {value['$array']!r} is missing")
        array = arrays[value["$array"]]
        array.setflags(write=False)
        return array
    if "$float" in value:
        return float(value["$float"])
    if "$dict" in value:
        return {key: decode(item, arrays) for key, item in value["$dict"]}
    fields = {key: decode(item, arrays) for key, item in value.items() if key != "$class"}
    if "$class" not in value:
        return fields
    cls = registered(value["$class"])
    if cls is None:
        raise ResultError(f"unknown class {value['$class']!r}; a newer kobai may have written it")
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        raise ResultError(f"not a valid {value['$class']}: {error}") from None


def identical(first: Any, second: Any) -> bool:
    """Whether two results are the same to the last bit (NaN equals NaN).

    Args:
        first: A result.
        second: Another.

    Returns:
        True when classes, fields, array types, shapes and bits agree.
    """
    (one, mine), (two, theirs) = encode(first), encode(second)
    return (
        one == two
        and mine.keys() == theirs.keys()
        and all(_fingerprint(mine[key]) == _fingerprint(theirs[key]) for key in mine)
    )


def _fingerprint(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


def _encode(value: Any, path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in _ARRAY_KINDS:
            raise TypeError(f"{_spell(path)} is an array of {value.dtype}, which cannot be saved")
        key = "/".join(quote(part, safe="") for part in path) or "value"
        arrays[key] = value
        return {"$array": key}
    if isinstance(value, tuple | list):
        return [_encode(item, (*path, str(i)), arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return _encode_dict(value, path, arrays)
    if dataclasses.is_dataclass(value) and is_registered(type(value)):
        fields = {
            field.name: _encode(getattr(value, field.name), (*path, field.name), arrays)
            for field in dataclasses.fields(value)
        }
        return {"$class": type(value).__name__, **fields}
    raise TypeError(
        f"{_spell(path)} is a {type(value).__name__}, which cannot be saved; expected a result, "
        "array, tuple, dict, text, number, boolean or None"
    )


def _encode_dict(value: dict, path: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{_spell(path)} has the key {key!r}; keys must be text")
    items = {key: _encode(item, (*path, key), arrays) for key, item in value.items()}
    if any(key.startswith("$") for key in items):
        # Someone's own key could be mistaken for one of ours; pairs cannot.
        return {"$dict": [[key, item] for key, item in items.items()]}
    return items


def _spell(path: tuple[str, ...]) -> str:
    return ".".join(path) or "the value"
