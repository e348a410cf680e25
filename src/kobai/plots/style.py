"""One look for every figure: styles of optimizers, colour maps, type and frames.

The six hues keep apart (OKLab distance above 0.09) in normal vision and under simulated
deuteranopia, protanopia and tritanopia; from the seventh optimizer on, hues return with another
dash and marker. The colour maps are straight in OKLab lightness, so that equal steps of the value
look equal (B. Ottosson, "A perceptual color space for image processing", 2020).
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from kobai.results import DASHES, Look

INK = "#22262e"
MUTED = "#6b7280"
RULE = "#d8dbe1"
PAPER = "#ffffff"
ACCENT = "#be1e56"

HUES = ("#2b6cb8", "#eaa21a", "#be1e56", "#1fb39a", "#b09cf0", "#d9601a")
MARKERS = ("o", "s", "D", "^", "v", "P")
_PATTERNS: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 1.6)),
    "dot": (0, (1.2, 1.4)),
    "dashdot": (0, (5, 1.4, 1.2, 1.4)),
    "longdash": (0, (10, 2.4)),
}

# What is given to optimizers whose results bring no colour, by their names.
_SEATS = tuple((color, dash) for dash in DASHES for color in HUES)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one optimizer is drawn.

    Attributes:
        label: Its name in keys.
        color: Hex colour.
        pattern: Dash in words, one of `kobai.results.DASHES`.
        dash: The same as a Matplotlib line style.
        marker: Matplotlib marker.
    """

    label: str
    color: str
    pattern: str
    dash: Any
    marker: str


def optimizer_styles(
    names: Iterable[str], looks: Mapping[str, Look | None] | None = None
) -> dict[str, Style]:
    """A style for each optimizer, the same in every figure drawn with the same set of names.

    An optimizer whose results bring its look has that. Others take a colour and dash by a hash of
    their name and move on when it is taken, so that no two of a set look the same (up to 30
    optimizers).

    Args:
        names: Names of optimizers; repetitions are fine.
        looks: Name to look, as results store it; names may be missing.

    Returns:
        Name to style, sorted by name.
    """
    found = {name: (looks or {}).get(name) or Look() for name in sorted(set(names))}
    taken = {(look.color, look.dash) for look in found.values()}
    styles = {}
    for name, look in found.items():
        color, pattern = look.color, look.dash
        if not color:
            first = zlib.crc32(name.encode()) % len(HUES)
            seats = (*_SEATS[first:], *_SEATS[:first])
            color, pattern = next((seat for seat in seats if seat not in taken), _SEATS[0])
            taken.add((color, pattern))
        styles[name] = Style(
            label=look.label or name,
            color=color,
            pattern=pattern,
            dash=_PATTERNS[pattern],
            marker=_marker(name, color, pattern),
        )
    return styles


def looks_of(results: Iterable[Any]) -> dict[str, Look]:
    """The looks that results bring along, by optimizer.

    Args:
        results: Results with an ``optimizer`` and a ``look``; of several looks the first counts.
    """
    looks: dict[str, Look] = {}
    for result in results:
        if result.look is not None:
            looks.setdefault(result.optimizer, result.look)
    return looks


def label_of(result: Any) -> str:
    """Give the name of a result's optimizer in figures: its look's label, else its name."""
    return (result.look.label if result.look else "") or result.optimizer


def _marker(name: str, color: str, pattern: str) -> str:
    """The marker that goes with a colour and a dash; for other colours one by the name."""
    hue = HUES.index(color) if color in HUES else zlib.crc32(name.encode())
    return MARKERS[(hue + DASHES.index(pattern)) % len(MARKERS)]


def optimizer_of(label: str, optimizer: str = "") -> str:
    """The optimizer a label belongs to: the one given, else what stands before the seed.

    Args:
        label: Label of a run, such as ``kfac-s0``, ``kfac-0`` or ``sgd seed 2``.
        optimizer: The optimizer, when the record says it.

    Returns:
        The optimizer's name; the label itself when it has no seed.
    """
    if optimizer:
        return optimizer
    head = label.split()[0] if label.split() else label
    stem, dash, tail = head.rpartition("-")
    return stem if dash and tail.removeprefix("s").isdigit() else head


def _oklab_to_srgb(lab: Float[np.ndarray, "K 3"]) -> Float[np.ndarray, "K 3"]:
    """OKLab to sRGB in [0, 1], clipped to the gamut (Ottosson 2020)."""
    to_lms = np.array(
        [
            [1.0, 0.3963377774, 0.2158037573],
            [1.0, -0.1055613458, -0.0638541728],
            [1.0, -0.0894841775, -1.2914855480],
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_rgb.T, 0.0, 1.0)
    low = 12.92 * linear
    high = 1.055 * np.maximum(linear, 1e-12) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, low, high)


def _lightness_ramp(
    name: str, lightness: tuple[float, float], stops: tuple[tuple[float, float], ...]
) -> LinearSegmentedColormap:
    """A map straight in lightness, through (chroma, hue in degrees) stops at equal distances."""
    t = np.linspace(0, 1, 256)
    knots = np.linspace(0, 1, len(stops))
    chroma = np.interp(t, knots, [stop[0] for stop in stops])
    hue = np.deg2rad(np.interp(t, knots, [stop[1] for stop in stops]))
    light = lightness[0] + (lightness[1] - lightness[0]) * t
    lab = np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return LinearSegmentedColormap.from_list(name, _oklab_to_srgb(lab).tolist(), N=256)


# Low values dark and deep, high values light: a basin looks like one.
LOSS_MAP = _lightness_ramp(
    "kobai",
    (0.27, 0.97),
    ((0.07, 285.0), (0.11, 320.0), (0.125, 360.0), (0.11, 400.0), (0.035, 440.0)),
)
OTHER_MAP = _lightness_ramp(
    "kobai_cool", (0.27, 0.97), ((0.06, 270.0), (0.09, 225.0), (0.04, 150.0))
)


def color_map(field: str) -> LinearSegmentedColormap:
    """The colour map of a field: losses warm, everything else cool.

    Args:
        field: Name of the field.

    Returns:
        The map; it paints the least value dark.
    """
    return LOSS_MAP if "loss" in field else OTHER_MAP


def plain(text: str, *, limit: int = 120) -> str:
    """Text that Matplotlib draws as it stands: a dollar sign begins no formula.

    Args:
        text: Any text, also one a user typed.
        limit: Longest text that is drawn whole; of a longer one the end is left out, because a
            label must not crowd out its figure.

    Returns:
        The escaped text, on one line.
    """
    line = " ".join(text.split())
    if len(line) > limit:
        line = line[: limit - 1].rstrip() + "…"
    return line.replace("$", r"\$")


def halo(width: float = 2.5) -> list[patheffects.AbstractPathEffect]:
    """A white edge that keeps lines and letters readable on any ground.

    Args:
        width: Its width in points.

    Returns:
        The path effects.
    """
    return [patheffects.withStroke(linewidth=width, foreground="white")]


def dress(axes: Axes, *, grid: bool = True) -> None:
    """Give axes the common look: two thin spines, a faint grid, small muted ticks.

    Args:
        axes: The axes.
        grid: Whether to draw the grid.
    """
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
        axes.spines[side].set_linewidth(0.9)
    axes.tick_params(colors=MUTED, labelsize=8.5, length=3, width=0.8, which="both")
    axes.tick_params(which="minor", length=0)
    if grid:
        axes.grid(True, color=RULE, linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)
    axes.xaxis.label.set(color=INK, size=9.5)
    axes.yaxis.label.set(color=INK, size=9.5)
