"""Everything a run is made of, to a checkpoint and back."""

from typing import Any, final

import torch

from kobai.training.checkpoint import Archive, Checkpoint, load_into
from kobai.training.run import Run
from kobai.training.trajectory import Snapshots


@final
class Saved:
    """A run's place on disk; made before the run starts, it takes up what is saved there.

    Args:
        run: The run, not yet begun.
        config: Where it is saved, and whether it may go on from there.
        settings: What must be the same for that, by a name the user knows.

    Raises:
        ValueError: If the folder holds another run, a damaged checkpoint or one that does not fit.
    """

    def __init__(self, run: Run, config: Checkpoint, settings: dict[str, Any]) -> None:
        self._run = run
        self._settings = settings
        self._archive = Archive(config.folder)
        self._archive.claim(resume=config.resume)
        read = self._archive.read() if config.resume else None
        self._snapshots = Snapshots(
            self._archive.folder, run.problem.space, limit=config.max_snapshots
        )
        if read is None:
            self._snapshots.clear()
        else:
            self._take_up(*read)

    def recorded(self) -> None:
        """Take a snapshot if one is due."""
        self._snapshots.take(self._run.step)

    def write(self) -> None:
        """Save a checkpoint."""
        run = self._run
        # A finished or interrupted run may go on; one that stopped by itself has ended.
        ended = run.status in ("early-stopped", "diverged")
        state = {
            "settings": self._settings,
            "status": run.status if ended else "",
            "ending": list(run.ending) if ended else [],
            "seconds": run.clock.seconds,
            "optimizer": run.optimizer.state_dict(),
            "rates": run.rates.state_dict(),
            "order": run.order.state_dict(),
            "recorder": run.recorder.state_dict(),
            "best": None if run.best is None else run.best.state_dict(),
            "snapshots": self._snapshots.state_dict(),
            "random": _random_state(run.problem.space.device),
        }
        self._archive.write(run.problem.model, run.step, state)

    def finish(self) -> None:
        """Save the model as it is returned, and the end of its trajectory."""
        self._snapshots.finish(self._run.step)
        self._archive.finish(self._run.problem.model)

    def _take_up(self, model: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        run, folder = self._run, self._archive.folder
        known = state["settings"]
        different = [k for k in self._settings if self._settings[k] != known.get(k)]
        if different:
            lines = [f"{k} was {known.get(k)}, is {self._settings[k]}" for k in different]
            raise ValueError(
                f"{folder} holds a run with other settings: {'; '.join(lines)}; give those of the "
                "saved run, or another folder"
            )
        if state["step"] > run.plan.total:
            raise ValueError(
                f"{folder} holds a run of {state['step']} steps, more than the {run.plan.total} "
                "asked for; a run can be made longer, not shorter"
            )
        load_into(run.problem.model, model, where=folder / state["model"])
        try:
            run.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise ValueError(
                f"{folder}: the saved optimizer does not fit this one: {error}"
            ) from None
        run.step = state["step"]
        run.status, run.ending = state["status"], list(state["ending"])
        run.clock.seconds = state["seconds"]
        run.rates.load_state_dict(state["rates"])
        run.order.load_state_dict(state["order"])
        run.recorder.load_state_dict(state["recorder"])
        if run.best is not None:
            run.best.load_state_dict(state["best"])
        self._snapshots.load_state_dict(state["snapshots"])
        self._archive.reopen()
        # Last, so that nothing above can have moved it.
        _set_random_state(run.problem.space.device, state["random"])


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Torch's global states, which a model with dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
