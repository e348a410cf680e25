"""R. Karakida's report on the geometry of wide networks (2019–2022): its figures, its claims.

Fisher spectra and normalisation, online learning under dynamical isometry, approximate natural
gradients, the metric on the inputs, self-paced augmentation.
"""

from collections.abc import Callable
from pathlib import Path

from kobai.reproductions.figures import FigureMaker, run_figures
from kobai.reproductions.wide_networks.claims import EXPECTED, TITLE
from kobai.reproductions.wide_networks.config import Config
from kobai.reproductions.wide_networks.input_metric import figure_4
from kobai.reproductions.wide_networks.natural_gradients import figure_3
from kobai.reproductions.wide_networks.rate_depth import figure_2
from kobai.reproductions.wide_networks.rate_width import figure_1
from kobai.reproductions.wide_networks.self_paced import figure_5
from kobai.results import Reproduction

__all__ = ["EXPECTED", "FIGURES", "TITLE", "Config", "run"]

FIGURES: tuple[FigureMaker, ...] = (
    FigureMaker(name="1", title="learning rate against width", make=figure_1),
    FigureMaker(name="2", title="online learning rate against depth", make=figure_2),
    FigureMaker(name="3", title="natural gradients in function space", make=figure_3),
    FigureMaker(name="4", title="eigenvalue statistics and the input metric", make=figure_4),
    FigureMaker(name="5", title="few examples and self-paced augmentation", make=figure_5),
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
        config: Scale, figures, seed.
        folder: Where results go; finished figures in it are kept.
        progress: Called with a line now and then.
        stop: Asked between pieces of work whether to stop.

    Returns:
        The summary: findings and a verdict on every claim.

    Raises:
        ValueError: If a figure does not exist, or the folder holds another configuration's.
        kobai.studies.Interrupted: If `stop` said so; finished figures are saved.
    """
    return run_figures(
        config,
        folder,
        source="wide-networks",
        title=TITLE,
        makers=FIGURES,
        claims=EXPECTED,
        progress=progress,
        stop=stop,
    )
