"""The numbers behind the interactive figures, as JSON that cannot break out of its page."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kobai.plots import (
    Style,
    accuracy_axis,
    by_optimizer,
    color_map,
    contour_levels,
    field_range,
    optimizer_of,
    optimizers_on,
    percent,
    seed_band,
    tick,
    viewpoint,
)
from kobai.report.gather import Contents
from kobai.results import History, Plane, Spectrum

_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
}
_SPLITS = ("train", "validation", "test")
_SINGLE = ("gradient_norm", "learning_rate")
_STEPS_SHOWN = 200


def payload(contents: Contents) -> dict[str, Any]:
    """Everything the page's script draws.

    Args:
        contents: The results of a run folder.

    Returns:
        Plain values for ``as_json``; numbers that are not finite are None.
    """
    styles = contents.styles
    return {
        "optimizers": {name: _style(style) for name, style in styles.items()},
        "order": contents.optimizers,
        "runs": [_run(history) for history in contents.histories],
        "bands": _bands(contents.histories),
        "accuracy": _accuracy(contents.histories),
        "planes": [_plane(plane) for plane in contents.planes],
        "spectra": [_spectrum(spectrum) for spectrum in contents.spectra],
        "maps": {name: _colors(name) for name in ("loss", "other")},
    }


def as_json(value: Any) -> str:
    """JSON for the inside of a script element: no character of it can end the element.

    Args:
        value: Plain values.

    Returns:
        The text; ``<``, ``>``, ``&`` and the two line separators of Unicode are escaped.

    Raises:
        ValueError: A number that JSON has no word for.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _style(style: Style) -> dict[str, str]:
    return {
        "label": style.label,
        "color": style.color,
        "dash": style.pattern,
        "symbol": _SYMBOLS.get(style.marker, "circle"),
    }


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _run(history: History) -> dict[str, Any]:
    columns = {
        name: _numbers(getattr(history, name))
        for name in [*(f"{s}_{q}" for q in ("loss", "accuracy") for s in _SPLITS), *_SINGLE]
        if np.isfinite(getattr(history, name)).any()
    }
    return {
        "label": history.label,
        "optimizer": history.optimizer,
        "status": history.status,
        "epoch": _numbers(history.epoch),
        "seconds": _numbers(history.seconds),
        "columns": columns,
        "steps": _steps(history),
    }


def _steps(history: History) -> dict[str, Any]:
    """Mini-batch losses, averaged in blocks so that a run has at most 200 points."""
    losses = history.step_loss
    block = max(1, math.ceil(len(losses) / _STEPS_SHOWN))
    if not len(losses):
        return {"block": 1, "step": [], "loss": []}
    pieces = [losses[i : i + block] for i in range(0, len(losses), block)]
    means = np.array([piece.mean() for piece in pieces])
    return {
        "block": block,
        "step": [min((i + 1) * block, len(losses)) for i in range(len(pieces))],
        "loss": _numbers(means),
    }


def _bands(histories: Sequence[History]) -> dict[str, dict[str, Any]]:
    bands: dict[str, dict[str, Any]] = {}
    columns = [*(f"{s}_{q}" for q in ("loss", "accuracy") for s in _SPLITS), *_SINGLE]
    for name, runs in by_optimizer(histories).items():
        bands[name] = {}
        for column in columns:
            band = seed_band(runs, column)
            if band is not None:
                bands[name][column] = {
                    "epoch": _numbers(band.epoch),
                    "seconds": _numbers(band.seconds),
                    "mean": _numbers(band.mean),
                    "sd": _numbers(band.sd),
                    "seeds": int(band.count.max()),
                }
    return bands


def _accuracy(histories: Sequence[History]) -> dict[str, Any] | None:
    """The bent accuracy axis, with its ticks, for every accuracy on the page."""
    if not histories:
        return None
    values = np.concatenate([getattr(h, f"{s}_accuracy") for h in histories for s in _SPLITS])
    axis = accuracy_axis(values)
    if axis is None:
        return None
    low = float(values[np.isfinite(values)].min())
    return {
        "floor": axis.floor,
        "ticks": [[value, percent(value)] for value in axis.ticks(low, 1.0)],
    }


def _plane(plane: Plane) -> dict[str, Any]:
    fields = {}
    for name, values in plane.fields.items():
        if np.isfinite(values).any():
            fields[name] = _field(name, values)
    optimizers = optimizers_on(plane)
    return {
        "label": plane.label,
        "a": _numbers(plane.a),
        "b": _numbers(plane.b),
        "axes": list(plane.axis_names),
        "norms": _numbers(plane.direction_norms),
        "fields": fields,
        "view": list(viewpoint(plane, next(iter(fields)))) if fields else None,
        "paths": [
            {
                "label": path.label,
                "optimizer": optimizers[path.label],
                "x": _numbers(path.coordinates[:, 0]),
                "y": _numbers(path.coordinates[:, 1]),
                "loss": _numbers(path.loss),
                "off": _numbers(path.off_plane),
            }
            for path in plane.trajectories
        ],
        "points": [
            {
                "label": label,
                "optimizer": optimizers[label],
                "x": _number(float(point[0])),
                "y": _number(float(point[1])),
            }
            for label, point in plane.points.items()
        ],
    }


def _field(name: str, values: np.ndarray) -> dict[str, Any]:
    shown = field_range(values)
    words = name.replace("_", " ")
    spelled = percent if "accuracy" in name else tick
    scales = {}
    for log in (False, True) if shown.low > 0 else (False,):
        levels = contour_levels(shown.low, shown.high, log=log, count=8)
        scales["log" if log else "linear"] = [[float(v), spelled(float(v))] for v in levels]
    return {
        "words": words,
        "map": "loss" if "loss" in name else "other",
        "percent": "accuracy" in name,
        "low": shown.low,
        "high": shown.high,
        "log": shown.log,
        "notes": shown.sentence(words, "gaps"),
        "ticks": scales,
        "values": base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode(),
    }


def _spectrum(spectrum: Spectrum) -> dict[str, Any]:
    good = np.isfinite(spectrum.eigenvalues)
    mean = spectrum.trace / spectrum.dimension
    return {
        "label": spectrum.label,
        "optimizer": optimizer_of(spectrum.label, spectrum.optimizer),
        "matrix": spectrum.matrix,
        "values": _numbers(spectrum.eigenvalues[good]),
        "errors": _numbers(spectrum.residuals[good]),
        "mean": _number(mean),
    }


def _colors(name: str) -> list[list[Any]]:
    """A colour map as Plotly takes it: 33 stops."""
    stops = np.linspace(0, 1, 33)
    colors = color_map(name)(stops)[:, :3]
    return [
        [round(float(stop), 4), "#" + "".join(f"{round(255 * float(c)):02x}" for c in color)]
        for stop, color in zip(stops, colors, strict=True)
    ]
