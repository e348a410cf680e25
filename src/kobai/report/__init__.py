"""A run folder as one self-contained HTML page.

``build`` reads every result of a folder and writes ``report.html``: tables, notes, interactive
figures, provenance. The page opens from disk, from mail or from an archive, with the network off.
"""

from kobai.report.exhibits import Exhibit, exhibits
from kobai.report.gather import Contents, gather
from kobai.report.kernel_sections import ISOTROPY_HEADS, isotropy_row
from kobai.report.note import Note
from kobai.report.notes import notes_on
from kobai.report.page import build, render
from kobai.report.suite_sections import budget_rows

__all__ = [
    "ISOTROPY_HEADS",
    "Contents",
    "Exhibit",
    "Note",
    "budget_rows",
    "build",
    "exhibits",
    "gather",
    "isotropy_row",
    "notes_on",
    "render",
]
