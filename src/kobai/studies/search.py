"""How trials are proposed: samplers and pruners by name, and a trial's values out of a space."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import optuna
from optuna.exceptions import ExperimentalWarning

from kobai import seeds
from kobai.optim.domains import Choice, Domain, Fixed, Integer, Linear, Log, Value, When

SamplerName = Literal["tpe", "gp", "cmaes", "quasi-random", "random", "grid"]
PrunerName = Literal["none", "median", "halving", "hyperband"]

GRID_POINTS = 5
"""Points of a grid along an interval."""


def make_sampler(
    name: SamplerName, space: Mapping[str, Domain], *, seed: int, asked: int, worker: int = 0
) -> optuna.samplers.BaseSampler:
    """The sampler for the next trial.

    A sampler's own random state is lost when a worker ends; so each trial has a new one, its seed
    made from the study's seed and the number of trials asked before, and a resumed study goes on as
    an uninterrupted one would. Quasi-random sequences and grids keep their place in the storage and
    have one seed throughout.

    Args:
        name: Which sampler.
        space: The search space, which a grid needs.
        seed: The study's seed.
        asked: Trials begun so far, not counting those that were queued again.
        worker: Number of the worker; workers that ask at once must differ.
    """
    once = seeds.integer(seed, "sampler") % 2**32
    each = seeds.integer(seed, f"sampler-{asked}" + (f"-{worker}" if worker else "")) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=each),
            "gp": lambda: optuna.samplers.GPSampler(seed=each),
            "cmaes": lambda: optuna.samplers.CmaEsSampler(
                seed=each, warn_independent_sampling=False
            ),
            "quasi-random": lambda: optuna.samplers.QMCSampler(
                seed=once,
                scramble=True,
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            ),
            "random": lambda: optuna.samplers.RandomSampler(seed=each),
            "grid": lambda: optuna.samplers.GridSampler(grid(space), seed=once),
        }
        if name not in made:
            raise ValueError(f"unknown sampler {name!r}; choose from {', '.join(made)}")
        return made[name]()


def make_pruner(name: PrunerName) -> optuna.pruners.BasePruner:
    """The rule that ends hopeless trials early; "none" trains every trial to its end."""
    made: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    if name not in made:
        raise ValueError(f"unknown pruner {name!r}; choose from {', '.join(made)}")
    return made[name]()


def grid(space: Mapping[str, Domain]) -> dict[str, list[Any]]:
    """The points of a grid over a space: five along an interval, all of a choice.

    Raises:
        ValueError: If the space has a condition, which a grid cannot express.
    """
    points: dict[str, list[Any]] = {}
    for name, domain in space.items():
        match domain:
            case Log(low, high):
                ratio = (high / low) ** (1 / (GRID_POINTS - 1))
                points[name] = [low * ratio**i for i in range(GRID_POINTS - 1)] + [high]
            case Linear(low, high):
                step = (high - low) / (GRID_POINTS - 1)
                points[name] = [low + step * i for i in range(GRID_POINTS - 1)] + [high]
            case Integer(low, high):
                count = min(GRID_POINTS, high - low + 1)
                step = (high - low) / max(count - 1, 1)
                points[name] = sorted({round(low + step * i) for i in range(count)})
            case Choice(values):
                points[name] = list(values)
            case When():
                raise ValueError(
                    f"{name}: a grid cannot hold a condition; choose another sampler or make it "
                    "an interval"
                )
    return points


def suggest(trial: optuna.trial.BaseTrial, space: Mapping[str, Domain]) -> dict[str, Value]:
    """Ask a trial for its values, in the order of the space.

    Args:
        trial: Optuna's trial.
        space: Hyperparameter → domain; a condition's field comes before what depends on it.

    Returns:
        Hyperparameter → value; those whose condition does not hold are left out.
    """
    values: dict[str, Value] = {}
    for name, domain in space.items():
        inner = domain
        if isinstance(domain, When):
            if values.get(domain.field) not in domain.values:
                continue
            inner = domain.domain
        match inner:
            case Log(low, high):
                values[name] = trial.suggest_float(name, low, high, log=True)
            case Linear(low, high):
                values[name] = trial.suggest_float(name, low, high)
            case Integer(low, high, log):
                values[name] = trial.suggest_int(name, low, high, log=log)
            case Choice(choices):
                values[name] = trial.suggest_categorical(name, choices)
            case Fixed(value):
                values[name] = value
    return values


def check_space(space: Mapping[str, Domain]) -> None:
    """Refuse a space in which a condition names a later or unknown hyperparameter.

    Raises:
        ValueError: If so, or if there is nothing to search.
    """
    known: set[str] = set()
    for name, domain in space.items():
        if isinstance(domain, When) and domain.field not in known:
            raise ValueError(
                f"{name} depends on {domain.field}, which is not a hyperparameter before it"
            )
        known.add(name)
    if all(isinstance(domain, Fixed) for domain in space.values()):
        raise ValueError("every hyperparameter is fixed; there is nothing to search")
