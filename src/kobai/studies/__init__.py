"""Many runs: settings, comparisons over optimizers and seeds."""

import warnings

from kobai.studies.batched_trials import run_trials
from kobai.studies.budgets import Budget, Method, run_within
from kobai.studies.compare import (
    CurvatureOptions,
    Interrupted,
    LandscapeOptions,
    RunSpec,
    best_first,
    checkpoint_folder,
    draw_planes,
    head_of,
    load_model,
    measure_run,
    tabulate,
    train_run,
)
from kobai.studies.scores import (
    expected_best,
    performance_profile,
    ranking,
    time_to,
    top_k,
)
from kobai.studies.setting import Setting, StudyTraining, look_of
from kobai.studies.study import Study, StudyOptions
from kobai.studies.suite import run_suite
from kobai.studies.suite_claims import conclude, profiles
from kobai.studies.summary import best_values, summarise
from kobai.studies.trial import MEASURES, Task, TrialOutcome, run_trial

__all__ = [
    "MEASURES",
    "Budget",
    "CurvatureOptions",
    "Interrupted",
    "LandscapeOptions",
    "Method",
    "RunSpec",
    "Setting",
    "Study",
    "StudyOptions",
    "StudyTraining",
    "Task",
    "TrialOutcome",
    "best_first",
    "best_values",
    "checkpoint_folder",
    "conclude",
    "draw_planes",
    "expected_best",
    "head_of",
    "load_model",
    "look_of",
    "measure_run",
    "performance_profile",
    "profiles",
    "ranking",
    "run_suite",
    "run_trial",
    "run_trials",
    "run_within",
    "summarise",
    "tabulate",
    "time_to",
    "top_k",
    "train_run",
]

_FORMER = {"Outcome": TrialOutcome, "TrainingOptions": StudyTraining}


def __getattr__(name: str):
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _FORMER[name]
    warnings.warn(f"{__name__}.{name} is now {new.__name__}", DeprecationWarning, stacklevel=2)
    return new
