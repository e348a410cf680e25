"""Sections of the page about function space: the tangent kernel, and isotropy of structures."""

import math
from collections.abc import Mapping
from typing import Any

from kobai import plots
from kobai.plots import spell
from kobai.results import Isotropy, IsotropyTable, TangentSummary


def kernel_sections(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sections that a run folder's kernels ask for.

    Args:
        results: Name → result.

    Returns:
        Sections as keyword arguments of `kobai.report.exhibits.Exhibit`.
    """
    sections = []
    for name, result in results.items():
        if isinstance(result, TangentSummary):
            sections.append(_tangent(name, result))
        elif isinstance(result, IsotropyTable):
            sections.append(_isotropy(name, result))
    return sections


def _tangent(name: str, result: TangentSummary) -> dict[str, Any]:
    lead = (
        f"Inner products of output gradients of {result.examples} examples, "
        f"{result.outputs} outputs each. Each eigenvalue of Θ/N is the rate at which descent on a "
        "squared loss learns one direction."
    )
    if math.isfinite(result.alignment):
        lead += f" Alignment with the labels: {spell(result.alignment)}."
    if math.isfinite(result.residual_share):
        lead += (
            f" {100 * result.residual_share:.0f} % of the present residual lies in the fastest "
            "tenth of the directions."
        )
    drawable = len(result.eigenvalues) and result.eigenvalues.max() > 0
    figure = {(name, "Eigenvalues of the tangent kernel"): lambda: plots.tangent_spectrum(result)}
    return {
        "title": f"Tangent kernel: {result.label or 'fresh model'}",
        "lead": lead,
        "figures": figure if drawable else {},
        "heads": ("layer", "share of the trace"),
        "rows": [
            [layer, f"{100 * share:.1f} %"]
            for layer, share in zip(result.layers, result.layer_shares.tolist(), strict=True)
        ],
    }


def _isotropy(name: str, result: IsotropyTable) -> dict[str, Any]:
    answer = (
        f"The cheapest structure that moves all {result.directions} directions alike is "
        f"{result.cheapest}."
        if result.cheapest
        else "No structure moves all directions alike here."
    )
    drawable = any(math.isfinite(row.spread) for row in result.rows)
    figure = {(name, "Cost against isotropy"): lambda: plots.isotropy_cost(result)}
    return {
        "title": f"Isotropy of natural gradients: {result.label or 'fresh model'}",
        "lead": f"{answer} With K̄ = α I, training errors fall as (1 − ηα)ᵗ; η = 1/α is one step.",
        "figures": figure if drawable else {},
        "heads": ISOTROPY_HEADS,
        "words": ("remarks",),
        "rows": [isotropy_row(row) for row in result.rows],
    }


ISOTROPY_HEADS = ("structure", "α", "predicted", "spread", "η = 1/α", "multiplications", "remarks")


def isotropy_row(row: Isotropy) -> list[str]:
    """One structure as text, in the order of `ISOTROPY_HEADS`.

    Args:
        row: The structure.
    """
    remarks = [row.status] if row.status not in ("ok", "pseudo-inverse") else []
    return [
        row.structure, _number(row.alpha), _number(row.prediction), _number(row.spread),
        _number(row.learning_rate), _number(row.cost), "; ".join([*remarks, *row.reasons]) or "–",
    ]  # fmt: skip


def _number(value: float) -> str:
    return spell(value) if math.isfinite(value) else "–"
