"""Record a run: rows along the way and the loss of every step."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch

from kobai.results import History

COLUMNS = (
    "epoch",
    "seconds",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "gradient_norm",
    "learning_rate",
    "batch_size",
)
"""The floating-point columns of a record."""


@final
class TrainingClock:
    """Seconds of training, with evaluation and saving left out.

    Args:
        device: Where the model computes; work queued there is waited for before the clock is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds += time.perf_counter() - begin


@final
class Recorder:
    """Collects rows and step losses and turns them into a `History`."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._rows: list[list[float]] = []
        self._losses: list[float] = []

    @property
    def is_empty(self) -> bool:
        """Whether there is no record yet."""
        return not self._rows

    @property
    def first_loss(self) -> float:
        """Minibatch loss of the very first step; NaN before it."""
        return self._losses[0] if self._losses else float("nan")

    def add_loss(self, loss: float) -> None:
        """Keep the minibatch loss of one step, measured before the step."""
        self._losses.append(loss)

    def add_row(self, step: int, values: dict[str, float]) -> None:
        """Keep one record.

        Args:
            step: Optimizer steps done.
            values: Column to value; a column left out is NaN.

        Raises:
            ValueError: If a column is unknown.
        """
        unknown = set(values) - set(COLUMNS)
        if unknown:
            raise ValueError(f"unknown columns {sorted(unknown)}; a record has {COLUMNS}")
        self._steps.append(step)
        self._rows.append([float(values.get(name, float("nan"))) for name in COLUMNS])

    def history(self, *, label: str, optimizer: str, seed: int, status: str, note: str) -> History:
        """Everything recorded so far as a result."""
        table = np.array(self._rows, dtype=np.float64).reshape(len(self._rows), len(COLUMNS))
        columns: dict[str, Any] = {name: table[:, i] for i, name in enumerate(COLUMNS)}
        return History(
            label=label,
            optimizer=optimizer,
            seed=seed,
            status=status,
            note=note,
            step=np.array(self._steps, dtype=np.int64),
            step_loss=np.array(self._losses, dtype=np.float64),
            **columns,
        )

    def state_dict(self) -> dict[str, Any]:
        """The record so far as tensors."""
        return {
            "columns": list(COLUMNS),
            "steps": torch.tensor(self._steps, dtype=torch.int64),
            "rows": torch.tensor(self._rows, dtype=torch.float64),
            "losses": torch.tensor(self._losses, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a record up again."""
        self._steps = state["steps"].tolist()
        self._rows = state["rows"].tolist()
        self._losses = state["losses"].tolist()
