"""What each Fisher structure costs, and how far from isotropic it leaves the outputs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kobai.plots.scales import spell
from kobai.plots.style import ACCENT, INK, MUTED, RULE, dress, halo, plain
from kobai.results import Isotropy, IsotropyTable

_FLOOR = 1e-4
"""Spreads below this are drawn there: exact for every purpose."""


def isotropy_cost(table: IsotropyTable) -> Figure:
    """Cost against isotropy, one mark a structure; the cheapest isotropic one stands out.

    Left is cheap, below is as even as the exact natural gradient: ‖K̄ − α‖/‖α‖, with everything
    under 10⁻⁴ drawn at the foot. The shaded band is what counts as isotropic. A hollow mark belongs
    to a structure that theory does not expect to be isotropic on this network.

    Args:
        table: Structures measured on one network.

    Returns:
        The figure.

    Raises:
        ValueError: No structure could be formed.
    """
    rows = [row for row in table.rows if np.isfinite(row.spread) and np.isfinite(row.cost)]
    if not rows:
        raise ValueError("no structure of this table could be formed; nothing to draw")
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    spreads = np.clip([row.spread for row in rows], _FLOOR, None)
    costs = np.array([max(row.cost, 1.0) for row in rows])
    top = max(2.0, float(spreads.max()) * 2)
    axes.set_ylim(_FLOOR / 1.8, top)
    axes.set_xlim(costs.min() / 2.5, costs.max() * 4)
    axes.axhspan(_FLOOR / 1.8, table.tolerance, color=RULE, alpha=0.35, lw=0, zorder=0)
    axes.annotate(
        f"isotropic: spread ≤ {spell(table.tolerance)}", (0.995, table.tolerance),
        xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points",
        ha="right", va="top", size=8.5, color=MUTED,
    )  # fmt: skip
    for row, x, y in zip(rows, costs, spreads, strict=True):
        chosen = row.structure == table.cheapest
        color = ACCENT if chosen else INK
        axes.plot(
            x, y, marker="D" if chosen else "o", ms=9 if chosen else 7, mec=color, mew=1.3,
            mfc=color if row.expected or chosen else "white", linestyle="", zorder=3,
        )  # fmt: skip
    _names(axes, rows, costs, spreads, table.cheapest)
    axes.set_xlabel("multiplications to build and factorise")
    axes.set_ylabel("spread of the kernel, ‖K̄ − α‖ / ‖α‖")
    dress(axes)
    answer = (
        f"cheapest isotropic structure: {table.cheapest}"
        if table.cheapest
        else "no structure is isotropic here"
    )
    axes.set_title(
        plain(f"{table.label + ': ' if table.label else ''}{answer}"),
        loc="left",
        size=11,
        color=INK,
    )
    axes.set_title(
        f"N = {table.examples}, {table.directions} directions, damping {spell(table.damping)}",
        loc="right", size=8.5, color=MUTED,
    )  # fmt: skip
    return figure


def _names(
    axes: Axes, rows: list[Isotropy], costs: np.ndarray, spreads: np.ndarray, cheapest: str
) -> None:
    """Names beside the marks; of marks that lie close together, one above the other."""
    order = np.lexsort((spreads, costs))
    placed: list[tuple[float, float]] = []
    for i in order:
        x, y = float(np.log10(costs[i])), float(np.log10(spreads[i]))
        lift = 0
        while any(abs(x - a) < 0.75 and abs(y + 0.17 * lift - b) < 0.16 for a, b in placed):
            lift += 1
        placed.append((x, y + 0.17 * lift))
        row = rows[i]
        axes.annotate(
            f"{plain(row.structure)}  α = {spell(row.alpha)}", (costs[i], spreads[i]),
            xytext=(8, 10 + 13 * lift), textcoords="offset points", va="center", size=8.8,
            color=ACCENT if row.structure == cheapest else INK, path_effects=halo(2.5), zorder=4,
        )  # fmt: skip
