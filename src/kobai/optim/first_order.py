"""First-order methods: torch's own classes by name, with their settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kobai.optim.entry import (
    OptimizerEntry,
    check_decay,
    check_fraction,
    check_positive,
    settings_of,
)
from kobai.optim.muon import MuonAdamW


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGDConfig:
    """Stochastic gradient descent."""

    lr: float = 0.1
    """Learning rate."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("sgd", "lr", self.lr)
        check_decay("sgd", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumConfig:
    """Stochastic gradient descent with heavy-ball momentum."""

    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.9
    """Share of the last update kept."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("momentum", "lr", self.lr)
        check_fraction("momentum", "momentum", self.momentum)
        check_decay("momentum", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NesterovConfig:
    """Stochastic gradient descent with Nesterov momentum."""

    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.9
    """Share of the last update kept; positive."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("nesterov", "lr", self.lr)
        check_positive("nesterov", "momentum", self.momentum)
        check_fraction("nesterov", "momentum", self.momentum)
        check_decay("nesterov", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdagradConfig:
    """Adagrad: learning rates fall with the sum of squared gradients."""

    lr: float = 0.01
    """Learning rate."""
    eps: float = 1e-10
    """Added to the root of the sum of squares."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("adagrad", "lr", self.lr)
        check_positive("adagrad", "eps", self.eps)
        check_decay("adagrad", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMSpropConfig:
    """RMSprop: gradients divided by the root of a moving mean of their squares."""

    lr: float = 1e-3
    """Learning rate."""
    decay: float = 0.99
    """Weight of the past in the moving mean of squares."""
    momentum: float = 0.0
    """Share of the last update kept."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("rmsprop", "lr", self.lr)
        check_fraction("rmsprop", "decay", self.decay)
        check_fraction("rmsprop", "momentum", self.momentum)
        check_positive("rmsprop", "eps", self.eps)
        check_decay("rmsprop", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdadeltaConfig:
    """Adadelta: RMSprop in the units of the updates."""

    lr: float = 1.0
    """Factor on the update."""
    rho: float = 0.9
    """Weight of the past in the moving means of squares."""
    eps: float = 1e-6
    """Added to the mean squares."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("adadelta", "lr", self.lr)
        check_fraction("adadelta", "rho", self.rho)
        check_positive("adadelta", "eps", self.eps)
        check_decay("adadelta", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam."""

    lr: float = 1e-3
    """Learning rate."""
    beta1: float = 0.9
    """Weight of the past in the moving mean of gradients."""
    beta2: float = 0.999
    """Weight of the past in the moving mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""

    def __post_init__(self) -> None:
        check_positive("adam", "lr", self.lr)
        check_fraction("adam", "beta1", self.beta1)
        check_fraction("adam", "beta2", self.beta2)
        check_positive("adam", "eps", self.eps)
        check_decay("adam", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """Adam with decoupled weight decay."""

    lr: float = 1e-3
    """Learning rate."""
    beta1: float = 0.9
    """Weight of the past in the moving mean of gradients."""
    beta2: float = 0.999
    """Weight of the past in the moving mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.01
    """Share of the parameters, times the learning rate, taken off each step."""

    def __post_init__(self) -> None:
        check_positive("adamw", "lr", self.lr)
        check_fraction("adamw", "beta1", self.beta1)
        check_fraction("adamw", "beta2", self.beta2)
        check_positive("adamw", "eps", self.eps)
        check_decay("adamw", self.weight_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonConfig:
    """Muon for hidden weight matrices, AdamW for all other parameters."""

    lr: float = 1e-3
    """Learning rate of both."""
    momentum: float = 0.95
    """Muon's Nesterov momentum."""
    weight_decay: float = 0.01
    """Share of the parameters, times the learning rate, taken off each step."""
    beta1: float = 0.9
    """AdamW's weight of the past in the moving mean of gradients."""
    beta2: float = 0.999
    """AdamW's weight of the past in the moving mean of squared gradients."""

    def __post_init__(self) -> None:
        check_positive("muon", "lr", self.lr)
        check_fraction("muon", "momentum", self.momentum)
        check_fraction("muon", "beta1", self.beta1)
        check_fraction("muon", "beta2", self.beta2)
        check_decay("muon", self.weight_decay)


FIRST_ORDER: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adadelta": torch.optim.Adadelta,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": MuonAdamW,
}
"""The class behind each name."""


def _make(name: str) -> Callable[[nn.Module, Any, Any, Any], torch.optim.Optimizer]:
    """Make the function that makes torch's optimizer behind a name."""

    def make(
        model: nn.Module, likelihood: Any, config: Any, generator: Any
    ) -> torch.optim.Optimizer:
        settings = settings_of(config)
        if "beta1" in settings:
            settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
        if "decay" in settings:
            settings["alpha"] = settings.pop("decay")
        if name == "nesterov":
            settings["nesterov"] = True
        parameters = [p for p in model.parameters() if p.requires_grad]
        return FIRST_ORDER[name](parameters, **settings)

    return make


ENTRIES = (
    OptimizerEntry(
        name="sgd",
        config=SGDConfig,
        make=_make("sgd"),
        space={"lr": (1e-4, 10.0, "log")},
        color="#2b6cb8",
    ),
    OptimizerEntry(
        name="momentum",
        config=MomentumConfig,
        make=_make("momentum"),
        space={"lr": (1e-4, 1.0, "log"), "momentum": (0.0, 0.99)},
        color="#1fb39a",
    ),
    OptimizerEntry(
        name="nesterov",
        config=NesterovConfig,
        make=_make("nesterov"),
        space={"lr": (1e-4, 1.0, "log"), "momentum": (0.1, 0.99)},
        color="#1fb39a",
        dash="dash",
    ),
    OptimizerEntry(
        name="adagrad",
        config=AdagradConfig,
        make=_make("adagrad"),
        space={"lr": (1e-4, 1.0, "log")},
        color="#d9601a",
    ),
    OptimizerEntry(
        name="rmsprop",
        config=RMSpropConfig,
        make=_make("rmsprop"),
        space={"lr": (1e-5, 1e-1, "log"), "decay": [0.9, 0.99, 0.999], "momentum": (0.0, 0.99)},
        color="#b09cf0",
    ),
    OptimizerEntry(
        name="adadelta",
        config=AdadeltaConfig,
        make=_make("adadelta"),
        space={"lr": (1e-2, 10.0, "log"), "rho": (0.8, 0.99)},
        color="#b09cf0",
        dash="dash",
    ),
    OptimizerEntry(
        name="adam",
        config=AdamConfig,
        make=_make("adam"),
        space={"lr": (1e-5, 1e-1, "log"), "beta1": (0.5, 0.99), "beta2": [0.99, 0.999]},
        color="#eaa21a",
    ),
    OptimizerEntry(
        name="adamw",
        config=AdamWConfig,
        make=_make("adamw"),
        space={"lr": (1e-5, 1e-1, "log"), "beta1": (0.5, 0.99), "weight_decay": (1e-4, 1.0, "log")},
        color="#eaa21a",
        dash="dash",
    ),
    OptimizerEntry(
        name="muon",
        config=MuonConfig,
        make=lambda model, likelihood, config, generator: MuonAdamW(model, **settings_of(config)),
        space={"lr": (1e-4, 1e-1, "log"), "momentum": (0.5, 0.99)},
        color="#d9601a",
        dash="dash",
    ),
)
