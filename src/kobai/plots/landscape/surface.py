"""A plane of the landscape as a surface in three dimensions."""

from collections.abc import Mapping, Sequence

import numpy as np
from contourpy import contour_generator
from jaxtyping import Float
from matplotlib.colors import LightSource
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D

from kobai.plots.landscape.contour import (
    evaluated_note,
    field_values,
    headline,
    optimizers_on,
    plane_styles,
    true_to_scale,
)
from kobai.plots.landscape.occlusion import Relief, runs_of
from kobai.plots.scales import Range, contour_levels, field_range, percent, tick
from kobai.plots.style import (
    INK,
    MUTED,
    RULE,
    Style,
    color_map,
    halo,
    plain,
)
from kobai.results import Plane

_ELEVATIONS = (40.0, 52.0, 64.0)
_AZIMUTHS = (-58.0, -32.0, -122.0, -148.0, 32.0, 58.0, 122.0, 148.0)


def landscape_surface(
    plane: Plane,
    field: str = "loss",
    *,
    log: bool | None = None,
    clip: float | None = None,
    elevation: float | None = None,
    azimuth: float | None = None,
    styles: Mapping[str, Style] | None = None,
) -> Figure:
    """The field as a lit surface over the plane, with contour lines and the paths draped on it.

    A path is drawn at the height of the surface below or above it, not at the true loss of the
    run (the contour figure shows that one); where a hill hides it, it is thin and dotted. Where
    the field is not finite the surface has holes.

    Args:
        plane: The plane.
        field: Which of its fields.
        log: Logarithmic height or not; by ``field_range``'s rule when None.
        clip: Largest value shown; by ``field_range``'s rule when None.
        elevation: Height of the eye, in degrees; when None, the lowest of three from which the
            paths and points can be seen.
        azimuth: Direction of the eye around the vertical axis, in degrees; when None, the one of
            eight from which most of them can be seen.
        styles: Optimizer to style; by default from the runs on the plane.

    Returns:
        The figure.

    Raises:
        ValueError: The plane has no such field, or it has no finite value.
    """
    values = field_values(plane, field)
    shown = field_range(values, log=log, clip=clip)
    figure = Figure(figsize=(8.0, 6.0))
    axes = figure.add_axes((-0.01, 0.03, 1.0, 0.94), projection="3d", computed_zorder=False)
    assert isinstance(axes, Axes3D)
    draw_surface(axes, plane, field, shown, elevation=elevation, azimuth=azimuth, styles=styles)
    figure.text(0.025, 0.965, headline(plane, field), color=INK, size=11, weight="bold", va="top")
    notes = [shown.sentence(field.replace("_", " "), "holes"), evaluated_note(plane)]
    text = " · ".join(note for note in notes if note)
    if text:
        figure.text(0.025, 0.922, plain(text), color=MUTED, size=8.5, va="top")
    return figure


def draw_surface(
    axes: Axes3D,
    plane: Plane,
    field: str,
    shown: Range,
    *,
    elevation: float | None = None,
    azimuth: float | None = None,
    styles: Mapping[str, Style] | None = None,
    legend: bool = True,
) -> None:
    """Draw the surface of a field on given axes, with heights from the least to the largest shown.

    Args:
        axes: Made with ``computed_zorder=False``, as paths are sorted by what hides them.
        plane: The plane.
        field: Which of its fields.
        shown: The heights; several panels with the same one have the same scale.
        elevation: As for ``landscape_surface``.
        azimuth: As for ``landscape_surface``.
        styles: Optimizer to style; by default from the runs on the plane.
        legend: Whether to name the paths.
    """
    values = field_values(plane, field)
    looks = plane_styles(plane) if styles is None else styles
    relief = _relief(plane, _height(values, shown), _heights(shown))
    lines = _draped(plane, relief)
    elevation, azimuth = _best_view(
        relief,
        lines,
        _ELEVATIONS if elevation is None else (elevation,),
        _AZIMUTHS if azimuth is None else (azimuth,),
    )
    axes.set_proj_type("ortho")
    axes.view_init(elev=elevation, azim=azimuth)
    _ground(axes, relief, field, _heights(shown))
    levels = contour_levels(shown.low, shown.high, log=shown.log, count=8)
    marks = np.log10(levels) if shown.log else levels
    _level_lines(axes, relief, marks, elevation, azimuth)
    handles = _paths(axes, plane, relief, lines, looks, elevation, azimuth)
    if legend and handles:
        _legend(axes, handles)
    _frame(axes, plane, relief, field, (marks, levels))


def viewpoint(plane: Plane, field: str = "loss") -> tuple[float, float]:
    """Where to stand to see most of the paths and points on a surface.

    Args:
        plane: The plane.
        field: Which of its fields.

    Returns:
        Elevation and azimuth in degrees, those ``landscape_surface`` takes by itself.

    Raises:
        ValueError: The plane has no such field, or it has no finite value.
    """
    values = field_values(plane, field)
    shown = field_range(values)
    relief = _relief(plane, _height(values, shown), _heights(shown))
    return _best_view(relief, _draped(plane, relief), _ELEVATIONS, _AZIMUTHS)


def _height(values: Float[np.ndarray, "A B"], shown: Range) -> Float[np.ndarray, "A B"]:
    finite = np.isfinite(values)
    height = np.clip(np.where(finite, values, shown.high), None, shown.high)
    return np.where(finite, np.log10(height) if shown.log else height, np.nan)


def _heights(shown: Range) -> tuple[float, float]:
    """Least and largest height of a range."""
    ends = np.array([shown.low, shown.high])
    low, high = np.log10(ends) if shown.log else ends
    return float(low), float(high)


def _relief(plane: Plane, height: Float[np.ndarray, "A B"], heights: tuple[float, float]) -> Relief:
    """The field refined bilinearly to about 150 cells a side: light falls smoothly, values stay."""
    low, high = heights
    aspect = true_to_scale(plane)
    side = float(np.ptp(plane.b) / np.ptp(plane.a)) * aspect if aspect is not None else 1.0
    scale = 1.0 / max(1.0, side)
    coarse = Relief(
        a=plane.a,
        b=plane.b,
        height=height,
        box=(scale, side * scale, 0.52),
        bottom=low - 0.04 * max(high - low, 1e-12),
        top=high + 0.02 * max(high - low, 1e-12),
    )
    fine = []
    for nodes in (plane.a, plane.b):
        pieces = max(1, round(150 / (len(nodes) - 1)))
        where = np.arange((len(nodes) - 1) * pieces + 1) / pieces
        fine.append(np.interp(where, np.arange(len(nodes)), nodes))
    grid = np.stack(np.meshgrid(*fine, indexing="ij"), axis=-1)
    return Relief(
        a=fine[0],
        b=fine[1],
        height=coarse.at(grid.reshape(-1, 2)).reshape(grid.shape[:2]),
        box=coarse.box,
        bottom=coarse.bottom,
        top=coarse.top,
    )


def _draped(plane: Plane, relief: Relief) -> dict[str, Float[np.ndarray, "K 3"]]:
    """Paths and points at the height of the surface; straight pieces follow it."""
    lines = {}
    ends = dict(plane.points)
    for path in plane.trajectories:
        dense = path.coordinates
        if len(dense) > 1:
            whole = np.arange(len(dense))
            where = np.linspace(0, len(dense) - 1, (len(dense) - 1) * 16 + 1)
            dense = np.stack([np.interp(where, whole, column) for column in dense.T], axis=1)
        if len(dense):
            lines[path.label] = np.column_stack([dense, relief.at(dense)])
            ends.setdefault(path.label, path.coordinates[-1])
    for label, point in ends.items():
        lines[f"end {label}"] = np.column_stack([point[None], relief.at(point[None])])
    return lines


def _best_view(
    relief: Relief,
    lines: Mapping[str, Float[np.ndarray, "K 3"]],
    elevations: Sequence[float],
    azimuths: Sequence[float],
) -> tuple[float, float]:
    """The first viewpoint, low ones first, that shows as much as the best of all, within 3 %.

    An end point weighs as much as a whole path: a hidden end is the worst loss.
    """
    seen: dict[tuple[float, float], float] = {}
    for elevation in elevations:
        for azimuth in azimuths:
            shares = [
                relief.visible(
                    line[:: max(1, len(line) // 40)], elevation=elevation, azimuth=azimuth
                ).mean()
                for line in lines.values()
            ]
            seen[elevation, azimuth] = float(np.mean(shares)) if shares else 1.0
            if seen[elevation, azimuth] > 0.97:
                return elevation, azimuth
    best = max(seen.values())
    return next(view for view, share in seen.items() if share >= best - 0.03)


def _ground(axes: Axes3D, relief: Relief, field: str, heights: tuple[float, float]) -> None:
    """The surface, coloured by height, brightened and darkened by a light from the upper left."""
    span = relief.top - relief.bottom
    low, high = heights
    level = (relief.height - low) / max(high - low, 1e-12)
    colors = color_map(field)(np.ma.masked_invalid(level))
    flat = np.where(np.isfinite(level), level, np.nanmean(level))
    # Heights as drawn, against sides as drawn, so that the light is that of the picture.
    steps = [relief.box[i] / (n - 1) for i, n in enumerate(level.shape)]
    light = LightSource(azdeg=315, altdeg=48).hillshade(
        flat.T * relief.box[2] * (high - low) / span, dx=steps[0], dy=steps[1]
    )
    shade = 0.70 + 0.42 * light.T
    colors[..., :3] = np.clip(colors[..., :3] * shade[..., None], 0, 1)
    colors[..., 3] = np.isfinite(level)
    grid_a, grid_b = np.meshgrid(relief.a, relief.b, indexing="ij")
    points = np.stack([grid_a, grid_b, relief.height], axis=-1)
    # plot_surface would convert 20 000 colours one by one; a collection takes them as an array.
    corners = np.stack([points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]], axis=2)
    whole = np.isfinite(corners).all(axis=(2, 3))
    axes.add_collection3d(
        Poly3DCollection(
            corners[whole],
            facecolors=colors[:-1, :-1][whole],
            linewidths=0,
            antialiaseds=False,
            zorder=2,
            rasterized=True,
        ),
        autolim=False,
    )


def _level_lines(
    axes: Axes3D,
    relief: Relief,
    marks: Float[np.ndarray, "K"],
    elevation: float,
    azimuth: float,
) -> None:
    generator = contour_generator(relief.a, relief.b, np.ma.masked_invalid(relief.height.T))
    for mark in marks:
        for line in generator.lines(float(mark)):
            flat = np.asarray(line)
            points = np.column_stack([flat, np.full(len(flat), mark)])
            for piece in runs_of(relief.visible(points, elevation=elevation, azimuth=azimuth)):
                axes.plot(*points[piece].T, color="white", linewidth=0.8, alpha=0.55, zorder=3)


def _paths(
    axes: Axes3D,
    plane: Plane,
    relief: Relief,
    lines: Mapping[str, Float[np.ndarray, "K 3"]],
    looks: Mapping[str, Style],
    elevation: float,
    azimuth: float,
) -> list[Line2D]:
    lift = np.array([0.0, 0.0, 0.008 * (relief.top - relief.bottom)])
    optimizers = optimizers_on(plane)
    handles = []
    for label, line in lines.items():
        name = label.removeprefix("end ")
        style = looks.get(optimizers[name])
        color = style.color if style else INK
        seen = relief.visible(line, elevation=elevation, azimuth=azimuth)
        inside = np.isfinite(line[:, 2])
        if label.startswith("end "):
            if inside[0]:
                axes.plot(
                    *(line + lift).T,
                    marker=style.marker if style else "o",
                    ms=9,
                    mfc=color if seen[0] else "none",
                    mec="white" if seen[0] else color,
                    mew=1.6,
                    zorder=7,
                    linestyle="",
                )
            if name not in lines:
                handles.append(
                    Line2D([], [], color=color, marker=style.marker if style else "o", ms=7,
                           linestyle="", label=plain(name, limit=32))
                )  # fmt: skip
            continue
        for piece in runs_of(seen & inside):
            axes.plot(
                *(line[piece] + lift).T,
                color=color,
                linewidth=2.5,
                path_effects=halo(4.4),
                zorder=6,
                solid_capstyle="round",
            )
        for piece in runs_of(~seen & inside):
            axes.plot(
                *line[piece].T, color=color, linewidth=1.1, linestyle=":", alpha=0.8, zorder=5
            )
        handles.append(
            Line2D([], [], color=color, linewidth=2.5, label=plain(name, limit=32),
                   marker=style.marker if style else "o", ms=7, mec="white")
        )  # fmt: skip
    return handles


def _legend(axes: Axes3D, handles: list[Line2D]) -> None:
    axes.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(0.985, 0.985),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _frame(
    axes: Axes3D,
    plane: Plane,
    relief: Relief,
    field: str,
    ticks: tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]],
) -> None:
    axes.set_xlim(plane.a[0], plane.a[-1], view_margin=0)
    axes.set_ylim(plane.b[0], plane.b[-1], view_margin=0)
    axes.set_zlim(relief.bottom, relief.top, view_margin=0)
    axes.set_box_aspect(relief.box, zoom=0.92)  # type: ignore[arg-type]
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.975, 0.977, 0.982, 1.0))  # type: ignore[attr-defined]
        axis.line.set_color(RULE)  # type: ignore[attr-defined]
        # There is no public way to style the grid of three-dimensional axes.
        axis._axinfo["grid"].update(color="#e3e5ea", linewidth=0.6)  # type: ignore[attr-defined]
        axis._axinfo["tick"].update(inward_factor=0.0, outward_factor=0.12)  # type: ignore[attr-defined]
        axis.label.set(color=INK, size=9)
    axes.tick_params(colors=MUTED, labelsize=8, pad=1)
    axes.set_xlabel(plain(plane.axis_names[0], limit=48), labelpad=4)
    axes.set_ylabel(plain(plane.axis_names[1], limit=48), labelpad=4)
    axes.set_zlabel(plain(field.replace("_", " "), limit=32), labelpad=5)
    marks, levels = ticks
    name = percent if "accuracy" in field else tick
    spelled = {float(mark): name(float(level)) for mark, level in zip(marks, levels, strict=True)}
    axes.zaxis.set_major_locator(FixedLocator(marks.tolist()))
    axes.zaxis.set_major_formatter(FuncFormatter(lambda value, _: spelled.get(float(value), "")))
