"""Save a run along its way and take it up again: its checkpoint and its snapshots."""

from typing import Any, final

import torch
from torch import nn

from kobai.problem import ParameterSpace
from kobai.training.checkpoint import Archive, Checkpoint, load_into
from kobai.training.epochs import EpochCounter, Timetable
from kobai.training.trajectory import Snapshots


@final
class RunFiles:
    """The files of one run; made before the run starts, so that a folder is refused early.

    Args:
        config: Where and how often the run is saved, and whether it may go on from there.
        space: The parameters, for snapshots.
        epochs: Counts in steps how often the run is saved.
        settings: What a resumed run must share with the saved one, by names users know.

    Raises:
        ValueError: If the folder holds another run, or cannot be written to.
    """

    def __init__(
        self,
        config: Checkpoint,
        space: ParameterSpace,
        epochs: EpochCounter,
        settings: dict[str, Any],
    ) -> None:
        self._settings = settings
        self._timetable = Timetable(epochs, every=config.every)
        self._resume = config.resume
        self._archive = Archive(config.folder)
        self._archive.claim(resume=config.resume)
        self.snapshots = Snapshots(self._archive.folder, space, limit=config.max_snapshots)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        return self._timetable.due(step)

    def write(self, model: nn.Module, step: int, state: dict[str, Any]) -> None:
        """Save a checkpoint."""
        state = {"settings": self._settings, "snapshots": self.snapshots.state_dict(), **state}
        self._archive.write(model, step, state)

    def finish(self, model: nn.Module, step: int) -> None:
        """Save the model as it is returned, and the end of its trajectory."""
        self.snapshots.finish(step)
        self._archive.finish(model)

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, longest: int
    ) -> dict[str, Any] | None:
        """Read the checkpoint that the run may go on from, and load its model and optimizer.

        Args:
            model: Written in place.
            optimizer: Written in place.
            longest: Steps of the run that is asked for.

        Returns:
            The state, or None for a run that begins; snapshots of an earlier one are then deleted.

        Raises:
            ValueError: If the checkpoint is damaged or does not fit.
        """
        found = self._archive.read() if self._resume else None
        if found is None:
            self.snapshots.clear()
            return None
        tensors, state = found
        folder, known = self._archive.folder, state["settings"]
        different = [k for k in self._settings if self._settings[k] != known.get(k)]
        if different:
            lines = [f"{k} was {known.get(k)}, is {self._settings[k]}" for k in different]
            raise ValueError(
                f"{folder} holds a run with other settings: {'; '.join(lines)}; give those of the "
                "saved run, or another folder"
            )
        if state["step"] > longest:
            raise ValueError(
                f"{folder} holds a run of {state['step']} steps, more than the {longest} "
                "asked for; a run can be made longer, not shorter"
            )
        load_into(model, tensors, where=folder / state["model"])
        try:
            optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ValueError(
                f"{folder}: the saved optimizer does not fit this one: {error}"
            ) from None
        return state

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on with the files of the run that was saved."""
        self.snapshots.load_state_dict(state["snapshots"])
        self._archive.reopen()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Read torch's global states, which a model with dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    """Set torch's global states to saved ones."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
