"""A study's trials in one page of numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from kobai.results import Scores, Trials
from kobai.studies.scores import expected_best, ranking, top_k
from kobai.studies.trial import TrialOutcome


def summarise(
    trials: Trials,
    *,
    k: int,
    importance: Mapping[str, float] | None = None,
    rerun: Sequence[tuple[int, list[TrialOutcome]]] = (),
) -> Scores:
    """Mean of the best k trials, how search pays, and what is left of it on new seeds.

    Args:
        trials: The trials, at least one.
        k: How many of the best count.
        importance: Hyperparameter → share of the variance; see `Study.importance`.
        rerun: Trial number → outcomes on new seeds; see `Study.rerun`.

    Returns:
        The numbers. Trials are ranked by score, pruned ones by their last value.

    Raises:
        ValueError: If k < 1 or there are no trials.
    """
    top = {
        name: np.array(top_k(trials.value, values.mean(axis=1), k=k, maximise=trials.maximise))
        for name, values in trials.final.items()
    }
    states = {state: trials.state.count(state) for state in dict.fromkeys(trials.state)}
    again = _regression(trials, rerun)
    return Scores(
        label=trials.label,
        metric=trials.metric,
        maximise=trials.maximise,
        k=k,
        counted=min(k, len(trials.value)),
        top=top,
        states=states,
        best_of=expected_best(trials.value, maximise=trials.maximise),
        importance=dict(importance or {}),
        rerun=again,
        rerun_settings=len(rerun),
        rerun_seeds=len(rerun[0][1]) if rerun else 0,
    )


def _regression(
    trials: Trials, rerun: Sequence[tuple[int, list[TrialOutcome]]]
) -> dict[str, np.ndarray]:
    """Measure → (in the study, on new seeds, standard error over settings)."""
    if not rerun:
        return {}
    place = {int(number): row for row, number in enumerate(trials.number)}
    rows = [place[number] for number, _ in rerun]
    found = {}
    for name, values in trials.final.items():
        again = np.array(
            [np.mean([_value(outcome, name) for outcome in outcomes]) for _, outcomes in rerun]
        )
        spread = again.std(ddof=1) / np.sqrt(len(again)) if len(again) > 1 else np.nan
        found[name] = np.array([values[rows].mean(), again.mean(), spread])
    return found


def _value(outcome: TrialOutcome, name: str) -> float:
    values = outcome.final.get(name, [])
    return float("nan") if not values or values[0] is None else values[0]


def best_values(trials: Trials) -> dict[str, float | str]:
    """The hyperparameters of the best trial, choices in words."""
    best = int(ranking(trials.value, maximise=trials.maximise)[0])
    return {
        name: (
            trials.categories[name][int(values[best])]
            if name in trials.categories
            else float(values[best])
        )
        for name, values in trials.parameters.items()
        if np.isfinite(values[best])
    }
