"""Change of the outputs against the size of a push on the inputs."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from kobai.plots.scales import percent
from kobai.plots.style import HUES, INK, MUTED, dress, plain
from kobai.results import InputResponse

_MARKERS = ("o", "s", "D")


def input_response(result: InputResponse) -> Figure:
    """One panel a time with the change of the outputs, one with the answers that change.

    Points are means over seeds with standard errors; dashed lines follow from the metric to first
    order.

    Args:
        result: The responses.

    Returns:
        The figure.
    """
    times, count = len(result.times), result.change.shape[3]
    figure = Figure(figsize=(3.1 * (times + 2) + 0.2, 3.4), layout="constrained")
    grid = figure.subplots(1, times + 2, squeeze=False)[0]
    for t, axes in enumerate(grid[1 : times + 1]):
        for d in range(len(result.directions)):
            mean, error = _band(result.change[t, d])
            axes.errorbar(
                result.sizes, mean, yerr=error, fmt=_MARKERS[d % 3], color=HUES[d % len(HUES)],
                ms=5, mec="white", mew=0.7, elinewidth=1.2, zorder=3,
            )  # fmt: skip
            axes.plot(
                result.sizes, result.predicted[t, d].mean(1), color=HUES[d % len(HUES)],
                linestyle=(0, (5, 1.6)), linewidth=1.5,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log")
        axes.set_title(
            plain(f"change of outputs, {result.times[t]}"), loc="left", size=9.5, color=INK,
            weight="bold",
        )  # fmt: skip
        axes.set_xlabel("push / ‖x‖")
        dress(axes)
    low, high = grid[1].get_ylim()
    for axes in grid[1 : times + 1]:
        low, high = min(low, axes.get_ylim()[0]), max(high, axes.get_ylim()[1])
    for axes in grid[1 : times + 1]:
        axes.set_ylim(low, high)
    for t in range(times):
        rank = np.arange(1, result.spectrum.shape[1] + 1)
        mean = result.spectrum[t].mean(1)[::-1]
        grid[0].plot(
            rank, mean, color=HUES[3 + t], linewidth=1.2, marker=".", ms=3.5,
            label=plain(result.times[t]),
        )  # fmt: skip
    grid[0].axvline(result.outputs + 0.5, color=MUTED, linewidth=0.9, linestyle=":")
    grid[0].set(xscale="log", yscale="log", xlabel="rank (dotted: C)")
    top = float(result.spectrum.max())
    grid[0].set_ylim(max(float(result.spectrum[result.spectrum > 0].min()), top * 1e-4), top * 2)
    grid[0].set_title("eigenvalues of the metric", loc="left", size=9.5, color=INK, weight="bold")
    grid[0].legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower left")
    dress(grid[0])
    last = grid[-1]
    for t in range(times):
        for d in range(len(result.directions)):
            mean, error = _band(result.flips[t, d])
            last.errorbar(
                result.sizes, mean, yerr=error, color=HUES[d % len(HUES)],
                linestyle="-" if t == times - 1 else ":", linewidth=1.5, elinewidth=1.0,
            )  # fmt: skip
    last.set(xscale="log", xlabel="push / ‖x‖")
    last.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    last.set_title("answers that change", loc="left", size=9.5, color=INK, weight="bold")
    dress(last)
    handles = [
        Line2D([], [], color=HUES[d % len(HUES)], marker=_MARKERS[d % 3], mec="white", ms=6,
               linestyle="", label=plain(name))
        for d, name in enumerate(result.directions)
    ]  # fmt: skip
    handles.append(
        Line2D([], [], color=MUTED, linestyle=(0, (5, 1.6)), label="first order, from the metric")
    )
    if times > 1:
        label = f"answers: dotted {result.times[0]}, solid {result.times[-1]}"
        handles.append(Line2D([], [], linestyle="", label=plain(label)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False,
        fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    seeds = f" ({count} seeds)" if count > 1 else ""
    figure.suptitle(plain(result.title + seeds), x=0.01, ha="left", size=10.5, color=INK)
    return figure


def _band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error along the last axis."""
    count = values.shape[-1]
    error = values.std(-1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(values.shape[:-1])
    return values.mean(-1), error
