"""Results with a section of their own on the page: title, sentence, figures, table.

A new kind of result comes onto the page, and into the run folder's figures, by one function here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from kobai import plots
from kobai.plots import spell
from kobai.report.kernel_sections import kernel_sections
from kobai.report.landscape_sections import landscape_sections
from kobai.report.reproduction_sections import reproduction_sections
from kobai.report.suite_sections import suite_sections
from kobai.results import Scores, Trials


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """One section.

    Attributes:
        title: Its heading.
        lead: What it shows, in a sentence or two.
        figures: File name and alternative text of each figure → what draws it.
        heads: Column titles of the table; the first column holds row names.
        rows: The table's rows; empty for none.
        words: Titles of the columns that hold words; they are set flush left.
        place: The section of the page it belongs to: ``findings`` (of a source or a study),
            ``landscape`` or ``functions``.
    """

    title: str
    lead: str
    figures: Mapping[tuple[str, str], Callable[[], Figure]]
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    words: Sequence[str] = ()
    place: str = "findings"

    @property
    def looks(self) -> list[str]:
        """How each column is set: ``m`` a number, ``w`` words, ``w long`` words on many lines."""
        return [
            "m" if i and head not in self.words
            else "w long" if any(len(row[i]) > _LONG for row in self.rows)
            else "w"
            for i, head in enumerate(self.heads)
        ]  # fmt: skip


_LONG = 40  # characters; longer words would make a table that nobody can see whole


def exhibits(results: Mapping[str, Any]) -> list[Exhibit]:
    """The sections that a run folder's results ask for.

    Args:
        results: Name → result; kinds that nothing here knows are passed over.

    Returns:
        The sections, in a fixed order.
    """
    return [exhibit for make in _MAKERS for exhibit in make(results)]


def _of(results: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {name: result for name, result in results.items() if isinstance(result, kind)}


def _studies(results: Mapping[str, Any]) -> list[Exhibit]:
    summaries = {scores.label: scores for scores in _of(results, Scores).values()}
    made = []
    for name, trials in _of(results, Trials).items():
        if name.startswith("figure_"):  # part of a reproduction's tables
            continue
        scores = summaries.get(trials.label)
        shown: dict[tuple[str, str], Callable[[], Figure]] = {}
        if len(trials.value) and any(map(math.isfinite, trials.value)):
            shown = {
                (f"{name}_history", "Score of every trial in order"): (
                    lambda t=trials, s=scores: plots.search_history(t, s)
                ),
                (f"{name}_sensitivity", "Score against every hyperparameter"): (
                    lambda t=trials, s=scores: plots.sensitivity(t, s)
                ),
            }
            if len(trials.parameters) > 1:
                shown[f"{name}_coordinates", "Hyperparameters of every trial"] = lambda t=trials: (
                    plots.parallel_coordinates(t)
                )
            if scores is not None:
                shown[f"{name}_top", "Scores of the best trials"] = lambda t=trials, s=scores: (
                    plots.top_distribution([(plots.label_of(t), t)], k=s.k)
                )
        made.append(
            Exhibit(
                title=f"Study {trials.label}: {trials.optimizer}".replace("Study study:", "Study:"),
                lead=_study_lead(trials, scores),
                figures=shown,
                heads=("measure", "best trial", f"mean of the best {scores.counted}", "sd",
                       "standard error", "same settings, new seeds") if scores else (),
                rows=_score_rows(trials, scores) if scores else (),
            )
        )  # fmt: skip
    return made


def _study_lead(trials: Trials, scores: Scores | None) -> str:
    ended = ", ".join(f"{n} {state}" for state, n in (scores.states if scores else {}).items())
    text = f"{len(trials.value)} of {trials.budget} trials"
    text += f" ({ended})" if ended else ""
    text += f", ranked by {trials.metric.replace('_', ' ')} at the end of training."
    if trials.requeued:
        text += f" {trials.requeued} were queued again after a worker died or was stopped."
    if scores is not None and scores.rerun_settings:
        text += (
            f" The best {scores.rerun_settings} settings were trained again on "
            f"{scores.rerun_seeds} new seeds: a search keeps what was lucky, new seeds do not."
        )
    return text


def _score_rows(trials: Trials, scores: Scores) -> list[list[str]]:
    best = int(trials.value.argmax() if trials.maximise else trials.value.argmin())
    rows = []
    for name, (mean, sd, error) in scores.top.items():
        percent = name.endswith("accuracy")

        def show(value: float, percent: bool = percent) -> str:
            if not math.isfinite(value):
                return "–"
            return f"{100 * value:.2f} %" if percent else spell(value)

        again = scores.rerun.get(name)
        rows.append(
            [
                name.replace("_", " "),
                show(float(trials.final[name][best].mean())),
                show(mean),
                show(sd),
                show(error),
                "–" if again is None else f"{show(again[0])} → {show(again[1])}",
            ]
        )
    return rows


def _landscapes(results: Mapping[str, Any]) -> list[Exhibit]:
    return [Exhibit(**section, place="landscape") for section in landscape_sections(results)]


def _reproductions(results: Mapping[str, Any]) -> list[Exhibit]:
    return [Exhibit(**section) for section in reproduction_sections(results)]


def _suites(results: Mapping[str, Any]) -> list[Exhibit]:
    return [Exhibit(**section) for section in suite_sections(results)]


def _kernels(results: Mapping[str, Any]) -> list[Exhibit]:
    return [Exhibit(**section, place="functions") for section in kernel_sections(results)]


_MAKERS: Sequence[Callable[[Mapping[str, Any]], list[Exhibit]]] = (
    _reproductions,
    _suites,
    _studies,
    _landscapes,
    _kernels,
)
