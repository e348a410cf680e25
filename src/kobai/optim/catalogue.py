"""Every optimizer by name, with its settings."""

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import nn

from kobai.curvature.blocks.factor_sums import Sharing
from kobai.curvature.blocks.shifted_inverse import InverseMethod
from kobai.optim.cotangents import Labels
from kobai.optim.curvature_configs import CURVATURE, CurvatureConfig, with_curvature
from kobai.optim.ekfac import EKFAC
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
    check_decay,
    check_fraction,
    check_positive,
    first_order,
)
from kobai.optim.full_batch_configs import FULL_BATCH, FullBatchConfig, full_batch
from kobai.optim.kfac import KFAC
from kobai.optim.statistics_part import StatisticsExamples, check_examples
from kobai.problem import Likelihood


@dataclasses.dataclass(frozen=True, kw_only=True)
class KFACConfig:
    """Natural gradient with Kronecker-factored curvature, plain or corrected in its eigenbasis."""

    lr: float | Literal["auto"] = "auto"
    """Learning rate; auto: step and momentum by the quadratic model of the minibatch."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Fisher matrix; auto: by the reduction ratio."""
    momentum: float = 0.9
    """Share of the last update kept, beside a learning rate in numbers."""
    nesterov: bool = False
    """Whether that momentum looks ahead."""
    weight_decay: float = 0.0
    """Share of the parameters, times the learning rate, taken off each step."""
    statistics_every: int | Literal["auto"] = 10
    """Steps between updates of the curvature statistics; denser at the start; auto: by measured
    staleness."""
    inverse_every: int | Literal["auto"] = 100
    """Steps between inversions; denser at the start; auto: by measured staleness."""
    kl_bound: float | Literal["auto", "none"] = "auto"
    """Largest squared length of a step in the Fisher metric; auto: by the reduction ratio; none
    beside a learning rate in numbers: no bound, kept as inf."""
    output_damping: float = 1.0
    """Multiple of the identity added to the Fisher matrix of the outputs."""
    labels: Labels = "sampled"
    """Whose labels: drawn from the model, all of them weighted, or the data's."""
    sharing: Sharing = "trace"
    """Tokens, positions and time steps: independent of each other, the same with the size of a
    layer's gradients exact, or summed over first."""
    statistics_examples: StatisticsExamples = "auto"
    """Examples of a batch that factors are summed over; auto: as many as their size needs."""
    inverse: InverseMethod = "cholesky"
    """How factors are inverted (kfac): eigh is dearer; newton-schulz multiplies matrices only."""
    factor_dtype: Literal["parameters", "float64"] = "parameters"
    """Precision of the factors and of their inversion; that of the parameters or double."""

    def __post_init__(self) -> None:
        if self.kl_bound == "none":
            # As a number it stays what it is in a file of settings, which leaves None out.
            object.__setattr__(self, "kl_bound", math.inf)
        if isinstance(self.kl_bound, str):
            if self.kl_bound != "auto":
                raise ValueError(
                    f"--kfac.kl_bound must be a number, auto or none, got {self.kl_bound!r}"
                )
        elif not self.kl_bound > 0:
            raise ValueError(f"--kfac.kl_bound must be positive, got {self.kl_bound}")
        for flag in ("lr", "damping", "statistics_every", "inverse_every"):
            value = getattr(self, flag)
            if not isinstance(value, str):
                check_positive("kfac", flag, value)
            elif value != "auto":
                raise ValueError(f"--kfac.{flag} must be a number or auto, got {value!r}")
        check_examples(self.statistics_examples)
        if not (math.isfinite(self.output_damping) and self.output_damping >= 0):
            raise ValueError(
                f"--kfac.output_damping must be non-negative and finite, got {self.output_damping}"
            )
        if self.nesterov and self.lr == "auto":
            raise ValueError(
                "--kfac.nesterov belongs to a learning rate in numbers: give --kfac.lr"
            )
        check_fraction("kfac", "momentum", self.momentum)
        check_decay("kfac", self.weight_decay)


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
        precision = torch.float64 if chosen.factor_dtype == "float64" else None
        settings["factor_dtype"] = precision
        kind = EKFAC if name == "ekfac" else KFAC
        return kind(model, likelihood, **settings, generator=generator)
    if isinstance(chosen, CurvatureConfig):
        return with_curvature(name, model, likelihood, chosen, generator=generator)
    if isinstance(chosen, FullBatchConfig):
        return full_batch(model, chosen, generator=generator)
    return first_order(name, model, chosen)
