"""The trials of a study: what was tried, how each ended, and what it scored."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from kobai.results.fields import coerce_fields, frozen_array
from kobai.results.look import Look
from kobai.results.registry import register

TRIAL_STATES = ("finished", "diverged", "pruned", "failed")


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """T trials of one study, each trained with S seeds.

    Attributes:
        label: Name of the study.
        optimizer: The optimizer that was tuned.
        metric: What was scored, such as ``train_accuracy``: its mean over seeds at the end of
            training.
        maximise: Whether more is better.
        budget: Number of trials asked for.
        number: (T,) the trials' numbers, in the order they were begun.
        state: T words: ``finished``, ``diverged``, ``pruned`` or ``failed``. Runs that diverged or
            failed keep the worst value there is (0 for an accuracy, infinity for a loss).
        value: (T,) the score of each trial.
        parameters: Hyperparameter → (T,) values; a place in `categories` where it has one, NaN
            where it did not exist in the trial.
        categories: Hyperparameter → its values in words, for choices.
        log: Hyperparameters searched in the logarithm.
        final: Measure (``train_loss``, ``test_accuracy``, …) → (T, S) values at the end.
        seconds: (T, S) training time, without evaluation.
        epoch: (R,) epochs at which the metric was recorded.
        curve: (T, S, R) the metric there; NaN after a run ended.
        requeued: How many trials were queued again because their worker died or was stopped.
        note: Anything worth saying.
        look: Look of the optimizer in figures, or None.
    """

    label: str
    optimizer: str
    metric: str
    maximise: bool
    budget: int
    number: Int[np.ndarray, "T"]
    state: tuple[str, ...]
    value: Float[np.ndarray, "T"]
    parameters: dict[str, Float[np.ndarray, "T"]]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    final: dict[str, Float[np.ndarray, "T S"]]
    seconds: Float[np.ndarray, "T S"]
    epoch: Float[np.ndarray, "R"]
    curve: Float[np.ndarray, "T S R"]
    requeued: int = 0
    note: str = ""
    look: Look | None = None

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "number": "i T",
                "value": "f T",
                "seconds": "f T S",
                "epoch": "f R",
                "curve": "f T S R",
            },
            integers=("budget", "requeued"),
            booleans=("maximise",),
        )
        trials, seeds = self.seconds.shape
        for owner, shape in (("parameters", (trials,)), ("final", (trials, seeds))):
            values = {name: frozen_array(v) for name, v in getattr(self, owner).items()}
            wrong = [name for name, v in values.items() if v.shape != shape]
            if wrong:
                raise ValueError(f"Trials.{owner}[{wrong[0]!r}] must have shape {shape}")
            object.__setattr__(self, owner, values)
        unknown = sorted(set(self.state) - set(TRIAL_STATES))
        if unknown or len(self.state) != trials:
            raise ValueError(
                f"Trials.state must be {trials} words out of {', '.join(TRIAL_STATES)}; got "
                f"{len(self.state)} {unknown}"
            )
        for name in ("state", "log"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(
            self, "categories", {name: tuple(words) for name, words in self.categories.items()}
        )


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What a study's trials amount to.

    Attributes:
        label: Name of the study.
        metric: The measure the trials were ranked by.
        maximise: Whether more is better.
        k: How many of the best trials count.
        counted: How many there were to count: min(k, trials).
        top: Measure → (mean over the top k trials, sample standard deviation, standard error).
        states: State → how many trials ended so.
        best_of: (K,) expected best score of 1 … K trials drawn without replacement.
        importance: Hyperparameter → share of the score's variance it explains, summing to one.
        rerun: Measure → (mean of the top settings in the study, mean on new seeds, its standard
            error); empty if they were not trained again.
        rerun_settings: How many settings were trained again.
        rerun_seeds: On how many new seeds each.
        note: Anything worth saying.
    """

    label: str
    metric: str
    maximise: bool
    k: int
    counted: int
    top: dict[str, Float[np.ndarray, "3"]]
    states: dict[str, int]
    best_of: Float[np.ndarray, "K"]
    importance: dict[str, float] = field(default_factory=dict)
    rerun: dict[str, Float[np.ndarray, "3"]] = field(default_factory=dict)
    rerun_settings: int = 0
    rerun_seeds: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"best_of": "f K"},
            integers=("k", "counted", "rerun_settings", "rerun_seeds"),
            booleans=("maximise",),
        )
        for name in ("top", "rerun"):
            values = {key: frozen_array(v) for key, v in getattr(self, name).items()}
            if any(v.shape != (3,) for v in values.values()):
                raise ValueError(f"Scores.{name} holds three numbers a measure")
            object.__setattr__(self, name, values)
