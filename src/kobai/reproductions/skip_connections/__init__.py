"""Nagase & Naganuma: the natural gradient on deep networks with and without residual skips.

Four figures: ``tables`` (tables 1 to 4: eight searches), ``mechanism`` (section 3: what a skip does
to the Kronecker factors), ``damping`` and ``convexity``.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kobai.reproductions.figures import FigureMaker, Outcome, run_figures
from kobai.reproductions.skip_connections.claims import EXPECTED, TITLE
from kobai.reproductions.skip_connections.config import Config
from kobai.reproductions.skip_connections.convexity import figure_convexity
from kobai.reproductions.skip_connections.damping import figure_damping
from kobai.reproductions.skip_connections.mechanism import figure_mechanism
from kobai.reproductions.skip_connections.tables import figure_tables
from kobai.results import Reproduction

__all__ = ["EXPECTED", "FIGURES", "TITLE", "Config", "run"]

_MAKERS: dict[str, tuple[str, Callable[..., Outcome]]] = {
    "tables": ("accuracy with and without skips", figure_tables),
    "mechanism": ("what skips do to the Kronecker factors", figure_mechanism),
    "damping": ("accuracy against damping", figure_damping),
    "convexity": ("negative curvature along training", figure_convexity),
}


def figures(folder: Path | str) -> tuple[FigureMaker, ...]:
    """The figures, which keep finished trials in a folder.

    Args:
        folder: The run folder.
    """

    def maker(name: str) -> FigureMaker:
        title, function = _MAKERS[name]

        def make(config: Any, report: Callable[[str], None], stop: Callable[[], bool]) -> Outcome:
            return function(config, Path(folder), report, stop)

        return FigureMaker(name=name, title=title, make=functools.wraps(function)(make))

    return tuple(maker(name) for name in _MAKERS)


FIGURES: tuple[FigureMaker, ...] = figures(".")
"""What ``--figure`` chooses from."""


def run(
    config: Config,
    folder: Path | str,
    *,
    progress: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Reproduction:
    """Make the figures that are not in the folder yet.

    Args:
        config: Scale, data, sizes of the search, seed.
        folder: Where results go; finished trials and figures in it are kept.
        progress: Called with a line now and then.
        stop: Asked between pieces of work whether to stop.

    Returns:
        The summary: findings and a verdict on every claim.

    Raises:
        ValueError: If a figure does not exist, or the folder holds another configuration's.
        kobai.data.DataError: If the data are not here and cannot be fetched.
        kobai.studies.Interrupted: If `stop` said so; what is finished is saved.
    """
    return run_figures(
        config,
        folder,
        source="skip-connections",
        title=TITLE,
        makers=figures(folder),
        claims=EXPECTED,
        progress=progress,
        stop=stop,
    )
