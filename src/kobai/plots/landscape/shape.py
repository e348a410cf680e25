"""Draw shapes: bands over planes, ways between minima, moving frames, critical points."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kobai.plots.landscape.contour import draw_contour, headline, true_to_scale
from kobai.plots.scales import field_range, spell
from kobai.plots.style import HUES, INK, MUTED, PAPER, dress, plain
from kobai.results import Connection, CriticalPoints, Ensemble, MovingFrame


def ensemble_bands(*ensembles: Ensemble) -> Figure:
    """The field along the axes of many random planes: median and quantile bands, one row of panels.

    Args:
        ensembles: One to four, each with equal axes through 0.

    Returns:
        The figure; the vertical scale is shared, and logarithmic where the field is positive away
        from the centre.

    Raises:
        ValueError: Not one to four ensembles, or axes without common rays.
    """
    if not 1 <= len(ensembles) <= 4:
        raise ValueError(f"one to four ensembles fit side by side, got {len(ensembles)}")
    figure = Figure(figsize=(3.6 * len(ensembles) + 0.8, 3.4), layout="constrained")
    grid = figure.subplots(1, len(ensembles), squeeze=False, sharey=True)[0]
    for k, (axes, entry) in enumerate(zip(grid, ensembles, strict=True)):
        rays = entry.rays()
        shown = np.where(np.isfinite(rays), rays, np.nan)
        color = HUES[(2, 1, 0, 3)[k]]
        low, middle, high = np.nanquantile(shown, (0.05, 0.5, 0.95), axis=0)
        quarter, three = np.nanquantile(shown, (0.25, 0.75), axis=0)
        axes.fill_between(entry.a, low, high, color=color, alpha=0.16, linewidth=0)
        axes.fill_between(entry.a, quarter, three, color=color, alpha=0.3, linewidth=0)
        axes.plot(entry.a, middle, color=color, linewidth=2)
        axes.set_title(plain(entry.label, limit=30), loc="left", size=10, weight="bold", color=INK)
        axes.set_xlabel(f"along {len(rays)} random directions")
        away = shown[:, entry.a != 0]
        if np.nanmin(away) > 0 and np.nanmax(away) > 30 * np.nanmin(away):
            axes.set_yscale("symlog", linthresh=float(np.nanquantile(away, 0.05)))
        dress(axes)
    grid[0].set_ylabel(plain(ensembles[0].field.replace("_", " "), limit=30))
    return figure


def connection(result: Connection) -> Figure:
    """The loss on the straight line and on the trained curve, with the barriers marked.

    Args:
        result: The connection.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for values, height, color, name in (
        (result.straight, result.straight_barrier, HUES[2], "straight line"),
        (result.curve, result.curve_barrier, HUES[0], "trained curve"),
    ):
        axes.plot(result.t, values, color=color, linewidth=2,
                  label=f"{name}: barrier {spell(height)}")  # fmt: skip
    ends = result.straight[0] + (result.straight[-1] - result.straight[0]) * result.t
    axes.plot(result.t, ends, color=MUTED, linewidth=0.9, linestyle=":",
              label="between the ends' losses")  # fmt: skip
    good = np.concatenate([result.straight, result.curve])
    good = good[np.isfinite(good)]
    if good.size and good.max() > 30 * max(float(np.median(good)), 1e-12):
        axes.set_yscale("symlog", linthresh=max(float(np.median(good)) / 10, 1e-12))
    axes.set_ylim(bottom=min(0.0, float(good.min())) if good.size else None)
    axes.set_xlim(0, 1)
    axes.set_xlabel("t")
    axes.set_ylabel("loss")
    dress(axes)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    axes.set_title(plain(result.label or "connection", limit=80), loc="left", size=10.5,
                   weight="bold", color=INK)  # fmt: skip
    return figure


def moving_frames(result: MovingFrame) -> Figure:
    """The small planes along a path, each with its own scale.

    Args:
        result: The frames; up to six are drawn, evenly spaced.

    Returns:
        The figure.
    """
    picks = np.unique(
        np.linspace(0, len(result.frames) - 1, min(6, len(result.frames))).round().astype(int)
    )
    width, height = 3.3, 3.5
    figure = Figure(figsize=(width * len(picks) + 0.3, height))
    size = figure.get_size_inches()
    for column, k in enumerate(picks):
        frame = result.frames[k]
        left = width * column + 0.62
        axes = figure.add_axes((left / size[0], 0.55 / size[1], 2.0 / size[0], 2.0 / size[1]))
        bar = figure.add_axes(
            ((left + 2.07) / size[0], 0.55 / size[1], 0.09 / size[0], 2.0 / size[1])
        )
        draw_contour(figure, axes, bar, frame, "loss", field_range(frame.fields["loss"]))
        bar.set_ylabel("")
        axes.set_title(f"point {result.steps[k]} of the path", loc="left", size=9, color=INK)
        axes.set_xlabel("along the path", size=8)
        axes.set_ylabel("across" if column == 0 else "", size=8)
        axes.tick_params(labelsize=7)
        bar.tick_params(labelsize=7)
    title = plain(f"Moving frame · {result.label}", limit=80)
    figure.text(0.62 / size[0], 1 - 0.22 / height, title, size=11, weight="bold", color=INK,
                va="top")  # fmt: skip
    return figure


_MARKS = {"minimum": "o", "saddle": "X", "maximum": "^", "unknown": "s"}


def critical_map(found: CriticalPoints) -> Figure:
    """The contours of a plane with its stationary points: filled where they are genuine.

    The mark is what a point is on the plane (circle: minimum, cross: saddle, triangle: maximum); it
    is filled where the gradient of the whole space vanishes as well, and hollow where the slice
    alone makes it. Beside it stand ‖∇L‖ and the extreme eigenvalues of the whole space.

    Args:
        found: The points, with the plane they lie on.

    Returns:
        The figure.

    Raises:
        ValueError: The points do not know their plane.
    """
    plane = found.plane
    if plane is None:
        raise ValueError("these points come without their plane; take them from critical_points")
    aspect = true_to_scale(plane)
    ratio = float(np.ptp(plane.b) / np.ptp(plane.a)) * (aspect or 1.0) if aspect else 0.9
    width = min(5.4, 5.0 / ratio)
    size = (width + 4.2, width * ratio + 1.35)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0.72 / size[0], 0.6 / size[1], width / size[0],
                            width * ratio / size[1]))  # fmt: skip
    bar = figure.add_axes(((0.86 + width) / size[0], 0.6 / size[1], 0.12 / size[0],
                           width * ratio / size[1]))  # fmt: skip
    draw_contour(figure, axes, bar, plane, "loss", field_range(plane.fields["loss"]))
    lines = []
    for k, point in enumerate(found.points, start=1):
        axes.plot(
            *point.coordinates, marker=_MARKS[point.plane_kind], ms=10, mew=1.8, mec=INK,
            mfc=INK if point.genuine else PAPER, linestyle="", zorder=8,
        )  # fmt: skip
        axes.annotate(str(k), (float(point.coordinates[0]), float(point.coordinates[1])),
                      xytext=(8, 5), textcoords="offset points", size=9, weight="bold",
                      color=INK, zorder=9)  # fmt: skip
        text = f"{k}  {point.plane_kind} of the slice, loss {spell(point.loss)}\n"
        text += f"    ‖∇L‖ {spell(point.gradient_norm)}: "
        text += f"{point.kind} of the space" if point.genuine else "not stationary in the space"
        if np.isfinite(point.eigenvalue_max):
            text += f"\n    λ {spell(point.eigenvalue_min)} … {spell(point.eigenvalue_max)}"
        lines.append(text)
    left = (1.75 + width) / size[0]
    top = (0.6 + width * ratio) / size[1]
    figure.text(left, top, "\n".join(lines) or "no stationary point on this plane", size=8,
                color=INK, va="top", linespacing=1.35)  # fmt: skip
    handles = [
        Line2D([], [], marker=_MARKS[kind], ms=7, mec=INK, mfc=PAPER, linestyle="", label=kind)
        for kind in ("minimum", "saddle", "maximum")
    ]
    axes.legend(handles=handles, loc="lower left", frameon=True, fontsize=7.5, framealpha=0.85)
    figure.text(0.72 / size[0], 1 - 0.22 / size[1], headline(plane, "loss"), size=11,
                weight="bold", color=INK, va="top")  # fmt: skip
    figure.text(0.72 / size[0], 1 - 0.45 / size[1],
                f"filled: ‖∇L‖ at most {spell(found.tolerance)} of its median on the plane, "
                f"{spell(found.scale)}", size=8, color=MUTED, va="top")  # fmt: skip
    return figure
