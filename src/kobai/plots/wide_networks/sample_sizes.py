"""Test error against the number of training examples, and the share that was augmented."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import contour_levels, percent
from kobai.plots.style import HUES, INK, MUTED, OTHER_MAP, dress, plain
from kobai.results import SampleSizes

_MARKERS = ("o", "s", "D", "^", "v", "P")


def sample_sizes(result: SampleSizes) -> Figure:
    """Left: mean test error and standard deviation over seeds; right: augmented share.

    Args:
        result: The curves.

    Returns:
        The figure.

    Raises:
        ValueError: If no error is known.
    """
    if not np.isfinite(result.error).any():
        raise ValueError("no test error is known; nothing to draw")
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1.0])
    count = result.error.shape[2]
    for k, name in enumerate(result.methods):
        mean = result.error[k].mean(1)
        sd = result.error[k].std(1, ddof=1) if count > 1 else np.zeros_like(mean)
        color = HUES[k % len(HUES)]
        left.fill_between(
            result.sizes, np.maximum(mean - sd, 0.1 * mean), mean + sd, color=color, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
        left.plot(
            result.sizes, mean, color=color, marker=_MARKERS[k % len(_MARKERS)], ms=5.5,
            mec="white", mew=0.7, linewidth=1.8, label=plain(name),
            linestyle="-" if "kernel" not in name else (0, (5, 1.6)),
        )  # fmt: skip
    left.set(xscale="log", yscale="log")
    low, high = left.get_ylim()
    left.yaxis.set_major_locator(
        FixedLocator([float(v) for v in contour_levels(low, high, log=True, count=6)])
    )
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    left.yaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_locator(FixedLocator(result.sizes.tolist()))
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xlabel("training examples")
    left.set_title("test error", loc="left", size=10, color=INK, weight="bold")
    left.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.4)
    dress(left)
    shown = np.linspace(0.15, 0.85, len(result.sizes))
    stretch = np.arange(result.selected.shape[1])
    progress = (stretch + 0.5) / result.selected.shape[1]
    for s, size in enumerate(result.sizes):
        right.plot(
            progress, result.selected[s].mean(1), color=OTHER_MAP(shown[s]), linewidth=1.8,
            label=f"{size:,.0f} examples",
        )  # fmt: skip
    right.set_ylim(0, 1.02)
    right.set_xlim(0, 1)
    right.set_xlabel("share of training")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    right.set_title(
        f"augmented when self-paced, τ = {result.threshold:g}", loc="left", size=10, color=INK,
        weight="bold",
    )  # fmt: skip
    right.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    dress(right)
    figure.suptitle(
        plain(f"{result.title}  (mean ± standard deviation, {count} seeds)"), x=0.01, ha="left",
        size=10.5, color=MUTED if count < 2 else INK,
    )  # fmt: skip
    return figure
