"""Where a number comes from: versions, commit, machine, seed, command."""

import datetime
import platform as host
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What is needed to run something again and to trust that it was the same thing.

    Attributes:
        kobai: Version of kobai.
        python: Version of Python.
        torch: Version of PyTorch.
        numpy: Version of NumPy.
        commit: Git commit of kobai's checkout, with ``+changes`` when its sources differ from it;
            empty for an installed package.
        platform: Operating system and processor.
        device: Where it ran, such as ``cpu`` or ``cuda:0 (name)``.
        threads: Threads used for computing.
        seed: The seed everything random was drawn from.
        command: The command line or call that does it again.
        started: Start as an ISO 8601 time with its offset.
        seconds: Wall-clock duration in seconds; NaN while it runs or when unknown.
    """

    kobai: str
    python: str
    torch: str
    numpy: str
    commit: str
    platform: str
    device: str
    threads: int
    seed: int
    command: str
    started: str
    seconds: float

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("seconds",), integers=("threads", "seed"))


def provenance(
    *,
    command: str,
    seed: int,
    device: str = "cpu",
    threads: int = 1,
    started: str | None = None,
    seconds: float = float("nan"),
    torch: str | None = None,
) -> Provenance:
    """Collect the versions, the commit and the machine of this process.

    Args:
        command: The command line or call that does it again.
        seed: The seed everything random was drawn from.
        device: Where it ran.
        threads: Threads used for computing.
        started: Start as an ISO 8601 time; now when None.
        seconds: Duration in seconds.
        torch: Version of PyTorch; when None, that of the installed distribution (PyTorch itself
            is not imported).

    Returns:
        The record.
    """
    return Provenance(
        kobai=_version("kobai"),
        python=host.python_version(),
        torch=torch if torch is not None else _version("torch"),
        numpy=_version("numpy"),
        commit=_commit(Path(__file__).resolve().parents[1]),
        platform=f"{host.system()} {host.release()} {host.machine()}".strip(),
        device=device,
        threads=threads,
        seed=seed,
        command=command,
        started=started or datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        seconds=seconds,
    )


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where it fails, hangs or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _commit(package: Path) -> str:
    # A virtual environment may lie inside the user's own repository, whose commit would say
    # nothing about kobai: ask first whether this very file is tracked.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    commit = _git(package, "rev-parse", "HEAD")
    if not commit:
        return ""
    changed = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}+changes" if changed else commit
