"""Loss and accuracy along training, every optimizer in one figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.bands import by_optimizer, seed_band
from kobai.plots.scales import accuracy_axis, contour_levels, percent, tick
from kobai.plots.style import INK, MUTED, Style, dress, looks_of, optimizer_styles, plain
from kobai.results import History

_AXES = {"epoch": "epoch", "seconds": "training time (s)"}


def curves(histories: Sequence[History], *, styles: Mapping[str, Style] | None = None) -> Figure:
    """Training and held-out loss and accuracy against epochs and against seconds.

    A line is the mean over the seeds of an optimizer, its band one sample standard deviation to
    either side. Held-out means test data, or validation data where no test values were recorded.
    Losses are logarithmic when they span a factor of 5. Accuracy has an axis on which halving the
    error is always the same step once 90 % is passed. Diverged runs are drawn one by one, dotted,
    with a cross where they end.

    Args:
        histories: The runs; those of one optimizer are joined.
        styles: Optimizer to style; by default from the optimizers present.

    Returns:
        The figure: two columns (epochs, seconds), a row for loss and one for accuracy if there
        is any.

    Raises:
        ValueError: No histories, or none with a finite loss.
    """
    if not any(np.isfinite(_any_column(history, "loss")).any() for history in histories):
        raise ValueError("there is no history with a finite loss; nothing to draw")
    groups = by_optimizer(histories)
    looks = optimizer_styles(groups, looks_of(histories)) if styles is None else styles
    rows = [
        quantity
        for quantity in ("loss", "accuracy")
        if any(np.isfinite(_any_column(history, quantity)).any() for history in histories)
    ]
    figure = Figure(figsize=(9.2, 3.0 * len(rows) + 0.75), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
    grid = figure.subplots(len(rows), 2, sharey="row", sharex="col", squeeze=False)
    held_out = _held_out(histories)
    for row, quantity in enumerate(rows):
        for axes, along in zip(grid[row], _AXES, strict=True):
            for name, runs in groups.items():
                _draw(axes, runs, quantity, along, held_out, looks[name])
            dress(axes)
        _scale(list(grid[row]), histories, quantity, held_out)
        grid[row][0].set_ylabel(quantity, color=INK, size=9.5)
    for axes, along in zip(grid[-1], _AXES, strict=True):
        axes.set_xlabel(_AXES[along], color=INK, size=9.5)
        axes.margins(x=0.02)
    _legend(figure, groups, looks, held_out)
    return figure


def _any_column(history: History, quantity: str) -> np.ndarray:
    return np.concatenate(
        [getattr(history, f"{split}_{quantity}") for split in ("train", "validation", "test")]
    )


def _held_out(histories: Sequence[History]) -> str | None:
    for split in ("test", "validation"):
        if any(np.isfinite(getattr(history, f"{split}_loss")).any() for history in histories):
            return split
    return None


def _draw(
    axes: Axes,
    runs: Sequence[History],
    quantity: str,
    along: str,
    held_out: str | None,
    style: Style,
) -> None:
    for split in ("train", held_out):
        if split is None:
            continue
        strong = split == held_out or held_out is None
        column = f"{split}_{quantity}"
        band = seed_band(runs, column)
        if band is not None:
            x = getattr(band, along)
            if strong and band.count.max() > 1:
                # A logarithmic axis cannot show mean − sd ≤ 0; a tenth of the mean stands for it.
                lower = np.maximum(band.mean - band.sd, 0.1 * band.mean)
                axes.fill_between(
                    x, lower, band.mean + band.sd, color=style.color, alpha=0.16, linewidth=0
                )
            axes.plot(
                x,
                band.mean,
                color=style.color,
                linestyle=style.dash,
                linewidth=1.9 if strong else 0.9,
                alpha=1.0 if strong else 0.75,
                marker=style.marker if strong else None,
                markevery=max(1, len(x) // 8),
                markersize=4,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3 if strong else 2,
            )
        if not strong:
            continue
        for run in runs:
            values = getattr(run, column)
            good = np.isfinite(values)
            if run.status == "diverged" and good.any():
                x = getattr(run, along)[good]
                axes.plot(x, values[good], color=style.color, linestyle=":", linewidth=1.1)
                axes.plot(x[-1], values[good][-1], "x", color=style.color, markersize=7, mew=2)


def _scale(
    row: Sequence[Axes], histories: Sequence[History], quantity: str, held_out: str | None
) -> None:
    """One value axis for a row, from everything drawn in it that did not diverge."""
    columns = [f"{split}_{quantity}" for split in ("train", held_out) if split]
    calm = [history for history in histories if history.status != "diverged"] or histories
    values = np.concatenate([getattr(history, name) for history in calm for name in columns])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if quantity == "accuracy":
        axis = accuracy_axis(values)
        for axes in row:
            if axis is not None:
                axes.set_yscale("function", functions=(axis.forward, axis.inverse))
                axes.set_ylim(low, 1.0)
                axes.yaxis.set_major_locator(FixedLocator(axis.ticks(low, 1.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
            axes.yaxis.set_minor_locator(NullLocator())
    elif low > 0 and high > 5 * low:
        for axes in row:
            axes.set_yscale("log")
            axes.set_ylim(low * 0.85, high * 1.25)
            axes.yaxis.set_major_locator(
                FixedLocator(contour_levels(low * 0.85, high * 1.25, log=True, count=7).tolist())
            )
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
            axes.yaxis.set_minor_locator(NullLocator())


def _legend(
    figure: Figure,
    groups: Mapping[str, Sequence[History]],
    looks: Mapping[str, Style],
    held_out: str | None,
) -> None:
    handles = []
    for name, runs in groups.items():
        lost = sum(run.status == "diverged" for run in runs)
        count = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].seed}"
        style = looks[name]
        lost_too = f", {lost} diverged" if lost else ""
        text = f"{style.label}  ({count}{lost_too})"
        handles.append(
            Line2D(
                [],
                [],
                color=style.color,
                linestyle=style.dash,
                linewidth=2.2,
                marker=style.marker,
                markersize=5,
                markeredgecolor="white",
                label=plain(text, limit=40),
            )
        )
    if held_out:
        for label, width, alpha in ((held_out, 2.0, 1.0), ("training", 0.9, 0.8)):
            handles.append(Line2D([], [], color=MUTED, linewidth=width, alpha=alpha, label=label))
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(len(handles), 5),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.8,
    )
