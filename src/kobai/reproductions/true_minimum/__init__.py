"""Wang & Thawonmas: the loss landscape of a DNN, a CNN and ResNet-50 seen from a true minimum.

Three figures: ``solutions`` (epochs to local and global minima, Table 1 and section 3.3),
``landscape`` (Algorithms 1 and 2, Figure 1) and ``descent`` (the open question of section 4.2).
"""

from collections.abc import Callable
from pathlib import Path

from kobai.reproductions.figures import FigureMaker, run_figures
from kobai.reproductions.true_minimum.claims import EXPECTED, TITLE
from kobai.reproductions.true_minimum.config import Config
from kobai.reproductions.true_minimum.descent import figure_descent
from kobai.reproductions.true_minimum.landscape import figure_landscape
from kobai.reproductions.true_minimum.solutions import figure_solutions
from kobai.results import Reproduction, atomic_write

__all__ = ["EXPECTED", "FIGURES", "TITLE", "Config", "run"]


def _claim(folder: Path, config: Config) -> None:
    """Refuse a folder whose trained networks belong to other data, scale or seed."""
    mark, own = folder / "parts" / "of.txt", f"{config.data} {config.scale} {config.seed}"
    if mark.exists() and (found := mark.read_text().strip()) != own:
        raise ValueError(
            f"{folder} holds networks trained on {found!r} (data, scale, seed), not {own!r}; "
            "choose another folder"
        )
    atomic_write(mark, own + "\n")


FIGURES: tuple[FigureMaker, ...] = (
    FigureMaker(name="solutions", title="epochs to local and global minima", make=figure_solutions),
    FigureMaker(name="landscape", title="the landscape around true minima", make=figure_landscape),
    FigureMaker(name="descent", title="can descent reach a true minimum?", make=figure_descent),
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
        config: Scale, data, figures, seed, device.
        folder: Where results go; trained networks and finished parts in it are kept.
        progress: Called with a line now and then.
        stop: Asked between pieces of work whether to stop.

    Returns:
        The summary: findings and a verdict on every claim.

    Raises:
        ValueError: If a figure does not exist, or the folder holds another configuration's.
        kobai.data.DataError: If the data are not here and cannot be fetched.
        kobai.studies.Interrupted: If `stop` said so; what is finished is saved.
    """
    _claim(Path(folder), config)
    return run_figures(
        config,
        folder,
        source="true-minimum",
        title=TITLE,
        makers=FIGURES,
        claims=EXPECTED,
        progress=progress,
        stop=stop,
    )
