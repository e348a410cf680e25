"""The look of an optimizer in figures, stored with what it made."""

import re
from dataclasses import dataclass

from kobai.results.fields import one_of
from kobai.results.registry import register

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@register
@dataclass(frozen=True, kw_only=True)
class Look:
    """Label, colour and dash of an optimizer in figures.

    Attributes:
        label: Its name in keys; empty for the name of the optimizer.
        color: Colour as ``#rrggbb``; empty for one chosen by the name of the optimizer.
        dash: One of `DASHES`.
    """

    label: str = ""
    color: str = ""
    dash: str = "solid"

    def __post_init__(self) -> None:
        one_of(self, "dash", DASHES)
        if self.color and not re.fullmatch("#[0-9a-fA-F]{6}", self.color):
            raise ValueError(f"Look.color is {self.color!r}; expected #rrggbb, such as #2b6cb8")
