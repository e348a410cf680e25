"""A source's figures, made one after the other; what is finished is saved and not made again."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kobai.results import (
    Claim,
    Finding,
    Reproduction,
    ResultError,
    Verdict,
    load,
    result_names,
    save,
    summarize,
)
from kobai.studies import Interrupted

Scale = Literal["quick", "full"]
"""``quick``: minutes, small settings with the same look; ``full``: up to an hour on two cores."""


def check_config(config: Any) -> None:
    """Refuse a source's configuration whose scale, seed or threads are out of range.

    Raises:
        ValueError: If one of them is.
    """
    if config.scale not in ("quick", "full"):
        raise ValueError(f"scale is 'quick' or 'full', got {config.scale!r}")
    if config.seed < 0:
        raise ValueError(f"seed is an integer, 0 or more; got {config.seed}")
    if config.threads is not None and config.threads < 1:
        raise ValueError(f"threads must be at least 1, got {config.threads}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureOutcome:
    """What making a figure gives.

    Attributes:
        results: Name → result class instance, saved as ``figure_F_NAME``.
        findings: Measured beside predicted.
        verdicts: One for each claim of the figure.
        note: Setting, and departures from the source.
    """

    results: Mapping[str, Any]
    findings: Sequence[Finding]
    verdicts: Sequence[Verdict]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureMaker:
    """How to make a figure.

    Attributes:
        name: What ``--figure`` takes.
        title: In words.
        make: From the configuration, the folder of the run, a function for progress lines and one
            that says whether to stop; it raises `kobai.studies.Interrupted` to stop in the middle.
    """

    name: str
    title: str
    make: Callable[[Any, Path, Callable[[str], None], Callable[[], bool]], FigureOutcome]


def chosen_figures(text: str, makers: Sequence[FigureMaker]) -> tuple[FigureMaker, ...]:
    """The figures that ``--figure`` names: "all", or names separated by commas.

    Raises:
        ValueError: If a name is unknown, repeated or missing.
    """
    known = {maker.name: maker for maker in makers}
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(makers)
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(f"figure is 'all' or some of {', '.join(known)}, each once; got {text!r}")
    return tuple(known[name] for name in names)


def run_figures(
    config: Any,
    folder: Path | str,
    *,
    source: str,
    title: str,
    makers: Sequence[FigureMaker],
    claims: Sequence[Claim],
    progress: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Reproduction:
    """Make the figures that are not there yet, and sum up all that are.

    A figure is finished when its record ``figure_F`` is saved, after its results. The folder must
    belong to this configuration: a record made at another scale or seed is refused.

    Args:
        config: The source's configuration: `scale`, `seed` and `figure` are read here.
        folder: Where results go; made when missing.
        source: Name of the source.
        title: Its title.
        makers: All its figures.
        claims: All its claims.
        progress: Called with a line now and then.
        stop: Asked between pieces of work whether to stop.

    Returns:
        The summary, also saved as ``summary``.

    Raises:
        ValueError: If the figures named do not exist, or the folder holds another configuration's.
        kobai.studies.Interrupted: If `stop` said so; finished figures are saved.
    """
    folder = Path(folder)
    wanted = chosen_figures(config.figure, makers)
    report = progress or (lambda line: None)
    asked = stop or (lambda: False)
    there = set(result_names(folder)) if folder.is_dir() else set()
    parts: dict[str, Reproduction] = {}
    for maker in makers:
        name = f"figure_{maker.name}"
        if name in there:
            record = _kept(folder, name, config)
            if record is not None:
                parts[maker.name] = record
                if maker in wanted:
                    report(f"figure {maker.name}: made before, kept")
                continue
        if maker not in wanted:
            continue
        if asked():
            raise Interrupted
        report(f"figure {maker.name}: {maker.title}")
        began = time.monotonic()
        outcome = maker.make(config, folder, report, asked)
        for part, result in outcome.results.items():
            save(result, folder, f"{name}_{part}")
        parts[maker.name] = Reproduction(
            source=source, figure=maker.name, title=maker.title, scale=config.scale,
            seed=config.seed, seconds=time.monotonic() - began,
            claims=tuple(claim for claim in claims if claim.figure == maker.name),
            findings=tuple(outcome.findings), verdicts=tuple(outcome.verdicts), note=outcome.note,
        )  # fmt: skip
        save(parts[maker.name], folder, name)
    summary = summarize(list(parts.values()), claims, source=source, title=title)
    save(summary, folder, "summary")
    return summary


def _kept(folder: Path, name: str, config: Any) -> Reproduction | None:
    """A finished figure's record; None where it is damaged and must be made again."""
    try:
        record = load(folder, name)
    except ResultError:
        return None
    if (record.scale, record.seed) != (config.scale, config.seed):
        raise ValueError(
            f"{folder}: {name} was made at scale {record.scale!r}, seed {record.seed}; got "
            f"{config.scale!r}, {config.seed}: choose another folder"
        )
    return record
