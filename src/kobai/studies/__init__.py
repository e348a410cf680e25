"""Many runs: settings, comparisons over optimizers and seeds."""

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
from kobai.studies.setting import Setting, TrainingOptions

__all__ = [
    "CurvatureOptions",
    "Interrupted",
    "LandscapeOptions",
    "RunSpec",
    "Setting",
    "TrainingOptions",
    "best_first",
    "checkpoint_folder",
    "draw_planes",
    "head_of",
    "load_model",
    "measure_run",
    "tabulate",
    "train_run",
]
