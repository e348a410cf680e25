"""One training run, as it was recorded."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from kobai.results.fields import coerce_fields, one_of
from kobai.results.files import atomic_write
from kobai.results.look import Look
from kobai.results.registry import register

STATUSES = ("finished", "early-stopped", "diverged", "interrupted")

# The columns of a record that a run may leave unmeasured, in the order of the CSV file.
_MEASURED = (
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


def _nothing() -> np.ndarray:
    return np.empty(0)


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """One training run: T records along the way and the mini-batch loss of each of S steps.

    Losses are means over examples of the negative log-likelihood summed over outputs; accuracies
    are fractions in [0, 1]; NaN where something was not measured. A measured column that is left
    out is filled with NaN.

    Attributes:
        label: Name of the run, unique in its folder.
        optimizer: Name of the optimizer; runs that differ only by seed share it.
        seed: The seed of the run.
        status: ``finished``, ``early-stopped``, ``diverged`` or ``interrupted``.
        note: Anything worth saying about the end of the run.
        step: (T,) optimizer steps done at each record.
        epoch: (T,) passes over the training data done; fractions allowed.
        seconds: (T,) training time so far, without evaluation, in seconds.
        train_loss: (T,) loss on the training data.
        train_accuracy: (T,) accuracy on the training data.
        validation_loss: (T,) loss on the validation data.
        validation_accuracy: (T,) accuracy on the validation data.
        test_loss: (T,) loss on the test data.
        test_accuracy: (T,) accuracy on the test data.
        gradient_norm: (T,) Euclidean norm of the gradient of the training loss.
        learning_rate: (T,) learning rate in force.
        batch_size: (T,) examples a minibatch in force.
        step_loss: (S,) mini-batch loss of every step, before the step.
        look: Look of the optimizer in figures, or None.
    """

    label: str
    optimizer: str
    seed: int
    status: str
    note: str = ""
    step: Int[np.ndarray, "T"]
    epoch: Float[np.ndarray, "T"]
    seconds: Float[np.ndarray, "T"]
    train_loss: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    train_accuracy: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    validation_loss: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    validation_accuracy: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    test_loss: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    test_accuracy: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    gradient_norm: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    learning_rate: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    batch_size: Float[np.ndarray, "T"] = field(default_factory=_nothing)
    step_loss: Float[np.ndarray, "S"] = field(default_factory=_nothing)
    look: Look | None = None

    def __post_init__(self) -> None:
        records = np.size(self.step)
        for name in _MEASURED:
            if np.size(getattr(self, name)) == 0:
                object.__setattr__(self, name, np.full(records, np.nan))
        columns = dict.fromkeys(("epoch", "seconds", *_MEASURED), "f T")
        coerce_fields(
            self,
            arrays={"step": "i T", **columns, "step_loss": "f S"},
            integers=("seed",),
        )
        one_of(self, "status", STATUSES)


def history_to_csv(histories: Iterable[History], path: Path | str) -> Path:
    """Write the records of several runs as one CSV table, one row a record.

    The per-step losses are not in it (they have another length). Numbers are written with all
    their digits; a cell is empty where nothing was measured.

    Args:
        histories: The runs, in the order they shall appear.
        path: The file; replaced atomically.

    Returns:
        The path written.

    Raises:
        OSError: The file cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    columns = ("epoch", "seconds", *_MEASURED)
    writer.writerow(("label", "optimizer", "seed", "status", "step", *columns))
    for history in histories:
        head = (history.label, history.optimizer, history.seed, history.status)
        for index, step in enumerate(history.step.tolist()):
            values = (float(getattr(history, name)[index]) for name in columns)
            cells = ("" if math.isnan(value) else repr(value) for value in values)
            writer.writerow((*head, step, *cells))
    return atomic_write(path, stream.getvalue())
