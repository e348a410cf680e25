"""Draw the proof of a minimum: what was measured against what a minimum demands."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kobai.plots.scales import spell
from kobai.plots.style import ACCENT, HUES, INK, MUTED, dress, plain
from kobai.results import Check, MinimumProof

_TINY = 1e-300


def proof_panel(*proofs: MinimumProof) -> Figure:
    """What was measured at a point against what a minimum demands, one column a proof.

    Each bar is a condition: how far it is from its tolerance, in powers of ten. Left of the line it
    is met; a bar that reaches the left edge is zero to the last digit.

    Args:
        proofs: One to four.

    Returns:
        The figure.

    Raises:
        ValueError: Not one to four proofs.
    """
    if not 1 <= len(proofs) <= 4:
        raise ValueError(f"one to four proofs fit side by side, got {len(proofs)}")
    rows = max(len(proof.checks) for proof in proofs)
    figure = Figure(figsize=(4.3 * len(proofs) + 0.3, 0.62 * rows + 2.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr]
    reach = max(_decades(check) for proof in proofs for check in proof.checks)
    for axes, proof in zip(figure.subplots(1, len(proofs), squeeze=False)[0], proofs, strict=True):
        _bars(axes, proof, max(3.2, reach + 2.6))
    return figure


def _decades(check: Check) -> float:
    """Powers of ten by which a value exceeds its tolerance; negative where it is met."""
    if not math.isfinite(check.value):
        return 8.0
    low = max(check.tolerance, _TINY)
    return float(np.clip(math.log10(max(check.value, _TINY) / low), -8.0, 8.0))


def _bars(axes: Axes, proof: MinimumProof, right: float) -> None:
    for place, check in enumerate(reversed(proof.checks)):
        decades = _decades(check)
        color = HUES[3] if check.passed else ACCENT
        axes.barh(place, decades + 8, left=-8, height=0.5, color=color, alpha=0.9, zorder=2)
        name = f"{check.name}: {spell(check.value)}"
        axes.text(-7.9, place + 0.34, plain(name), size=8.5, color=INK, va="bottom")
        axes.text(
            max(0.0, decades) + 0.12, place, f"allowed {spell(check.tolerance, 2)}", size=7.5,
            color=MUTED, va="center", ha="left", zorder=3,
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1.0, zorder=3)
    axes.set_xlim(-8, right)
    axes.set_ylim(-0.5, len(proof.checks) - 0.1)
    axes.set_yticks([])
    axes.set_xticks([t for t in (-8, -6, -4, -2, 0, 2, 4, 6, 8) if t <= right])
    axes.set_xlabel("powers of ten above the tolerance")
    dress(axes, grid=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(plain(proof.label or proof.likelihood, limit=40), loc="left", size=10.5,
                   weight="bold", color=INK, pad=46)  # fmt: skip
    lines = [
        f"loss above its floor {spell(proof.loss)}, floor {spell(proof.floor)}",
        f"‖∇L‖ {spell(proof.gradient_norm)}; on the data's own labels "
        f"{spell(proof.original_gradient_norm)}",
    ]
    if math.isfinite(proof.eigenvalue_max):
        lines.append(f"λ from {spell(proof.eigenvalue_min)} to {spell(proof.eigenvalue_max)}")
    axes.text(
        0, 1.03, plain("\n".join(lines), limit=400) if len(lines) == 1 else "\n".join(lines),
        transform=axes.transAxes, size=8, color=MUTED, va="bottom", linespacing=1.3,
    )  # fmt: skip
