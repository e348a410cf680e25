"""A page of the gallery: a question, how to compute the answer, and code to try it."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from kobai.reproductions.deep_learning_book.config import Config
from kobai.reproductions.figures import FigureOutcome
from kobai.results import Claim, Finding, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """One section of the chapter.

    Attributes:
        name: The section, such as "8.2.4".
        title: In words.
        question: What the page answers.
        claims: Key → what the chapter says; the page reaches a verdict on each.
        make: Computes figures, numbers and verdicts.
        code: A short script on kobai's public interface that shows the effect.
        own_network: Why the page does not take the user's network: what it needs or shows instead;
            empty where it takes it.
    """

    name: str
    title: str
    question: str
    claims: dict[str, str]
    make: Callable[[Config], FigureOutcome]
    code: str
    own_network: str = ""

    def network_note(self, model: str) -> str:
        """What became of the user's network on this page; empty if there is none."""
        if not model:
            return ""
        if self.own_network:
            return f" --model has no part here: {self.own_network}."
        return f" Network: {model}, at the rates chosen for the page's own."

    def expected(self) -> tuple[Claim, ...]:
        """The claims as records."""
        return tuple(
            Claim(key=key, text=text, where=f"section {self.name}", figure=self.name)
            for key, text in self.claims.items()
        )

    def script(self) -> str:
        """The code without its common indent."""
        return textwrap.dedent(self.code).strip() + "\n"


def judge(claim: str, *conditions: bool | np.bool_, because: str) -> Verdict:
    """A verdict from what was required: all, some or none of it.

    Args:
        claim: Key of the claim.
        conditions: What would have to be true.
        because: The numbers.
    """
    verdict = (
        "holds" if all(conditions) else "holds in part" if any(conditions) else "does not hold"
    )
    return Verdict(claim=claim, verdict=verdict, because=because)


def mean_of(claim: str, what: str, values: Sequence[float], **predicted: float) -> Finding:
    """The mean over seeds with its standard error."""
    array = np.asarray(values, dtype=float)
    error = float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else float("nan")
    return Finding(claim=claim, what=what, measured=float(array.mean()), error=error, **predicted)
