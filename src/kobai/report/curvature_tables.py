"""Densities, critical learning rates and the ladder of structures, as rows of text."""

import math
from collections.abc import Sequence

from kobai.plots import optimizer_of, spell
from kobai.report.tables import Cell, Table
from kobai.results import CriticalRates, Ladder, SpectralDensity

_GOOD = {"converged", "finished", "ok", "jittered"}


def _states(statuses: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """A column of statuses; none where all of them are good."""
    if all(status in _GOOD for status in statuses):
        return ()
    return tuple((status, "good" if status in _GOOD else "warn") for status in statuses)


def rates_table(results: Sequence[CriticalRates]) -> Table:
    """Critical learning rates, one row a method and point.

    Args:
        results: The rates of each point.

    Returns:
        The table: rate and eigenvalue with the bounds on their errors.
    """
    rows = [(result, rate) for result in results for rate in result.rates]
    return Table(
        heads=["method", "rule", "critical learning rate", "largest λ"],
        hints=["what stays at the point below the rate", "how the rate follows from λ_max",
               "± the error that follows from the eigenvalue's",
               "of the curvature matrix, or of P⁻¹H with a preconditioner P"],
        labels=[(r.label or "fresh model", optimizer_of(r.label, r.optimizer)) for r, _ in rows],
        rows=[
            [
                Cell(text=rate.method),
                Cell(text=rate.rule.replace("λ_max", "λₘₐₓ")),
                Cell(text=spell(rate.value), spread=spell(rate.error, 2)),
                Cell(text=spell(rate.eigenvalue), spread=spell(rate.eigenvalue_error, 2)),
            ]
            for _, rate in rows
        ],
        states=_states([rate.status for _, rate in rows]),
        words=("method", "rule"),
    )  # fmt: skip


def density_table(densities: Sequence[SpectralDensity]) -> Table:
    """What spectral densities count: negative eigenvalues and outliers.

    Args:
        densities: The densities.

    Returns:
        The table, one row a matrix or block.
    """
    rows = []
    for d in densities:
        count, ratio = d.outliers
        apart = f"{count}, gap × {spell(ratio, 2)}" if math.isfinite(ratio) else "–"
        rows.append(
            [
                Cell(text=f"{d.matrix}, {d.block}" if d.block else d.matrix),
                Cell(text=f"{d.dimension:,}"),
                Cell(text=spell(100 * d.negative_fraction)),
                Cell(text=f"{spell(100 * d.negative_low)} – {spell(100 * d.negative_high)}"),
                Cell(
                    text=f"{spell(100 * d.negative_bracket_low)} – "
                    f"{spell(100 * d.negative_bracket_high)}"
                ),
                Cell(text=apart),
                Cell(text=str(d.classes) if d.classes else "–"),
                Cell(text=f"{d.num_probes} × {d.num_steps}"),
            ]
        )
    return Table(
        heads=["matrix", "size", "negative, %", "95 % interval", "resolved to, %", "outliers",
               "classes", "probes × steps"],
        hints=["curvature matrix and layer", "number of eigenvalues",
               "share of eigenvalues below zero", "sampling interval over the probes",
               "what any spectrum with the same quadratures could have",
               "eigenvalues above the widest gap among those known one by one",
               "outputs of the network", "Lanczos runs and their length"],
        labels=[(d.label or "fresh model", optimizer_of(d.label, d.optimizer)) for d in densities],
        rows=rows,
        states=_states([d.status for d in densities]),
        words=("matrix",),
    )  # fmt: skip


def ladder_table(ladders: Sequence[Ladder]) -> Table:
    """Fisher structures against the exact matrix.

    Args:
        ladders: One a point.

    Returns:
        The table, one row a structure and point.
    """
    rows = [(ladder, rung) for ladder in ladders for rung in ladder.rungs]
    return Table(
        heads=["structure", "Frobenius error", "cosine", "KL ratio", "memory, kB", "build, flop",
               "solve, flop"],
        hints=["what is kept of the matrix", "‖M − F‖ / ‖F‖",
               "between damped natural gradients of the structure and of the exact matrix",
               "length of the step in the exact metric, over that of the exact step",
               "of the blocks kept", "beyond the backward passes", "of one factorisation"],
        labels=[(r.label or "fresh model", optimizer_of(r.label, r.optimizer)) for r, _ in rows],
        rows=[
            [
                Cell(text=rung.structure),
                Cell(text=spell(rung.frobenius_error)),
                Cell(text=f"{rung.cosine:.4f}".replace("-", "−")),
                Cell(text=spell(rung.kl_ratio)),
                Cell(text=f"{rung.memory / 1e3:,.1f}"),
                Cell(text=spell(rung.build, 2)),
                Cell(text=spell(rung.solve, 2)),
            ]
            for _, rung in rows
        ],
        states=_states([rung.status for _, rung in rows]),
        words=("structure",),
    )  # fmt: skip
