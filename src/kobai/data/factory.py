"""Data sets from a function of the user's own."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import Generator

from kobai.data.arrays import from_arrays
from kobai.data.splits import DataError, DataSplits

__all__ = ["call_factory", "import_factory"]


def import_factory(reference: str) -> Callable[..., Any]:
    """Import `package.module` and return its `factory`.

    Args:
        reference: "package.module:factory"; the module must be importable.

    Raises:
        DataError: If there is no such module or function. What the module raises itself passes
            through.
    """
    module_name, _, function_name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise DataError(
            f"there is no module {module_name} ({error}); install it, or start Python where it is"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(f"{module_name} has no function {function_name!r}")
    return function


def call_factory(
    name: str,
    function: Callable[..., Any],
    *,
    generator: Generator,
    likelihood: str | None = None,
    test_fraction: float | None = None,
) -> DataSplits:
    """Make a data set by a function of the user's own.

    The function is called without arguments, or with `generator` if it has a parameter of that
    name. It returns a `DataSplits`, a pair (x, y) to draw a test set from, or a pair of pairs
    ((x, y), (xt, yt)); x and y are tensors or arrays.

    Args:
        name: The name of the data set.
        function: The function.
        generator: Handed to the function, and draws the test set of a pair.
        likelihood: As in `from_arrays`.
        test_fraction: As in `from_arrays`.

    Raises:
        DataError: If the function returns something else. What it raises itself passes through.
    """
    wants = "generator" in inspect.signature(function).parameters
    made: Any = function(generator=generator) if wants else function()
    if isinstance(made, DataSplits):
        if likelihood is not None or test_fraction is not None:
            raise DataError(
                f"{name} returns finished DataSplits; leave likelihood and test_fraction out"
            )
        return made
    if not _is_pair(made):
        raise DataError(
            f"{name} returned {type(made).__name__}; expected DataSplits, (x, y) or "
            "((x, y), (x_test, y_test))"
        )
    halves = [tuple(half) for half in made] if all(map(_is_pair, made)) else [tuple(made)]
    return from_arrays(
        name,
        *halves,
        generator=generator,
        likelihood=likelihood,
        test_fraction=test_fraction,
    )


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2
