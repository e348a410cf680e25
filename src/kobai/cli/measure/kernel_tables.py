"""Tangent kernels and isotropy as tables on a terminal."""

from collections.abc import Sequence

from rich.table import Table

from kobai.plots import spell
from kobai.report import ISOTROPY_HEADS, isotropy_row
from kobai.results import IsotropyTable, TangentSummary


def kernel_tables(results: Sequence[object]) -> list[Table]:
    """One table of all tangent kernels, and one for each isotropy table; others are passed over."""
    summaries = [r for r in results if isinstance(r, TangentSummary)]
    tables = [_kernels(summaries)] if summaries else []
    return tables + [_isotropy(r) for r in results if isinstance(r, IsotropyTable)]


def _kernels(summaries: Sequence[TangentSummary]) -> Table:
    table = Table(title=f"tangent kernel Θ/N, {summaries[0].examples} examples")
    table.add_column("point")
    for name in ("λ_max", "λ_min", "2/λ_max", "label alignment", "residual in the fastest tenth"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for summary in summaries:
        values = summary.eigenvalues
        ends = (values[-1], values[0]) if len(values) else (float("nan"), float("nan"))
        numbers = (*ends, summary.learning_rate, summary.alignment, summary.residual_share)
        table.add_row(
            summary.label or "fresh model",
            *(spell(float(v)) if v == v else "–" for v in numbers),
            summary.status,
        )
    return table


def _isotropy(result: IsotropyTable) -> Table:
    table = Table(
        title=f"isotropy of natural gradients, {result.label or 'fresh model'}: "
        f"{result.examples} examples, damping {result.damping:g}"
    )
    for place, name in enumerate(ISOTROPY_HEADS):
        last = place == len(ISOTROPY_HEADS) - 1
        table.add_column(name, justify="left" if place == 0 or last else "right")
    for row in result.rows:
        table.add_row(*isotropy_row(row))
    table.caption = (
        f"the cheapest that moves all {result.directions} directions alike: {result.cheapest}"
        if result.cheapest
        else "no structure moves all directions alike here"
    )
    return table
