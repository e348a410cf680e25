"""Eigenvalues side by side: one row a run, errors as bars."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kobai.plots.scales import spell, tick
from kobai.plots.style import (
    INK,
    MUTED,
    RULE,
    Style,
    dress,
    halo,
    looks_of,
    optimizer_of,
    optimizer_styles,
    plain,
)
from kobai.results import Spectrum


def eigenvalues(
    spectra: Sequence[Spectrum], *, styles: Mapping[str, Style] | None = None
) -> Figure:
    """The computed eigenvalues of each run on a common axis, linear near 0 and logarithmic beyond.

    Each row is one spectrum: a mark for each eigenvalue, a bar of its residual to either side (an
    eigenvalue of the matrix is certain to lie within), and the largest spelled out. Left of 0
    lies negative curvature. A tick shows the mean of all P eigenvalues, trace / P.

    Args:
        spectra: What to compare; one panel for each kind of matrix.
        styles: Optimizer to style; by default from the optimizers present.

    Returns:
        The figure.

    Raises:
        ValueError: No spectrum has a finite eigenvalue.
    """
    spectra = [s for s in spectra if np.isfinite(s.eigenvalues).any()]
    if not spectra:
        raise ValueError("there is no spectrum with a finite eigenvalue; nothing to draw")
    names = [optimizer_of(spectrum.label, spectrum.optimizer) for spectrum in spectra]
    looks = optimizer_styles(names, looks_of(spectra)) if styles is None else styles
    panels: dict[str, list[Spectrum]] = {}
    for spectrum in spectra:
        panels.setdefault(spectrum.matrix, []).append(spectrum)
    heights = [len(rows) + 1.2 for rows in panels.values()]
    figure = Figure(figsize=(8.6, 0.42 * sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    threshold = _threshold(spectra)
    for axes, (matrix, rows) in zip(grid[:, 0], panels.items(), strict=True):
        axes.set_xscale("symlog", linthresh=threshold, linscale=0.6)
        _rows(axes, rows, looks)
        dress(axes, grid=False)
        axes.grid(True, axis="x", color=RULE, linewidth=0.6, alpha=0.7)
        axes.set_axisbelow(True)
        axes.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
        title = {"ggn": "Gauss–Newton", "hessian": "Hessian"}.get(matrix, matrix)
        axes.set_title(
            plain(f"{title[:32]}  ({rows[0].dimension:,} parameters)"),
            loc="left",
            size=10,
            color=INK,
            weight="bold",
        )
    _limits(grid[-1, 0], spectra, threshold)
    grid[-1, 0].set_xlabel("eigenvalue", color=INK, size=9.5)
    grid[0, 0].set_title(
        "bars: residuals      |  mean of all eigenvalues (trace / P)",
        loc="right",
        size=8,
        color=MUTED,
    )
    return figure


def _threshold(spectra: Sequence[Spectrum]) -> float:
    """Half-width of the linear middle: a hundredth of the largest eigenvalue, as a power of 10."""
    largest = max(
        float(np.nanmax(np.abs(s.eigenvalues[np.isfinite(s.eigenvalues)]))) for s in spectra
    )
    return 10.0 ** (np.floor(np.log10(largest)) - 2) if largest > 0 else 1.0


def _rows(axes: Axes, rows: Sequence[Spectrum], looks: Mapping[str, Style]) -> None:
    for height, spectrum in enumerate(reversed(rows)):
        style = looks[optimizer_of(spectrum.label, spectrum.optimizer)]
        good = np.isfinite(spectrum.eigenvalues)
        values, errors = spectrum.eigenvalues[good], spectrum.residuals[good]
        axes.axhline(height, color=RULE, linewidth=0.6, zorder=0)
        axes.errorbar(
            values,
            np.full(len(values), height),
            xerr=np.where(np.isfinite(errors), errors, 0.0),
            fmt="none",
            ecolor=style.color,
            elinewidth=1.4,
            capsize=3.2,
            capthick=1.1,
            alpha=0.9,
            zorder=2,
        )
        axes.plot(
            values,
            np.full(len(values), height),
            linestyle="",
            marker=style.marker,
            ms=6.2,
            mfc=style.color,
            mec="white",
            mew=0.8,
            zorder=3,
        )
        mean = spectrum.trace / spectrum.dimension
        if np.isfinite(mean):
            axes.plot(mean, height, "|", color=INK, ms=15, mew=1.3, zorder=4)
        axes.annotate(
            f"$\\lambda_{{\\max}}$ = {spell(float(values[-1]))}"
            + ("" if spectrum.status == "converged" else f"  ({plain(spectrum.status, limit=32)})"),
            (float(values[-1]), height),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=INK,
            path_effects=halo(2.5),
        )
    axes.set_yticks(range(len(rows)), [plain(s.label, limit=32) for s in reversed(rows)])
    axes.set_ylim(-0.7, len(rows) - 0.3)


def _limits(axes: Axes, spectra: Sequence[Spectrum], threshold: float) -> None:
    everything = np.concatenate([s.eigenvalues[np.isfinite(s.eigenvalues)] for s in spectra])
    low, high = float(everything.min()), float(everything.max())
    # Room on the right for the spelled-out number.
    axes.set_xlim(low * 2 if low < -threshold else -1.5 * threshold, max(high * 6, 1.5 * threshold))
    top = int(np.floor(np.log10(max(abs(low), abs(high), threshold))))
    first = round(np.log10(threshold))
    powers = [10.0**p for p in range(first, top + 1)]
    ticks = [-p for p in reversed(powers) if -p > low * 2] + [0.0] + powers
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
