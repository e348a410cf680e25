"""The spectrum of a tangent kernel: how fast each direction of function space is learnt."""

import numpy as np
from matplotlib.figure import Figure

from kobai.plots.scales import spell
from kobai.plots.style import ACCENT, INK, MUTED, RULE, dress, plain
from kobai.results import TangentSummary


def tangent_spectrum(summary: TangentSummary) -> Figure:
    """Eigenvalues of Θ/N by rank, beside the layers' shares of the trace.

    Args:
        summary: The kernel.

    Returns:
        The figure.

    Raises:
        ValueError: If no eigenvalue is positive.
    """
    values = summary.eigenvalues[::-1]
    floor = 1e-12 * values.max() if len(values) else 0.0
    shown = values[values > floor]
    if not len(shown) or not np.isfinite(shown).all():
        raise ValueError("the kernel has no positive eigenvalue; nothing to draw")
    height = max(3.6, 0.26 * len(summary.layers) + 1.4)
    figure = Figure(figsize=(9.2, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    left.set_xscale("log")
    left.set_yscale("log")
    left.plot(
        np.arange(1, len(shown) + 1), shown, color=INK, lw=1.2, marker="o", ms=2.6,
        mfc=ACCENT, mec="none",
    )  # fmt: skip
    left.set_xlabel("rank")
    left.set_ylabel("eigenvalue of Θ/N")
    left.set_title(plain(summary.label or "tangent kernel"), loc="left", size=11, color=INK)
    rate = (
        f"  ·  2/λ_max = {spell(summary.learning_rate)}"
        if np.isfinite(summary.learning_rate)
        else ""
    )
    left.set_title(
        f"N = {summary.examples}, C = {summary.outputs}{rate}", loc="right", size=8.5, color=MUTED
    )
    dress(left)
    places = np.arange(len(summary.layers))[::-1]
    right.barh(places, 100 * summary.layer_shares, color=RULE, edgecolor=MUTED, lw=0.7, height=0.7)
    right.set_yticks(places, [plain(name, limit=24) for name in summary.layers])
    right.set_xlabel("share of the trace, %")
    dress(right, grid=False)
    return figure
