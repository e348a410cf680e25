"""Which picture belongs to which result of a reproduction."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from kobai.plots.rate_map import rate_map
from kobai.results import RateMap

PICTURES: dict[type, Callable[[Any], Figure]] = {
    RateMap: rate_map,
}
"""Class of a result → the function that draws it."""


def picture(result: Any) -> Figure | None:
    """The figure of a result that has one.

    Args:
        result: Any result.

    Returns:
        The figure; None where the class has none in `PICTURES`, or nothing can be drawn.
    """
    draw = PICTURES.get(type(result))
    if draw is None:
        return None
    try:
        return draw(result)
    except ValueError:  # nothing finite to draw; the tables say so
        return None
