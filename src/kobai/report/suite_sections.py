"""The tables of a suite on the page: what each method reached within each budget."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kobai.plots import spell
from kobai.results import UNITS, BudgetTable


def suite_sections(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One section a budget, as keyword arguments of `kobai.report.exhibits.Exhibit`."""
    tables = [table for table in results.values() if isinstance(table, BudgetTable)]
    sections = []
    for table in sorted(tables, key=lambda t: UNITS.index(t.unit)):
        heads, rows = budget_rows(table)
        sections.append(
            {
                "title": f"Equal budgets: {table.budget:g} {table.unit}",
                "lead": f"Training loss when {table.budget:g} {table.unit} were spent, mean of "
                f"{table.loss.shape[-1]} seeds ± standard error, at the default learning rate and, "
                "after the arrow, at the best of the grid with its factor on the default. The best "
                f"mean of each problem is marked with ★. {table.note}".strip(),
                "figures": {},
                "heads": heads,
                "rows": rows,
            }
        )
    return sections


def budget_rows(table: BudgetTable) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows of a table of budgets: one row a method, one column a problem.

    Args:
        table: The table.

    Returns:
        Heads, and rows of cells such as "0.12 ± 0.01 → ×3: 0.08 ± 0.01 ★".
    """
    best = np.nanmin(table.loss.mean(axis=-1), axis=(0, 1))
    rows = []
    for i, method in enumerate(table.methods):
        row = [method]
        for j in range(len(table.problems)):
            default, tuned = (_cell(table.loss[i, k, j], float(best[j])) for k in (0, 1))
            factor = table.rate[i, j]
            row.append(default if factor == 1 else f"{default} → ×{factor:g}: {tuned}")
        rows.append(row)
    return ["method", *table.problems], rows


def _cell(losses: np.ndarray, best: float) -> str:
    lost = int((~np.isfinite(losses)).sum())
    if lost:
        return "diverged" if lost == len(losses) else f"diverged {lost}/{len(losses)}"
    mean = float(losses.mean())
    error = f" ± {spell(float(losses.std(ddof=1)) / math.sqrt(len(losses)), 1)}" if len(
        losses) > 1 else ""  # fmt: skip
    return f"{spell(mean, 2)}{error}{' ★' if mean <= best else ''}"
