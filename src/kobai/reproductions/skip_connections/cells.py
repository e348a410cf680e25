"""The eight cells of the tables: a study each, worked through by several processes."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

from kobai import data, models
from kobai.optim import CONFIGS, Domain, Linear, Log
from kobai.reproductions.skip_connections.config import Config
from kobai.results import Trials
from kobai.studies import (
    Interrupted,
    Setting,
    Study,
    StudyOptions,
    StudyTraining,
    Task,
    TrialOutcome,
)
from kobai.training import LinearDecay

WIDTH = 100
SETTINGS, NEW_SEEDS = 8, 3
"""How many of a cell's best settings are trained again, on how many new seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of the tables.

    Attributes:
        optimizer: ``sgd`` or ``kfac``.
        network: ``plain`` or ``skips``.
        batch: ``small`` or ``large``.
    """

    optimizer: str
    network: str
    batch: str

    @property
    def name(self) -> str:
        """Such as ``kfac-skips-large``."""
        return f"{self.optimizer}-{self.network}-{self.batch}"


CELLS = tuple(
    Cell(optimizer=optimizer, network=network, batch=batch)
    for batch in ("small", "large")
    for network in ("plain", "skips")
    for optimizer in ("sgd", "kfac")
)


def setting(config: Config, network: str) -> Setting:
    """Data and network; inputs scaled to [0, 1] as the data set has them.

    Args:
        config: The configuration.
        network: ``plain`` or ``skips``.
    """
    widths, skips = (WIDTH,) * (config.depth - 1), network == "skips"
    if config.network == "linear":
        family, options = "linear", {"widths": widths, "skips": skips, "bias": config.bias}
    else:
        norm = "batch" if config.network == "batch-norm" else "none"
        family = "mlp"
        options = {
            "widths": widths,
            "skips": skips,
            "bias": config.bias,
            "normalization": norm,
        }
    return Setting(
        splits=data.load(config.data_name),
        model=family,
        model_options=models.FAMILIES[family](**options),
    )


def task(config: Config, cell: Cell, where: Setting) -> Task:
    """What the trials of a cell have in common.

    K-FAC is the source's: Fisher matrix, damping, momentum, learning rate; no bound on the step and
    nothing added in output space.
    """
    small, large = config.batch_sizes
    if cell.optimizer == "sgd":
        settings = CONFIGS["momentum"]()
    else:
        settings = CONFIGS["kfac"](
            lr=0.1,
            damping=config.damping or 0.01,
            momentum=0.9,
            kl_bound="none",
            output_damping=0.0,
        )
    return Task(
        setting=where,
        optimizer="momentum" if cell.optimizer == "sgd" else "kfac",
        config=settings,
        schedule=LinearDecay(),
        training=StudyTraining(
            epochs=config.length,
            batch_size=small if cell.batch == "small" else large,
            evaluate_every=config.length,
            evaluate_train_limit=None,
        ),
        seeds=(config.seed,),
        metric="train_accuracy",
    )


def space(config: Config, cell: Cell) -> dict[str, Domain]:
    """Learning rate, linear decay coefficient and momentum; damping where it is searched."""
    searched: dict[str, Domain] = {
        "lr": Log(1e-3, 1.0) if cell.optimizer == "sgd" else Log(1e-4, 1.0),
        "momentum": Linear(0.0, 0.99),
        "schedule.final_fraction": Log(1e-3, 1.0),
    }
    if cell.optimizer == "kfac" and config.damping is None:
        searched["damping"] = Log(1e-4, 1.0)
    return searched


def open_study(config: Config, cell: Cell, folder: Path, where: Setting) -> Study:
    """The study of a cell, in its own folder below the run's."""
    options = StudyOptions(
        trials=config.number_of_trials,
        metric="train_accuracy",
        name=cell.name,
        together=config.at_once,
    )
    return Study(
        task(config, cell, where),
        space(config, cell),
        options,
        folder / "cells" / cell.name,
        seed=config.seed,
    )


def _work(config: Config, folder: str, worker: int) -> None:
    """What a further process does: every cell in turn, until all are complete."""
    torch.set_num_threads(config.threads or 1)
    settings = {network: setting(config, network) for network in ("plain", "skips")}
    for cell in CELLS:
        study = open_study(config, cell, Path(folder), settings[cell.network])
        study.work(worker=worker)
        study.close()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Searched:
    """What the search of a cell brought.

    Attributes:
        trials: Every trial.
        again: The best settings on seeds that the search has not seen, setting by setting.
    """

    trials: Trials
    again: tuple[tuple[TrialOutcome, ...], ...]


def search_all(
    config: Config,
    folder: Path,
    report: Callable[[str], None],
    stop: Callable[[], bool],
) -> dict[Cell, Searched]:
    """Search every cell, and train its best settings on new seeds; finished runs are kept.

    Args:
        config: The configuration.
        folder: The run folder.
        report: Told what happens.
        stop: Asked before every training step.

    Returns:
        What every cell brought.

    Raises:
        kobai.studies.Interrupted: If `stop` said so; trials that were cut off are queued again.
    """
    torch.set_num_threads(config.threads or 1)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_work, args=(config, str(folder), number), daemon=True)
        for number in range(1, config.workers)
    ]
    for process in others:
        process.start()
    settings = {network: setting(config, network) for network in ("plain", "skips")}
    found = {}
    try:
        for cell in CELLS:
            study = open_study(config, cell, folder, settings[cell.network])
            known = study.done()
            seconds: list[float] = []

            def note(done: int, outcome: TrialOutcome, seconds=seconds, cell=cell) -> None:
                seconds.append(sum(outcome.seconds))
                if len(seconds) == 3:
                    left = sum(seconds) / 3 * (config.number_of_trials - done) / config.workers
                    report(f"  {cell.name}: about {left / 60:.1f} min of training to go")

            report(f"{cell.name}: {known} of {config.number_of_trials} trials are done")
            complete = study.work(stop=stop, finished=note)
            again = None
            if complete:
                seeds = tuple(range(config.seed + 1, config.seed + 1 + NEW_SEEDS))
                again = study.rerun(settings=SETTINGS, seeds=seeds, stop=stop)
            trials = study.trials()
            study.close()
            if again is None:
                raise Interrupted
            found[cell] = Searched(trials=trials, again=tuple(tuple(row) for _, row in again))
    finally:
        for process in others:
            if len(found) < len(CELLS):
                process.terminate()
            process.join()
    return found
