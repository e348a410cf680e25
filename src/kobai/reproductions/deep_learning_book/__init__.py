"""A gallery to the chapter on optimization of a textbook: one page per section, all computed.

The book is Goodfellow, Bengio and Courville (2016), Deep Learning, and the chapter its eighth.

``run`` makes the pages that are not there yet and writes the book, ``index.html``, beside them.
"""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kobai.reproductions.deep_learning_book.book import write_book
from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.deep_learning_book.page import Page
from kobai.reproductions.figures import FigureMaker, FigureOutcome, run_figures
from kobai.results import Claim, Reproduction

__all__ = ["EXPECTED", "FIGURES", "PAGES", "TITLE", "Config", "Page", "named_by", "run"]

TITLE = "Optimization for training deep models"

_MODULES = (
    "empirical_risk",
    "ill_conditioning",
    "saddle_points",
    "long_term",
    "inexact",
    "first_order",
    "initialisation",
    "adaptive",
    "second_order",
    "batch_norm",
    "coordinate",
    "pretraining",
    "architecture",
    "continuation",
)

PAGES: tuple[Page, ...] = tuple(
    page
    for module in _MODULES
    for page in importlib.import_module(f"{__name__}.pages.{module}").PAGES
)
"""Every page, in the chapter's order."""

EXPECTED: tuple[Claim, ...] = tuple(claim for page in PAGES for claim in page.expected())
"""What the chapter says."""


def _maker(page: Page) -> FigureMaker:
    def make(config: Any, *unused: Any) -> FigureOutcome:
        del unused  # a page takes seconds and keeps nothing
        outcome = page.make(config)
        note = outcome.note + page.network_note(config.model)
        return dataclasses.replace(outcome, note=note)

    return FigureMaker(name=page.name, title=page.title, make=make)


FIGURES: tuple[FigureMaker, ...] = tuple(_maker(page) for page in PAGES)
"""What ``--figure`` chooses from."""


def named_by(section: str) -> str:
    """The pages of a section: 8.6 means 8.6.1, 8.6.2 and 8.6.3.

    Args:
        section: Sections separated by commas, or "all".

    Returns:
        What `Config.figure` takes.

    Raises:
        ValueError: If a section has no page.
    """
    if section.strip() == "all":
        return "all"
    found: list[str] = []
    for asked in (word.strip() for word in section.split(",")):
        pages = [p.name for p in PAGES if p.name == asked or p.name.startswith(f"{asked}.")]
        # 8.3.1 is treated on the page of 8.3.
        pages = pages or [p.name for p in PAGES if asked.startswith(f"{p.name}.")]
        if not pages:
            raise ValueError(
                f"no page for section {asked!r}; there are {', '.join(p.name for p in PAGES)}"
            )
        found += [name for name in pages if name not in found]
    return ",".join(found)


def run(
    config: Config,
    folder: Path | str,
    *,
    progress: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Reproduction:
    """Make the pages that are not in the folder yet, and the book of all that are.

    Args:
        config: Scale, sections, data, seed.
        folder: Where results and ``index.html`` go.
        progress: Called with a line now and then.
        stop: Asked between pages whether to stop.

    Returns:
        The summary: findings and a verdict on every claim.

    Raises:
        ValueError: If a section does not exist, or the folder holds another configuration's.
        kobai.data.DataError: If the data are not here and cannot be fetched.
        kobai.studies.Interrupted: If `stop` said so; finished pages are kept.
    """
    summary = run_figures(
        config, folder, source="deep-learning-book", title=TITLE, makers=FIGURES, claims=EXPECTED,
        progress=progress, stop=stop,
    )  # fmt: skip
    book = write_book(folder, PAGES)
    if progress is not None:
        progress(f"book: {book}")
    return summary
