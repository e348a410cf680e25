"""What a source claims, what was measured instead, and whether the two agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from kobai.results.fields import coerce_fields, one_of
from kobai.results.registry import register

VERDICTS = ("holds", "holds in part", "does not hold", "not run", "out of scope")


@register
@dataclass(frozen=True, kw_only=True)
class Claim:
    """One thing a source says.

    Attributes:
        key: Short name, unique within the source.
        text: What is claimed, in our words.
        where: Figure, table or section of the source.
        figure: Which figure of the reproduction tests it; empty for none.
        out_of_scope: Why it is not tested; empty if it is.
    """

    key: str
    text: str
    where: str
    figure: str = ""
    out_of_scope: str = ""


@register
@dataclass(frozen=True, kw_only=True)
class Finding:
    """A number beside its prediction.

    Attributes:
        claim: Key of the claim it bears on; empty for none.
        what: The quantity and its setting.
        measured: Its value.
        error: Standard error over seeds; NaN with one seed, or where there is none.
        predicted: What theory or the source says; NaN where neither gives a number.
    """

    claim: str
    what: str
    measured: float
    predicted: float = float("nan")
    error: float = float("nan")

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("measured", "predicted", "error"))

    @property
    def ratio(self) -> float:
        """Measured over predicted; NaN where there is no prediction or it is 0."""
        return self.measured / self.predicted if self.predicted else float("nan")


@register
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a claim holds.

    Attributes:
        claim: Its key.
        verdict: One of `VERDICTS`.
        because: The numbers behind it.
    """

    claim: str
    verdict: str
    because: str

    def __post_init__(self) -> None:
        one_of(self, "verdict", VERDICTS)


@register
@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One figure of a source made again, or all of them together.

    Attributes:
        source: Name of the source.
        figure: Name of the figure; empty for the summary of all.
        title: In words.
        scale: ``quick`` or ``full``.
        seed: First seed.
        seconds: Time it took.
        claims: What was to be tested.
        findings: Measured against predicted.
        verdicts: One a claim.
        note: Setting and departures from the source.
    """

    source: str
    figure: str
    title: str
    scale: str
    seed: int
    seconds: float
    claims: tuple[Claim, ...]
    findings: tuple[Finding, ...]
    verdicts: tuple[Verdict, ...]
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("seconds",), integers=("seed",))
        known = {claim.key for claim in self.claims}
        stray = {entry.claim for entry in (*self.findings, *self.verdicts)} - known - {""}
        if stray:
            raise ValueError(f"no such claim: {', '.join(sorted(stray))}; known: {sorted(known)}")


def summarize(
    parts: Sequence[Reproduction], claims: Sequence[Claim], *, source: str, title: str
) -> Reproduction:
    """All figures of a source as one record, with a verdict on every claim.

    Args:
        parts: The figures made.
        claims: Everything the source claims; those of figures that were not made are "not run".
        source: Its name.
        title: Its title.

    Returns:
        The record.

    Raises:
        ValueError: If there is no part.
    """
    if not parts:
        raise ValueError("there is nothing to summarise: no figure was made")
    judged = {entry.claim: entry for part in parts for entry in part.verdicts}
    verdicts = []
    for claim in claims:
        if claim.key in judged:
            verdicts.append(judged[claim.key])
        elif claim.out_of_scope:
            verdicts.append(
                Verdict(claim=claim.key, verdict="out of scope", because=claim.out_of_scope)
            )
        else:
            because = f"figure {claim.figure} was not made" if claim.figure else "not tested"
            verdicts.append(Verdict(claim=claim.key, verdict="not run", because=because))
    return Reproduction(
        source=source, figure="", title=title, scale=parts[0].scale, seed=parts[0].seed,
        seconds=sum(part.seconds for part in parts), claims=tuple(claims),
        findings=tuple(finding for part in parts for finding in part.findings),
        verdicts=tuple(verdicts),
    )  # fmt: skip
