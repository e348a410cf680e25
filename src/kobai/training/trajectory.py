"""Parameter vectors along a run, for drawing its trajectory.

``snapshots/step_NNNNNN.safetensors`` holds θ (P,) as ``theta`` at an evaluation. When there are too
many, every second one is deleted and from there on half as many are taken, so that the spacing
stays even. ``snapshots/final.safetensors`` holds θ as the run returned it, where that is not the
last of them. A θ that is not finite (the run diverged) is left out.
"""

from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor

from kobai.problem import ParameterSpace
from kobai.results import atomic_write

FOLDER = "snapshots"
FINAL = "final.safetensors"


@final
class Snapshots:
    """Writes the snapshots of one run and thins them out.

    Args:
        folder: The run's checkpoint folder.
        space: Whose θ is written.
        limit: How many to keep at most, at least 2; 0 writes none.
    """

    def __init__(self, folder: Path, space: ParameterSpace, *, limit: int) -> None:
        self._folder = folder / FOLDER
        self._space = space
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept: list[int] = []

    def take(self, step: int) -> None:
        """Look at an evaluation; writes θ if it is one of the evenly spaced ones."""
        if self._limit == 0 or not self._is_finite():
            return
        if self._seen % self._stride == 0:
            self._write(self._name(step), step)
            self._kept.append(step)
            # One place is left for the end of the run.
            if len(self._kept) >= self._limit:
                self._stride *= 2
                for old in self._kept[1::2]:
                    (self._folder / self._name(old)).unlink(missing_ok=True)
                self._kept = self._kept[::2]
        self._seen += 1

    def finish(self, step: int) -> None:
        """Write θ as the run returns it, unless it is the last snapshot."""
        if self._limit == 0 or not self._is_finite():
            return
        if self._kept and self._kept[-1] == step:
            last = _read(self._folder / self._name(step))[1]
            if torch.equal(last, self._space.theta().cpu()):
                return
        self._write(FINAL, step)

    def state_dict(self) -> dict[str, Any]:
        """Which snapshots there are, and how far apart."""
        return {"stride": self._stride, "seen": self._seen, "kept": list(self._kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up again; later snapshots are deleted, the run takes them anew."""
        self._stride, self._seen = state["stride"], state["seen"]
        self._kept = list(state["kept"])
        self.clear(keep={self._name(step) for step in self._kept})

    def clear(self, *, keep: set[str] | None = None) -> None:
        """Delete snapshots that do not belong to the run."""
        for path in self._folder.glob("*.safetensors"):
            if path.name not in (keep or set()):
                path.unlink()

    def _is_finite(self) -> bool:
        return bool(torch.isfinite(self._space.theta()).all())

    @staticmethod
    def _name(step: int) -> str:
        return f"step_{step:06d}.safetensors"

    def _write(self, name: str, step: int) -> None:
        tensors = {"theta": self._space.theta().cpu(), "step": torch.tensor(step)}
        atomic_write(self._folder / name, safetensors.torch.save(tensors))


def snapshots(folder: Path | str) -> tuple[list[int], list[Tensor]]:
    """The parameter vectors a run left along its way, in order; the last one is its end.

    Args:
        folder: The run's checkpoint folder.

    Returns:
        Steps done at each snapshot, and θ (P,) at each, on the CPU. If early stopping went back to
        the best parameters, these come last, at the step the run ended.

    Raises:
        ValueError: If there are none, or a file is damaged.
    """
    where = Path(folder) / FOLDER
    read = [_read(path) for path in sorted(where.glob("step_*.safetensors"))]
    read.sort(key=lambda pair: pair[0])
    if (where / FINAL).exists():
        read.append(_read(where / FINAL))
    if not read:
        raise ValueError(
            f"{where} holds no snapshots; train with Checkpoint(folder, max_snapshots=50)"
        )
    return [step for step, _ in read], [theta for _, theta in read]


def _read(path: Path) -> tuple[int, Tensor]:
    try:
        tensors = safetensors.torch.load(path.read_bytes())
        return int(tensors["step"]), tensors["theta"]
    except Exception as error:
        raise ValueError(
            f"{path}: damaged or truncated snapshot ({type(error).__name__}); delete it"
        ) from None
