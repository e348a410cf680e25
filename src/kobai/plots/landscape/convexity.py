"""Where a plane of the landscape is convex and where it is not."""

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter

from kobai.plots.landscape.contour import true_to_scale
from kobai.plots.style import INK, MUTED, dress, plain
from kobai.results import Plane


def convexity_map(plane: Plane) -> Figure:
    """The least eigenvalue of the Hessian over the largest in absolute value, at every node.

    One is a round bowl, 0 a valley, −1 a saddle or a cap whose strongest curvature is downwards
    (Li et al. 2018, §6, draw the absolute value for the Hessian of all parameters). Eigenvalues
    are those of all parameters where the plane holds them (``hessian_min``), else those of the
    Hessian restricted to the plane (``curvature_min``). A black line bounds the area that is not
    convex; its share is stated. Nodes without a value are hatched.

    Args:
        plane: A plane with the fields ``curvature_min`` and ``curvature_max``, or ``hessian_min``
            and ``hessian_max``.

    Returns:
        The figure.

    Raises:
        ValueError: The plane has no such fields.
    """
    kind = next((k for k in ("hessian", "curvature") if f"{k}_min" in plane.fields), None)
    if kind is None or f"{kind}_max" not in plane.fields:
        raise ValueError(
            "a convexity map needs the fields curvature_min and curvature_max (or hessian_min and "
            f"hessian_max); the plane {plane.label!r} has {', '.join(plane.fields)}"
        )
    low, high = plane.fields[f"{kind}_min"], plane.fields[f"{kind}_max"]
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.maximum(np.abs(low), np.abs(high))
        ratio = np.where(largest > 0, low / np.where(largest > 0, largest, 1.0), 0.0)
    ratio = np.where(np.isfinite(low) & np.isfinite(high), ratio, np.nan)
    if not np.isfinite(ratio).any():
        raise ValueError("no node has finite curvature; there is nothing to draw")
    figure = Figure(figsize=(6.6, 5.6), layout="constrained")
    axes = figure.add_subplot()
    # Symmetric about the bound of convexity; a mostly round plane still shows its range.
    norm = TwoSlopeNorm(0.0, -1.0, 1.0)
    ground = np.ma.masked_invalid(ratio).T
    mesh = axes.pcolormesh(
        plane.a, plane.b, ground, norm=norm, cmap="RdBu", shading="nearest", rasterized=True
    )
    if np.nanmin(ratio) < 0 < np.nanmax(ratio):
        axes.contour(plane.a, plane.b, ground, levels=[0.0], colors=[INK], linewidths=1.2)
    missing = int((~np.isfinite(ratio)).sum())
    if missing:
        axes.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=axes.transAxes, facecolor="#eceef1", edgecolor="#9aa1ab",
                hatch="/////", linewidth=0, zorder=0,
            )
        )  # fmt: skip
    axes.plot(0, 0, "+", color=INK, ms=9, mew=1.4)
    dress(axes, grid=False)
    aspect = true_to_scale(plane)
    if aspect is not None:
        axes.set_aspect(aspect)
    axes.set_xlabel(plain(plane.axis_names[0], limit=48))
    axes.set_ylabel(plain(plane.axis_names[1], limit=48))
    bar = figure.colorbar(mesh, ax=axes, shrink=0.9)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.yaxis.set_major_locator(FixedLocator([-1, -0.5, 0, 0.5, 1]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
    bar.ax.tick_params(colors=MUTED, labelsize=8.5, length=2.5, width=0.8)
    bar.set_label(r"$\lambda_{\min}\,/\,\max|\lambda|$", color=INK, size=9.5)
    where = "all parameters" if kind == "hessian" else "the plane"
    axes.set_title(
        plain(f"Convexity · {plane.label or plane.kind}", limit=64), loc="left", size=11,
        weight="bold", color=INK, pad=22,
    )  # fmt: skip
    share = 100 * float((ratio[np.isfinite(ratio)] < 0).mean())
    text = f"Hessian of {where} · {share:.3g} % of the nodes are not convex"
    if missing:
        text += f" · {missing} without a value (hatched)"
    axes.text(0, 1.02, text, transform=axes.transAxes, size=8, color=MUTED)
    return figure
