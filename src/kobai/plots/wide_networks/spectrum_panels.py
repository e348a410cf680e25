"""Whole spectra as histograms on a logarithmic axis, predicted eigenvalues as red strokes."""

import numpy as np
from matplotlib.figure import Figure

from kobai.plots.style import HUES, INK, MUTED, dress, plain
from kobai.results import SpectrumPanels

_THEORY = "#e0142c"
_BINS = 44


def spectrum_panels(result: SpectrumPanels) -> Figure:
    """One histogram a matrix, on one axis of eigenvalues; the count is logarithmic.

    Args:
        result: The spectra.

    Returns:
        The figure.

    Raises:
        ValueError: If no eigenvalue is positive.
    """
    values = np.concatenate([v[v > 0] for v in result.eigenvalues.values()] or [np.empty(0)])
    if not values.size:
        raise ValueError("there is no positive eigenvalue; nothing to draw")
    # What lies a hundred million below the largest is rounding.
    low, high = max(values.min(), values.max() * 1e-7), values.max()
    edges = np.geomspace(low / 1.3, high * 1.5, _BINS + 1)
    names = list(result.eigenvalues)
    figure = Figure(figsize=(3.0 * len(names) + 0.3, 3.0), layout="constrained")
    grid = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    tallest = max(
        int(np.histogram(shown, bins=edges)[0].max()) for shown in result.eigenvalues.values()
    )
    for i, (name, axes) in enumerate(zip(names, grid, strict=True)):
        shown = result.eigenvalues[name]
        axes.hist(shown[shown >= low], bins=edges.tolist(), color=HUES[i % len(HUES)], alpha=0.85)
        axes.set(xscale="log", yscale="log")
        axes.set_ylim(0.6, tallest * 4)
        for value in result.predicted.get(name, ()):
            axes.axvline(value, ymax=0.14, color=_THEORY, linewidth=1.5)
        dress(axes)
        axes.set_title(plain(name), loc="left", size=10, color=INK, weight="bold")
        axes.set_xlabel("eigenvalue")
        note = result.notes.get(name)
        if note:
            axes.text(
                0.98, 0.97, plain(note), transform=axes.transAxes, ha="right", va="top", size=8,
                color=MUTED, wrap=True,
            )  # fmt: skip
    grid[0].set_ylabel("eigenvalues in a bin")
    figure.suptitle(
        plain(result.title + "  (red strokes: theory)"), x=0.01, ha="left", size=10.5, color=INK
    )
    return figure
