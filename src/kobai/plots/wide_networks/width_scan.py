"""Quantities against width: points with standard errors on theory's lines."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import contour_levels, tick
from kobai.plots.style import HUES, INK, MUTED, dress, plain
from kobai.results import WidthScan

_MARKERS = ("o", "s", "D", "^", "v", "P")


def width_scan(result: WidthScan) -> Figure:
    """One panel a quantity, one colour a kind of network; lines are theory.

    Args:
        result: The scan.

    Returns:
        The figure.

    Raises:
        ValueError: If nothing finite was measured.
    """
    if not np.isfinite(result.measured).any():
        raise ValueError("nothing finite was measured; nothing to draw")
    count = len(result.quantities)
    figure = Figure(figsize=(2.95 * count + 0.3, 3.6), layout="constrained")
    mean, error = result.mean, np.nan_to_num(result.error)
    for q, axes in enumerate(figure.subplots(1, count, squeeze=False)[0]):
        for g in range(len(result.groups)):
            color, marker = HUES[g % len(HUES)], _MARKERS[g % len(_MARKERS)]
            axes.plot(result.widths, result.predicted[g, q], color=color, linewidth=1.6, zorder=2)
            low = np.minimum(error[g, q], 0.9 * np.abs(mean[g, q]))
            axes.errorbar(
                result.widths, mean[g, q], yerr=np.stack([low, error[g, q]]), fmt=marker,
                color=color, ms=5, mec="white", mew=0.7, elinewidth=1.2, capsize=2.5, zorder=3,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(
            FixedLocator([float(v) for v in contour_levels(low, high, log=True, count=5)])
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        dress(axes)
        axes.set_title(plain(result.quantities[q]), loc="left", size=10, color=INK, weight="bold")
        axes.set_xlabel("width M")
        axes.xaxis.set_major_locator(FixedLocator(result.widths.tolist()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.xaxis.set_minor_locator(NullLocator())
    handles = [
        Line2D(
            [], [], color=HUES[g % len(HUES)], marker=_MARKERS[g % len(_MARKERS)], mec="white",
            ms=6, linewidth=1.6, label=plain(name),
        )
        for g, name in enumerate(result.groups)
    ]  # fmt: skip
    handles.append(Line2D([], [], color=MUTED, linewidth=1.6, label="line: theory"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False,
        fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    figure.suptitle(plain(result.title), x=0.01, ha="left", size=10.5, color=INK)
    return figure
