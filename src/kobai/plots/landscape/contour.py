"""A plane of the landscape from above: filled contours, paths, end points, gaps."""

from collections.abc import Mapping

import numpy as np
from contourpy import contour_generator
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import Range, contour_levels, field_range, percent, tick
from kobai.plots.style import (
    INK,
    MUTED,
    PAPER,
    Style,
    color_map,
    dress,
    halo,
    optimizer_of,
    optimizer_styles,
    plain,
)
from kobai.results import Plane


def landscape_contour(
    plane: Plane,
    field: str = "loss",
    *,
    log: bool | None = None,
    clip: float | None = None,
    styles: Mapping[str, Style] | None = None,
) -> Figure:
    """Filled and labelled contours of a field, with the paths and points projected on the plane.

    Levels are round numbers in equal ratios where the field is shown in logarithm. The dots of a
    path are filled by the true loss of the run there (on a loss field): where they differ from
    the ground, the path is off the plane; the strip below shows how far. Values that are not
    finite are hatched and counted, clipping is stated. Distances are true to scale (equal
    aspect in parameter space) when the axes are orthogonal and neither side is over 2.5 times
    the other.

    Args:
        plane: The plane.
        field: Which of its fields.
        log: Logarithmic or not; by ``field_range``'s rule when None.
        clip: Largest value shown; by ``field_range``'s rule when None.
        styles: Optimizer to style; by default from the runs on the plane.

    Returns:
        The figure.

    Raises:
        ValueError: The plane has no such field, or it has no finite value.
    """
    values = field_values(plane, field)
    shown = field_range(values, log=log, clip=clip)
    looks = plane_styles(plane) if styles is None else styles
    notes = [
        shown.sentence(field.replace("_", " "), "hatched"),
        _outside(plane),
        evaluated_note(plane),
    ]
    text = "\n".join(plain(note) for note in notes if note)
    figure, top, bar, bottom = _canvas(
        plane, strip=bool(plane.trajectories), lines=text.count("\n") + bool(text)
    )
    if bottom is not None:
        _strip(bottom, plane, looks)
    draw_contour(figure, top, bar, plane, field, shown, styles=looks)
    _title(figure, top, headline(plane, field), text)
    return figure


def draw_contour(
    figure: Figure,
    axes: Axes,
    side: Axes,
    plane: Plane,
    field: str,
    shown: Range,
    *,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Draw the contours of a field on given axes, with its colour bar on others.

    Args:
        figure: The figure of the axes.
        axes: Where the contours go.
        side: Where the colour bar goes.
        plane: The plane.
        field: Which of its fields.
        shown: The colours; several panels with the same one have the same scale.
        styles: Optimizer to style; by default from the runs on the plane.
    """
    looks = plane_styles(plane) if styles is None else styles
    norm = _fill(figure, axes, side, plane, field, field_values(plane, field), shown)
    _evaluated(axes, plane, field)
    _paths(axes, plane, field, norm, looks)
    _points(axes, plane, looks)
    _frame(axes, plane)


def evaluated_note(plane: Plane) -> str:
    """How many nodes are values, where the others are a spline; empty when all are."""
    if "evaluated" not in plane.fields:
        return ""
    mask = plane.fields["evaluated"]
    return f"{int(mask.sum())} of {mask.size} nodes evaluated (dots), the others a spline"


def _evaluated(axes: Axes, plane: Plane, field: str) -> None:
    """A dot at each node that is a value, where others are not."""
    if "evaluated" in plane.fields and field != "evaluated":
        i, j = np.nonzero(plane.fields["evaluated"])
        axes.plot(plane.a[i], plane.b[j], ".", ms=1.6, color="white", alpha=0.55, zorder=3)


def headline(plane: Plane, field: str) -> str:
    """The title of a picture of a plane: ``Loss · between the ends``."""
    words = field.replace("_", " ")
    return plain(f"{words[:1].upper()}{words[1:]} · {plane.label or plane.kind}", limit=64)


def field_values(plane: Plane, field: str) -> Float[np.ndarray, "A B"]:
    """The values of a field.

    Args:
        plane: The plane.
        field: Name of the field.

    Returns:
        The array, first index along a.

    Raises:
        ValueError: The plane has no such field; the message lists those it has.
    """
    if field not in plane.fields:
        raise ValueError(
            f"the plane {plane.label!r} has no field {field!r}; it has {', '.join(plane.fields)}"
        )
    return plane.fields[field]


def optimizers_on(plane: Plane) -> dict[str, str]:
    """Which optimizer each path and point of a plane belongs to.

    Args:
        plane: The plane.

    Returns:
        Label to optimizer; a point with the label of a path belongs to the path's optimizer.
    """
    names = {label: optimizer_of(label) for label in plane.points}
    names |= {t.label: optimizer_of(t.label, t.optimizer) for t in plane.trajectories}
    return names


def plane_styles(plane: Plane) -> dict[str, Style]:
    """Styles for the optimizers whose paths or points lie on the plane."""
    return optimizer_styles(optimizers_on(plane).values(), plane.looks)


def true_to_scale(plane: Plane) -> float | None:
    """The aspect that makes distances in the figure those in parameter space, if sensible.

    Args:
        plane: The plane.

    Returns:
        Height of a unit of b over width of a unit of a; None when the directions are not
        orthogonal (|cosine| > 0.05) or one side would be over 2.5 times the other.
    """
    norms = plane.direction_norms
    if not abs(plane.cosine) <= 0.05 or not np.all(np.isfinite(norms)) or not np.all(norms > 0):
        return None
    sides = (np.ptp(plane.a) * norms[0], np.ptp(plane.b) * norms[1])
    if max(sides) > 2.5 * min(sides):
        return None
    return float(norms[1] / norms[0])


def _canvas(plane: Plane, *, strip: bool, lines: int) -> tuple[Figure, Axes, Axes, Axes | None]:
    """A figure that fits the plane: map, colour bar beside it, strip below it, edges aligned.

    Lengths in inches; the map gets the largest box of its aspect inside 5.6 × 5.2.
    """
    aspect = true_to_scale(plane)
    ratio = float(np.ptp(plane.b) / np.ptp(plane.a)) * aspect if aspect is not None else 0.86
    width = min(5.6, 5.2 / ratio)
    height = width * ratio
    left, right, above, below = 0.72, 0.98, 0.5 + 0.17 * lines, 0.58
    band = 0.62 if strip else 0.0
    gap = 0.52 + 0.28 if strip else 0.0
    size = (left + width + right, above + height + gap + band + below)
    figure = Figure(figsize=size)

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return figure.add_axes((x / size[0], y / size[1], w / size[0], h / size[1]))

    top = place(left, below + band + gap, width, height)
    bar = place(left + width + 0.16, below + band + gap, 0.13, height)
    return figure, top, bar, place(left, below, width, band) if strip else None


def _title(figure: Figure, axes: Axes, title: str, notes: str) -> None:
    left = axes.get_position().x0
    height = figure.get_figheight()
    figure.text(left, 1 - 0.2 / height, title, size=11, weight="bold", color=INK, va="top")
    if notes:
        figure.text(left, 1 - 0.43 / height, notes, size=8, color=MUTED, va="top", linespacing=1.3)


def _fill(
    figure: Figure,
    axes: Axes,
    side: Axes,
    plane: Plane,
    field: str,
    values: Float[np.ndarray, "A B"],
    shown: Range,
) -> Normalize:
    norm = LogNorm(shown.low, shown.high) if shown.log else Normalize(shown.low, shown.high)
    # Infinite values are gaps, not values above the clip.
    finite = np.where(np.isfinite(values), np.clip(values, None, shown.high), np.nan)
    ground = np.ma.masked_invalid(finite).T
    space = np.geomspace if shown.log else np.linspace
    fine = space(shown.low, shown.high, 121)
    # Rounding must not leave the extremes outside the outermost levels.
    fine[0], fine[-1] = min(fine[0], shown.low), max(fine[-1], shown.high)
    filled = axes.contourf(plane.a, plane.b, ground, levels=fine, norm=norm, cmap=color_map(field))
    filled.set_edgecolor("face")
    filled.set_rasterized(True)
    levels = contour_levels(shown.low, shown.high, log=shown.log)
    name = percent if "accuracy" in field else tick
    if levels.size:
        light = norm(levels) < 0.45
        lines = axes.contour(
            plane.a,
            plane.b,
            ground,
            levels=levels,
            colors=["#ffffff" if white else "#2a1f33" for white in light],
            linewidths=0.7,
            alpha=0.75,
        )
        places = _label_places(plane, ground, levels)
        if places:
            axes.clabel(lines, fmt=name, fontsize=7.5, inline_spacing=4, manual=places)
            for text in lines.labelTexts:
                text.set_alpha(1.0)
    if shown.missing:
        # The hatched ground shows through wherever no contour could be filled.
        axes.add_patch(
            Rectangle((0, 0), 1, 1, transform=axes.transAxes, facecolor="#eceef1",
                      edgecolor="#9aa1ab", hatch="/////", linewidth=0, zorder=0)
        )  # fmt: skip
    bar = figure.colorbar(filled, cax=side)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.yaxis.set_major_locator(FixedLocator(levels.tolist()))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: name(value)))
    if shown.clipped:
        bar.ax.set_title("≥", size=9, color=MUTED, pad=3)
    bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=2.5, width=0.8)
    bar.set_label(plain(field.replace("_", " "), limit=48), color=INK, size=9.5)
    return norm


SMALLEST = 0.06
"""Share of a side that a contour must span to carry a label."""


def _label_places(
    plane: Plane, ground: Float[np.ndarray, "B A"], levels: Float[np.ndarray, "K"]
) -> list[tuple[float, float]]:
    """For each contour level the spot farthest from paths, points, borders and other labels."""
    low = np.array([plane.a[0], plane.b[0]])
    span = np.array([np.ptp(plane.a), np.ptp(plane.b)])
    taken = [(path.coordinates - low) / span for path in plane.trajectories]
    taken += [((point - low) / span)[None] + np.array([[0, 0], [0.06, 0.02], [0.12, 0.02]])
              for point in plane.points.values()]  # fmt: skip
    generator = contour_generator(plane.a, plane.b, ground)
    places = []
    for level in levels:
        pieces = [(np.asarray(line) - low) / span for line in generator.lines(float(level))]
        # A ring smaller than its label would vanish below it.
        pieces = [piece for piece in pieces if np.ptp(piece, axis=0).max() > SMALLEST]
        if not pieces:
            continue
        spots = np.concatenate(pieces)
        room = np.minimum(spots, 1 - spots).min(axis=1) * 1.5
        for others in taken:
            room = np.minimum(room, _nearest(spots, others))
        best = int(np.argmax(room))
        if room[best] > 0.02:
            places.append(tuple((spots[best] * span + low).tolist()))
            taken.append(spots[best][None])
    return places


def _nearest(
    spots: Float[np.ndarray, "K 2"], others: Float[np.ndarray, "M 2"]
) -> Float[np.ndarray, "K"]:
    others = others[np.isfinite(others).all(axis=1)]
    if not len(others):
        return np.full(len(spots), np.inf)
    return np.sqrt(((spots[:, None] - others[None]) ** 2).sum(axis=-1)).min(axis=1)


def _paths(
    axes: Axes, plane: Plane, field: str, norm: Normalize, looks: Mapping[str, Style]
) -> None:
    for path in plane.trajectories:
        style = looks[optimizer_of(path.label, path.optimizer)]
        x, y = path.coordinates.T
        axes.plot(
            x,
            y,
            color=style.color,
            linestyle=style.dash,
            linewidth=1.8,
            path_effects=halo(3.4),
            zorder=4,
            solid_capstyle="round",
        )
        true_loss = field == "loss" and np.isfinite(path.loss).all()
        axes.scatter(
            x,
            y,
            s=17,
            c=color_map(field)(norm(np.ma.clip(path.loss, norm.vmin, norm.vmax)))
            if true_loss
            else PAPER,
            edgecolors=style.color,
            linewidths=0.9,
            zorder=5,
        )
        if len(x):
            axes.plot(x[0], y[0], "o", ms=8, mfc=PAPER, mec=style.color, mew=1.8, zorder=5)


def _points(axes: Axes, plane: Plane, looks: Mapping[str, Style]) -> None:
    """End points with their labels on the side away from the others."""
    marks = dict(plane.points)
    optimizers = optimizers_on(plane)
    for path in plane.trajectories:
        if path.label not in marks and len(path.coordinates):
            marks[path.label] = path.coordinates[-1]
    if not marks:
        return
    span = np.array([np.ptp(plane.a), np.ptp(plane.b)])
    middle = np.mean(list(marks.values()), axis=0)
    for label, point in marks.items():
        style = looks.get(optimizers[label])
        color = style.color if style else INK
        axes.plot(
            *point,
            marker=style.marker if style else "o",
            ms=9,
            mfc=color,
            mec="white",
            mew=1.5,
            zorder=6,
        )
        away = (point - middle) / span
        room = (np.array([plane.a[-1], plane.b[-1]]) - point) / span
        right = room[0] > 0.15 and (away[0] >= -1e-9 or point[0] - plane.a[0] < 0.15 * span[0])
        up = 6 if away[1] >= 0 else -12
        axes.annotate(
            plain(label, limit=32),
            (float(point[0]), float(point[1])),
            xytext=(8 if right else -8, up),
            textcoords="offset points",
            ha="left" if right else "right",
            size=8.5,
            weight="bold",
            color=INK,
            path_effects=halo(2.8),
            zorder=7,
            annotation_clip=True,
        )


def _frame(axes: Axes, plane: Plane) -> None:
    dress(axes, grid=False)
    axes.set_xlim(plane.a[0], plane.a[-1])
    axes.set_ylim(plane.b[0], plane.b[-1])
    axes.set_xlabel(_axis_label(plane, 0))
    axes.set_ylabel(_axis_label(plane, 1))
    aspect = true_to_scale(plane)
    if aspect is not None:
        axes.set_aspect(aspect)


def _axis_label(plane: Plane, which: int) -> str:
    norm = plane.direction_norms[which]
    unit = f"  (1 = distance {tick(float(f'{norm:.2g}'))})" if np.isfinite(norm) else ""
    return plain(plane.axis_names[which], limit=48) + unit


def _outside(plane: Plane) -> str:
    low, high = np.array([plane.a[0], plane.b[0]]), np.array([plane.a[-1], plane.b[-1]])
    outside = sum(
        int(((path.coordinates < low) | (path.coordinates > high)).any(axis=1).sum())
        for path in plane.trajectories
    )
    total = sum(len(path.coordinates) for path in plane.trajectories)
    return f"{outside} of {total} path points lie outside the picture" if outside else ""


def _strip(axes: Axes, plane: Plane, looks: Mapping[str, Style]) -> None:
    """How far each path runs off the plane, from its start to its end."""
    for path in plane.trajectories:
        style = looks[optimizer_of(path.label, path.optimizer)]
        along = np.linspace(0, 100, len(path.off_plane)) if len(path.off_plane) > 1 else [0.0]
        axes.plot(along, path.off_plane, color=style.color, linestyle=style.dash, linewidth=1.6)
    dress(axes)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    axes.set_title("distance from the plane along each path", loc="left", size=8, color=MUTED)
    axes.set_xlabel("% of the path", size=8.5)
