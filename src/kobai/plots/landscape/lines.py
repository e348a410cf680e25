"""Lines through the landscape: values with their bands, gaps and marked points."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import Range, contour_levels, field_range, percent, tick
from kobai.plots.style import HUES, INK, MUTED, dress, halo, plain
from kobai.results import Line

_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)))


def landscape_lines(
    lines: Line | Sequence[Line],
    field: str = "loss",
    *,
    splits: Sequence[str] = (),
    log: bool | None = None,
    clip: float | None = None,
) -> Figure:
    """A field along one or several lines, with a band of two standard errors to either side.

    A band is drawn for the loss where the line holds its standard error. Values that are not finite
    leave a gap, hatched and counted; clipping is stated; where a line is a spline through evaluated
    nodes, these are dots.

    Args:
        lines: One line or several with comparable coordinates.
        field: Which field.
        splits: Further splits to draw, such as ``("test",)``, dashed.
        log: Logarithmic or not; by ``field_range``'s rule when None.
        clip: Largest value shown; by ``field_range``'s rule when None.

    Returns:
        The figure.

    Raises:
        ValueError: There is no line, one has no such field, or nothing is finite.
    """
    lines = [lines] if isinstance(lines, Line) else list(lines)
    if not lines:
        raise ValueError("there is no line to draw")
    names = [field, *(f"{split}_{field}" for split in splits)]
    for line in lines:
        missing = [name for name in names if name not in line.fields]
        if missing:
            raise ValueError(
                f"the line {line.label!r} has no field {missing[0]!r}; it has "
                f"{', '.join(line.fields)}"
            )
    values = np.concatenate([line.fields[name] for line in lines for name in names])
    shown = field_range(values[None], log=log, clip=clip)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for k, line in enumerate(lines):
        color = HUES[k % len(HUES)]
        for dash, name in zip(_DASHES, names, strict=False):
            suffix = f" ({name.removesuffix(f'_{field}')})" if name != field else ""
            _line(axes, line, name, shown, color, dash, line.label + suffix)
        _gaps(axes, line, field)
        _marks(axes, line, field, shown, color)
    _scale(axes, field, shown)
    axes.set_xlim(min(line.a[0] for line in lines), max(line.a[-1] for line in lines))
    axes.set_xlabel(_axis_label(lines))
    axes.set_ylabel(plain(field.replace("_", " ")))
    if len(lines) * len(names) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    words = field.replace("_", " ")
    title = f"{words[:1].upper()}{words[1:]} along " + (
        f"a line · {lines[0].label}" if len(lines) == 1 else f"{len(lines)} lines"
    )
    axes.set_title(plain(title, limit=64), loc="left", size=11, weight="bold", color=INK, pad=22)
    notes = [shown.sentence(words, "hatched"), _band_note(lines, names), _dots_note(lines)]
    text = " · ".join(note for note in notes if note)
    if text:
        axes.text(0, 1.02, plain(text, limit=140), transform=axes.transAxes, size=8, color=MUTED)
    return figure


def _line(
    axes: Axes, line: Line, name: str, shown: Range, color: str, dash: object, label: str
) -> None:
    values = np.clip(line.fields[name], None, shown.high)
    values = np.where(np.isfinite(line.fields[name]), values, np.nan)
    axes.plot(
        line.a, values, color=color, linestyle=dash, linewidth=1.8, label=plain(label, limit=48),
        zorder=4,
    )  # fmt: skip
    errors = line.fields.get(_error_of(name))
    if errors is not None:
        low = np.maximum(values - 2 * errors, shown.low / 10 if shown.log else -np.inf)
        axes.fill_between(
            line.a, low, np.minimum(values + 2 * errors, shown.high), color=color, alpha=0.18,
            linewidth=0, zorder=2,
        )  # fmt: skip
    if "evaluated" in line.fields:
        there = line.fields["evaluated"] == 1
        axes.plot(line.a[there], values[there], ".", color=color, ms=4, zorder=5)


def _error_of(name: str) -> str:
    """The field with the standard error of a loss; a name that no field has for others."""
    if name != "loss" and not name.endswith("_loss"):
        return ""
    return name.removesuffix("loss") + "stderr"


def _gaps(axes: Axes, line: Line, field: str) -> None:
    """Hatch the cells around nodes whose value is not finite."""
    edges = np.concatenate([line.a[:1], (line.a[1:] + line.a[:-1]) / 2, line.a[-1:]])
    for k in np.flatnonzero(~np.isfinite(line.fields[field])):
        axes.axvspan(
            edges[k], edges[k + 1], facecolor="#eceef1", edgecolor="#9aa1ab", hatch="/////",
            linewidth=0, zorder=0,
        )  # fmt: skip


def _marks(axes: Axes, line: Line, field: str, shown: Range, color: str) -> None:
    for label, place in line.points.items():
        if not line.a[0] <= place <= line.a[-1]:
            continue
        height = float(np.interp(place, line.a, np.clip(line.fields[field], None, shown.high)))
        axes.plot(place, height, "o", ms=8, mfc=color, mec="white", mew=1.5, zorder=6)
        right = place < (line.a[0] + line.a[-1]) / 2
        axes.annotate(
            plain(label, limit=32), (place, height), xytext=(7 if right else -7, 9),
            textcoords="offset points", ha="left" if right else "right", size=8.5, weight="bold",
            color=INK, path_effects=halo(2.8), zorder=7,
        )  # fmt: skip


def _scale(axes: Axes, field: str, shown: Range) -> None:
    dress(axes)
    if shown.log:
        axes.set_yscale("log")
        axes.set_ylim(shown.low * 0.9, shown.high * 1.1)
        levels = contour_levels(shown.low * 0.9, shown.high * 1.1, log=True, count=7)
        axes.yaxis.set_major_locator(FixedLocator(levels.tolist()))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (shown.high - shown.low)
        axes.set_ylim(shown.low - margin, shown.high + margin)
    name = percent if "accuracy" in field else tick
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: name(float(f"{value:.6g}"))))


def _axis_label(lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(line.axis_name for line in lines))
    label = plain(" / ".join(names), limit=60)
    if len(lines) == 1 and np.isfinite(lines[0].direction_norm):
        label += f"  (1 = distance {tick(float(f'{lines[0].direction_norm:.2g}'))})"
    return label


def _band_note(lines: Sequence[Line], names: Sequence[str]) -> str:
    with_errors = any(_error_of(name) in line.fields for line in lines for name in names)
    return "band: ± 2 standard errors over examples" if with_errors else ""


def _dots_note(lines: Sequence[Line]) -> str:
    dotted = any("evaluated" in line.fields for line in lines)
    return "dots: evaluated, between them a spline" if dotted else ""
