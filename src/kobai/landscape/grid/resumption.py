"""Values kept in a folder, so that an interrupted surface goes on to the same bits."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from kobai.landscape.backends.passes import Point
from kobai.landscape.grid.fields import FieldEvaluator
from kobai.landscape.options import Settings
from kobai.landscape.processes import Processes
from kobai.results import atomic_write

PLAN = "plan.json"
"""The file with the identity of what is measured and what the first run decided."""

STORED_SECONDS = 2.0
"""About how long a block takes that is written to disk."""


def kept_record(folder: Path | str) -> dict[str, Any] | None:
    """Read what the first run in a folder decided, if there was one.

    Raises:
        ValueError: If the file is damaged.
    """
    kept = _read(Path(folder))
    return None if kept is None else kept["record"]


def _read(folder: Path) -> dict[str, Any] | None:
    plan = folder / PLAN
    if not plan.is_file():
        return None
    try:
        there = json.loads(plan.read_text())
        return {"key": there["key"], "record": there["record"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{plan}: damaged ({error}); delete the folder") from None


@final
class Store:
    """Blocks of values in a folder, each in a file that is there whole or not at all.

    Args:
        folder: Where; made if missing.
        key: Identity of what is measured. A folder that holds values of something else is refused.
        record: What the first run decides; later runs get the first one's record.

    Attributes:
        record: The record in force.

    Raises:
        ValueError: If the folder belongs to another landscape.
    """

    def __init__(self, folder: Path, key: str, record: dict[str, Any]) -> None:
        self.folder = folder
        kept = _read(folder)
        if kept is None:
            kept = {"key": key, "record": record}
            atomic_write(folder / PLAN, json.dumps(kept, indent=1))
        if kept["key"] != key:
            raise ValueError(
                f"{folder} holds values of another landscape (other parameters, directions, axes, "
                "fields or data); choose another folder or delete it"
            )
        self.record = kept["record"]

    @property
    def block(self) -> int:
        """Give the number of nodes per block, which the first run decided."""
        return int(self.record["block"])

    def find(self, points: Sequence[Point], width: int) -> Float[np.ndarray, "K F"] | None:
        """Read the values of a block, or None if it is not there or damaged."""
        try:
            data = self._file(points).read_bytes()
            values = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return values if values.shape == (len(points), width) else None

    def keep(self, points: Sequence[Point], values: Float[np.ndarray, "K F"]) -> None:
        """Write a block."""
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        atomic_write(self._file(points), buffer.getvalue())

    def _file(self, points: Sequence[Point]) -> Path:
        name = hashlib.sha256(np.asarray(points, dtype="<f8").tobytes()).hexdigest()[:24]
        return self.folder / f"{name}.npy"


def open_store(
    folder: Path,
    fields: FieldEvaluator,
    grid: Sequence[np.ndarray],
    settings: Settings,
    processes: Processes,
    each: float,
) -> Store:
    """Open a folder for the values of a grid.

    Args:
        folder: Where.
        fields: What is measured.
        grid: The coordinates.
        settings: How it is measured.
        processes: The first one writes the plan; the others read it.
        each: Seconds per node.
    """
    key, choice = _identity(fields, grid, settings), fields.choice
    count = int(np.prod([len(axis) for axis in grid]))

    record = {
        "candidate": None if choice.candidate is None else dataclasses.asdict(choice.candidate),
        "note": choice.note,
        "block": max(1, min(int(STORED_SECONDS / max(each, 1e-9)), 1024, count // 4)),
        "seconds_each": each,
        "nodes": count,
    }
    if processes.rank == 0:
        Store(folder, key, record)
    processes.agree(None)
    store = Store(folder, key, record)
    store.record = processes.agree(store.record)
    return store


def _identity(fields: FieldEvaluator, grid: Sequence[np.ndarray], settings: Settings) -> str:
    """Compute SHA-256 of all that the values depend on."""
    digest = hashlib.sha256()
    directions = fields.directions
    for array in (directions.origin, directions.vectors.T):
        digest.update(array.detach().cpu().contiguous().numpy().tobytes())
    for axis in grid:
        digest.update(np.ascontiguousarray(axis, dtype="<f8").tobytes() + b"|")
    digest.update(repr((fields.fields, settings.batchnorm, settings.precision)).encode())
    for label, buffers in sorted((settings.statistics or {}).items()):
        for name, value in sorted(buffers.items()):
            digest.update(f"{label}.{name}".encode() + value.cpu().numpy().tobytes())
    digest.update(fields.evaluator.identity().encode())
    for split, other in sorted((settings.splits or {}).items()):
        value = float(other.value(directions.origin)).hex()
        digest.update(f"{split}: {value}".encode())
    return digest.hexdigest()
