"""Plain sentences about a run, each made by a fixed rule and carrying the number behind it.

A rule looks at the contents and returns notes or nothing. It never guesses: below its threshold
it keeps silent or says that nothing can be told.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from kobai.plots import spell
from kobai.report import rules_geometry as geometry
from kobai.report import rules_runs as runs
from kobai.report.gather import Contents
from kobai.report.note import Note


def notes_on(contents: Contents) -> list[Note]:
    """Everything the rules have to say, warnings first.

    Args:
        contents: The results of a run folder.

    Returns:
        The notes; rules speak in a fixed order within a tone.
    """
    said = [note for rule in _RULES for note in rule(contents)]
    return sorted(said, key=lambda note: note.tone != "warn")


def _checks(contents: Contents) -> Iterator[Note]:
    failed = [(owner, check) for owner, check in contents.checks if not check.passed]
    for owner, check in failed:
        yield Note(
            tone="warn",
            text=f"The self-check “{check.name}” of “{owner}” failed"
            + (f": {check.detail}." if check.detail else "."),
            because=f"{spell(check.value)} (tolerance {spell(check.tolerance, 2)})",
        )
    if contents.checks and not failed:
        close = [(c.value / c.tolerance, c) for _, c in contents.checks if c.tolerance > 0]
        because = f"{len(contents.checks)} of {len(contents.checks)} passed"
        if close:
            ratio, check = max(close, key=lambda pair: pair[0])
            because += f"; closest to its limit: {check.name}, {100 * ratio:.2g} % of it"
        yield Note(tone="good", text="Every self-check passed.", because=because)


def _damaged(contents: Contents) -> Iterator[Note]:
    for name, reason in contents.damaged.items():
        yield Note(
            tone="warn",
            text=f"The result “{name}” could not be read and is not on this page.",
            because=reason,
        )


def winner(contents: Contents) -> tuple[str, str] | None:
    """Optimizer with the best mean test accuracy (loss without one) and the value in words.

    Args:
        contents: The results of a run folder.

    Returns:
        Name and text; None with fewer than two optimizers to choose from.
    """
    rows = contents.comparison.rows if contents.comparison else ()
    scored = [row for row in rows if math.isfinite(row.test_accuracy.mean)]
    if len(scored) > 1:
        best = max(scored, key=lambda row: row.test_accuracy.mean)
        return best.optimizer, f"{runs.points(best.test_accuracy.mean)} % test accuracy"
    scored = [row for row in rows if math.isfinite(row.test_loss.mean)]
    if len(scored) > 1:
        best = min(scored, key=lambda row: row.test_loss.mean)
        return best.optimizer, f"test loss {spell(best.test_loss.mean)}"
    return None


_RULES: Sequence[Callable[[Contents], Iterator[Note]]] = (
    _damaged,
    runs.diverged,
    geometry.unsure_spectra,
    geometry.gaps,
    runs.best_result,
    runs.speed,
    runs.overfitting,
    geometry.sharpness,
    geometry.edge,
    geometry.negative_curvature,
    geometry.barriers,
    geometry.lowest_node,
    geometry.off_plane,
    _checks,
)
