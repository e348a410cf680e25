"""K-FAC and EKFAC by name: settings, default space, label and colour."""

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import nn

from kobai.curvature.factor_sums import Sharing
from kobai.curvature.shifted_inverse import InverseMethod
from kobai.optim.cotangents import Labels
from kobai.optim.ekfac import EKFAC
from kobai.optim.entry import (
    OptimizerEntry,
    check_decay,
    check_fraction,
    check_positive,
    settings_of,
)
from kobai.optim.kfac import KFAC
from kobai.optim.statistics_part import StatisticsExamples, check_examples


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


def _settings(config: KFACConfig) -> dict[str, Any]:
    precision = torch.float64 if config.factor_dtype == "float64" else None
    return {**settings_of(config), "factor_dtype": precision}


def _kfac(
    model: nn.Module, likelihood: Any, config: KFACConfig, generator: torch.Generator | None
) -> KFAC:
    return KFAC(model, likelihood, **_settings(config), generator=generator)


def _ekfac(
    model: nn.Module, likelihood: Any, config: KFACConfig, generator: torch.Generator | None
) -> EKFAC:
    return EKFAC(model, likelihood, **_settings(config), generator=generator)


_SPACE = {"lr": (1e-3, 1.0, "log"), "momentum": (0.0, 0.99), "damping": (1e-4, 1.0, "log")}

ENTRIES = (
    OptimizerEntry(
        name="kfac",
        config=KFACConfig,
        make=_kfac,
        space=_SPACE,
        label="K-FAC",
        color="#be1e56",
    ),
    OptimizerEntry(
        name="ekfac",
        config=KFACConfig,
        make=_ekfac,
        space=_SPACE,
        label="EKFAC",
        color="#be1e56",
        dash="dash",
    ),
)
