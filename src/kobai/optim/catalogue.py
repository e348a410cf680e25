"""Every optimizer by name, with its settings."""

import dataclasses
from typing import Any

import torch
from torch import nn

from kobai.optim.curvature_configs import CURVATURE, CurvatureConfig, with_curvature
from kobai.optim.first_order import (
    AdadeltaConfig,
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    FirstOrderConfig,
    MomentumConfig,
    MuonConfig,
    NesterovConfig,
    RMSpropConfig,
    SGDConfig,
    first_order,
)
from kobai.optim.full_batch_configs import FULL_BATCH, FullBatchConfig, full_batch
from kobai.optim.kfac import KFAC, KFACSettings
from kobai.problem import Likelihood

KFACConfig = KFACSettings
"""The settings of "kfac" and "ekfac" by their older name."""

OptimizerConfig = FirstOrderConfig | KFACConfig | CurvatureConfig | FullBatchConfig

CONFIGS: dict[str, type[Any]] = {
    "sgd": SGDConfig,
    "momentum": MomentumConfig,
    "nesterov": NesterovConfig,
    "adagrad": AdagradConfig,
    "rmsprop": RMSpropConfig,
    "adadelta": AdadeltaConfig,
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "muon": MuonConfig,
    "kfac": KFACConfig,
    "ekfac": KFACConfig,
    **CURVATURE,
    **FULL_BATCH,
}
"""The settings that belong to each name: frozen dataclasses, all fields with defaults."""


def build(
    name: str,
    model: nn.Module,
    likelihood: str | Likelihood | nn.Module = "categorical",
    config: OptimizerConfig | None = None,
    *,
    generator: torch.Generator | None = None,
) -> torch.optim.Optimizer:
    """Make an optimizer for all trainable parameters of a model.

    Args:
        name: One of `CONFIGS`.
        model: The model.
        likelihood: What its outputs mean; first-order methods do not need it.
        config: Settings of the class `CONFIGS` has for the name; default: its defaults.
        generator: Draws what the optimizer draws, such as labels; default: the optimizer's own.

    Raises:
        ValueError: If the name is unknown or the model has nothing to train.
        TypeError: If the settings belong to another optimizer.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown optimizer {name!r}; choose from {', '.join(CONFIGS)}")
    chosen: OptimizerConfig = CONFIGS[name]() if config is None else config
    if not isinstance(chosen, CONFIGS[name]):
        raise TypeError(
            f"{name} takes settings of type {CONFIGS[name].__name__}, got {type(chosen).__name__}"
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has no trainable parameters; "
            "set requires_grad=True on those to be learned"
        )
    if isinstance(chosen, KFACConfig):
        settings = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}
        if name == "ekfac":
            settings["structure"] = "ekfac"
        return KFAC(model, likelihood, **settings, generator=generator)
    if isinstance(chosen, CurvatureConfig):
        return with_curvature(name, model, likelihood, chosen, generator=generator)
    if isinstance(chosen, FullBatchConfig):
        return full_batch(model, chosen, generator=generator)
    return first_order(name, model, chosen)
