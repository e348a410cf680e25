"""Settings of the optimizers that are handed the objective, and how to make them by name."""

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from kobai.curvature.fisher import StructureName
from kobai.curvature.scores import Labels
from kobai.optim.damping import LevenbergMarquardt
from kobai.optim.first_order import check_decay, check_fraction, check_positive
from kobai.optim.second_order.gauss_newton import GaussNewton
from kobai.optim.second_order.hessian_free import HESSIAN_FREE, HessianFree
from kobai.optim.second_order.natural_gradient import NaturalGradient, StepSize
from kobai.problem import Likelihood


@dataclasses.dataclass(frozen=True, kw_only=True)
class NaturalGradientConfig:
    """Natural gradient with the Fisher matrix, or a structure of it, of each minibatch."""

    lr: float = 1.0
    """Learning rate; a factor on the model's own step size where that is asked for."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Fisher matrix; auto: from 0.01 by the reduction ratios
    of the step's own examples and, on minibatches, of the next ones."""
    momentum: float = 0.0
    """Share of the last update kept."""
    weight_decay: float = 0.0
    """Share of the parameters, times the learning rate, taken off each step."""
    labels: Labels | Literal["auto"] = "auto"
    """Whose labels: all of them weighted by the model, drawn from it, or the data's; auto: drawn
    for ngd-tridiagonal, whose dense system has a row for each of them and layer, else all."""
    step_size: StepSize = "model"
    """Step: the minimiser of the quadratic model along it, or the learning rate as it is."""
    kl_bound: float | None = 0.1
    """Largest squared length of a step in the Fisher metric, against overfitted minibatches."""

    def __post_init__(self) -> None:
        check_positive("ngd", "lr", self.lr)
        _check_damping("ngd", self.damping)
        check_fraction("ngd", "momentum", self.momentum)
        check_decay("ngd", self.weight_decay)
        if self.kl_bound is not None:
            check_positive("ngd", "kl_bound", self.kl_bound)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussNewtonConfig:
    """Levenberg-Marquardt: damped Gauss-Newton steps that are made only if the loss falls."""

    lr: float = 1.0
    """Factor on the step."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Gauss-Newton matrix; auto: by the reduction ratio."""
    max_trials: int = 10
    """Trials a step with growing damping (count)."""

    def __post_init__(self) -> None:
        check_positive("gauss-newton", "lr", self.lr)
        check_positive("gauss-newton", "max_trials", self.max_trials)
        _check_damping("gauss-newton", self.damping)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HessianFreeConfig:
    """Truncated conjugate gradients on the damped Gauss-Newton matrix."""

    lr: float = 1.0
    """Factor on the direction before the line search."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Gauss-Newton matrix; auto: by the reduction ratio."""
    max_iterations: int = 50
    """Most iterations of conjugate gradients a step (count)."""
    progress: float = 5e-4
    """Relative improvement of the quadratic model an iteration below which they end."""
    warm_start: float = 0.95
    """Share of the last solution to start from."""

    def __post_init__(self) -> None:
        check_positive("hessian-free", "lr", self.lr)
        check_positive("hessian-free", "max_iterations", self.max_iterations)
        check_decay("hessian-free", self.progress)
        if not 0 <= self.warm_start <= 1:
            raise ValueError(f"--hessian-free.warm_start must lie in [0, 1], got {self.warm_start}")
        _check_damping("hessian-free", self.damping)


def _check_damping(name: str, value: float | str) -> None:
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(f"--{name}.damping must be a number or auto, got {value!r}")
        return
    check_positive(name, "damping", value)


CurvatureConfig = NaturalGradientConfig | GaussNewtonConfig | HessianFreeConfig

STRUCTURE_OF: dict[str, StructureName] = {
    "ngd": "full",
    "ngd-layer": "layer",
    "ngd-tridiagonal": "tridiagonal",
    "ngd-unit": "unit",
    "ngd-kronecker": "kronecker",
    "ngd-ekfac": "ekfac",
    "ngd-diagonal": "diagonal",
}
"""The Fisher structure of each natural-gradient name."""

FIRST_RULE: dict[str, LevenbergMarquardt] = {
    **dict.fromkeys(STRUCTURE_OF, LevenbergMarquardt(initial=1e-2)),
    "hessian-free": dataclasses.replace(HESSIAN_FREE, initial=1e-2),
}
"""Where a damping of "auto" starts by name, and where minibatches send it back to: lower than for
the classes themselves, since step and divergence are bounded otherwise here."""

CURVATURE: dict[str, type[Any]] = {
    **dict.fromkeys(STRUCTURE_OF, NaturalGradientConfig),
    "gauss-newton": GaussNewtonConfig,
    "hessian-free": HessianFreeConfig,
}
"""The settings that belong to each name."""


def with_curvature(
    name: str,
    model: nn.Module,
    likelihood: str | Likelihood | nn.Module,
    config: CurvatureConfig,
    *,
    generator: torch.Generator | None = None,
) -> torch.optim.Optimizer:
    """Make one of these optimizers; their `step` takes the objective.

    Args:
        name: One of `CURVATURE`.
        model: The model.
        likelihood: What its outputs mean.
        config: Settings of the class `CURVATURE` has for the name.
        generator: Draws labels, for those that draw; default: the optimizer's own.
    """
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if settings["damping"] == "auto" and name in FIRST_RULE:
        settings["damping"] = FIRST_RULE[name]
    if settings.get("labels") == "auto":
        settings["labels"] = "sampled" if name == "ngd-tridiagonal" else "exact"
    if name == "gauss-newton":
        return GaussNewton(model, likelihood, **settings)
    if name == "hessian-free":
        return HessianFree(model, likelihood, **settings)
    return NaturalGradient(
        model, likelihood, structure=STRUCTURE_OF[name], **settings, generator=generator
    )
