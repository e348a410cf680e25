"""Checkpoints: a run on disk, from which it goes on to the same bits.

A folder belongs to one run and holds

- ``step_NNNNNN.safetensors``: the model (parameters and buffers) at the latest checkpoint;
- ``state.pt``: everything else at that step, loadable by ``torch.load(weights_only=True)``: the
  optimizer, the order of the examples, random states, the record, the watch of early stopping. It
  names its model file and carries that file's hash;
- ``model.safetensors``: the model as `train` returned it, once the run has ended;
- ``snapshots/``: see `kobai.training.trajectory`.

Every file is written whole or not at all, the model before the state that refers to it, and an old
checkpoint is deleted only when the new one is complete: at any moment there is one to go on from.
"""

import dataclasses
import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor, nn

from kobai.results import atomic_write

FORMAT = "kobai-checkpoint"
SCHEMA = 1
STATE = "state.pt"
MODEL = "model.safetensors"


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where and how often a run is saved, and whether it may go on from there.

    Attributes:
        folder: The run's own folder for checkpoints; made when missing.
        every: Epochs between checkpoints (fractions allowed); one more is written at the end.
        resume: Go on from the checkpoint in the folder, or start if there is none. Without it a
            folder that holds a checkpoint is refused.
        max_snapshots: At most so many parameter vectors are kept along the way, evenly spaced over
            the evaluations, and the last one besides; 0 keeps none.

    Raises:
        ValueError: If a number is out of its range.
    """

    folder: Path | str
    every: float | int = 1.0
    resume: bool = False
    max_snapshots: int = 50

    def __post_init__(self) -> None:
        if not (self.every > 0 and math.isfinite(self.every)):
            raise ValueError(f"every must be a positive number of epochs, got {self.every}")
        if self.max_snapshots < 0 or self.max_snapshots == 1:
            raise ValueError(
                f"max_snapshots must be 0 or at least 2, got {self.max_snapshots}: "
                "one point is no trajectory"
            )


@final
class Archive:
    """Reads and writes the checkpoint files of one run.

    Args:
        folder: The run's checkpoint folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._checked = False

    def claim(self, *, resume: bool) -> None:
        """Make sure, before any work is done, that a run may save itself here.

        Raises:
            ValueError: If the folder holds another run, or cannot be written to.
        """
        if not resume and (found := self._files()):
            raise ValueError(
                f"{self.folder} holds another run ({found[0].name}); pass "
                "Checkpoint(resume=True) to go on with it, choose another folder, or delete it"
            )
        probe = self.folder / ".writable"
        try:
            atomic_write(probe, b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"checkpoints cannot be written to {self.folder}: {error.strerror or error}; "
                "choose a folder that can be written to"
            ) from error

    def write(self, model: nn.Module, step: int, state: dict[str, Any]) -> None:
        """Save one checkpoint and delete the one before.

        Args:
            model: Saved with its buffers.
            step: Steps done; names the model file.
            state: Tensors, numbers, strings and containers of them.

        Raises:
            TypeError: If the state would not load again with ``weights_only=True``.
            OSError: If a file cannot be written; the checkpoint before is then intact.
        """
        packed = pack(model)
        name = f"step_{step:06d}.safetensors"
        buffer = io.BytesIO()
        torch.save(
            {
                "format": FORMAT,
                "schema": SCHEMA,
                "step": step,
                "model": name,
                "model_sha256": hashlib.sha256(packed).hexdigest(),
                **state,
            },
            buffer,
        )
        if not self._checked:
            # Better to fail at the first checkpoint than at the resumption that needs it.
            try:
                torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
            except Exception as error:
                raise TypeError(
                    "the run cannot be saved: its optimizer's state_dict() must hold only tensors, "
                    f"numbers, strings and containers of them ({_line(error)})"
                ) from error
            self._checked = True
        atomic_write(self.folder / name, packed)
        atomic_write(self.folder / STATE, buffer.getvalue())
        for path in self.folder.glob("step_*.safetensors"):
            if path.name != name:
                path.unlink()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The model and the state of the checkpoint, or None if there is none.

        Raises:
            ValueError: If files are damaged, truncated, missing or of a newer format.
        """
        path = self.folder / STATE
        if not path.exists():
            if found := self._files():
                raise ValueError(f"{found[0]}: a checkpoint without its {STATE}; {self._advice()}")
            return None
        state = self._read_state(path)
        where = self.folder / state["model"]
        try:
            packed = where.read_bytes()
        except OSError as error:
            raise ValueError(
                f"{where}: {error.strerror}, but {STATE} needs it; {self._advice()}"
            ) from None
        if hashlib.sha256(packed).hexdigest() != state["model_sha256"]:
            raise ValueError(
                f"{where}: damaged (not the file {STATE} was written with); {self._advice()}"
            )
        return safetensors.torch.load(packed), state

    def finish(self, model: nn.Module) -> None:
        """Save the model as it is returned."""
        atomic_write(self.folder / MODEL, pack(model))

    def reopen(self) -> None:
        """Forget the returned model: the run goes on."""
        (self.folder / MODEL).unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        names = [self.folder / STATE, self.folder / MODEL]
        return [*(p for p in names if p.exists()), *sorted(self.folder.glob("step_*.safetensors"))]

    def _advice(self) -> str:
        return f"restore the file, or delete {self.folder} to start afresh"

    def _read_state(self, path: Path) -> dict[str, Any]:
        try:
            raw = path.read_bytes()
            # torch does not compare the checksums its own files carry.
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged} does not match")
            state = torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
        except Exception as error:
            raise ValueError(
                f"{path}: damaged or truncated checkpoint ({_line(error)}); {self._advice()}"
            ) from None
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{path}: not a kobai checkpoint; {self._advice()}")
        if state["schema"] > SCHEMA:
            raise ValueError(
                f"{path}: written with schema {state['schema']}, this kobai reads up to {SCHEMA}; "
                "upgrade kobai"
            )
        return state


def pack(model: nn.Module) -> bytes:
    """Parameters and buffers of a module as safetensors; tied ones are stored under each name.

    Raises:
        TypeError: If the module keeps something else than tensors in its state.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} of the model's state is a {type(value).__name__}; only tensors can be "
                "saved as safetensors"
            )
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return safetensors.torch.save(tensors)


def load_into(model: nn.Module, tensors: dict[str, Tensor], *, where: Path | str) -> None:
    """Write saved parameters and buffers into a module.

    Raises:
        ValueError: If names or shapes are not the module's own.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    saved = {name: tuple(value.shape) for name, value in tensors.items()}
    if own != saved:
        different = sorted(k for k in own.keys() | saved.keys() if own.get(k) != saved.get(k))
        name = different[0]
        raise ValueError(
            f"{where}: saved from another model: {name} is {saved.get(name, 'absent')} there and "
            f"{own.get(name, 'absent')} in this one ({len(different)} such); build the model with "
            "the widths it was saved with"
        )
    model.load_state_dict(tensors)


def load_model(folder: Path | str, model: nn.Module) -> int:
    """Load the model a run returned, or its latest checkpoint if the run has not ended.

    Args:
        folder: The run's checkpoint folder.
        model: Built like the one that was trained; written in place.

    Returns:
        Steps done at the latest checkpoint.

    Raises:
        ValueError: If there is no checkpoint, it is damaged, or it fits another model.
    """
    archive = Archive(folder)
    read = archive.read()
    if read is None:
        raise ValueError(f"{archive.folder} holds no checkpoint")
    tensors, state = read
    where = archive.folder / MODEL
    if where.exists():
        try:
            tensors = safetensors.torch.load(where.read_bytes())
        except Exception as error:
            raise ValueError(f"{where}: damaged or truncated ({_line(error)})") from None
    load_into(model, tensors, where=where if where.exists() else archive.folder / state["model"])
    return int(state["step"])


def _line(error: BaseException) -> str:
    """The first sentence of an error on one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
