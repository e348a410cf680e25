"""Pictures of minima: the proof of one, epochs to them, and runs that head for one."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from kobai.plots.landscape.side_by_side import landscape_panels
from kobai.plots.scales import spell
from kobai.plots.style import ACCENT, HUES, INK, MUTED, PAPER, RULE, dress, plain
from kobai.results import Check, Descent, Descents, MinimumProof, PlanePanels, SolutionTable

_TINY = 1e-300


def proof_panel(*proofs: MinimumProof) -> Figure:
    """What was measured at a point against what a minimum demands, one column a proof.

    Each bar is a condition: how far it is from its tolerance, in powers of ten. Left of the line it
    is met; a bar that reaches the left edge is zero to the last digit.

    Args:
        proofs: One to four.

    Returns:
        The figure.

    Raises:
        ValueError: Not one to four proofs.
    """
    if not 1 <= len(proofs) <= 4:
        raise ValueError(f"one to four proofs fit side by side, got {len(proofs)}")
    rows = max(len(proof.checks) for proof in proofs)
    figure = Figure(figsize=(4.3 * len(proofs) + 0.3, 0.62 * rows + 2.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr]
    reach = max(_decades(check) for proof in proofs for check in proof.checks)
    for axes, proof in zip(figure.subplots(1, len(proofs), squeeze=False)[0], proofs, strict=True):
        _bars(axes, proof, max(3.2, reach + 2.6))
    return figure


def _decades(check: Check) -> float:
    """Powers of ten by which a value exceeds its tolerance; negative where it is met."""
    if not math.isfinite(check.value):
        return 8.0
    low = max(check.tolerance, _TINY)
    return float(np.clip(math.log10(max(check.value, _TINY) / low), -8.0, 8.0))


def _bars(axes: Axes, proof: MinimumProof, right: float) -> None:
    for place, check in enumerate(reversed(proof.checks)):
        decades = _decades(check)
        color = HUES[3] if check.passed else ACCENT
        axes.barh(place, decades + 8, left=-8, height=0.5, color=color, alpha=0.9, zorder=2)
        name = f"{check.name}: {spell(check.value)}"
        axes.text(-7.9, place + 0.34, plain(name), size=8.5, color=INK, va="bottom")
        axes.text(
            max(0.0, decades) + 0.12, place, f"allowed {spell(check.tolerance, 2)}", size=7.5,
            color=MUTED, va="center", ha="left", zorder=3,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1.0, zorder=3)
    axes.set_xlim(-8, right)
    axes.set_ylim(-0.5, len(proof.checks) - 0.1)
    axes.set_yticks([])
    axes.set_xticks([t for t in (-8, -6, -4, -2, 0, 2, 4, 6, 8) if t <= right])
    axes.set_xlabel("powers of ten above the tolerance")
    dress(axes, grid=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(plain(proof.label or proof.likelihood, limit=40), loc="left", size=10.5,
                   weight="bold", color=INK, pad=46)  # fmt: skip
    lines = [
        f"loss above its floor {spell(proof.loss)}, floor {spell(proof.floor)}",
        f"‖∇L‖ {spell(proof.gradient_norm)}; on the data's own labels "
        f"{spell(proof.original_gradient_norm)}",
    ]
    if math.isfinite(proof.eigenvalue_max):
        lines.append(f"λ from {spell(proof.eigenvalue_min)} to {spell(proof.eigenvalue_max)}")
    axes.text(
        0, 1.03, plain("\n".join(lines), limit=400) if len(lines) == 1 else "\n".join(lines),
        transform=axes.transAxes, size=8, color=MUTED, va="bottom", linespacing=1.3,
    )  # fmt: skip


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
