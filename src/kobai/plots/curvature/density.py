"""Spectral densities on a logarithmic axis: negative eigenvalues left, positive ones right."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import spell, tick
from kobai.plots.style import ACCENT, INK, MUTED, RULE, dress, plain
from kobai.results import SpectralDensity

_POSITIVE, _NEGATIVE = "#2b6cb8", "#d9601a"


def spectral_density(densities: Sequence[SpectralDensity]) -> Figure:
    """One row a density: per decade of |λ|, logarithmic both ways, with two standard errors.

    Ticks below the curve are eigenvalues known one by one. Those beyond the widest gap are
    outliers, in another colour, counted against the number of the network's outputs.

    Args:
        densities: What to draw, such as the whole matrix and then its layers.

    Returns:
        The figure; all rows share their axes.

    Raises:
        ValueError: No density has a finite value.
    """
    rows = [d for d in densities if np.isfinite(d.positive).any()]
    if not rows:
        raise ValueError("there is no density with a finite value; nothing to draw")
    figure = Figure(figsize=(8.6, 1.0 + 2.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, sharey="row", squeeze=False, width_ratios=(1, 1.5))
    low = min(float(d.grid[0]) for d in rows)
    high = max(float(d.grid[-1]) for d in rows)
    for (left, right), density in zip(grid, rows, strict=True):
        _side(left, density, "negative", _NEGATIVE, (low, high))
        _side(right, density, "positive", _POSITIVE, (low, high))
        left.invert_xaxis()
        left.set_ylabel("share per decade", color=INK, size=9)
        left.set_title(_share(density), loc="left", size=8.5, color=INK)
        right.set_title(_title(density), loc="left", size=10, color=INK, weight="bold")
        _marks(right, density)
    grid[-1, 0].set_xlabel("eigenvalue below 0", color=INK, size=9.5)
    grid[-1, 1].set_xlabel("eigenvalue above 0", color=INK, size=9.5)
    return figure


def _title(density: SpectralDensity) -> str:
    names = [density.label, density.matrix, density.block]
    head = " · ".join(plain(name, limit=28) for name in names if name)
    return f"{head}  ({density.dimension:,})"


def _share(density: SpectralDensity) -> str:
    low, high = density.negative_low, density.negative_high
    return (
        f"negative: {100 * density.negative_fraction:.2g} % "
        f"[{100 * low:.2g}, {100 * high:.2g}] of the eigenvalues"
    )


def _side(
    axes: Axes, density: SpectralDensity, side: str, color: str, limits: tuple[float, float]
) -> None:
    value = getattr(density, side)
    error = np.where(
        np.isfinite(getattr(density, f"{side}_error")), getattr(density, f"{side}_error"), 0.0
    )
    least = 0.1 / density.dimension
    shown = np.where(value > least, value, np.nan)
    axes.set_yscale("log")
    axes.fill_between(
        density.grid, np.maximum(value - 2 * error, least), np.maximum(value + 2 * error, least),
        color=color, alpha=0.22, linewidth=0,
    )  # fmt: skip
    axes.plot(density.grid, shown, color=color, linewidth=1.5)
    # A single eigenvalue spreads 1 / P over the width of the smoothing.
    one = 1 / density.dimension / (density.width * np.sqrt(2 * np.pi))
    axes.axhline(one, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
    if side == "positive":
        axes.annotate("one eigenvalue", (limits[0], one), xytext=(3, 2),
                      textcoords="offset points", size=7.5, color=MUTED)  # fmt: skip
    dress(axes, grid=False)
    axes.grid(True, color=RULE, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    axes.set_ylim(least, 5)
    axes.set_xlim(*limits)
    decades = range(int(np.ceil(limits[0])), int(np.floor(limits[1])) + 1)
    sign = -1 if side == "negative" else 1
    step = 2 if len(decades) > 5 else 1
    axes.xaxis.set_major_locator(FixedLocator([d for d in decades if d % step == 0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: tick(sign * 10.0**place)))


def _marks(axes: Axes, density: SpectralDensity) -> None:
    known = density.eigenvalues[density.eigenvalues > density.floor]
    if not len(known):
        return
    count, ratio = density.outliers
    apart = np.zeros(len(known), dtype=bool)
    apart[len(known) - count :] = count > 0
    bottom = 0.1 / density.dimension
    for chosen, color in ((~apart, INK), (apart, ACCENT)):
        places = np.log10(known[chosen])
        axes.plot(places, np.full(len(places), 2.2 * bottom), "|", color=color, ms=11, mew=1.3)
    if not count:
        axes.annotate(
            f"no outlier among {len(known)} known\n(widest gap × {spell(ratio, 2)})",
            (0.985, 0.95), xycoords="axes fraction", ha="right", va="top", size=8.5, color=MUTED,
        )  # fmt: skip
    else:
        against = f", {density.classes} classes" if density.classes else ""
        plural = "outlier" if count == 1 else "outliers"
        axes.annotate(
            f"{count} {plural} of {len(known)} known{against}\n(gap × {spell(ratio, 2)} below)",
            (0.985, 0.95), xycoords="axes fraction", ha="right", va="top", size=8.5, color=ACCENT,
        )  # fmt: skip
