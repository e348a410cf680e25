"""Everything `kobai measure` found, as tables on a terminal; every number with its error."""

import math
from collections.abc import Sequence

from rich.table import Table

from kobai.cli.tables import spectrum_table
from kobai.results import CriticalRates, Ladder, SpectralDensity, Spectrum

FRESH = "fresh model"


def curvature_tables(
    results: Sequence[object],
) -> list[Table]:
    """One table a kind of curvature result, in the order of the flags; others are passed over."""
    spectra = [r for r in results if isinstance(r, Spectrum)]
    densities = [r for r in results if isinstance(r, SpectralDensity)]
    rates = [r for r in results if isinstance(r, CriticalRates)]
    ladders = [r for r in results if isinstance(r, Ladder)]
    tables = [spectrum_table(spectra)]
    if any(s.eigenvalues[0] < 0 for s in spectra if len(s.eigenvalues)):
        tables.append(_least(spectra))
    if rates:
        tables.append(_rates(rates))
    if densities:
        tables.append(_densities(densities))
    tables += [_ladder(ladder) for ladder in ladders]
    return tables


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title)
    for name in texts:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _least(spectra: Sequence[Spectrum]) -> Table:
    table = _table("lower end", ["point", "matrix"], ["least λ ± residual", "next"])
    for s in spectra:
        if len(s.eigenvalues):
            rest = " ".join(f"{v:.3g}" for v in s.eigenvalues[1:5] if v < 0)
            table.add_row(
                s.label or FRESH, s.matrix, f"{s.eigenvalues[0]:.5g} ± {s.residuals[0]:.1g}", rest
            )
    return table


def _rates(results: Sequence[CriticalRates]) -> Table:
    table = _table(
        "critical learning rates", ["point", "method", "rule"], ["η_c ± error", "λ_max ± error"]
    )
    table.add_column("status")
    for result in results:
        for rate in result.rates:
            table.add_row(
                result.label or FRESH,
                rate.method,
                rate.rule,
                f"{rate.value:.4g} ± {rate.error:.1g}",
                f"{rate.eigenvalue:.4g} ± {rate.eigenvalue_error:.1g}",
                rate.status,
            )
    if any("preconditioner" in rate.method for result in results for rate in result.rates):
        table.caption = f"preconditioners damped by {results[0].damping:g}"
    return table


def _densities(densities: Sequence[SpectralDensity]) -> Table:
    table = _table(
        "spectral density",
        ["point", "matrix", "block"],
        ["size", "probes × steps", "negative, % [95 %]", "resolved to, %", "outliers / classes"],
    )
    table.add_column("status")
    for d in densities:
        count, ratio = d.outliers
        apart = "–"
        if math.isfinite(ratio):
            apart = f"{count} (gap × {ratio:.2g})" + (f" / {d.classes}" if d.classes else "")
        table.add_row(
            d.label or FRESH,
            d.matrix,
            d.block or "whole",
            f"{d.dimension:,}",
            f"{d.num_probes} × {d.num_steps}",
            f"{100 * d.negative_fraction:.3g} [{100 * d.negative_low:.3g}, "
            f"{100 * d.negative_high:.3g}]",
            f"{100 * d.negative_bracket_low:.3g} to {100 * d.negative_bracket_high:.3g}",
            apart,
            d.status,
        )
    return table


def _ladder(ladder: Ladder) -> Table:
    table = _table(
        f"Fisher structures against the exact matrix, {ladder.label or FRESH}, "
        f"damping {ladder.damping:g}",
        ["structure"],
        ["Frobenius error", "cosine", "KL ratio", "memory, kB", "build, flop", "solve, flop"],
    )
    table.add_column("status")
    for rung in ladder.rungs:
        table.add_row(
            rung.structure,
            f"{rung.frobenius_error:.3g}",
            f"{rung.cosine:.4f}",
            f"{rung.kl_ratio:.3g}",
            f"{rung.memory / 1e3:,.1f}",
            f"{rung.build:.1e}",
            f"{rung.solve:.1e}",
            rung.status,
        )
    return table
