"""Draw what the study of true minima found: epochs to them, planes, shapes and descents."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from kobai.plots.landscape.side_by_side import landscape_panels
from kobai.plots.scales import spell
from kobai.plots.style import HUES, INK, MUTED, PAPER, RULE, dress, plain
from kobai.results import Descent, Descents, PlanePanels, ShapeTable, SolutionTable


def minimum_panels(panels: PlanePanels) -> Figure:
    """Contours and surfaces of several planes at one scale; a floor of zero is shown as `low`.

    A true minimum has loss zero, which no logarithm reaches: values below `low` are drawn as `low`,
    values above `high` as `high`, and the figure says so.

    Args:
        panels: The planes.

    Returns:
        The figure.
    """
    planes = panels.planes
    if panels.low > 0:
        planes = [
            dataclasses.replace(
                plane, fields={"loss": np.maximum(plane.fields["loss"], panels.low)}
            )
            for plane in planes
        ]
    figure = landscape_panels(
        planes, titles=panels.titles, log=True if panels.low > 0 else None,
        clip=panels.high if math.isfinite(panels.high) else None,
    )  # fmt: skip
    text = panels.label
    if panels.low > 0:
        text += f"; losses below {spell(panels.low)} drawn as {spell(panels.low)}"
    figure.text(0.012, 0.012, plain(text, limit=160), size=8.5, color=MUTED)
    return figure


_SHAPE_MEASURES = (
    ("relative_radius", "radius of the low basin", "high is wide"),
    ("relative_steepness", "steepness (nats per unit)", "high is sharp"),
    ("roughness", "roughness", "low is smooth"),
    ("nonconvex", "share not convex", "low is smooth"),
    ("asymmetry", "asymmetry", "0: even about θ*"),
    ("anisotropy", "anisotropy", "0: round"),
)


def shape_table(table: ShapeTable) -> Figure:
    """Six measures of every network: each random plane a dot, the median a bar with its number.

    Lengths are in the planes' own units (with the filter norm: shares of each filter's size).

    Args:
        table: One ensemble a network.

    Returns:
        The figure.
    """
    names = [plain(row.label, limit=20) for row in table.rows]
    figure = Figure(figsize=(10.6, 5.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr]
    places = zip(figure.subplots(2, 3).flat, _SHAPE_MEASURES, strict=True)
    for axes, (measure, title, reading) in places:
        columns = [
            np.array([getattr(entry, measure) for entry in row.smoothness]) for row in table.rows
        ]
        finite = np.concatenate([c[np.isfinite(c)] for c in columns])
        logarithmic = len(finite) > 0 and finite.min() > 0 and finite.max() > 8 * finite.min()
        for k, values in enumerate(columns):
            good = values[np.isfinite(values)]
            color = HUES[(2, 1, 0)[k % 3]]
            spread = 0.16 * (np.arange(len(good)) / max(len(good) - 1, 1) - 0.5)
            axes.plot(k + spread, good, "o", ms=4.5, color=color, alpha=0.75, zorder=3)
            if len(good):
                middle = float(np.median(good))
                axes.plot([k - 0.24, k + 0.24], [middle] * 2, color=INK, linewidth=1.8, zorder=4)
                axes.annotate(
                    spell(middle), (k + 0.27, middle), size=8, color=INK, va="center", ha="left"
                )
            cut = sum(entry.cut_off for entry in table.rows[k].smoothness)
            if measure == "relative_radius" and cut:
                axes.annotate(
                    f"≥ ({cut} cut off)", (k, 1.0), xycoords=("data", "axes fraction"), size=7.5,
                    color=MUTED, ha="center", va="top",
                )  # fmt: skip
        if logarithmic:
            axes.set_yscale("log")
        elif len(finite):
            axes.set_ylim(bottom=min(0.0, float(finite.min())))
            axes.margins(y=0.15)
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.3)
        axes.set_title(title, loc="left", size=9.5, color=INK)
        axes.set_title(reading, loc="right", size=7.5, color=MUTED)
        dress(axes)
        axes.grid(False, axis="x")
    figure.suptitle(
        plain(f"Shape of the landscape · {table.label}", limit=90), x=0.01, ha="left", size=11,
        weight="bold", color=INK,
    )  # fmt: skip
    return figure


def solution_epochs(table: SolutionTable) -> Figure:
    """Epochs to local, global and true minimum, a dot for each run, networks side by side.

    A class that was not reached is a hollow mark at the end of the budget; a local minimum no
    better than a constant prediction is crossed out.

    Args:
        table: The runs.

    Returns:
        The figure.
    """
    names = list(dict.fromkeys(table.names))
    figure = Figure(figsize=(1.9 * len(names) + 2.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    kinds = (("LM", "local_epoch", "o"), ("GM", "global_epoch", "s"), ("TM", "true_epoch", "D"))
    budget = max(run.epochs for run in table.runs)
    limit = max(budget, 1.0)
    for column, name in enumerate(names):
        runs = [run for n, run in zip(table.names, table.runs, strict=True) if n == name]
        for k, (kind, field, marker) in enumerate(kinds):
            color = HUES[(0, 3, 2)[k]]
            for j, run in enumerate(runs):
                epoch = getattr(run, field)
                x = column + 0.24 * (k - 1) + 0.05 * (j - (len(runs) - 1) / 2)
                reached = math.isfinite(epoch)
                axes.plot(
                    x, epoch if reached else run.epochs, marker=marker, ms=8,
                    mfc=color if reached else PAPER, mec=color, mew=1.5, linestyle="", zorder=3,
                )  # fmt: skip
                if kind == "LM" and run.trivial and reached:
                    axes.plot(x, epoch, marker="x", ms=11, mec=INK, mew=1.6, zorder=4)
            middle = [getattr(run, field) for run in runs if math.isfinite(getattr(run, field))]
            text = f"{kind} {np.median(middle):g}" if middle else f"{kind} –"
            axes.annotate(
                text, (column + 0.24 * (k - 1), -0.02), xycoords=("data", "axes fraction"),
                xytext=(0, -3), textcoords="offset points", ha="center", va="top", size=8,
                color=color,
            )  # fmt: skip
    axes.set_xticks(range(len(names)), [f"\n{plain(name, limit=24)}" for name in names])
    axes.set_xlim(-0.55, len(names) - 0.45)
    axes.set_ylim(0, 1.06 * limit)
    axes.set_ylabel("epochs")
    dress(axes)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", labelsize=9.5, labelcolor=INK, length=0)
    axes.set_title("Epochs to a local, global and true minimum", loc="left", size=11,
                   weight="bold", color=INK, pad=20)  # fmt: skip
    axes.text(
        0, 1.02, "hollow: not reached in the run's budget" + (
            "; crossed: no better than a constant" if any(r.trivial for r in table.runs) else ""
        ), transform=axes.transAxes, size=8, color=MUTED, va="bottom",
    )  # fmt: skip
    return figure


def descents(result: Descents) -> Figure:
    """Runs towards a known minimum: loss above its floor, distance in parameters and in function.

    Args:
        result: The runs.

    Returns:
        The figure; gradient descent is dashed, other settings of the same start are dotted, runs
        that began near θ* are in the colour ramp.
    """
    figure = Figure(figsize=(11.6, 4.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr]
    grid = figure.subplots(1, 3)
    panels = (
        ("loss", "loss above its floor (nats)"),
        ("distance", "‖θ − θ*‖ / ‖θ*‖"),
        ("function", "difference of predicted probabilities (rms)"),
    )
    colors = _colors(result)
    for axes, (column, title) in zip(grid, panels, strict=True):
        lowest = []
        for run in result.runs:
            values: Float[np.ndarray, " T"] = np.maximum(getattr(run, column), 1e-16)
            axes.plot(
                run.epoch, values, color=colors[run.label],
                linestyle=_dash(run), linewidth=1.7,
                label=plain(run.label, limit=40),
            )  # fmt: skip
            axes.plot(run.epoch[-1], values[-1], marker="x" if run.status == "diverged" else "o",
                      ms=4.5, color=colors[run.label])  # fmt: skip
            lowest.append(float(values.min()))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=9))
        axes.yaxis.set_minor_locator(NullLocator())
        if column == "loss":
            axes.axhline(result.zero, color=MUTED, linewidth=0.9, linestyle=":")
            axes.text(0.99, result.zero, "counts as reached ", size=7.5, color=MUTED, va="bottom",
                      ha="right", transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_title(title, loc="left", size=9.5, color=INK)
        dress(axes)
    handles, labels = grid[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False,
        fontsize=8.5, labelcolor=INK,
    )  # fmt: skip
    legend.get_frame().set_edgecolor(RULE)
    figure.suptitle(
        plain(f"{result.label}: descent on data relabelled by θ*", limit=80), x=0.01, ha="left",
        size=11, weight="bold", color=INK,
    )  # fmt: skip
    return figure


def _dash(run: Descent) -> Any:
    """Solid for a start's first run, dashed for gradient descent, dotted for other settings."""
    if run.optimizer != "adam":
        return (0, (4, 1.5))
    return (0, (1.2, 1.2)) if "," in run.label else "-"


def _colors(result: Descents) -> dict[str, str]:
    """Starts from initial weights in the first hues, near ones from light to dark by distance."""
    far = [run.label for run in result.runs if "start" in run.label]
    near = sorted((run for run in result.runs if run.label not in far), key=lambda r: r.radius)
    ramp = ("#bfe6dc", "#86d0bf", "#4db8a2", "#1f9a84", "#0c7562", "#074c40")
    colors = {}
    for label in far:
        head = label.partition(",")[0]
        colors[label] = colors.get(head) or HUES[(0, 1, 2, 4, 5)[len(colors) % 5]]
    known: dict[float, str] = {}
    for run in near:
        radius = float(f"{run.radius:.3g}")
        known.setdefault(radius, ramp[min(1 + len(known), len(ramp) - 1)])
        colors[run.label] = known[radius]
    return colors
