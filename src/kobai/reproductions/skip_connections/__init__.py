"""Nagase & Naganuma: the natural gradient on deep networks with and without residual skips.

Four figures: ``tables`` (tables 1 to 4: eight searches), ``mechanism`` (section 3: what a skip does
to the Kronecker factors), ``damping`` and ``convexity``.
"""

from collections.abc import Callable
from pathlib import Path

from kobai.reproductions.figures import FigureMaker, run_figures
from kobai.reproductions.skip_connections.claims import EXPECTED, TITLE
from kobai.reproductions.skip_connections.config import Config
from kobai.reproductions.skip_connections.convexity import figure_convexity
from kobai.reproductions.skip_connections.damping import figure_damping
from kobai.reproductions.skip_connections.mechanism import figure_mechanism
from kobai.reproductions.skip_connections.tables import figure_tables
from kobai.results import Reproduction

__all__ = ["EXPECTED", "FIGURES", "TITLE", "Config", "run"]

FIGURES: tuple[FigureMaker, ...] = (
    FigureMaker(name="tables", title="accuracy with and without skips", make=figure_tables),
    FigureMaker(
        name="mechanism", title="what skips do to the Kronecker factors", make=figure_mechanism
    ),
    FigureMaker(name="damping", title="accuracy against damping", make=figure_damping),
    FigureMaker(name="convexity", title="negative curvature along training", make=figure_convexity),
)
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
        makers=FIGURES,
        claims=EXPECTED,
        progress=progress,
        stop=stop,
    )
