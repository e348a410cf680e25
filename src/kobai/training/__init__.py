"""How θ moves: one loop for every optimizer, with schedules, clipping, stopping and checkpoints."""

from kobai.training.batch_sizes import (
    BATCH_SCHEDULES,
    BatchSchedule,
    ConstantBatch,
    GeometricBatch,
    LinearBatch,
    StepBatch,
)
from kobai.training.checkpoint import Checkpoint, load_model
from kobai.training.loop import train
from kobai.training.options import TrainingOptions
from kobai.training.progress import ConsoleProgress, Progress
from kobai.training.schedules import SCHEDULES, Constant, Cosine, LinearDecay, Schedule
from kobai.training.strategies.augmentation import (
    Augmentation,
    Compose,
    Cutout,
    Flip,
    Mixup,
    Rotate,
    SelfPacedAugmentation,
    Shift,
)
from kobai.training.strategies.auxiliary import AuxiliaryHeads, auxiliary_problem, weighted_targets
from kobai.training.strategies.averaging import PolyakAverage
from kobai.training.strategies.continuation import Blurred, Stages, minimize_by_continuation
from kobai.training.strategies.curriculum import curriculum_indices, train_by_curriculum
from kobai.training.strategies.distillation import (
    Tempered,
    distillation_problem,
    hint_problem,
    train_by_hints,
)
from kobai.training.strategies.early_stopping import EarlyStopping
from kobai.training.strategies.first_rate import FirstRate, choose_first_rate
from kobai.training.strategies.initial_scale import (
    Raised,
    Signals,
    raise_vanishing,
    scale_weights,
    search_initial_scales,
    signals,
    weight_names,
)
from kobai.training.strategies.pretraining import greedy_pretraining
from kobai.training.trajectory import snapshots

__all__ = [
    "BATCH_SCHEDULES",
    "SCHEDULES",
    "Augmentation",
    "AuxiliaryHeads",
    "BatchSchedule",
    "Blurred",
    "Checkpoint",
    "Compose",
    "ConsoleProgress",
    "Constant",
    "ConstantBatch",
    "Cosine",
    "Cutout",
    "EarlyStopping",
    "FirstRate",
    "Flip",
    "GeometricBatch",
    "LinearBatch",
    "LinearDecay",
    "Mixup",
    "PolyakAverage",
    "Progress",
    "Raised",
    "Rotate",
    "Schedule",
    "SelfPacedAugmentation",
    "Shift",
    "Signals",
    "Stages",
    "StepBatch",
    "Tempered",
    "TrainingOptions",
    "auxiliary_problem",
    "choose_first_rate",
    "curriculum_indices",
    "distillation_problem",
    "greedy_pretraining",
    "hint_problem",
    "load_model",
    "minimize_by_continuation",
    "raise_vanishing",
    "scale_weights",
    "search_initial_scales",
    "signals",
    "snapshots",
    "train",
    "train_by_curriculum",
    "train_by_hints",
    "weight_names",
    "weighted_targets",
]
