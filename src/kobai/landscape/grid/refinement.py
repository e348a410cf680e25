"""Fewer nodes where a spline does as well: coarse first, refined where it errs, then verified.

Nodes are measured at the crossings of some rows and columns of the grid. A row that can be left out
and still be predicted needs no neighbour; where leaving it out errs by more than the tolerance
allows, rows are added on both sides. When no row or column asks for more, nodes that were not
measured are picked all over the grid and measured after all: their errors are the spline's own, and
are reported. Those that miss the tolerance add their row and column.
"""

import itertools
import time
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import make_interp_spline

from kobai.landscape.grid.blocks import Collector, GridValues, scattered_node
from kobai.landscape.grid.fields import positive_field

COARSE = 7
"""Nodes along each side of the first grid."""

GAIN = 8.0
"""A spline's error is so many times smaller with a row than without it.

Leaving a row out doubles the spacing there, which multiplies the error of a cubic spline by 16 on a
smooth function and by 4 or less on one with kinks; the verification corrects a wrong guess.
"""

VERIFIED = 12
"""Nodes measured to verify the spline, for each direction."""

SAFETY = 0.5
"""Nodes held out must be this much better than the tolerance, as worse ones lie between them."""

FLOOR = 1e-3
"""Errors of a loss are relative to its value, or to this share of its range if that is larger."""


class Refinement:
    """Fills a grid from as few nodes as a tolerance or a budget asks for.

    Args:
        axes: The coordinates.
        collector: Measures nodes. Of its settings, `tol` is the largest error of the losses at
            nodes that are not measured: relative, or absolute in units of `FLOOR` times the range
            where that is larger (None: as small as the budget allows); `budget` is in seconds
            (None: no limit).
        each: Seconds per node, by a first measurement.
        started: `time.perf_counter` when the budget began to run.
    """

    def __init__(
        self, axes: Sequence[np.ndarray], collector: Collector, each: float, started: float
    ) -> None:
        self.axes, self.collector = axes, collector
        self.tol, self.budget = collector.settings.tol, collector.settings.budget
        self.each, self.started = each, started
        self.shape = tuple(len(axis) for axis in axes)
        self.names = collector.fields
        self.judged = [k for k, name in enumerate(self.names) if positive_field(name)]
        self.values = np.full((*self.shape, len(self.names)), np.nan)
        self.known = np.zeros(self.shape, dtype=bool)
        self.kept = [
            np.unique(np.linspace(0, n - 1, min(n, COARSE)).round().astype(int)) for n in self.shape
        ]
        self.picked = 0

    def run(self) -> GridValues:
        """Refine until one of the reasons to stop holds."""
        errors: dict[str, float] = {}
        previous = [np.array([], dtype=int) for _ in self.shape]
        while True:
            wanted = list(itertools.product(*(rows.tolist() for rows in self.kept)))
            if not self._affordable(wanted):
                # The crossings of the rows before this round are all there.
                self.kept = previous if len(previous[0]) else self.kept
                return self._finish("budget", errors or self._verify(4)[0])
            if not self._measure(wanted):
                return self._finish("stopped", {})
            if not np.isfinite(self.values[np.ix_(*self.kept)][..., self.judged]).all():
                return self._exact("some nodes are not finite, so no spline was drawn")
            if self.known.all():
                return self._finish("exact", {})
            previous = list(self.kept)
            if self._add_rows():
                continue
            errors, failed = self._verify(VERIFIED * len(self.shape))
            if self.collector.stopped:
                return self._finish("stopped", {})
            if not failed:
                return self._finish("tolerance", errors)
            for k in range(len(self.shape)):
                self.kept[k] = np.union1d(self.kept[k], [index[k] for index in failed])

    def _affordable(self, wanted: list[tuple[int, ...]]) -> bool:
        if self.budget is None:
            return True
        new = sum(not self.known[index] for index in wanted) / self.collector.processes.size
        left = self.budget - (time.perf_counter() - self.started)
        # The first grid is always drawn: less would be no picture at all.
        answer = not self.known.any() or new * self.each <= left
        return self.collector.processes.agree(answer)

    def _measure(self, wanted: list[tuple[int, ...]]) -> bool:
        new = [index for index in wanted if not self.known[index]]
        if new:
            began = time.perf_counter()
            points = [
                tuple(float(axis[i]) for axis, i in zip(self.axes, index, strict=True))
                for index in new
            ]
            values, reached = self.collector.measure(points)
            places = tuple(np.array(new).T)
            self.values[places] = values
            self.known[places] = reached
            took = (time.perf_counter() - began) * self.collector.processes.size / len(new)
            self.each = max(0.5 * self.each, took)
        return not self.collector.stopped

    def _exact(self, why: str) -> GridValues:
        """Measure everything that is left, as far as the budget goes."""
        left = [tuple(index) for index in np.argwhere(~self.known).tolist()]
        if not self._affordable(left):
            return self._finish("budget", {}, f"; {why}")
        self._measure(left)
        return self._finish("stopped" if self.collector.stopped else "exact", {}, f"; {why}")

    def _add_rows(self) -> bool:
        """Add rows and columns in the gaps beside those that cannot be left out."""
        wishes: list[tuple[float, int, int]] = []
        for k, rows in enumerate(self.kept):
            error = self._errors_without(k) / GAIN
            for p, (low, high) in enumerate(itertools.pairwise(rows)):
                if high - low > 1:
                    wishes.append((max(error[p], error[p + 1]), k, (low + high) // 2))
        worst = max((wish[0] for wish in wishes), default=0.0)
        # Without a tolerance the worst half goes first, and the budget ends it.
        bound = self.tol if self.tol is not None else 0.5 * worst
        chosen = [(k, row) for error, k, row in wishes if error > bound or error == worst > bound]
        if self.tol is None and not chosen and wishes:
            chosen = [(k, row) for _, k, row in wishes]
        for k, row in chosen:
            self.kept[k] = np.union1d(self.kept[k], [row])
        return bool(chosen)

    def _errors_without(self, k: int) -> np.ndarray:
        """Find for each kept row of axis k the largest error of the spline through the others."""
        rows, x = self.kept[k], self.axes[k][self.kept[k]]
        block = np.moveaxis(self.values[np.ix_(*self.kept)][..., self.judged], k, 0)
        scale = self._scale(block, self.judged)
        worst = np.zeros(len(rows))
        if len(rows) < 3:
            return np.full(len(rows), np.inf)
        # Both ways are tried, and the better one will be taken.
        ways = (True, False) if (block > 0).all() else (False,)
        for p in range(1, len(rows) - 1):
            errors = [np.abs(_left_out(x, block, p, log) - block[p]) / scale[p] for log in ways]
            worst[p] = min(error.max() for error in errors)
        worst[0], worst[-1] = worst[1], worst[-2]
        return worst

    def _scale(self, values: np.ndarray, columns: Sequence[int]) -> np.ndarray:
        """Find the unit that errors of each field are measured in."""
        measured = self.values[self.known]
        scale = np.empty_like(values)
        for j, column in enumerate(columns):
            finite = measured[:, column][np.isfinite(measured[:, column])]
            span = float(np.ptp(finite)) if finite.size else 1.0
            if column in self.judged:
                scale[..., j] = np.maximum(np.abs(values[..., j]), FLOOR * span)
            else:
                scale[..., j] = span
        return np.maximum(scale, 1e-300)

    def _fill(self) -> np.ndarray:
        """Draw the spline through the crossings of kept rows, at all nodes."""
        core = self.values[np.ix_(*self.kept)]
        filled = np.empty_like(self.values)
        for f in range(core.shape[-1]):
            part = core[..., f]
            if not np.isfinite(part).all():
                filled[..., f] = np.nan
                continue
            log = f in self.judged and bool((part > 0).all()) and self._log_is_better(part)
            y = np.log(part) if log else part
            for k, rows in enumerate(self.kept):
                x = self.axes[k]
                y = np.moveaxis(_spline(x[rows], np.moveaxis(y, k, 0), x), 0, k)
            y = np.exp(y) if log else y
            if "accuracy" in self.names[f]:
                y = np.clip(y, 0.0, 1.0)
            filled[..., f] = y
        return filled

    def _log_is_better(self, part: np.ndarray) -> bool:
        """Tell whether splines through logarithms predict left-out rows better."""
        errors = [0.0, 0.0]
        for k, rows in enumerate(self.kept):
            x, block = self.axes[k][rows], np.moveaxis(part, k, 0)
            for p, log in itertools.product(range(1, len(rows) - 1), (False, True)):
                gap = (_left_out(x, block, p, log) - block[p]) / block[p]
                errors[log] = max(errors[log], float(np.abs(gap).max()))
        return errors[1] <= errors[0]

    def _verify(self, count: int) -> tuple[dict[str, float], list[tuple[int, ...]]]:
        """Measure some nodes that are left; return the errors there, and the nodes that miss."""
        picks: list[tuple[int, ...]] = []
        left = int((~self.known).sum())
        tries = 0
        while len(picks) < min(count, left) and tries < 100 * count:
            # The golden-ratio sequence goes on from where the last round ended.
            place = scattered_node(self.shape, self.picked)
            self.picked += 1
            tries += 1
            if not self.known[place] and place not in picks:
                picks.append(place)
        if not picks:
            return {}, []
        guess = self._fill()
        if not self._measure(picks):
            return {}, []
        errors = np.stack([np.abs(guess[p] - self.values[p]) for p in picks])
        measured = np.stack([self.values[p] for p in picks])
        errors /= self._scale(measured, range(len(self.names)))
        found = {name: float(errors[:, f].max()) for f, name in enumerate(self.names)}
        bound = np.inf if self.tol is None else SAFETY * self.tol
        failed = [
            p
            for p, row in zip(picks, errors[:, self.judged], strict=True)
            if not (row <= bound).all()
        ]
        return found, failed

    def _finish(self, reason: str, errors: dict[str, float], why: str = "") -> GridValues:
        complete = all(len(rows) > 1 for rows in self.kept) and bool(
            self.known[np.ix_(*self.kept)].all()
        )
        values = self.values
        if reason in ("tolerance", "budget") and complete and not why:
            values = np.where(self.known[..., None], self.values, self._fill())
        count = int(self.known.sum())
        note = f"{count} of {self.known.size} nodes evaluated"
        if count < self.known.size:
            note += {
                "tolerance": ", the others by a spline",
                "budget": " when the budget ended" + ("" if why else ", the others by a spline"),
                "stopped": " when it was stopped",
            }.get(reason, "")
        if errors:
            shown = ", ".join(f"{name} {100 * error:.2g} %" for name, error in errors.items())
            note += f"; largest error where the spline was verified: {shown}"
        shape = (self.known.size, len(self.names))
        return GridValues(
            axes=self.axes,
            names=self.names,
            values=values.reshape(shape),
            evaluated=self.known.reshape(-1),
            errors=errors,
            reason=reason,
            note=note + why,
        )


def _left_out(x: np.ndarray, block: np.ndarray, p: int, log: bool) -> np.ndarray:
    """Predict row p by the spline through the others, or through their logarithms."""
    others = np.delete(np.arange(len(x)), p)
    y = np.log(block[others]) if log else block[others]
    guess = _spline(x[others], y, x[p : p + 1])[0]
    return np.exp(guess) if log else guess


def _spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate along axis 0 by a spline, cubic where there are enough nodes."""
    return np.asarray(make_interp_spline(x, y, k=min(3, len(x) - 1))(at))
