"""A volume of the landscape as slices, all at one scale."""

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import contour_levels, field_range, percent, tick
from kobai.plots.style import INK, MUTED, color_map, dress, plain
from kobai.results import Volume


def landscape_slices(
    volume: Volume,
    field: str = "loss",
    *,
    axis: str = "c",
    count: int = 6,
    log: bool | None = None,
    clip: float | None = None,
) -> Figure:
    """Filled contours of a field on slices across one axis, with one scale of colour.

    Args:
        volume: The volume.
        field: Which of its fields.
        axis: Across which axis: "a", "b" or "c".
        count: How many slices, evenly from the first to the last.
        log: Logarithmic or not; by ``field_range``'s rule when None.
        clip: Largest value shown; by ``field_range``'s rule when None.

    Returns:
        The figure.

    Raises:
        ValueError: The volume has no such field or axis, or nothing is finite.
    """
    if field not in volume.fields:
        raise ValueError(
            f"the volume {volume.label!r} has no field {field!r}; it has {', '.join(volume.fields)}"
        )
    shown = field_range(volume.fields[field].reshape(len(volume.a), -1), log=log, clip=clip)
    nodes = getattr(volume, axis, None) if axis in ("a", "b", "c") else None
    if nodes is None:
        raise ValueError(f"axis must be 'a', 'b' or 'c', got {axis!r}")
    picks = np.unique(np.linspace(0, len(nodes) - 1, max(1, count)).round().astype(int))
    columns = min(3, len(picks))
    rows = -(-len(picks) // columns)
    figure = Figure(figsize=(2.75 * columns + 1.0, 2.7 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    norm = LogNorm(shown.low, shown.high) if shown.log else Normalize(shown.low, shown.high)
    fine = (np.geomspace if shown.log else np.linspace)(shown.low, shown.high, 121)
    fine[0], fine[-1] = min(fine[0], shown.low), max(fine[-1], shown.high)
    levels = contour_levels(shown.low, shown.high, log=shown.log)
    filled = None
    for axes, pick in zip(grid.flat, picks, strict=False):
        plane = volume.slice(axis, int(pick))
        values = plane.fields[field]
        finite = np.where(np.isfinite(values), np.clip(values, None, shown.high), np.nan)
        ground = np.ma.masked_invalid(finite).T
        if ground.mask.any():
            axes.add_patch(
                Rectangle(
                    (0, 0), 1, 1, transform=axes.transAxes, facecolor="#eceef1",
                    edgecolor="#9aa1ab", hatch="/////", linewidth=0, zorder=0,
                )
            )  # fmt: skip
        if ground.count():
            filled = axes.contourf(
                plane.a, plane.b, ground, levels=fine, norm=norm, cmap=color_map(field)
            )
            filled.set_edgecolor("face")
            filled.set_rasterized(True)
            axes.contour(
                plane.a, plane.b, ground, levels=levels, colors=["white"], linewidths=0.6,
                alpha=0.6,
            )  # fmt: skip
        dress(axes, grid=False)
        name = volume.axis_names["abc".index(axis)]
        axes.set_title(
            plain(f"{name} = {tick(float(f'{nodes[pick]:.3g}'))}", limit=32), size=8.5, color=INK
        )
    for axes in grid.flat[len(picks) :]:
        axes.set_visible(False)
    keep = [k for k in range(3) if "abc"[k] != axis]
    for axes in grid[-1]:
        axes.set_xlabel(plain(volume.axis_names[keep[0]], limit=32))
    for axes in grid[:, 0]:
        axes.set_ylabel(plain(volume.axis_names[keep[1]], limit=32))
    assert filled is not None
    bar = figure.colorbar(filled, ax=grid, shrink=0.8, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    spelled = percent if "accuracy" in field else tick
    bar.ax.yaxis.set_major_locator(FixedLocator(levels.tolist()))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: spelled(value)))
    bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=2.5, width=0.8)
    bar.set_label(plain(field.replace("_", " "), limit=48), color=INK, size=9.5)
    words = field.replace("_", " ")
    note = shown.sentence(words, "hatched")
    figure.suptitle(
        plain(f"{words[:1].upper()}{words[1:]} · {volume.label}", limit=64)
        + (f"\n{note}" if note else ""),
        x=0.01, ha="left", size=11, weight="bold", color=INK,
    )  # fmt: skip
    return figure
