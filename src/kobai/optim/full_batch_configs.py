"""Settings of the methods that search along lines or differentiate the objective twice, by name."""

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from kobai.optim.first_order import check_positive
from kobai.optim.line_search import SEARCHES
from kobai.optim.second_order.conjugate_gradient import BETAS, Beta, NonlinearCG
from kobai.optim.second_order.coordinate import CoordinateDescent
from kobai.optim.second_order.newton import Newton
from kobai.optim.second_order.quasi_newton import BFGS
from kobai.optim.second_order.saddle_free import SaddleFreeNewton
from kobai.optim.second_order.steepest_descent import SteepestDescent
from kobai.optim.trust_region import TrustRegion

SearchName = Literal["backtracking", "strong-wolfe", "exact", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewtonConfig:
    """Newton's method with a damped Hessian; matrix-free beyond 500 parameters."""

    lr: float = 1.0
    """Factor on the step; first trial of a line search."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the Hessian; auto: by the reduction ratio."""
    max_iterations: int = 20
    """Most iterations of a matrix-free solve (count)."""
    search: Literal["none", "backtracking", "strong-wolfe", "exact", "trust-region"] = "none"
    """What shortens the step; a trust region wants a number for the damping."""

    def __post_init__(self) -> None:
        check_positive("newton", "lr", self.lr)
        check_positive("newton", "max_iterations", self.max_iterations)
        _check_damping("newton", self.damping)
        searches = ("none", "backtracking", "strong-wolfe", "exact", "trust-region")
        _check_choice("newton", "search", self.search, searches)
        if self.search == "trust-region" and self.damping == "auto":
            raise ValueError(
                "--newton.search trust-region takes the place of adaptive damping; "
                "give --newton.damping a number such as 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaddleFreeNewtonConfig:
    """Newton's method with the absolute Hessian, which negative curvature repels."""

    lr: float = 1.0
    """Factor on the step."""
    damping: float | Literal["auto"] = "auto"
    """Multiple of the identity added to the absolute Hessian; auto: by the reduction ratio."""
    subspace: int = 20
    """Dimension of the Krylov space beyond 500 parameters (count)."""

    def __post_init__(self) -> None:
        check_positive("saddle-free-newton", "lr", self.lr)
        check_positive("saddle-free-newton", "subspace", self.subspace)
        _check_damping("saddle-free-newton", self.damping)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BFGSConfig:
    """Quasi-Newton with a dense approximation of the inverse Hessian, for small networks."""

    lr: float = 1.0
    """First trial step of each search."""
    search: SearchName = "strong-wolfe"
    """How far to go along a direction."""
    iterations: int = 1
    """Iterations a minibatch (count)."""

    def __post_init__(self) -> None:
        _check_line("bfgs", self.lr, self.search, self.iterations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGSConfig:
    """Quasi-Newton from the last few moves (torch's), strong Wolfe line search."""

    lr: float = 1.0
    """First trial step of each search."""
    history: int = 10
    """Moves remembered (count)."""
    iterations: int = 4
    """Iterations a minibatch (count)."""

    def __post_init__(self) -> None:
        check_positive("lbfgs", "lr", self.lr)
        check_positive("lbfgs", "history", self.history)
        check_positive("lbfgs", "iterations", self.iterations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonlinearCGConfig:
    """Nonlinear conjugate gradients."""

    lr: float = 1.0
    """First trial step of the first search."""
    beta: Beta = "polak-ribiere+"
    """Formula for the share of the last direction."""
    search: SearchName = "strong-wolfe"
    """How far to go along a direction."""
    restart_every: int | None = None
    """Iterations between restarts from the gradient (count); none: the number of parameters."""
    iterations: int = 1
    """Iterations a minibatch (count)."""

    def __post_init__(self) -> None:
        _check_line("nonlinear-cg", self.lr, self.search, self.iterations)
        _check_choice("nonlinear-cg", "beta", self.beta, BETAS)
        if self.restart_every is not None:
            check_positive("nonlinear-cg", "restart_every", self.restart_every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteepestDescentConfig:
    """Gradient descent with a line search."""

    lr: float = 1.0
    """First trial step of the first search."""
    search: SearchName = "backtracking"
    """How far to go along the gradient."""
    iterations: int = 1
    """Iterations a minibatch (count)."""

    def __post_init__(self) -> None:
        _check_line("steepest-descent", self.lr, self.search, self.iterations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoordinateDescentConfig:
    """Newton steps within one block of parameters at a time."""

    lr: float = 1.0
    """First trial step within a block."""
    blocks: Literal["coordinate", "parameter", "layer", "unit", "filter"] = "layer"
    """What is moved together."""
    order: Literal["cyclic", "random", "greedy"] = "cyclic"
    """Which block is next."""
    updates: int | None = 1
    """Blocks a minibatch (count); none: all."""
    damping: float = 0.1
    """Multiple of the identity added to a block's Hessian."""
    max_iterations: int = 10
    """Most iterations of the solve of a large block (count)."""

    def __post_init__(self) -> None:
        name = "coordinate-descent"
        check_positive(name, "lr", self.lr)
        check_positive(name, "max_iterations", self.max_iterations)
        _check_damping(name, self.damping)
        kinds = ("coordinate", "parameter", "layer", "unit", "filter")
        _check_choice(name, "blocks", self.blocks, kinds)
        _check_choice(name, "order", self.order, ("cyclic", "random", "greedy"))
        if self.updates is not None:
            check_positive(name, "updates", self.updates)


FullBatchConfig = (
    NewtonConfig
    | SaddleFreeNewtonConfig
    | BFGSConfig
    | LBFGSConfig
    | NonlinearCGConfig
    | SteepestDescentConfig
    | CoordinateDescentConfig
)

FULL_BATCH: dict[str, type[Any]] = {
    "newton": NewtonConfig,
    "saddle-free-newton": SaddleFreeNewtonConfig,
    "bfgs": BFGSConfig,
    "lbfgs": LBFGSConfig,
    "nonlinear-cg": NonlinearCGConfig,
    "steepest-descent": SteepestDescentConfig,
    "coordinate-descent": CoordinateDescentConfig,
}
"""The settings that belong to each name."""


def full_batch(
    model: nn.Module, config: FullBatchConfig, *, generator: torch.Generator | None = None
) -> torch.optim.Optimizer:
    """Make one of these optimizers.

    Args:
        model: The model.
        config: Settings, of one of the classes of `FULL_BATCH`.
        generator: Draws the blocks of coordinate descent in random order; default: its own.
    """
    settings: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if isinstance(config, NewtonConfig):
        chosen = settings.pop("search")
        search = {"none": None, "trust-region": TrustRegion()}.get(chosen, chosen)
        return Newton(model, search=search, **settings)
    if isinstance(config, SaddleFreeNewtonConfig):
        return SaddleFreeNewton(model, **settings)
    if isinstance(config, BFGSConfig):
        return BFGS(model, **settings)
    if isinstance(config, LBFGSConfig):
        return torch.optim.LBFGS(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.lr,
            max_iter=config.iterations,
            history_size=config.history,
            line_search_fn="strong_wolfe",
        )
    if isinstance(config, NonlinearCGConfig):
        return NonlinearCG(model, **settings)
    if isinstance(config, SteepestDescentConfig):
        return SteepestDescent(model, **settings)
    return CoordinateDescent(model, **settings, generator=generator)


def _check_line(name: str, lr: float, search: str, iterations: int) -> None:
    check_positive(name, "lr", lr)
    _check_choice(name, "search", search, tuple(SEARCHES))
    check_positive(name, "iterations", iterations)


def _check_choice(name: str, flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"--{name}.{flag} must be one of {', '.join(choices)}; got {value!r}")


def _check_damping(name: str, value: float | str) -> None:
    if value == "auto":
        return
    if isinstance(value, str):
        raise ValueError(f"--{name}.damping must be a number or auto, got {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"--{name}.damping must be non-negative and finite, got {value}")
