"""Learning rate against width or depth, the loss after training as colour, theory as a red line."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import contour_levels, tick
from kobai.plots.style import INK, LOSS_MAP, MUTED, RULE, dress, halo, plain
from kobai.results import RateMap

_THEORY = "#e0142c"
_LOST = "#eef0f3"


def rate_map(result: RateMap) -> Figure:
    """Heat maps side by side, one colour scale, diverged cells pale.

    The red line is the largest rate theory allows, dashed red lines its bounds; dots are 2/λ_max
    measured at the initial points.

    Args:
        result: The maps.

    Returns:
        The figure.

    Raises:
        ValueError: If no cell trained.
    """
    # The typical run of a cell: seeds scatter by factors, not by differences.
    with np.errstate(divide="ignore"):
        middle = np.exp(np.median(np.log(result.loss), axis=3))
    shown = np.where(np.isfinite(middle) & (middle > 0), middle, np.nan)
    if not np.isfinite(shown).any():
        raise ValueError("every cell of the map diverged; nothing to draw")
    low = max(float(np.nanmin(shown)), 1e-3)
    scale = LogNorm(vmin=min(low, 0.5), vmax=max(1.0, min(float(np.nanmax(shown)), 3.0)))
    count = len(result.panels)
    figure = Figure(figsize=(2.9 * count + 1.3 if count > 1 else 5.6, 3.9), layout="constrained")
    grid = figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0]
    for i, axes in enumerate(grid):
        axes.pcolormesh(
            _edges(result.sizes), _edges(result.rates), np.ma.masked_invalid(shown[i]).T,
            norm=scale, cmap=LOSS_MAP, rasterized=True, linewidth=0,
        )  # fmt: skip
        axes.set_facecolor(_LOST)
        _lines(axes, result, i)
        axes.set(xscale="log", yscale="log")
        axes.set_xlim(_edges(result.sizes)[[0, -1]])
        axes.set_ylim(_edges(result.rates)[[0, -1]])
        dress(axes, grid=False)
        axes.set_title(plain(result.panels[i]), loc="left", size=10, color=INK, weight="bold")
        axes.set_xlabel(plain(result.size_name))
        axes.xaxis.set_major_locator(FixedLocator(_ticks(result.sizes)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axes.xaxis.set_minor_locator(NullLocator())
    grid[0].set_ylabel("learning rate η")
    grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    grid[0].text(
        0.97, 0.97, "diverged", transform=grid[0].transAxes, ha="right", va="top", size=8,
        color=MUTED,
    )  # fmt: skip
    mesh = ScalarMappable(norm=scale, cmap=LOSS_MAP)
    bar = figure.colorbar(mesh, ax=list(grid), shrink=0.86, pad=0.015, extend="both")
    bar.set_label(plain(result.loss_name), color=INK, size=9)
    bar.ax.tick_params(colors=MUTED, labelsize=8, which="both")
    low, high = float(scale.vmin or 0.0), float(scale.vmax or 1.0)
    bar.set_ticks([float(v) for v in contour_levels(low, high, log=True, count=6)])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_edgecolor(RULE)  # pyright: ignore[reportCallIssue]
    _legend(figure, result)
    figure.suptitle(plain(result.title), x=0.01, ha="left", size=10.5, color=INK)
    return figure


def _lines(axes: Axes, result: RateMap, i: int) -> None:
    if np.isfinite(result.lower[i]).any() and np.isnan(result.theory[i]).all():
        for bound in (result.lower[i], result.upper[i]):
            axes.plot(result.sizes, bound, color=_THEORY, linewidth=1.3, linestyle=(0, (4, 2)))
    axes.plot(
        result.sizes, result.theory[i], color=_THEORY, linewidth=2.2, path_effects=halo(3.6),
    )  # fmt: skip
    axes.plot(result.sizes, result.measured[i], "o", ms=4.2, mfc="white", mec=_THEORY, mew=1.1)


def _legend(figure: Figure, result: RateMap) -> None:
    handles: list[Any] = [
        Line2D([], [], color=_THEORY, linewidth=2.2, label="largest rate by theory")
    ]
    if np.isfinite(result.lower).any():
        handles.append(
            Line2D([], [], color=_THEORY, linewidth=1.3, linestyle=(0, (4, 2)), label="its bounds")
        )
    if np.isfinite(result.measured).any():
        label = "2/λ_max measured at the start"
        handles.append(
            Line2D([], [], color=_THEORY, marker="o", ls="", ms=5, mfc="white", label=label)
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5,
        labelcolor=INK,
    )  # fmt: skip


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells around values on a logarithmic axis."""
    logs = np.log(values)
    if len(logs) == 1:
        return np.exp(np.array([logs[0] - 0.3, logs[0] + 0.3]))
    inner = (logs[1:] + logs[:-1]) / 2
    return np.exp(np.concatenate([[2 * logs[0] - inner[0]], inner, [2 * logs[-1] - inner[-1]]]))


def _ticks(sizes: np.ndarray) -> list[float]:
    """At most six of the sizes, evenly from the first to the last."""
    chosen = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), 5)).round().astype(int))
    return [float(sizes[i]) for i in chosen]
