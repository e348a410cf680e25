"""Figures as files: PNG for pages, SVG and PDF for papers."""

import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from kobai.results import atomic_write


def to_png(figure: Figure, *, dpi: int = 200) -> bytes:
    """A figure as a PNG image.

    Args:
        figure: The figure.
        dpi: Dots per inch.

    Returns:
        The file's content; the same figure gives the same bytes.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def to_svg(figure: Figure) -> bytes:
    """A figure as an SVG image, letters as outlines so that it looks the same everywhere.

    Args:
        figure: The figure.

    Returns:
        The file's content; the same figure gives the same bytes.
    """
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kobai", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", dpi=200, facecolor="white", metadata={"Date": None})
    return stream.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """A figure as a PDF page, letters as embedded TrueType fonts.

    Args:
        figure: The figure.

    Returns:
        The file's content; the same figure gives the same bytes.
    """
    stream = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(
            stream,
            format="pdf",
            dpi=200,
            facecolor="white",
            metadata={"CreationDate": None, "Producer": None, "Creator": None},
        )
    return stream.getvalue()


def save(figure: Figure, folder: Path | str, name: str) -> tuple[Path, Path]:
    """Write ``NAME.png`` (200 dpi) and ``NAME.svg``, each whole or not at all.

    Args:
        figure: The figure.
        folder: Where; made when missing.
        name: File name without its ending.

    Returns:
        The two paths.

    Raises:
        OSError: The folder cannot be written to.
    """
    folder = Path(folder)
    return (
        atomic_write(folder / f"{name}.png", to_png(figure)),
        atomic_write(folder / f"{name}.svg", to_svg(figure)),
    )
