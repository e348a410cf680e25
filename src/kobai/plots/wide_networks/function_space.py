"""Training losses with dashed predictions, test errors beside regressions, and invariance."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from kobai.plots.scales import percent
from kobai.plots.style import HUES, INK, MUTED, OTHER_MAP, dress, plain
from kobai.results import FunctionSpaceRuns, Invariance

_EXTRA = ("#4a4f5a", "#8c6d4f")
_FLOOR = 1e-12


def function_space(result: FunctionSpaceRuns) -> Figure:
    """One panel a step size: losses against steps, predictions dashed; last, test errors.

    Args:
        result: The runs; of the seeds the first is drawn along steps.

    Returns:
        The figure.
    """
    panels = len(result.factors)
    figure = Figure(figsize=(4.0 * panels + 3.6, 4.1), layout="constrained")
    grid = figure.subplots(1, panels + 1, squeeze=False, width_ratios=[4.0] * panels + [3.4])[0]
    colors = [*HUES, *_EXTRA]
    floor = max(float(np.nanmin(result.loss[result.loss > 0])) / 2, _FLOOR)
    first = result.loss[:, :, 0].max()
    for c, axes in enumerate(grid[:-1]):
        steps = np.arange(result.loss.shape[2])
        for i in range(len(result.methods)):
            color = colors[i % len(colors)]
            axes.plot(
                steps, np.maximum(result.loss[c, i, :, 0], _FLOOR), color=color, linewidth=3.0,
                alpha=0.55, marker="o", ms=4.5, mec="white", mew=0.6,
            )  # fmt: skip
            axes.plot(
                steps, np.maximum(result.predicted[c, i, :, 0], _FLOOR), color=color,
                linewidth=1.4, linestyle=(0, (4, 2)), zorder=4,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(max(floor, first * 1e-9), first * 3)
        axes.set_xlabel("step")
        words = "1" if result.factors[c] == 1 else f"{result.factors[c]:g}"
        axes.set_title(f"η = {words}/α", loc="left", size=10, color=INK, weight="bold")
        dress(axes)
    grid[0].set_ylabel("training loss")
    _bars(grid[-1], result, colors)
    handles = [
        Line2D([], [], color=colors[i % len(colors)], linewidth=2.2, label=plain(name))
        for i, name in enumerate(result.methods)
    ]
    label = "predicted in function space"
    handles.append(Line2D([], [], color=MUTED, linewidth=1.3, linestyle=(0, (4, 2)), label=label))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 9), frameon=False,
        fontsize=8.5, labelcolor=INK, columnspacing=1.2,
    )  # fmt: skip
    figure.suptitle(plain(result.title), x=0.01, ha="left", size=10.5, color=INK)
    return figure


def _bars(axes: Axes, result: FunctionSpaceRuns, colors: list[str]) -> None:
    count = result.test_error.shape[1]
    place = np.arange(len(result.methods))[::-1]
    for values, offset, alpha in (
        (result.test_error, 0.2, 1.0),
        (result.regression_error, -0.2, 0.4),
    ):
        error = values.std(1, ddof=1) if count > 1 else np.zeros(len(values))
        axes.barh(
            place + offset, values.mean(1), height=0.36, xerr=error, alpha=alpha, ecolor=INK,
            color=[colors[i % len(colors)] for i in range(len(values))], error_kw={"lw": 0.9},
        )  # fmt: skip
    axes.set_yticks(place, [plain(name) for name in result.methods])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.set_title("test error", loc="left", size=10, color=INK, weight="bold")
    axes.set_xlabel("full: network, pale: kernel regression")
    dress(axes)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", labelcolor=INK)


def invariance_table(result: Invariance) -> Figure:
    """Changes as a table of coloured cells: dark cells are invariant to rounding.

    Args:
        result: The changes.

    Returns:
        The figure.
    """
    (rows, columns), maps = result.change.shape, result.maps
    figure = Figure(figsize=(1.55 * columns + 1.9, 0.42 * rows + 1.5), layout="constrained")
    axes = figure.subplots()
    logs = np.log10(np.maximum(result.change, 1e-16))
    axes.imshow(
        np.ma.masked_invalid(logs), cmap=OTHER_MAP, vmin=-14, vmax=0.6, aspect="auto",
    )  # fmt: skip
    for i in range(rows):
        for j in range(columns):
            value = result.change[i, j]
            text = "–" if np.isnan(value) else "0" if value < 1e-9 else f"{value:.2f}"
            dark = np.isfinite(value) and value < 1e-6
            axes.text(j, i, text, ha="center", va="center", size=9, color="white" if dark else INK)
    axes.set_yticks(range(rows), [plain(name) for name in result.methods])
    wrapped = [plain(name).replace(" of ", "\nof ").replace(" each", "\neach") for name in maps]
    axes.set_xticks(range(columns), [text.replace("all ", "all\n") for text in wrapped])
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(
        plain(result.title) + "  (0: below 10⁻⁹, –: no meaning)", loc="left", size=10, color=INK
    )
    return figure
