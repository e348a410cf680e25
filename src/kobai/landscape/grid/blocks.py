"""Values at many nodes, block by block: kept on disk, shared among processes, stopped at will."""

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch.distributed as dist
from jaxtyping import Bool, Float

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.backends.loop import Point
from kobai.results import atomic_write

BLOCK_SECONDS = 0.25
"""About how long a block takes: between two blocks progress is told and stopping is asked."""

STORED_SECONDS = 2.0
"""About how long a block takes that is written to disk."""

BLOCK_LIMIT = 1024
"""Most nodes in a block."""

Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


@final
class Crew:
    """The processes that share a grid: those of torch.distributed, or this one alone.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    def agree(self, value: Any) -> Any:
        """The value that the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box


@final
class Store:
    """Blocks of values in a folder, each in a file that is there whole or not at all.

    Args:
        folder: Where; made if missing.
        key: Identity of what is measured. A folder that holds values of something else is refused.
        record: What the first run decided; later runs get the first one's record.

    Attributes:
        record: The record in force.

    Raises:
        ValueError: If the folder belongs to another landscape.
    """

    def __init__(self, folder: Path, key: str, record: Callable[[], dict[str, Any]]) -> None:
        self.folder = folder
        plan = folder / "plan.json"
        if plan.is_file():
            try:
                there = json.loads(plan.read_text())
                known, kept = there["key"], there["record"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{plan}: damaged ({error}); delete the folder") from None
            if known != key:
                raise ValueError(
                    f"{folder} holds values of another landscape (other parameters, directions, "
                    "axes, fields or data); choose another folder or delete it"
                )
            self.record = kept
            return
        self.record = record()
        atomic_write(plan, json.dumps({"key": key, "record": self.record}, indent=1))

    def find(self, points: Sequence[Point], width: int) -> Float[np.ndarray, "K F"] | None:
        """Values of a block, or None if it is not there or damaged."""
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


@final
@dataclasses.dataclass(eq=False)
class Collector:
    """Measures nodes in blocks.

    With a store, blocks have a fixed size and are kept; those that are there are not measured
    again. With several processes, block i is measured by process i modulo their number, and all
    processes end with all values.

    Attributes:
        evaluator: What measures.
        total: Nodes there will be at most, for progress.
        progress: Called with (nodes done, nodes in all).
        stop: Asked between blocks.
        store: Where blocks are kept, or None.
        block: Nodes a block; 0: as many as take a quarter of a second.
        crew: The processes.
        done: Nodes so far.
        stopped: Whether any process was asked to stop.
    """

    evaluator: Evaluator
    total: int
    progress: Progress | None = None
    stop: Stop | None = None
    store: Store | None = None
    block: int = 0
    crew: Crew = dataclasses.field(default_factory=Crew)
    done: int = 0
    stopped: bool = False

    def measure(
        self, points: Sequence[Point]
    ) -> tuple[Float[np.ndarray, "K F"], Bool[np.ndarray, "K"]]:
        """Values at points, NaN where the sweep was stopped, and which were reached."""
        width = len(self.evaluator.fields)
        values = np.full((len(points), width), np.nan)
        reached = np.zeros(len(points), dtype=bool)
        size, position, turn = self.block or 1, 0, 0
        # Processes must cut blocks alike, so sizes that follow the clock are for one alone.
        adaptive = self.block == 0 and self.crew.size == 1
        if self.block == 0 and self.crew.size > 1:
            size = max(1, min(64, len(points) // (4 * self.crew.size)))
        while position < len(points):
            some = slice(position, min(position + size, len(points)))
            position, mine = some.stop, turn % self.crew.size == self.crew.rank
            turn += 1
            if not mine:
                continue
            if self.stop is not None and self.stop():
                self.stopped = True
                break
            block = points[some]
            found = None if self.store is None else self.store.find(block, width)
            if found is None:
                found, seconds = _timed(self.evaluator, block)
                if self.store is not None:
                    self.store.keep(block, found)
                if adaptive:
                    each = seconds / len(block)
                    # Small steps up, because the first node may be slow for reasons of its own.
                    size = max(1, min(8 * size, int(BLOCK_SECONDS / max(each, 1e-9)), BLOCK_LIMIT))
            values[some], reached[some] = found, True
            if self.progress is not None:
                # Of what the others have done by now, a process only knows that it is as much.
                here = self.done + int(reached.sum()) * self.crew.size
                self.progress(min(here, self.total), self.total)
        if self.crew.size > 1:
            parts = self.crew.gather((values, reached, self.stopped))
            for theirs, there, _ in parts:
                values[there] = theirs[there]
                reached |= there
            self.stopped = any(stopped for _, _, stopped in parts)
        self.done += int(reached.sum())
        return values, reached


def _timed(evaluator: Evaluator, points: Sequence[Point]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    values = evaluator.measure(points).numpy()
    return values, time.perf_counter() - start
