"""Describe runs before their seeds are chosen: a model, data and how to train."""

import dataclasses
from typing import Any

import torch
from torch import nn

from kobai import data, models, seeds
from kobai.optim.entry import OptimizerEntry
from kobai.optim.registry import entry_of
from kobai.problem import Problem
from kobai.results import History, Look
from kobai.training import EarlyStopping, TrainingOptions, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyTraining:
    """How long and how to train, in plain numbers; the same for every run of a comparison or study.

    They are flags of the command line, and a search space may name them.
    """

    epochs: float = 10.0
    """Passes over the training data."""
    batch_size: int = 256
    """Examples a step."""
    evaluate_every: float = 0.5
    """Epochs between evaluations on all splits."""
    clip_norm: float | None = None
    """Bound on the gradient's Euclidean norm; None is no bound."""
    clip_value: float | None = None
    """Bound on each component of the gradient; None is no bound."""
    patience: int | None = None
    """Evaluations without improvement of the validation loss before stopping; None never stops."""
    evaluate_train_limit: int | None = 10_000
    """Training examples that the training loss and accuracy are measured on (count)."""

    def options(self) -> TrainingOptions:
        """The same as options of `kobai.training.train`."""
        return TrainingOptions(
            epochs=self.epochs,
            batch_size=self.batch_size,
            evaluate_every=self.evaluate_every,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
            early_stopping=(
                None if self.patience is None else EarlyStopping(patience=self.patience)
            ),
            evaluate_train_limit=self.evaluate_train_limit,
        )


def look_of(optimizer: str | OptimizerEntry) -> Look:
    """Give an optimizer's look in figures, as results store it.

    Raises:
        ValueError: If the name is unknown, or the entry's colour or dash is none.
    """
    entry = entry_of(optimizer)
    return Look(label=entry.label, color=entry.color, dash=entry.dash)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """A data set and a model to be built for it anew for every seed.

    Attributes:
        splits: The data, loaded.
        model: Name of the family, or "package.module:factory".
        model_options: Its configuration; None for a factory of one's own.
        validation: Fraction of the training data held out, 0 for none.
        dtype: Floating-point type of inputs and parameters.
        device: Where to compute.
    """

    splits: data.DataSplits
    model: str
    model_options: Any = None
    validation: float = 0.0
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    def build_model(self, seed: int) -> nn.Module:
        """A freshly initialised model; the same seed gives the same parameters.

        Raises:
            ValueError: If the model is unknown or does not fit the data.
        """
        return models.build(
            self.model if self.model_options is None else self.model_options,
            input_shape=self.splits.input_shape,
            num_outputs=self.splits.output_size,
            generator=seeds.generator(seed, "init"),
            dtype=self.dtype,
        ).to(self.device)

    def problem(self, seed: int) -> Problem:
        """The problem with a freshly initialised model, its data on the device.

        Raises:
            ValueError: If model and data do not fit each other.
        """
        return Problem(
            self.build_model(seed),
            self.splits.likelihood,
            train=self._move(self.splits.train),
            test=None if self.splits.test is None else self._move(self.splits.test),
            validation=self.validation or None,
            generator=seeds.generator(seed, "validation") if self.validation else None,
        )

    def train(
        self,
        optimizer: str | OptimizerEntry,
        config: Any,
        training: StudyTraining,
        *,
        seed: int,
        **changes: Any,
    ) -> History:
        """Train a freshly initialised model.

        Args:
            optimizer: Name of the optimizer, or an entry of your own.
            config: Its settings.
            training: How long and how; a batch size beyond the data set means all of it.
            seed: Draws parameters, labels and the order of the examples.
            **changes: Further arguments of `kobai.training.train`.

        Raises:
            ValueError: If model, data and settings do not fit each other.
        """
        entry = entry_of(optimizer)
        look = look_of(entry)
        problem = self.problem(seed)
        history = train(
            problem,
            entry.build(
                problem.model,
                problem.likelihood,
                config,
                generator=seeds.generator(seed, "labels"),
            ),
            training.options(),
            generator=seeds.generator(seed, "shuffle"),
            batch_size=min(training.batch_size, problem.train.size),
            name=entry.name,
            seed=seed,
            **changes,
        )
        return dataclasses.replace(history, look=look)

    def _move(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = (
            tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for tensor in pair
        )
        return x, y
