"""A run folder: claimed before work starts, never mixed with another run, whole at any moment."""

import contextlib
import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import tomli_w
import torch
from rich.console import Console

from kobai.cli.options import OF_A_RUN, FolderOptions, UsageError, read_toml, to_values
from kobai.results import atomic_write, provenance, result_names, save

SETTINGS = "run.toml"

# Flags that say how to run, not what; a resumed run may change them.
_FREE = ("out", "resume", "fresh", "config", "device", "threads", "json", "figure")


def settings(options: Any, verb: str) -> dict[str, Any]:
    """What a run.toml holds: every setting, and the verb."""
    values = to_values(options)
    for name in ("resume", "fresh", "config", "json"):
        values.pop(name, None)
    if values.get("runs") or values.get("run"):
        # The runs bring their own problem; the defaults of these flags would tell another one.
        for name in OF_A_RUN:
            values.pop(name, None)
    return {"verb": verb, **values}


def claim(options: FolderOptions, verb: str) -> Path:
    """Make the run folder, or take over the one that is there as `--resume` or `--fresh` say.

    Raises:
        UsageError: If the folder holds another run or foreign files, or cannot be written to.
    """
    folder = options.out
    if options.resume and options.fresh:
        raise UsageError("--resume and --fresh exclude each other; give one")
    wanted = settings(options, verb)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; choose another --out")
    try:
        entries = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from None
    # Settings without any result are of a run that was refused before it did anything.
    if entries and [entry.name for entry in entries] != [SETTINGS]:
        if not (folder / SETTINGS).is_file():
            raise UsageError(
                f"{folder}: holds files that are not a run of kobai; choose another --out"
            )
        if not (options.resume or options.fresh):
            raise UsageError(
                f"{folder}: holds a run already; --resume goes on with it, --fresh deletes it "
                "and starts again, or choose another --out"
            )
        if options.resume:
            _require_same(folder, wanted)
        else:
            _delete_run(folder)
    try:
        atomic_write(folder / SETTINGS, tomli_w.dumps(wanted))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to ({error.strerror})") from None
    return folder


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _require_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse to go on with a run under other settings."""
    there, here = _flat(read_toml(folder / SETTINGS)), _flat(wanted)
    changed = sorted(
        key
        for key in there.keys() | here.keys() - set(_FREE)
        if key not in _FREE and there.get(key) != here.get(key)
    )
    if changed:
        told = ", ".join(
            f"{key} ({there.get(key, 'not set')} there, {here.get(key, 'not set')} here)"
            for key in changed
        )
        raise UsageError(
            f"{folder}: holds a run with other settings: {told}; use them, or --fresh, or "
            "another --out"
        )


def claim_measurements(options: Any) -> Path:
    """Make a folder for measurements, or add to one of the same point.

    Raises:
        UsageError: If the folder holds a run, foreign files or measurements of something else, or
            cannot be written to.
    """
    folder: Path = options.out
    wanted = settings(options, "measure")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; choose another --out")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / SETTINGS).is_file():
            raise UsageError(
                f"{folder}: holds files that are not a run of kobai; choose another --out"
            )
        there = read_toml(folder / SETTINGS)
        if there.get("verb") != "measure":
            raise UsageError(
                f"{folder}: holds a run of kobai {there.get('verb')}; choose another --out"
            )
        of = (*OF_A_RUN, "run", "checkpoint", "seed")
        if any(there.get(name) != wanted.get(name) for name in of):
            raise UsageError(
                f"{folder}: holds measurements of another run or model; choose another --out"
            )
    try:
        atomic_write(folder / SETTINGS, tomli_w.dumps(wanted))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to ({error.strerror})") from None
    return folder


def _delete_run(folder: Path) -> None:
    """Delete what kobai wrote, and nothing else."""
    for name in result_names(folder):
        for ending in ("json", "npz"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    for name in ("metrics.csv", "report.html", SETTINGS):
        (folder / name).unlink(missing_ok=True)
    for journal in ("study.log", "study.log.lock"):
        (folder / journal).unlink(missing_ok=True)
    for name in ("checkpoints", "figures", "workers", "blocks", "export", "cells"):
        shutil.rmtree(folder / name, ignore_errors=True)


@dataclasses.dataclass
class Clock:
    """Wall-clock time of a command since it began."""

    began: float = dataclasses.field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self.began


def record(folder: Path, *, command: str, seed: int, device: torch.device, seconds: float) -> None:
    """Write run.json: versions, commit, machine, seed, command and duration."""
    name = str(device)
    if device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(device)})"
    save(
        provenance(
            command=command,
            seed=seed,
            device=name,
            threads=torch.get_num_threads(),
            seconds=seconds,
            torch=torch.__version__,
        ),
        folder,
        "run",
    )


def interrupted(console: Console, kept: str, command: str) -> int:
    """Say what is kept of an interrupted run and how to go on; the exit code."""
    console.print(f"interrupted; {kept}. Go on with:")
    console.print(f"  {resume_line(command)}", soft_wrap=True)
    return 130


def resume_line(command: str) -> str:
    """The command that goes on with an interrupted run."""
    words = [word for word in command.split(" ") if word not in ("--fresh", "--resume")]
    return " ".join([*words, "--resume"])


class Stop:
    """Turns the first Ctrl-C (or SIGTERM) into a wish to stop; the second one stops at once."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self) -> bool:
        """Whether to stop now."""
        return self.wanted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True

    @contextlib.contextmanager
    def installed(self) -> Iterator["Stop"]:
        """Listen to the signals while the context is open."""
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
