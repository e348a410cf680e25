"""Showing a run while it goes on: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import Protocol, final, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LISTED = 12
"""With more runs than this the bars of finished ones make room."""


@runtime_checkable
class Progress(Protocol):
    """What `train` tells whoever watches it; one watcher may see several runs, one at a time."""

    def begin(self, label: str, *, step: int, total: int) -> None:
        """A run starts, or is taken up again after `step` of `total` steps."""

    def step(self, step: int, *, loss: float) -> None:
        """One optimizer step is done; called at every step, so it must be cheap."""

    def record(self, step: int, row: dict[str, float]) -> None:
        """The model was evaluated: columns of a `History` to their values."""

    def end(self, status: str, note: str) -> None:
        """The run is over, with the status and note of its `History`."""


@final
class ConsoleProgress:
    """Progress bars with the time left on a terminal; elsewhere one line every half minute.

    Use it as a context manager around the runs it is to show; nothing is printed for a step.

    Args:
        runs: How many runs will follow each other, for the time left in all.
        console: Where to write; default: standard error.
        interval: Seconds between lines where the console is no terminal.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self, runs: int = 1, *, console: Console | None = None, interval: float | int = 30.0
    ) -> None:
        if runs < 1 or not interval > 0:
            raise ValueError(
                f"runs and interval must be positive, got runs={runs}, interval={interval}"
            )
        self._runs = runs
        self._console = Console(stderr=True) if console is None else console
        self._interval = interval
        self._done = 0
        self._label = ""
        self._total = 1
        self._first_step = 0
        self._row: dict[str, float] = {}
        self._run_began = self._began = self._shown = time.monotonic()
        self._bars: RichProgress | None = None
        self._task: TaskID | None = None
        self._all: TaskID | None = None

    def __enter__(self) -> "ConsoleProgress":
        """Start showing."""
        self._began = self._shown = time.monotonic()
        if self._console.is_terminal:
            self._bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                speed_estimate_period=60.0,
            )
            self._bars.start()
            if self._runs > 1:
                self._all = self._bars.add_task("all runs", total=self._runs, said="")
        return self

    def __exit__(self, *error: object) -> None:
        """Stop showing."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def begin(self, label: str, *, step: int, total: int) -> None:
        """See `Progress.begin`."""
        self._label, self._total, self._first_step = label or "training", total, step
        self._row = {}
        self._run_began = time.monotonic()
        if self._bars is not None:
            self._task = self._bars.add_task(self._label, total=total, completed=step, said="")

    def step(self, step: int, *, loss: float) -> None:
        """See `Progress.step`."""
        now = time.monotonic()
        if now - self._shown < (0.1 if self._bars is not None else self._interval):
            return
        self._shown = now
        if self._bars is not None:
            if self._task is not None:
                self._bars.update(self._task, completed=step, said=self._describe(loss))
            if self._all is not None:
                self._bars.update(self._all, completed=self._done + step / self._total)
            return
        share = 100 * step / self._total
        where = f" (run {self._done + 1} of {self._runs})" if self._runs > 1 else ""
        # Past the console's own layout, which would break the line to its width.
        self._console.file.write(
            f"{self._label}{where}: step {step}/{self._total} ({share:.0f} %), "
            f"{self._describe(loss)}, {_duration(now - self._began)} so far, "
            f"about {_duration(self._left(step, now))} left\n"
        )
        self._console.file.flush()

    def record(self, step: int, row: dict[str, float]) -> None:
        """See `Progress.record`."""
        self._row = row

    def end(self, status: str, note: str) -> None:
        """See `Progress.end`."""
        self._done += 1
        if self._bars is not None:
            if self._task is not None:
                self._bars.update(self._task, said=self._describe(None, status))
                self._bars.stop_task(self._task)
                if self._runs > LISTED:
                    self._bars.remove_task(self._task)
                self._task = None
            if self._all is not None:
                self._bars.update(self._all, completed=self._done)

    def _left(self, step: int, now: float) -> float:
        """Seconds left in all: this run at its own pace, the others as long as it."""
        steps = max(step - self._first_step, 1)
        pace = (now - self._run_began) / steps
        others = self._runs - self._done - 1
        return pace * (self._total - step + others * self._total)

    def _describe(self, loss: float | None, status: str = "") -> str:
        said = [status] if status else []
        if loss is not None:
            said.append(f"loss {loss:.4g}")
        for name in ("validation_accuracy", "test_accuracy", "train_accuracy"):
            value = self._row.get(name, float("nan"))
            if value == value:
                said.append(f"{name.replace('_', ' ')} {100 * value:.1f} %")
                break
        return ", ".join(said)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
