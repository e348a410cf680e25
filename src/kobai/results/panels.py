"""Curves side by side: the general form of a figure whose content is lines and points."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields, one_of
from kobai.results.registry import register

KINDS = ("line", "points", "both", "theory", "faint")


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One curve.

    Attributes:
        label: What it is; curves of one label look the same in all panels. Empty: not in the key.
        x: (K,) places.
        y: (K,) values; NaN leaves a gap.
        error: (K,) standard errors, drawn as bars of two of them; empty for none.
        kind: ``line``, ``points``, ``both``, ``theory`` (a dashed dark line) or ``faint``.
    """

    label: str
    x: Float[np.ndarray, "K"]
    y: Float[np.ndarray, "K"]
    error: Float[np.ndarray, "E"] = field(default_factory=lambda: np.empty(0))
    kind: str = "line"

    def __post_init__(self) -> None:
        coerce_fields(self, arrays={"x": "f K", "y": "f K", "error": "f E"})
        if len(self.error) not in (0, len(self.x)):
            raise ValueError(
                f"Series.error has {len(self.error)} entries; expected none or {len(self.x)}"
            )
        one_of(self, "kind", KINDS)


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Curves with common axes.

    Attributes:
        title: What the panel shows.
        x_label: Horizontal quantity, with its unit.
        y_label: Vertical quantity, with its unit.
        series: The curves.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is.
        levels: Name → height of a horizontal line.
        marks: Name → place of a vertical line.
        x_names: Words in place of the numbers 0, 1, … of the horizontal axis; empty for numbers.
        percent: Whether the vertical values are fractions to be read in per cent.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    levels: dict[str, float] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    x_names: tuple[str, ...] = ()
    percent: bool = False

    def __post_init__(self) -> None:
        coerce_fields(self, booleans=("log_x", "log_y", "percent"))
        object.__setattr__(self, "series", tuple(self.series))
        object.__setattr__(self, "x_names", tuple(self.x_names))


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Panels:
    """Several panels that belong together.

    Attributes:
        label: Name of the figure.
        title: Its title.
        panels: The panels, row by row.
        columns: Panels a row.
        note: What it shows and what to read from it.
    """

    label: str
    title: str
    panels: tuple[Panel, ...]
    columns: int = 2
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, integers=("columns",))
        object.__setattr__(self, "panels", tuple(self.panels))
        if not self.panels or self.columns < 1:
            raise ValueError("Panels needs at least one panel and one column")
