"""Which classes are results: the names a saved file may carry."""

from typing import TypeVar

_T = TypeVar("_T")

_CLASSES: dict[str, type] = {}


def register(cls: type[_T]) -> type[_T]:
    """Class decorator: let ``save`` and ``load`` know this dataclass by its name.

    Args:
        cls: A frozen dataclass whose fields are results, arrays, tuples, dicts with text keys,
            text, numbers, booleans or None.

    Returns:
        The same class.

    Raises:
        ValueError: Another class has this name.
    """
    if _CLASSES.get(cls.__name__, cls).__module__ != cls.__module__:
        raise ValueError(f"two result classes are named {cls.__name__}; rename one of them")
    _CLASSES[cls.__name__] = cls
    return cls


def registered(name: str) -> type | None:
    """The result class of this name, or None."""
    return _CLASSES.get(name)


def is_registered(cls: type) -> bool:
    """Whether instances of the class can be saved."""
    return _CLASSES.get(cls.__name__) is cls
