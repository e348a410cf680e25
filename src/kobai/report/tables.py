"""Results as rows of text: digits that line up, best values marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kobai.plots import label_of, optimizer_of, spell
from kobai.results import Aggregate, Check, Comparison, History, Spectrum


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table.

    Attributes:
        text: The number.
        spread: Its spread, without the sign ±; empty when unknown.
        best: Whether it is the best of its column.
        hint: What to say about it on request; empty for nothing.
    """

    text: str
    spread: str = ""
    best: bool = False
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table ready to print.

    Attributes:
        heads: Column titles with their units.
        hints: What each column means.
        labels: Row label and its optimizer (for the colour; may be empty).
        rows: Cells, row by row.
        states: What to say about each row's end, with its tone (``good``, ``warn`` or ``bad``);
            empty when it is good and the same for all.
        common: What holds for all rows then.
        words: Titles of the columns that hold words; they are set flush left.
    """

    heads: Sequence[str]
    hints: Sequence[str]
    labels: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    states: Sequence[tuple[str, str]] = ()
    common: str = ""
    words: Sequence[str] = ()

    @property
    def spreads(self) -> list[bool]:
        """Whether a column has any spread, and so needs room for one."""
        return [any(row[i].spread for row in self.rows) for i in range(len(self.heads))]


@dataclass(frozen=True, kw_only=True)
class _Column:
    name: str
    head: str
    hint: str
    better: int  # -1: less is better, 1: more is better, 0: neither
    percent: bool = False


_COLUMNS = (
    _Column(name="test_accuracy", head="test accuracy, %", better=1, percent=True,
            hint="share of test examples predicted right at the end"),
    _Column(name="test_loss", head="test loss", better=-1,
            hint="mean negative log-likelihood of the test data at the end, in nats"),
    _Column(name="train_loss", head="training loss", better=-1,
            hint="mean negative log-likelihood of the training data at the end, in nats"),
    _Column(name="train_accuracy", head="training accuracy, %", better=1, percent=True,
            hint="share of training examples predicted right at the end"),
    _Column(name="seconds_per_epoch", head="s / epoch", better=-1,
            hint="training time of one pass over the data, without evaluation, in seconds"),
    _Column(name="steps_to_95", head="steps to 95 %", better=-1,
            hint="steps until 95 % of the best test accuracy of this comparison"),
    _Column(name="lambda_max", head="λ_max", better=0,
            hint="largest eigenvalue of the Hessian where the run ended"),
    _Column(name="trace", head="trace", better=0,
            hint="trace of the Hessian where the run ended"),
)  # fmt: skip


def comparison_table(comparison: Comparison) -> Table:
    """The table of a comparison; columns nobody measured are left out.

    Args:
        comparison: The comparison.

    Returns:
        The table: mean, sample standard deviation over seeds, best value marked.
    """
    columns = [
        column
        for column in _COLUMNS
        if any(getattr(row, column.name).count for row in comparison.rows)
    ]
    cells = [_aggregates(comparison, column) for column in columns]
    return Table(
        heads=[column.head for column in columns],
        hints=[column.hint for column in columns],
        labels=[(label_of(row), row.optimizer) for row in comparison.rows],
        rows=[[column[i] for column in cells] for i in range(len(comparison.rows))],
        **_shared([_state(row.seeds, row.statuses) for row in comparison.rows]),
    )


def _aggregates(comparison: Comparison, column: _Column) -> list[Cell]:
    scale = 100.0 if column.percent else 1.0
    numbers: list[Aggregate] = [getattr(row, column.name) for row in comparison.rows]
    means = [number.mean * scale for number in numbers]
    digits = 2 if column.percent else 0 if _whole(numbers) else decimals(means)
    known = [mean for mean in means if math.isfinite(mean)]
    best = (max(known) if column.better > 0 else min(known)) if column.better and known else None
    cells = []
    for row, number, mean in zip(comparison.rows, numbers, means, strict=True):
        short = number.count < row.seeds
        cells.append(
            Cell(
                text=fixed(mean, digits),
                spread=fixed(number.sd * scale, digits) if math.isfinite(number.sd) else "",
                best=best is not None and len(known) > 1 and mean == best,
                hint=f"{number.count} of {row.seeds} seeds" if short else "",
            )
        )
    return cells


def _whole(numbers: Sequence[Aggregate]) -> bool:
    """Whether all are counts that the seeds agree on, such as steps."""
    known = [number for number in numbers if number.count]
    return all(number.mean == round(number.mean) and not number.sd > 0 for number in known)


def decimals(values: Sequence[float]) -> int | None:
    """Decimals that give the least of the values three digits.

    Args:
        values: Numbers of one column; those that are not finite or 0 do not count.

    Returns:
        Between 0 and 6; None when the values span too much for one number of decimals.
    """
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    if not sizes:
        return 0
    if max(sizes) > 1e4 * min(sizes) or max(sizes) >= 1e7 or min(sizes) < 1e-4:
        return None
    return min(6, max(0, 2 - math.floor(math.log10(min(sizes)))))


def fixed(value: float, digits: int | None) -> str:
    """A number with so many decimals; with three significant digits when None.

    Args:
        value: The number.
        digits: Decimals.

    Returns:
        The text; ``–`` for NaN.
    """
    if digits is None or not math.isfinite(value):
        return spell(value)
    return f"{value:,.{digits}f}".replace("-", "−")


def _state(seeds: int, statuses: dict[str, int]) -> tuple[str, str]:
    plural = "seed" if seeds == 1 else "seeds"
    odd = {status: count for status, count in statuses.items() if status != "finished" and count}
    if not odd:
        return f"{seeds} {plural}", "good"
    tone = "bad" if "diverged" in odd else "warn"
    return f"{seeds} {plural}: " + ", ".join(f"{n} {status}" for status, n in odd.items()), tone


def _shared(states: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A column that says the same good thing in every row is said once."""
    if len(set(states)) == 1 and states[0][1] == "good":
        return {"states": (), "common": states[0][0]}
    return {"states": states, "common": ""}


def run_table(histories: Sequence[History]) -> Table:
    """One row a run, with the last value measured of everything.

    Args:
        histories: The runs.

    Returns:
        The table; columns nobody measured are left out.
    """
    columns = {
        "epoch": ("epochs", "passes over the training data"),
        "step": ("steps", "optimizer steps"),
        "seconds": ("time, s", "training time without evaluation, in seconds"),
        "train_loss": ("training loss", "last value measured"),
        "train_accuracy": ("training accuracy, %", "last value measured"),
        "validation_loss": ("validation loss", "last value measured"),
        "validation_accuracy": ("validation accuracy, %", "last value measured"),
        "test_loss": ("test loss", "last value measured"),
        "test_accuracy": ("test accuracy, %", "last value measured"),
        "gradient_norm": ("gradient norm", "Euclidean norm of the gradient, last value measured"),
    }
    kept, cells = [], []
    for name in columns:
        values = [last_value(getattr(history, name)) for history in histories]
        if not any(math.isfinite(value) for value in values):
            continue
        percent = "accuracy" in name
        values = [100 * value for value in values] if percent else values
        if name in {"epoch", "step"}:
            digits = 0 if all(value == round(value) for value in values) else 2
        else:
            digits = 2 if percent else decimals(values)
        kept.append(name)
        cells.append([Cell(text=fixed(value, digits)) for value in values])
    tones = {"finished": "good", "diverged": "bad"}
    return Table(
        heads=[columns[name][0] for name in kept],
        hints=[columns[name][1] for name in kept],
        labels=[(history.label, history.optimizer) for history in histories],
        rows=[[column[i] for column in cells] for i in range(len(histories))],
        **_shared(
            [
                (f"{h.status}: {h.note}" if h.note else h.status, tones.get(h.status, "warn"))
                for h in histories
            ]
        ),
    )


def last_value(column: np.ndarray) -> float:
    """The last finite value of a column; NaN when there is none."""
    good = column[np.isfinite(column)]
    return float(good[-1]) if good.size else float("nan")


def spectrum_table(spectra: Sequence[Spectrum]) -> Table:
    """Curvature where the runs ended.

    Args:
        spectra: The spectra.

    Returns:
        The table: extreme eigenvalues with their error bounds, trace, mean eigenvalue.
    """
    rows, states = [], []
    mixed = len({spectrum.matrix for spectrum in spectra}) > 1
    for spectrum in spectra:
        good = np.isfinite(spectrum.eigenvalues)
        values, errors = spectrum.eigenvalues[good], spectrum.residuals[good]
        ends = [
            Cell(text=spell(float(values[i])), spread=spell(float(errors[i]), 2))
            if len(values)
            else Cell(text="–")
            for i in (-1, 0)
        ]
        largest = float(values[-1]) if len(values) else float("nan")
        error = spectrum.trace_error
        rows.append(
            [
                *([Cell(text=spectrum.matrix)] if mixed else []),
                *ends,
                Cell(text=spell(2 / largest) if largest > 0 else "–"),
                Cell(
                    text=spell(spectrum.trace),
                    spread=spell(error, 2) if math.isfinite(error) else "",
                ),
                Cell(text=spell(spectrum.trace / spectrum.dimension)),
                Cell(text=spell(spectrum.loss)),
                Cell(text=spell(spectrum.gradient_norm)),
            ]
        )
        tone = "good" if spectrum.status == "converged" else "warn"
        states.append(
            (f"{spectrum.status}: {spectrum.note}" if spectrum.note else spectrum.status, tone)
        )
    return Table(
        heads=[*(["matrix"] if mixed else []), "largest λ", "least λ computed", "2 / λ_max",
               "trace", "trace / P", "loss", "gradient norm"],
        hints=[*(["curvature matrix"] if mixed else []), "± its residual, a bound on the error",
               "the least of the eigenvalues that were computed, ± its residual",
               "the learning rate above which plain gradient descent is unstable there",
               "± standard error", "mean of all eigenvalues", "objective at the point",
               "Euclidean norm of the gradient at the point"],
        labels=[(s.label or "fresh model", optimizer_of(s.label, s.optimizer)) for s in spectra],
        rows=rows,
        words=("matrix",),
        **_shared(states),
    )  # fmt: skip


def check_rows(checks: Sequence[tuple[str, Check]]) -> list[dict[str, str | bool]]:
    """Self-checks as text, failed ones first.

    Args:
        checks: What each belongs to, and the check.

    Returns:
        One dictionary a check: ``of``, ``name``, ``passed``, ``value``, ``tolerance``, ``detail``.
    """
    return [
        {
            "of": owner,
            "name": check.name,
            "passed": check.passed,
            "value": spell(check.value),
            "tolerance": spell(check.tolerance, 2),
            "detail": check.detail,
        }
        for owner, check in sorted(checks, key=lambda pair: pair[1].passed)
    ]
