"""The run-time type checker of the test run: beartype, with integers accepted where floats are."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """Return the function checked by beartype, which is applied when it is first called.

    Compiling the checks of every function of kobai takes most of the time that its imports take,
    and a test run calls only some of them.
    """
    checked: Callable | None = None

    def checking(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = _beartype(function)
        return checked(*args, **kwargs)

    return checking
