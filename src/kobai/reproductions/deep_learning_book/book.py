"""The gallery as one HTML file: contents, then a page a section; no network, no scripts."""

import base64
import contextlib
import inspect
import io
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch

import kobai
from kobai import plots
from kobai.plots import spell
from kobai.reproductions.deep_learning_book.motion import animation
from kobai.reproductions.deep_learning_book.page import Page
from kobai.results import (
    Panels,
    Reproduction,
    ResultError,
    atomic_write,
    load,
    result_names,
)

MOVING = "motion"
"""A result of this name is also shown as an animation of its first panel."""


def write_book(folder: Path | str, pages: Sequence[Page]) -> Path:
    """Write ``index.html`` from the finished pages of a folder.

    Args:
        folder: The run folder.
        pages: All pages, in their order; those that are not finished are named in the contents.

    Returns:
        The file, replaced atomically.

    Raises:
        OSError: If the folder cannot be written to.
    """
    folder = Path(folder)
    names = result_names(folder)
    chapters = [_chapter(folder, page, names) for page in pages]
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    there = [c for c in chapters if c["record"] is not None]
    text = environment.get_template("book.html.j2").render(
        chapters=chapters,
        # A stylesheet is data; the page shares the report's so that both look alike.
        style=(resources.files("kobai") / "report" / "assets" / "style.css").read_text("utf-8"),
        made=len(there),
        scale=there[0]["record"].scale if there else "",
        seed=there[0]["record"].seed if there else 0,
        seconds=sum(c["record"].seconds for c in there),
        version=kobai.__version__,
    )
    return atomic_write(folder / "index.html", text)


def printed(code: str) -> str:
    """What a script prints, run with a random state of its own.

    Args:
        code: Python source.
    """
    out = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(out):
        torch.manual_seed(0)
        exec(compile(code, "<gallery>", "exec"), {"__name__": "__gallery__"})
    return out.getvalue()


def _chapter(folder: Path, page: Page, names: Sequence[str]) -> dict[str, Any]:
    name = f"figure_{page.name}"
    record = None
    if name in names:
        with contextlib.suppress(ResultError):
            record = load(folder, name)
    if not isinstance(record, Reproduction):
        return {"page": page, "record": None}
    figures = []
    # The animated one is what a page begins with.
    for part in sorted(names, key=lambda n: not n.endswith(f"_{MOVING}")):
        if part.startswith(f"{name}_"):
            result = load(folder, part)
            if (drawn := plots.picture(result)) is not None:
                png = base64.b64encode(plots.to_png(drawn, dpi=130)).decode()
                moves = None
                if isinstance(result, Panels) and part == f"{name}_{MOVING}":
                    moves = animation(result.panels[0])
                width = round(105 * drawn.get_figwidth())
                figures.append({"png": png, "width": width, "title": getattr(result, "title", part),
                                "note": getattr(result, "note", ""), "moves": moves})  # fmt: skip
    claims = {claim.key: claim.text for claim in record.claims}
    return {
        "page": page,
        "record": record,
        "anchor": f"s{page.name.replace('.', '-')}",
        "figures": figures,
        "verdicts": [(claims[v.claim], v.verdict, v.because) for v in record.verdicts],
        "numbers": [
            (
                f.what,
                _number(f.measured) + (f" ± {spell(f.error, 2)}" if math.isfinite(f.error) else ""),
                _number(f.predicted),
            )
            for f in record.findings
        ],
        "predicted": any(math.isfinite(f.predicted) for f in record.findings),
        "code": page.script(),
        "output": printed(page.script()),
        "source": inspect.getsource(inspect.getmodule(page.make) or page.make),
    }


def _number(value: float) -> str:
    return spell(value) if math.isfinite(value) else "–"


def _file(name: str) -> str:
    folder = resources.files("kobai.reproductions.deep_learning_book")
    return (folder / name).read_text(encoding="utf-8")
