"""Panels of curves: one style a label throughout, direct keys, theory as a dashed dark line."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from kobai.plots.scales import spell
from kobai.plots.style import (
    ACCENT,
    HUES,
    INK,
    MARKERS,
    MUTED,
    RULE,
    Style,
    dress,
    plain,
)
from kobai.results import Panel, Panels, Series


def panels(result: Panels) -> Figure:
    """Draw panels of curves.

    Args:
        result: The panels.

    Returns:
        The figure, with one key for all panels.
    """
    columns = min(result.columns, len(result.panels))
    rows = -(-len(result.panels) // columns)
    labels = list(
        dict.fromkeys(
            s.label for p in result.panels for s in p.series if s.label and s.kind != "theory"
        )
    )
    styles = _styles(labels)
    shown = bool(labels) or any(s.kind == "theory" for p in result.panels for s in p.series)
    figure = Figure(
        figsize=(3.7 * columns + 0.7, 3.0 * rows + 0.35 + 0.35 * shown), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(result.panels):
            _draw(axes, result.panels[place], styles)
        else:
            axes.set_visible(False)
    figure.suptitle(plain(result.title), size=11.5, color=INK, x=0.01, ha="left", weight="bold")
    handles = [
        Line2D([], [], color=styles[name].color, linestyle=styles[name].dash,
               marker=styles[name].marker, ms=4, label=plain(name, limit=44))
        for name in labels
    ]  # fmt: skip
    theory = dict.fromkeys(
        s.label for p in result.panels for s in p.series if s.kind == "theory" and s.label
    )
    handles += [
        Line2D([], [], color=INK, linestyle=(0, (4, 2)), label=plain(name, limit=44))
        for name in theory
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * columns),
            frameon=False, fontsize=8.5, labelcolor=INK,
        )  # fmt: skip
    return figure


def _styles(labels: list[str]) -> dict[str, Style]:
    """Labels take the hues in order."""
    return {
        label: Style(
            label=label,
            color=HUES[i % len(HUES)],
            pattern="solid" if i < len(HUES) else "dash",
            dash="-" if i < len(HUES) else (0, (5, 1.6)),
            marker=MARKERS[i % len(MARKERS)],
        )
        for i, label in enumerate(labels)
    }


def _draw(axes: Axes, panel: Panel, styles: dict[str, Style]) -> None:
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    for series in panel.series:
        _curve(axes, series, styles)
    for name, height in panel.levels.items():
        axes.axhline(height, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate(plain(name), (0.985, height), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", size=8, color=MUTED)  # fmt: skip
    for name, place in panel.marks.items():
        axes.axvline(place, color=ACCENT, linewidth=1.1)
        axes.annotate(plain(name), (place, 0.97), xycoords=("data", "axes fraction"), ha="left",
                      va="top", size=8, color=ACCENT, xytext=(3, 0),
                      textcoords="offset points")  # fmt: skip
    if panel.x_names:
        axes.set_xticks(range(len(panel.x_names)), [plain(n, limit=18) for n in panel.x_names])
        axes.set_xlim(-0.35, len(panel.x_names) - 0.65)
    else:
        _places(axes, panel)
    if panel.percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
    axes.set_title(plain(panel.title), loc="left", size=9.5, color=INK)
    axes.set_xlabel(plain(panel.x_label))
    axes.set_ylabel(plain(panel.y_label))
    dress(axes)


def _places(axes: Axes, panel: Panel) -> None:
    """Ticks at the places themselves where they are few, and whole numbers where all are whole."""
    found = [s.x[np.isfinite(s.x)] for s in panel.series if s.kind != "theory"]
    places = np.unique(np.concatenate(found)) if found else np.empty(0)
    if panel.log_x and 1 < len(places) <= 8 and np.all(places[1:] / places[:-1] > 1.4):
        axes.xaxis.set_major_locator(FixedLocator(places.tolist()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: spell(float(v), 2)))
        axes.xaxis.set_minor_locator(NullLocator())
    elif not panel.log_x and len(places) and np.all(places == np.round(places)):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, series: Series, styles: dict[str, Style]) -> None:
    if series.kind == "theory":
        axes.plot(series.x, series.y, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), zorder=3)
        return
    style = styles.get(series.label)
    color = RULE if style is None else style.color
    line = "none" if series.kind == "points" else ("-" if style is None else style.dash)
    faint = series.kind == "faint"
    marker = "" if series.kind in ("line", "faint") or style is None else style.marker
    axes.plot(
        series.x, series.y, color=color, linestyle=line, marker=marker, ms=4, mew=0,
        linewidth=0.8 if faint else 1.5, alpha=0.4 if faint else 1.0,
    )  # fmt: skip
    if len(series.error):
        good = np.isfinite(series.error) & np.isfinite(series.y)
        axes.errorbar(
            series.x[good], series.y[good], 2 * series.error[good], fmt="none", ecolor=color,
            elinewidth=1.0, capsize=2, alpha=0.8,
        )  # fmt: skip
