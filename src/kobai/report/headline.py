"""What a page is about: its title, and the sections that its run folder should come to have."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from kobai.report.gather import Contents
from kobai.results import (
    IsotropyTable,
    Line,
    MinimumProof,
    Plane,
    Reproduction,
    TangentSummary,
    Trials,
    Volume,
)

_MOST = 3  # names in a title; more are counted

_COMES = {
    "compare": ("results", "training", "landscape", "curvature", "checks"),
    "train": ("results", "training"),
    "landscape": ("checks",),
    "measure": (),
    "tune": (),
    "reproduce": (),
}


def settings_of(contents: Contents) -> Mapping[str, Any]:
    """The folder's ``run.toml`` as nested dictionaries; empty where there is none to be read.

    Args:
        contents: The results of a run folder.
    """
    try:
        return tomllib.loads(contents.config)
    except tomllib.TOMLDecodeError:
        return {}


def expected(contents: Contents) -> tuple[str, ...]:
    """Sections that say so on the page when they have nothing to show yet.

    Args:
        contents: The results of a run folder.

    Returns:
        Ids of sections: what the verb in ``run.toml`` brings; all of a comparison's where no verb
        is known.
    """
    return _COMES.get(str(settings_of(contents).get("verb")), _COMES["compare"])


def title(contents: Contents) -> str:
    """The page's title: what was compared, made again, searched, trained, drawn or measured.

    Args:
        contents: The results of a run folder.

    Returns:
        One line; the folder's name where the folder holds nothing that could be named.
    """
    if contents.comparison and contents.comparison.title:
        return contents.comparison.title
    settings = settings_of(contents)
    data = str(settings.get("data", ""))
    on = f" on {data}" if data else ""
    found = contents.results.values()
    made = [r for r in found if isinstance(r, Reproduction)]
    if made:
        whole = next((r for r in made if not r.figure), None)
        return f"{whole.title}, made again" if whole else f"{_names(r.title for r in made)}"
    studies = [r for r in found if isinstance(r, Trials)]
    if studies:
        return f"Study: {_names(t.optimizer for t in studies)}{on}"
    if contents.histories:
        return f"{_names(h.optimizer for h in contents.histories)}{on}"
    drawn = [r for r in found if isinstance(r, Plane | Line | Volume | MinimumProof)]
    if drawn:
        return f"Landscape of {_drawn_of(settings) or _names(_subject(r.label) for r in drawn)}"
    measured = (
        ("Curvature", [*contents.spectra, *contents.densities, *contents.rates]),
        ("Fisher structures", contents.ladders),
        ("Function space", [r for r in found if isinstance(r, TangentSummary | IsotropyTable)]),
    )
    for what, points in measured:
        if points:
            return f"{what} of {_names(_subject(r.label) for r in points)}"
    return contents.name


def _drawn_of(settings: Mapping[str, Any]) -> str:
    """Whose landscape it is, as `kobai landscape` was told; empty where it was not."""
    runs = settings.get("runs")
    if isinstance(runs, list) and runs:
        folders = _names(PurePath(str(run)).name for run in runs)
        label = settings.get("label")
        return f"{', '.join(str(label).split(','))} in {folders}" if label else folders
    if settings.get("verb") == "landscape" and settings.get("model") and settings.get("data"):
        return f"{settings['model']} on {settings['data']}"
    return ""


def _subject(label: str) -> str:
    return label or "a fresh model"


def _names(words: Iterable[str]) -> str:
    """Different words once each; ``sgd, adam, kfac and 4 more``."""
    unique = list(dict.fromkeys(words))
    text = ", ".join(unique[:_MOST])
    rest = len(unique) - _MOST
    return f"{text} and {rest} more" if rest > 0 else text
