"""A reproduction on the page: a verdict on every claim, then figure by figure the numbers."""

import math
from collections.abc import Mapping
from typing import Any

from kobai import plots
from kobai.plots import spell
from kobai.results import Finding, Reproduction


def reproduction_sections(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections that a reproduction's results ask for.

    Args:
        results: Name → result. A figure's record is named ``figure_F``, what belongs to it
            ``figure_F_NAME``.

    Returns:
        Sections as keyword arguments of `kobai.report.exhibits.Exhibit`: the verdicts first.
    """
    records = {name: r for name, r in results.items() if isinstance(r, Reproduction)}
    wholes = [_verdicts(record) for record in records.values() if not record.figure]
    return wholes + [
        _figure(name, record, results) for name, record in records.items() if record.figure
    ]


def _verdicts(record: Reproduction) -> dict[str, Any]:
    claims = {claim.key: claim for claim in record.claims}
    tested = [v for v in record.verdicts if v.verdict not in ("not run", "out of scope")]
    held = sum(v.verdict == "holds" for v in tested)
    partly = sum(v.verdict == "holds in part" for v in tested)
    lead = f"{record.title}, at scale {record.scale}: of {len(tested)} claims tested {held} hold"
    lead += f", {partly} hold in part" if partly else ""
    left = sum(v.verdict == "not run" for v in record.verdicts)
    lead += f"; {left} belong to figures that were not made and stand last" if left else ""
    order = {"out of scope": 1, "not run": 2}
    return {
        "title": "Claims of the source",
        "lead": lead + ".",
        "figures": {},
        "heads": ("claim", "where", "verdict", "because"),
        "words": ("where", "verdict", "because"),
        "rows": [
            (claims[v.claim].text, claims[v.claim].where, v.verdict, v.because)
            for v in sorted(record.verdicts, key=lambda v: order.get(v.verdict, 0))
        ],
    }


def _figure(name: str, record: Reproduction, results: Mapping[str, Any]) -> dict[str, Any]:
    figures = {}
    for part, result in results.items():
        draw = plots.PICTURES.get(type(result))
        if draw is not None and part.startswith(f"{name}_"):
            figures[part, f"{record.title}: {part.removeprefix(f'{name}_').replace('_', ' ')}"] = (
                lambda draw=draw, result=result: draw(result)
            )
    return {
        "title": f"Figure {record.figure}: {record.title}",
        "lead": f"{record.note} Took {record.seconds:.0f} s.".strip(),
        "figures": figures,
        "heads": ("quantity", "measured", "± standard error", "predicted", "ratio"),
        "rows": [_row(finding) for finding in record.findings],
    }


def _row(finding: Finding) -> tuple[str, ...]:
    numbers = (finding.measured, finding.error, finding.predicted, finding.ratio)
    return (
        finding.what,
        *(spell(value) if math.isfinite(value) else "–" for value in numbers),
    )
