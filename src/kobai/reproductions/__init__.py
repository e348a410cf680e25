"""Figures and tables of published work, made again and held against their claims.

One package a source. Each has a `Config` (frozen, keyword-only; at least `scale`, `seed`, `figure`
and `threads`), `EXPECTED`, the source's claims with where they stand, and ``run(config, folder, *,
progress=None, stop=None)``, which writes results figure by figure, keeps those that are there and
returns the summary with a verdict on every claim.
"""

import importlib
import warnings
from types import ModuleType

from kobai.reproductions.figures import (
    FigureMaker,
    FigureOutcome,
    chosen_figures,
    run_figures,
)

__all__ = [
    "FORMER_NAMES",
    "SOURCES",
    "FigureMaker",
    "FigureOutcome",
    "chosen_figures",
    "run_figures",
    "source",
]

SOURCES: dict[str, str] = {
    "deep-learning-book": "kobai.reproductions.deep_learning_book",
    "skip-connections": "kobai.reproductions.skip_connections",
    "true-minimum": "kobai.reproductions.true_minimum",
    "wide-networks": "kobai.reproductions.wide_networks",
}
"""Name of a source → its package."""

FORMER_NAMES: dict[str, str] = {"chapter8": "deep-learning-book"}
"""Name that a source had before → its name; deprecated."""


def source(name: str) -> ModuleType:
    """The package of a source.

    Args:
        name: One of `SOURCES`.

    Returns:
        The package, with `Config`, `EXPECTED`, `TITLE` and `run`.

    Raises:
        ValueError: If the name is not known.
    """
    name = FORMER_NAMES.get(name, name)
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}; known: {', '.join(SOURCES)}")
    return importlib.import_module(SOURCES[name])


def __getattr__(name: str):
    if name != "Outcome":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.Outcome is now FigureOutcome", DeprecationWarning, stacklevel=2)
    return FigureOutcome
