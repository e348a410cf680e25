"""Rules about curvature and the landscape: sharp, saddle, barrier, shadow, gap."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from kobai.plots import spell, tick
from kobai.report.gather import Contents
from kobai.report.note import Note
from kobai.report.tables import last_value
from kobai.results import Plane, Spectrum


def sharpness(contents: Contents) -> Iterator[Note]:
    """Where did λ_max end, flattest against sharpest?"""
    rows = contents.comparison.rows if contents.comparison else ()
    known = [row for row in rows if row.lambda_max.mean > 0]
    if len(known) < 2:
        return
    flat = min(known, key=lambda row: row.lambda_max.mean)
    sharp = max(known, key=lambda row: row.lambda_max.mean)
    ratio = sharp.lambda_max.mean / flat.lambda_max.mean
    if ratio < 1.5:
        return
    yield Note(
        tone="plain",
        text=f"{flat.optimizer} ended where the loss curves least: λ_max = "
        f"{spell(flat.lambda_max.mean)} against {spell(sharp.lambda_max.mean)} for "
        f"{sharp.optimizer}. λ_max changes when parameters are rescaled; it is no measure of "
        "generalization by itself.",
        because=f"ratio {spell(ratio, 2)} (over 1.5)",
    )


def edge(contents: Contents) -> Iterator[Note]:
    """How far the last learning rate of plain SGD is from the limit of gradient descent."""
    rates = {history.label: history for history in contents.histories}
    shares = []
    for spectrum in contents.spectra:
        history = rates.get(spectrum.label)
        top = _extreme(spectrum, -1)
        if history is None or history.optimizer != "sgd" or spectrum.matrix != "hessian" or not top:
            continue
        rate = last_value(history.learning_rate)
        if rate > 0 and top[0] > 0:
            shares.append((rate * top[0] / 2, rate, top[0], spectrum.label))
    if not shares:
        return
    share, rate, top, label = max(shares)
    place = (
        "at the edge of stability" if share > 0.8 else "well inside the limit of gradient descent"
    )
    yield Note(
        tone="plain",
        text=f"{label} ended {place}: its learning rate {tick(rate)} is "
        f"{100 * share:.0f} % of 2 / λ_max = {spell(2 / top)}, above which full-batch gradient "
        "descent would leave.",
        because=f"lr · λ_max / 2 = {spell(share, 2)} (edge from 0.8)",
    )


def _extreme(spectrum: Spectrum, which: int) -> tuple[float, float] | None:
    good = np.isfinite(spectrum.eigenvalues)
    if not good.any():
        return None
    return float(spectrum.eigenvalues[good][which]), float(spectrum.residuals[good][which])


def negative_curvature(contents: Contents) -> Iterator[Note]:
    """Is an end point certainly no minimum?"""
    found = []
    hessians = [spectrum for spectrum in contents.spectra if spectrum.matrix == "hessian"]
    for spectrum in hessians:
        low, high = _extreme(spectrum, 0), _extreme(spectrum, -1)
        if low and high and low[0] < 0 and low[0] + low[1] < 0:
            found.append((low[0], low[1], high[0], spectrum.label or "the fresh model"))
    if not found:
        return
    value, error, high, label = min(found)
    share = f", {abs(value / high) * 100:.2g} % of λ_max" if high > 0 else ""
    yield Note(
        tone="plain",
        text=f"{len(found)} of {len(hessians)} end points still have directions of negative "
        f"curvature, strongest at {label}: λ = {spell(value)}{share}. They are no minima.",
        because=f"λ + residual = {spell(value + error)} (below 0)",
    )


def unsure_spectra(contents: Contents) -> Iterator[Note]:
    """Which eigenvalues must not be relied on?"""
    unsure = []
    for spectrum in contents.spectra:
        top = _extreme(spectrum, -1)
        if spectrum.status != "converged":
            unsure.append((math.inf, spectrum))
        elif top and top[1] > 0.05 * abs(top[0]):
            unsure.append((top[1] / abs(top[0]) if top[0] else math.inf, spectrum))
    if not unsure:
        return
    worst, spectrum = max(unsure, key=lambda pair: pair[0])
    reason = spectrum.status if math.isinf(worst) else f"residual {100 * worst:.0f} % of λ_max"
    yield Note(
        tone="warn",
        text=f"Do not rely on the eigenvalues of {spectrum.label} ({spectrum.matrix}): they have "
        "not converged."
        + (f" Nor have those of {len(unsure) - 1} more." if len(unsure) > 1 else ""),
        because=f"{reason} (converged, and at most 5 %)",
    )


def lowest_node(contents: Contents) -> Iterator[Note]:
    """Does a run end at the lowest node of the plane, up to one cell?"""
    for plane in contents.planes:
        loss = plane.fields.get("loss")
        if loss is None or not np.isfinite(loss).any():
            continue
        ends = _ends(plane)
        if not ends:
            continue
        i, j = np.unravel_index(int(np.nanargmin(_finite(loss))), loss.shape)
        lowest, place = float(loss[i, j]), np.array([plane.a[i], plane.b[j]])
        label, value = min(ends.items(), key=lambda item: item[1][1])
        cell = np.array(
            [np.ptp(plane.a) / (len(plane.a) - 1), np.ptp(plane.b) / (len(plane.b) - 1)]
        )
        if np.all(np.abs(place - value[0]) <= 1.001 * cell) or not lowest < 0.99 * value[1]:
            yield Note(
                tone="good",
                text=f"On “{plane.label}” no node of the grid is lower than the end of "
                f"{label} ({spell(value[1])}), up to one cell.",
                because=f"lowest node {spell(lowest)} at ({spell(place[0], 2)}, "
                f"{spell(place[1], 2)})",
            )
        else:
            yield Note(
                tone="plain",
                text=f"“{plane.label}” goes lower than any run did: {spell(lowest)} at "
                f"({spell(place[0], 2)}, {spell(place[1], 2)}) against {spell(value[1])} at the "
                f"end of {label}.",
                because=f"{100 * (1 - lowest / value[1]):.0f} % lower, more than one cell away "
                "(over 1 %)",
            )


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _ends(plane: Plane) -> dict[str, tuple[np.ndarray, float]]:
    """End points inside the plane with the loss there, read off the grid."""
    look_up = RegularGridInterpolator(
        (plane.a, plane.b), _finite(plane.fields["loss"]), bounds_error=False, fill_value=np.nan
    )
    places = {t.label: t.coordinates[-1] for t in plane.trajectories if len(t.coordinates)}
    places |= plane.points
    read = {label: (place, float(look_up(place)[0])) for label, place in places.items()}
    return {label: pair for label, pair in read.items() if math.isfinite(pair[1])}


def barriers(contents: Contents) -> Iterator[Note]:
    """The highest wall on the straight lines between end points of one plane."""
    for plane in contents.planes:
        if "loss" not in plane.fields:
            continue
        ends = _ends(plane)
        if len(ends) < 2:
            continue
        look_up = RegularGridInterpolator(
            (plane.a, plane.b), _finite(plane.fields["loss"]), bounds_error=False, fill_value=np.nan
        )
        walls = []
        for (one, (p, at_p)), (two, (q, at_q)) in itertools.combinations(ends.items(), 2):
            along = look_up(p + np.linspace(0, 1, 201)[:, None] * (q - p))
            if np.isfinite(along).all():
                walls.append((float(along.max()) - max(at_p, at_q), max(at_p, at_q), one, two))
        if not walls:
            continue
        height, ground, one, two = max(walls)
        if height > 0.1 * ground:
            yield Note(
                tone="plain",
                text=f"A barrier lies between {one} and {two}: on the straight line the loss "
                f"rises to {spell(height + ground)}, {spell(height)} above the higher end.",
                because=f"barrier {100 * height / ground:.0f} % of the higher end (over 10 %)"
                if ground > 0
                else f"barrier {spell(height)} (over 0)",
            )
        else:
            yield Note(
                tone="plain",
                text=f"No barrier on “{plane.label}”: on the straight lines between the end "
                "points the loss stays at or below the higher end.",
                because=f"highest wall {spell(max(height, 0.0), 2)}, ends up to {spell(ground)} "
                "(10 % allowed); read off the grid",
            )


def off_plane(contents: Contents) -> Iterator[Note]:
    """Do the paths run far off the plane they are drawn on?"""
    for plane in contents.planes:
        worst = []
        for path in plane.trajectories:
            if len(path.coordinates) < 2 or not np.isfinite(path.off_plane).any():
                continue
            across = np.ptp(path.coordinates, axis=0) * plane.direction_norms
            extent = float(np.hypot(*across))
            off = float(np.nanmax(path.off_plane))
            if extent > 0:
                worst.append((off / extent, off, extent, path.label))
        if worst and max(worst)[0] > 0.2:
            ratio, off, extent, label = max(worst)
            yield Note(
                tone="plain",
                text=f"Paths on “{plane.label}” are shadows: {label} runs up to {spell(off)} off "
                f"the plane while it spans {spell(extent)} in it. Trust the true losses, not the "
                "ground under the line.",
                because=f"distance / extent = {spell(ratio, 2)} (over 0.2)",
            )


def gaps(contents: Contents) -> Iterator[Note]:
    """Values that are not finite."""
    for plane in contents.planes:
        for name, values in plane.fields.items():
            missing = int((~np.isfinite(values)).sum())
            if missing:
                yield Note(
                    tone="warn",
                    text=f"On “{plane.label}” {missing:,} of {values.size:,} values of {name} are "
                    "not finite; they are shown as gaps.",
                    because=f"{100 * missing / values.size:.2g} % not finite (over 0)",
                )
