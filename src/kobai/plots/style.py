"""One look for every figure: colours by optimizer, colour maps, type and frames.

The six hues keep apart (OKLab distance above 0.09) in normal vision and under simulated
deuteranopia, protanopia and tritanopia; from the seventh optimizer on, hues return with another
dash and marker. The colour maps are straight in OKLab lightness, so that equal steps of the value
look equal (B. Ottosson, "A perceptual color space for image processing", 2020).
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

INK = "#22262e"
MUTED = "#6b7280"
RULE = "#d8dbe1"
PAPER = "#ffffff"
ACCENT = "#be1e56"

HUES = ("#2b6cb8", "#eaa21a", "#be1e56", "#1fb39a", "#b09cf0", "#d9601a")
_MARKERS = ("o", "s", "D", "^", "v", "P")
_DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 1.6)),
    "dot": (0, (1.2, 1.4)),
    "dashdot": (0, (5, 1.4, 1.2, 1.4)),
}

# Where the usual names sit, so that an optimizer has one colour in every figure of every run.
_SEATS = {
    "sgd": 0,
    "adam": 1,
    "kfac": 2,
    "momentum": 3,
    "rmsprop": 4,
    "adagrad": 5,
    "nesterov": 9,
    "adamw": 7,
    "ekfac": 8,
    "adadelta": 10,
    "muon": 11,
    "natural_gradient": 14,
    "gauss_newton": 12,
    "hessian_free": 15,
    "newton": 17,
    "saddle_free_newton": 16,
    "bfgs": 13,
    "lbfgs": 19,
    "nonlinear_cg": 21,
    "coordinate_descent": 22,
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one optimizer is drawn.

    Attributes:
        color: Hex colour.
        pattern: Dash in words: ``solid``, ``dash``, ``dot`` or ``dashdot``.
        dash: The same as a Matplotlib line style.
        marker: Matplotlib marker.
    """

    color: str
    pattern: str
    dash: Any
    marker: str


def optimizer_styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each optimizer, the same in every figure drawn with the same set of names.

    Known names have fixed seats; others take one by a hash of their name and move on when it is
    taken, so that no two of a set look the same (up to 24 optimizers).

    Args:
        names: Names of optimizers; repetitions are fine.

    Returns:
        Name to style, sorted by name.
    """
    unique = sorted(set(names))
    taken: dict[int, str] = {_SEATS[name]: name for name in unique if name in _SEATS}
    seats = len(HUES) * len(_DASHES)
    for name in unique:
        if name in _SEATS:
            continue
        seat = zlib.crc32(name.encode()) % len(HUES)
        while seat in taken and len(taken) < seats:
            seat = (seat + 1) % seats
        taken[seat] = name
    by_name = {name: seat for seat, name in taken.items()}
    return {name: _style(by_name.get(name, 0)) for name in unique}


def _style(seat: int) -> Style:
    turn, hue = divmod(seat, len(HUES))
    pattern = list(_DASHES)[turn % len(_DASHES)]
    return Style(
        color=HUES[hue],
        pattern=pattern,
        dash=_DASHES[pattern],
        marker=_MARKERS[(hue + turn) % len(_MARKERS)],
    )


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
