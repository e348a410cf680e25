"""Rules about runs: which optimizer is best, fast, lost or overfitting."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from kobai.plots import by_optimizer, seed_band, spell
from kobai.report.gather import Contents
from kobai.report.note import Note
from kobai.results import Aggregate, ComparisonRow


def points(fraction: float) -> str:
    """A fraction in percentage points: ``97.31``."""
    return f"{100 * fraction:.2f}".replace("-", "−")


def best_result(contents: Contents) -> Iterator[Note]:
    """Is the best optimizer better than the next by more than the seeds scatter?"""
    rows = contents.comparison.rows if contents.comparison else ()
    scored = [row for row in rows if math.isfinite(row.test_accuracy.mean)]
    by_accuracy = len(scored) > 1
    if not by_accuracy:
        scored = [row for row in rows if math.isfinite(row.test_loss.mean)]
    if len(scored) < 2:
        return
    sign = -1 if by_accuracy else 1
    score: Callable[[ComparisonRow], Aggregate] = (
        (lambda row: row.test_accuracy) if by_accuracy else (lambda row: row.test_loss)
    )
    first, second = sorted(scored, key=lambda row: sign * score(row).mean)[:2]
    one, two = score(first), score(second)
    gap = abs(one.mean - two.mean)
    what = "test accuracy" if by_accuracy else "test loss"
    show = (lambda x: f"{points(x)} %") if by_accuracy else spell
    difference = f"{points(gap)} points" if by_accuracy else spell(gap)
    if one.count < 2 or two.count < 2:
        yield Note(
            tone="plain",
            text=f"{first.optimizer} ends with the best {what}, {show(one.mean)} against "
            f"{show(two.mean)} for {second.optimizer}; with one seed nobody can say whether that "
            "would happen again.",
            because=f"difference {difference}; a spread needs at least 2 seeds",
        )
        return
    error = math.sqrt(one.sd**2 / one.count + two.sd**2 / two.count)
    ratio = gap / error if error > 0 else math.inf
    if ratio > 2:
        yield Note(
            tone="good",
            text=f"{first.optimizer} ends with the best {what}: {show(one.mean)} against "
            f"{show(two.mean)} for {second.optimizer}, the next.",
            because=f"difference {difference} = {spell(ratio, 2)} standard errors (over 2)",
        )
    else:
        yield Note(
            tone="plain",
            text=f"{first.optimizer} ({show(one.mean)}) and {second.optimizer} "
            f"({show(two.mean)}) cannot be told apart in {what}: seeds scatter as much as they "
            "differ.",
            because=f"difference {difference} = {spell(ratio, 2)} standard errors (2 or less)",
        )


def speed(contents: Contents) -> Iterator[Note]:
    """Who is fast in steps, and does it stay so in seconds?"""
    rows = contents.comparison.rows if contents.comparison else ()
    timed = [row for row in rows if row.steps_to_95.mean > 0]
    if len(timed) < 2:
        return
    ordered = sorted(timed, key=lambda row: row.steps_to_95.mean)
    fast, slow = ordered[0], ordered[-1]
    factor = slow.steps_to_95.mean / fast.steps_to_95.mean
    if factor < 1.2:
        return
    text = (
        f"{fast.optimizer} needs {fast.steps_to_95.mean:,.0f} steps to reach 95 % of the best "
        f"test accuracy, {slow.optimizer} {slow.steps_to_95.mean:,.0f}."
    )
    late = [row for row in rows if row.steps_to_95.count < row.seeds]
    if late:
        missed = ", ".join(
            f"{row.seeds - row.steps_to_95.count} of {row.seeds} with {row.optimizer}"
            for row in late
        )
        text += f" Not every run got there: {missed} did not, and do not count here."
    seconds = {row.optimizer: _seconds_to_95(contents, row) for row in timed}
    known = {name: value for name, value in seconds.items() if math.isfinite(value)}
    if len(known) > 1:
        first = min(known, key=lambda name: known[name])
        text += f" In training time {first} is first, after {spell(known[first], 2)} s"
        others = [f"{spell(known[n], 2)} s for {n}" for n in known if n != first]
        text += f" ({', '.join(others)})."
    yield Note(
        tone="plain", text=text, because=f"{spell(factor, 2)} times as many steps (over 1.2)"
    )


def _seconds_to_95(contents: Contents, row: ComparisonRow) -> float:
    runs = [h for h in contents.histories if h.optimizer == row.optimizer and len(h.step)]
    rates = [h.epoch[-1] / h.step[-1] for h in runs if h.step[-1] > 0]
    if not rates:
        return math.nan
    return row.steps_to_95.mean * float(np.mean(rates)) * row.seconds_per_epoch.mean


def diverged(contents: Contents) -> Iterator[Note]:
    """Runs that were lost or cut short."""
    lost = [history for history in contents.histories if history.status == "diverged"]
    if lost:
        names = ", ".join(history.label for history in lost)
        yield Note(
            tone="warn",
            text=f"{len(lost)} of {len(contents.histories)} runs diverged: {names}. They are kept, "
            "drawn dotted and left out of the means.",
            because=f"status diverged in {len(lost)} runs (over 0)",
        )
    stopped = [history for history in contents.histories if history.status == "interrupted"]
    if stopped:
        yield Note(
            tone="warn",
            text=f"{len(stopped)} of {len(contents.histories)} runs were interrupted; their "
            "numbers are those of the last record.",
            because=f"status interrupted in {len(stopped)} runs (over 0)",
        )


def overfitting(contents: Contents) -> Iterator[Note]:
    """Did the mean test loss rise again after its minimum?"""
    risen = []
    for name, runs in by_optimizer(contents.histories).items():
        band = seed_band(runs, "test_loss")
        if band is None or len(band.mean) < 3:
            continue
        low = int(np.argmin(band.mean))
        if band.mean[low] > 0 and band.mean[-1] > 1.05 * band.mean[low]:
            risen.append((band.mean[-1] / band.mean[low], name, band, low))
    if not risen:
        return
    ratio, name, band, low = max(risen, key=lambda item: item[0])
    others = [item[1] for item in risen if item[1] != name]
    also = f" So did that of {' and '.join(others)}." if others else ""
    yield Note(
        tone="plain",
        text=f"The test loss of {name} was lowest at epoch {band.epoch[low]:g} "
        f"({spell(float(band.mean[low]))}) and rose to {spell(float(band.mean[-1]))} at the end: "
        f"it overfits.{also}",
        because=f"rise of {100 * (ratio - 1):.0f} % over the minimum (over 5 %)",
    )
