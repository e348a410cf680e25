"""Results as tables on a terminal, and as JSON for machines."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kobai import plots
from kobai.results import Aggregate, Comparison, Reproduction, Spectrum


def wide_console() -> Console:
    """Standard output as wide as the terminal; wide enough for our tables where it is none."""
    console = Console(emoji=False)
    return console if console.is_terminal else Console(emoji=False, width=170)


def comparison_table(comparison: Comparison) -> Table:
    """One row an optimizer, every number mean ± sample standard deviation over seeds."""
    table = Table(
        title=f"{comparison.title} · {comparison.model}, P = {comparison.parameters:,}",
        caption_justify="left",
    )
    table.add_column("optimizer")
    for name in ("train loss", "train acc %", "test loss", "test acc %", "s / epoch"):
        table.add_column(name, justify="right")
    for name in ("steps to 95 %", "λ_max", "trace", "seeds"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        ended = row.statuses.get("finished", 0) + row.statuses.get("early-stopped", 0)
        table.add_row(
            row.optimizer,
            spell(row.train_loss),
            spell(row.train_accuracy, scale=100),
            spell(row.test_loss),
            spell(row.test_accuracy, scale=100),
            spell(row.seconds_per_epoch),
            spell(row.steps_to_95),
            spell(row.lambda_max),
            spell(row.trace),
            f"{ended}/{row.seeds}",
        )
    if comparison.note:
        table.caption = comparison.note
    return table


def spell(value: Aggregate, *, scale: float | int = 1) -> str:
    """Mean ± sd with digits that the spread deserves; a dash where nothing was measured."""
    if value.count == 0 or not math.isfinite(value.mean):
        return "–"
    mean, sd = value.mean * scale, value.sd * scale
    spread = sd if math.isfinite(sd) and sd > 0 else abs(mean) / 100
    # Counts, such as steps, that all seeds agree on.
    exact = scale == 1 and not sd > 0 and mean == round(mean)
    if 0 < abs(mean) < 1e-4:
        return f"{mean:.2e} ± {sd:.1e}" if math.isfinite(sd) else f"{mean:.2e}"
    digits = 0 if spread == 0 or exact else min(max(1 - math.floor(math.log10(spread)), 0), 6)
    text = f"{mean:.{digits}f}"
    return f"{text} ± {sd:.{digits}f}" if math.isfinite(sd) else text


def spectrum_table(spectra: list[Spectrum]) -> Table:
    """Eigenvalues with residuals, trace with standard error, and the critical learning rate."""
    table = Table(title="curvature")
    table.add_column("point")
    table.add_column("matrix")
    for name in ("P", "loss", "‖gradient‖", "λ_max ± residual", "next", "trace ± se", "2/λ_max"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for s in spectra:
        values = s.eigenvalues[::-1]
        top = values[0] if len(values) else math.nan
        table.add_row(
            s.label or "fresh model",
            s.matrix,
            f"{s.dimension:,}",
            f"{s.loss:.4g}",
            f"{s.gradient_norm:.3g}",
            f"{top:.5g} ± {s.residuals[-1]:.1g}" if len(values) else "–",
            " ".join(f"{v:.3g}" for v in values[1:5]),
            f"{s.trace:.4g} ± {s.trace_error:.2g}",
            f"{2 / top:.4g}" if top > 0 else "–",
            s.status,
        )
    return table


def findings_table(summary: Reproduction) -> Table:
    """Measured, predicted and their ratio, one row a finding."""
    table = Table(title=f"{summary.title}: measured against predicted")
    for head in ("figure", "quantity"):
        table.add_column(head)
    for head in ("measured", "predicted", "ratio"):
        table.add_column(head, justify="right")
    figures = {claim.key: claim.figure for claim in summary.claims}
    for finding in summary.findings:
        error = f" ± {plots.spell(finding.error, 2)}" if finding.error == finding.error else ""
        table.add_row(
            figures.get(finding.claim, ""),
            finding.what,
            plots.spell(finding.measured) + error,
            plots.spell(finding.predicted) if finding.predicted == finding.predicted else "–",
            plots.spell(finding.ratio) if finding.ratio == finding.ratio else "–",
        )
    return table


def verdicts_table(summary: Reproduction) -> Table:
    """A verdict on every claim that was tested; the others are counted below."""
    table = Table(title="claims of the source", show_lines=True, caption_justify="left")
    rest = [v.claim for v in summary.verdicts if v.verdict == "not run"]
    if rest:
        table.caption = f"not run: {len(rest)} claims of other figures ({', '.join(rest)})"
    for head in ("claim", "where", "verdict", "because"):
        table.add_column(head)
    claims = {claim.key: claim for claim in summary.claims}
    for entry in summary.verdicts:
        if entry.verdict == "not run":
            continue
        stated = claims[entry.claim]
        table.add_row(stated.text, stated.where, entry.verdict, entry.because)
    return table


def to_json(value: Any) -> str:
    """Dataclasses, arrays and numbers as JSON; what is not finite becomes null."""
    return json.dumps(_plain(value), ensure_ascii=False, indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
