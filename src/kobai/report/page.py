"""A run folder as one page that needs nothing else: no network, no server, no other file."""

import base64
import datetime
import functools
import gzip
import hashlib
import io
import math
from collections.abc import Callable, Collection
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from contourpy import contour_generator
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from kobai import plots
from kobai.report.curvature_tables import density_table, ladder_table, rates_table
from kobai.report.exhibits import Exhibit, exhibits
from kobai.report.gather import Contents, gather
from kobai.report.headline import expected, title
from kobai.report.notes import notes_on, winner
from kobai.report.payload import as_json, payload
from kobai.report.tables import check_rows, comparison_table, run_table, spectrum_table
from kobai.results import atomic_write

_SVG_DASHES = {
    "solid": "none",
    "dash": "5 2.5",
    "dot": "1.5 2.5",
    "dashdot": "5 2 1.5 2",
    "longdash": "9 3",
}


def build(folder: Path | str) -> Path:
    """Write ``report.html`` from all results in a run folder.

    The page holds everything it shows: numbers, script, plotly.js (compressed, inflated by the
    browser) and PNG images for browsers without scripts. Its content security policy forbids
    every connection and every script but its own two, named by their hashes. A half-finished
    folder gives a page that says what is missing; results that cannot be read are named on it.

    Args:
        folder: The run folder.

    Returns:
        The path of the page, replaced atomically.

    Raises:
        ResultError: No such folder, or no result in it.
        OSError: The folder cannot be written to.
    """
    folder = Path(folder)
    return atomic_write(folder / "report.html", render(gather(folder)))


def render(contents: Contents) -> str:
    """The page as text; the same contents give the same text.

    Args:
        contents: The results of a run folder.

    Returns:
        HTML.
    """
    packed, plotly_hash = _plotly()
    script = _asset("app.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["maths"] = _maths
    shown = [(exhibit, _drawn(exhibit)) for exhibit in exhibits(contents.results)]
    return environment.get_template("report.html.j2").render(
        c=contents,
        sections=_sections(contents, {exhibit.place for exhibit, _ in shown}),
        title=title(contents),
        chips=_chips(contents),
        facts=_facts(contents),
        results=comparison_table(contents.comparison) if contents.comparison else None,
        runs=run_table(contents.histories) if contents.histories else None,
        curvature=spectrum_table(contents.spectra) if contents.spectra else None,
        rates=rates_table(contents.rates) if contents.rates else None,
        densities=density_table(contents.densities) if contents.densities else None,
        ladder=ladder_table(contents.ladders) if contents.ladders else None,
        checks=check_rows(contents.checks),
        notes=notes_on(contents),
        images=_images(contents),
        exhibits=shown,
        details=_provenance_rows(contents),
        paths=any(plane.trajectories for plane in contents.planes),
        ornament=_ornament(contents),
        spell=lambda value, digits=3: plots.spell(float(value), digits),
        styles=contents.styles,
        svg_dashes=_SVG_DASHES,
        data=Markup(as_json(payload(contents))),
        plotly=Markup(packed),
        script=Markup(script),
        style=Markup(_asset("style.css")),
        script_hashes=[_csp_hash(script), plotly_hash],
    )


def _sections(contents: Contents, places: Collection[str]) -> list[tuple[str, str]]:
    """Id and name of each section that is on the page, in its order."""
    there = {
        "results": contents.comparison is not None or bool(contents.histories),
        "findings": "findings" in places,
        "notes": True,
        "training": bool(contents.histories),
        "landscape": bool(contents.planes) or "landscape" in places,
        "curvature": bool(
            contents.spectra or contents.densities or contents.rates or contents.ladders
        ),
        "functions": "functions" in places,
        "checks": bool(contents.checks),
        "methods": True,
    }
    comes = expected(contents) if not places else ()
    names = {"notes": "What stands out", "functions": "Function space"}
    return [
        (name, names.get(name, name.capitalize()))
        for name, exists in there.items()
        if exists or name in comes
    ]


def _asset(name: str) -> str:
    return (resources.files("kobai.report") / "assets" / name).read_text(encoding="utf-8")


def _maths(text: str) -> Markup:
    """Escaped text with the subscripts of λ set as such."""
    return Markup(str(escape(text)).replace("λ_max", "λ<sub>max</sub>"))


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _plotly() -> tuple[str, str]:
    """plotly.js, gzipped and in base64, and the hash by which the page allows it to run."""
    source = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    packed = gzip.compress(source.encode(), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode(), _csp_hash(source)


def _facts(contents: Contents) -> list[str]:
    """What and when, in the line below the title."""
    facts = []
    comparison, origin = contents.comparison, contents.provenance
    if comparison:
        facts += [comparison.data, comparison.model, f"{comparison.parameters:,} parameters"]
    if origin:
        facts += [when(origin.started), origin.device]
        if math.isfinite(origin.seconds):
            facts.append(f"took {duration(origin.seconds)}")
    return [fact for fact in facts if fact]


def when(started: str) -> str:
    """A start time for people: ``2 January 2026, 03:04``; as it stands when it is no time."""
    try:
        time = datetime.datetime.fromisoformat(started)
    except ValueError:
        return started
    return f"{time.day} {time:%B %Y, %H:%M}"


def duration(seconds: float) -> str:
    """A duration for people: ``41 s``, ``2 min 5 s``, ``3 h 12 min``."""
    if seconds < 10:
        return f"{plots.spell(seconds, 2)} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _chips(contents: Contents) -> list[dict[str, str]]:
    """The verdicts at the top: tone, text, and the section that explains them."""
    chips = []
    best = winner(contents)
    if best:
        chips.append({"tone": "best", "text": f"{best[0]} leads", "more": best[1], "to": "results"})
    if contents.checks:
        passed = sum(check.passed for _, check in contents.checks)
        whole = passed == len(contents.checks)
        chips.append(
            {
                "tone": "good" if whole else "bad",
                "text": f"{passed} of {len(contents.checks)}",
                "more": "self-checks passed",
                "to": "checks",
            }
        )
    if contents.histories:
        done = sum(h.status in {"finished", "early-stopped"} for h in contents.histories)
        lost = sum(h.status == "diverged" for h in contents.histories)
        more = "runs finished" + (f", {lost} diverged" if lost else "")
        tone = "good" if done == len(contents.histories) else "bad" if lost else "warn"
        text = f"{done} of {len(contents.histories)}"
        chips.append({"tone": tone, "text": text, "more": more, "to": "training"})
    warnings = sum(note.tone == "warn" for note in notes_on(contents))
    if warnings:
        plural = "thing to look at" if warnings == 1 else "things to look at"
        chips.append({"tone": "warn", "text": str(warnings), "more": plural, "to": "notes"})
    return chips


def _provenance_rows(contents: Contents) -> list[tuple[str, str]]:
    origin = contents.provenance
    if origin is None:
        return []
    return [
        ("kobai", origin.kobai + (f" ({origin.commit[:12]})" if origin.commit else "")),
        ("Python, PyTorch, NumPy", f"{origin.python}, {origin.torch}, {origin.numpy}"),
        ("machine", origin.platform),
        ("device", f"{origin.device}, {origin.threads} thread{'s' * (origin.threads != 1)}"),
        ("seed", str(origin.seed)),
        ("started", when(origin.started)),
        ("duration", duration(origin.seconds) if math.isfinite(origin.seconds) else "–"),
    ]


def _images(contents: Contents) -> dict[str, str]:
    """Figures as data URIs, for browsers without scripts; one that cannot be drawn is left out."""
    styles = contents.styles
    makers: dict[str, Callable[[], Figure]] = {}
    if contents.histories:
        makers["curves"] = lambda: plots.curves(contents.histories, styles=styles)
    shown = next((p for p in contents.planes if "loss" in p.fields), None)
    if shown is not None:
        makers["contour"] = lambda: plots.landscape_contour(shown, styles=styles)
        makers["surface"] = lambda: plots.landscape_surface(shown, styles=styles)
    if contents.spectra:
        makers["spectrum"] = lambda: plots.eigenvalues(contents.spectra, styles=styles)
    points = dict.fromkeys((d.matrix, d.label) for d in contents.densities)
    for matrix, label in points:
        group = [d for d in contents.densities if (d.matrix, d.label) == (matrix, label)]
        makers[f"density {matrix} {label}"] = lambda group=group: plots.spectral_density(group)
    images = {}
    for name, make in makers.items():
        try:
            figure = make()
        except ValueError:  # nothing finite to draw; the page says so in words
            continue
        images[name] = _data_uri(figure)
    return images


def _drawn(exhibit: Exhibit) -> list[tuple[str, str]]:
    """Alternative text and data URI of each figure; one that cannot be drawn is left out."""
    images = []
    for (_, text), make in exhibit.figures.items():
        try:
            images.append((text, _data_uri(make())))
        except ValueError:  # nothing finite to draw
            continue
    return images


def _ornament(contents: Contents) -> list[str]:
    """Contour lines of the first plane as SVG paths in a box of 100: the run's own letterhead."""
    plane = next((p for p in contents.planes if "loss" in p.fields), None)
    if plane is None or not np.isfinite(plane.fields["loss"]).any():
        return []
    loss = plane.fields["loss"]
    levels = np.quantile(loss[np.isfinite(loss)], np.linspace(0.02, 0.96, 26))
    ground = np.ma.masked_invalid(loss).T
    x, y = (np.linspace(0, 100, len(nodes)) for nodes in (plane.a, plane.b))
    generator = contour_generator(x, y[::-1], ground)
    lines = [np.asarray(line) for level in levels for line in generator.lines(float(level))]
    return ["M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in line) for line in lines[:80]]


def _data_uri(figure: Figure) -> str:
    """A PNG with 128 colours: a third of the size, and good enough to stand in."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(plots.to_png(figure, dpi=110))) as image:
        small: Any = image.convert("RGB").quantize(
            128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
        small.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
