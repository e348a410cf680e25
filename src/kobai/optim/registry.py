"""Every optimizer by name: the one table of entries, and what is derived from it."""

from typing import Any

import torch
from torch import nn

from kobai.optim import first_order
from kobai.optim.domains import Domain
from kobai.optim.entry import OptimizerEntry
from kobai.optim.kfac import optimizer as kfac
from kobai.optim.second_order import (
    conjugate_gradient,
    coordinate,
    gauss_newton,
    hessian_free,
    natural_gradient,
    newton,
    quasi_newton,
    saddle_free,
    steepest_descent,
)
from kobai.problem import Likelihood

OptimizerConfig = Any
"""Settings of an optimizer: a frozen dataclass of the class that `CONFIGS` has for its name."""

OPTIMIZERS: dict[str, OptimizerEntry] = {
    entry.name: entry
    for entry in (
        *first_order.ENTRIES,
        *kfac.ENTRIES,
        *natural_gradient.ENTRIES,
        gauss_newton.ENTRY,
        hessian_free.ENTRY,
        newton.ENTRY,
        saddle_free.ENTRY,
        quasi_newton.ENTRY,
        quasi_newton.LIMITED_ENTRY,
        conjugate_gradient.ENTRY,
        steepest_descent.ENTRY,
        coordinate.ENTRY,
    )
}
"""The entries by name."""

CONFIGS: dict[str, type[Any]] = {name: entry.config for name, entry in OPTIMIZERS.items()}
"""The settings that belong to each name: frozen dataclasses, all fields with defaults."""


def entry_of(optimizer: str | OptimizerEntry) -> OptimizerEntry:
    """Find an entry by name; an entry is returned as it is.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(optimizer, OptimizerEntry):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {optimizer!r}; choose from {', '.join(OPTIMIZERS)}, or give an "
            "OptimizerEntry of your own"
        )
    return OPTIMIZERS[optimizer]


def build(
    name: str | OptimizerEntry,
    model: nn.Module,
    likelihood: str | Likelihood | nn.Module = "categorical",
    config: OptimizerConfig | None = None,
    *,
    generator: torch.Generator | None = None,
) -> torch.optim.Optimizer:
    """Make an optimizer for all trainable parameters of a model.

    Args:
        name: One of `OPTIMIZERS`, or an entry of your own.
        model: The model.
        likelihood: What its outputs mean; first-order methods do not need it.
        config: Settings of the entry's class; default: its defaults.
        generator: Draws what the optimizer draws, such as labels; default: the optimizer's own.

    Raises:
        ValueError: If the name is unknown or the model has nothing to train.
        TypeError: If the settings belong to another optimizer.
    """
    return entry_of(name).build(model, likelihood, config, generator=generator)


def default_space(name: str | OptimizerEntry) -> dict[str, Domain]:
    """Give the hyperparameters that are worth searching, each with its domain.

    Args:
        name: One of `OPTIMIZERS`, or an entry of your own.

    Returns:
        Field of the optimizer's settings → domain; a new dictionary.

    Raises:
        ValueError: If the name is unknown.
    """
    return entry_of(name).domains()
