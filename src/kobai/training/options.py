"""Define the settings of a training run: defaults, documentation and checks, once."""

import dataclasses
import math
from typing import final

from kobai.training.batch_sizes import BatchSchedule
from kobai.training.checkpoint import Checkpoint
from kobai.training.clipping import Clipping
from kobai.training.minibatches import Augment
from kobai.training.schedules import Schedule
from kobai.training.strategies.early_stopping import EarlyStopping


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The settings of `train`.

    Attributes:
        epochs: Passes over the training data, fractions allowed; 10 where neither `epochs` nor
            `steps` is given.
        steps: Optimizer steps, in place of `epochs`.
        batch_size: Examples per minibatch. The last minibatch of an epoch may be smaller; a single
            last example is left out if the model has batch normalisation, and the note says so. A
            size beyond the data set warns and uses all of it.
        batch_schedule: Changes the batch size epoch by epoch; None leaves it as it is.
        schedule: Multiplies the learning rates the groups start with, which they have again
            afterwards; None leaves them to the optimizer.
        augment: Transforms every minibatch before its step, such as a `SelfPacedAugmentation`;
            evaluations see the data as they are.
        clip_norm: Bound on the Euclidean norm of the gradient.
        clip_value: Bound on each component of the gradient, applied first.
        early_stopping: Watches the validation split; the model then ends at the best parameters
            (unless interrupted), and a last record measures them again.
        evaluate_every: Epochs between evaluations; less than one step means every step.
        evaluate_train_limit: Evaluate on at most so many training examples, a fixed, evenly spaced
            subset; None means all.
        label: Name of the run.
        name: Name of the optimizer in the record; default: its class in lower case.
        seed: The seed of the run, for the record only.
        checkpoint: Where to save the run, and whether to go on from there; see `Checkpoint`. A
            resumed run ends in the same bits as one that was never interrupted (on the CPU; all but
            the seconds): the global random state is then set to the saved one. All options must
            be as before, except that the run may be made longer. Not covered: data sets whose items
            are random, and non-persistent buffers.
        clipping: Both bounds on the gradient as one object, made from the others.

    Raises:
        ValueError: If an option is out of its range, or both `epochs` and `steps` are given.
    """

    epochs: float | int | None = None
    steps: int | None = None
    batch_size: int = 256
    batch_schedule: BatchSchedule | None = None
    schedule: Schedule | None = None
    augment: Augment | None = None
    clip_norm: float | int | None = None
    clip_value: float | int | None = None
    early_stopping: EarlyStopping | None = None
    evaluate_every: float | int = 1.0
    evaluate_train_limit: int | None = None
    label: str = ""
    name: str = ""
    seed: int = 0
    checkpoint: Checkpoint | None = None
    clipping: Clipping = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"give epochs or steps, not both; got epochs={self.epochs}, steps={self.steps}"
            )
        if self.epochs is not None and not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise ValueError(f"epochs must be positive and finite, got {self.epochs}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not (self.evaluate_every > 0 and math.isfinite(self.evaluate_every)):
            raise ValueError(
                f"evaluate_every must be a positive number of epochs, got {self.evaluate_every}"
            )
        if self.evaluate_train_limit is not None and self.evaluate_train_limit < 1:
            raise ValueError(
                "evaluate_train_limit must be at least 1 example, got "
                f"{self.evaluate_train_limit}; None measures all training examples"
            )
        object.__setattr__(self, "clipping", Clipping(norm=self.clip_norm, value=self.clip_value))
