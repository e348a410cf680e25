"""Several planes side by side at equal scales: contours above, surfaces below."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.axes3d import Axes3D

from kobai.plots.landscape.contour import draw_contour, field_values, true_to_scale
from kobai.plots.landscape.surface import draw_surface, viewpoint
from kobai.plots.scales import Range, field_range
from kobai.plots.style import INK, MUTED, plain
from kobai.results import Plane

DECADES = 1e3
"""A common scale that spans more than this ratio is not logarithmic unless asked for."""


def landscape_panels(
    planes: Sequence[Plane],
    field: str = "loss",
    *,
    equal: bool = True,
    log: bool | None = None,
    clip: float | None = None,
    titles: Sequence[str] = (),
) -> Figure:
    """Contours and surfaces of several planes, one column each, with one scale of height.

    Side by side, surfaces can only be compared when a height means the same in all of them: unless
    ``equal`` is False, colours, contour levels and z-axes are shared, and the clip is that of all
    values together. All surfaces are seen from the same place.

    Args:
        planes: One to four planes that have the field.
        field: Which field.
        equal: Share the scale.
        log: Logarithmic or not; by ``field_range``'s rule when None.
        clip: Largest value shown; by ``field_range``'s rule when None.
        titles: One a plane; default: their labels.

    Returns:
        The figure.

    Raises:
        ValueError: Not one to four planes, a field is missing or nowhere finite, or the number of
            titles is another.
    """
    if not 1 <= len(planes) <= 4:
        raise ValueError(f"one to four planes fit side by side, got {len(planes)}")
    if titles and len(titles) != len(planes):
        raise ValueError(f"{len(planes)} planes need as many titles, got {len(titles)}")
    shown = _ranges(planes, field, equal, log, clip)
    width, height = 4.5, 7.2
    figure = Figure(figsize=(width * len(planes) + 0.2, height))
    size = figure.get_size_inches()
    elevation, azimuth = viewpoint(planes[0], field)
    for k, plane in enumerate(planes):
        left = width * k
        ratio = _side_ratio(plane)
        w = min(2.45, 2.45 / ratio)
        h = w * ratio

        def place(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
            return (x / size[0], y / size[1], w / size[0], h / size[1])

        axes = figure.add_axes(place(left + 0.95, height - 0.85 - h, w, h))
        bar = figure.add_axes(place(left + 1.05 + w, height - 0.85 - h, 0.1, h))
        draw_contour(figure, axes, bar, plane, field, shown[k])
        below = figure.add_axes(
            place(left + 0.1, 0.3, width - 0.45, 3.5), projection="3d", computed_zorder=False
        )
        assert isinstance(below, Axes3D)
        # Labels reach beyond the box, into that of the next panel.
        below.patch.set_alpha(0.0)
        draw_surface(
            below, plane, field, shown[k], elevation=elevation, azimuth=azimuth, legend=False
        )
        title = titles[k] if titles else plane.label or plane.kind
        figure.text(
            (left + 0.95) / size[0], 1 - 0.25 / height, plain(title, limit=40), size=11,
            weight="bold", color=INK, va="top",
        )  # fmt: skip
        note = shown[k].sentence(field.replace("_", " "), "hatched, holes")
        figure.text(
            (left + 0.95) / size[0], 1 - 0.5 / height, plain(note, limit=60), size=7.5, color=MUTED,
            va="top",
        )  # fmt: skip
    return figure


def _side_ratio(plane: Plane) -> float:
    aspect = true_to_scale(plane)
    if aspect is None:
        return 1.0
    return float(np.ptp(plane.b) / np.ptp(plane.a)) * aspect


def _ranges(
    planes: Sequence[Plane], field: str, equal: bool, log: bool | None, clip: float | None
) -> list[Range]:
    """How each panel is shown; the counts in it are the panel's own."""
    everything = [field_values(plane, field) for plane in planes]
    if not equal:
        return [field_range(values, log=log, clip=clip) for values in everything]
    stacked = np.concatenate([v.reshape(-1, 1) for v in everything])
    joint = field_range(stacked, log=log, clip=clip)
    if log is None and joint.log and joint.high > DECADES * joint.low:
        # A minimum of nearly zero would be a well without bottom beside the others.
        joint = field_range(stacked, log=False, clip=clip)
    ranges = []
    for values in everything:
        finite = values[np.isfinite(values)]
        ranges.append(
            Range(
                low=joint.low,
                high=joint.high,
                log=joint.log,
                clipped=int((finite > joint.high).sum()),
                missing=int(values.size - finite.size),
                largest=float(finite.max()) if finite.size else joint.high,
            )
        )
    return ranges
