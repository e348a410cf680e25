"""BFGS: an approximation of the inverse Hessian that every move improves by rank two."""

import dataclasses
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.linalg import Dense, Identity, LinearOperator
from kobai.optim.entry import OptimizerEntry, check_line, check_positive, settings_of
from kobai.optim.line_search import SearchName
from kobai.optim.second_order.base import Displacement, Globalisation, SecondOrder
from kobai.optim.second_order.descent import LossModel, Proposal
from kobai.optim.second_order.evaluator import StartingPoint, inner

_LARGEST = 2**31
"""Bytes of the largest matrix that is made."""


def bfgs_update(
    inverse: Float[Tensor, "P P"], s: Float[Tensor, " P"], y: Float[Tensor, " P"]
) -> Float[Tensor, "P P"]:
    """Compute (I − ρ s yᵀ) M (I − ρ y sᵀ) + ρ s sᵀ with ρ = 1 / sᵀy, symmetric to the bit.

    Args:
        inverse: The symmetric matrix M.
        s: Change of θ.
        y: Change of the gradient, with sᵀy > 0.

    Source: Nocedal and Wright 2006, Numerical Optimization, equation 6.17.
    """
    rho = 1.0 / torch.dot(s, y)
    image = inverse @ y
    cross = torch.outer(s, image)
    scale = rho * (1.0 + rho * torch.dot(y, image))
    return inverse - rho * (cross + cross.T) + scale * torch.outer(s, s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BFGSConfig:
    """Quasi-Newton with a dense approximation of the inverse Hessian, for small networks."""

    lr: float = 1.0
    """First trial step of each search."""
    search: SearchName = "strong-wolfe"
    """How far to go along a direction."""
    iterations: int = 1
    """Iterations per minibatch (count)."""

    def __post_init__(self) -> None:
        check_line("bfgs", self.lr, self.search, self.iterations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LBFGSConfig:
    """Quasi-Newton from the last few moves (torch's), strong Wolfe line search."""

    lr: float = 1.0
    """First trial step of each search."""
    history: int = 10
    """Moves remembered (count)."""
    iterations: int = 4
    """Iterations per minibatch (count)."""

    def __post_init__(self) -> None:
        check_positive("lbfgs", "lr", self.lr)
        check_positive("lbfgs", "history", self.history)
        check_positive("lbfgs", "iterations", self.iterations)


@final
class BFGS(SecondOrder):
    r"""θ ← θ − ε* M ∇L with M ≈ H⁻¹ from the changes of the gradient, ε* from a line search.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)`` or ``optimizer.step(closure)``.
    Holds M, P × P in the parameters' precision; for large P take L-BFGS ("lbfgs" by name,
    `torch.optim.LBFGS` with strong Wolfe). An update is made from two gradients of the same data,
    and only if sᵀy > 0, so that M stays positive definite; before the first one M is set to
    (sᵀy / yᵀy) I. The gradient before the step is left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: Trial step along −M g, usually 1; the first iteration tries lr / max(1, ‖g‖).
        search: "strong-wolfe", "exact", "backtracking", "constant", or a `LineSearch`; a
            `TrustRegion` or a `LevenbergMarquardt` rule for the model with B = M⁻¹, which costs P³.
        scale_first: Whether to scale the first M; False leaves it the identity.
        iterations: Iterations per step, all on the same data.
        tol: Largest magnitude of a gradient component at which nothing is moved any more.

    Raises:
        ValueError: If a number is out of range, a name unknown, nothing is trainable, or M would
            take more than 2 GiB.

    Cost of an iteration: two gradients or so for the search, 4 P² multiplications.

    `diagnostics` counts as "restarts" returns to the identity, and "skipped_updates", moves without
    sᵀy > 0.

    Source: Broyden, Fletcher, Goldfarb and Shanno 1970; Nocedal and Wright 2006, Numerical
    Optimization, Algorithm 6.1.
    """

    needs = "closure"
    damped, iterative, restarts, learns = False, True, True, True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        search: Globalisation = "strong-wolfe",
        scale_first: bool = True,
        iterations: int = 1,
        tol: float = 0.0,
    ) -> None:
        sizes = [p for p in model.parameters() if p.requires_grad]
        size = sum(p.numel() for p in sizes)
        if sizes and size**2 * sizes[0].element_size() > _LARGEST:
            raise ValueError(
                f"BFGS holds a {size} x {size} matrix, more than 2 GiB; "
                'use torch.optim.LBFGS (by name "lbfgs") for so many parameters'
            )
        self.scale_first = scale_first
        self.iterations, self.tol = iterations, tol
        super().__init__(model, lr=lr, search=search, counts=("skipped_updates",))

    @property
    def inverse_hessian(self) -> Float[Tensor, "P P"] | None:
        """M; None before the first update."""
        return self.record.get("inverse")

    def model_at(self, start: StartingPoint) -> "SecantModel":
        """Take the matrix as it is."""
        return SecantModel(self, start)

    def learn(self, start: StartingPoint, move: Displacement) -> None:
        """Update the matrix if curvature along the move is positive."""
        s, y = move.step * move.direction, move.after - move.before
        along = inner(s, y)
        if along <= torch.finfo(s.dtype).eps * float(s.norm()) * float(y.norm()):
            self.record["counts"]["skipped_updates"] += 1
            return
        inverse = self.inverse_hessian
        if inverse is None or len(inverse) != len(s):
            scale = along / inner(y, y) if self.scale_first else 1.0
            inverse = scale * torch.eye(len(s), dtype=s.dtype, device=s.device)
        self.record["inverse"] = bfgs_update(inverse.to(s), s, y)

    def forget(self) -> None:
        """Begin with the identity again."""
        self.record.pop("inverse", None)


@final
class SecantModel(LossModel):
    """The model with B = M⁻¹."""

    def __init__(self, optimizer: BFGS, start: StartingPoint) -> None:
        self.start, self._optimizer = start, optimizer

    @property
    def _inverse(self) -> Tensor | None:
        inverse = self._optimizer.inverse_hessian
        # Parameters that were frozen or freed since make the matrix useless.
        size = len(self.start.gradient)
        return None if inverse is None or len(inverse) != size else inverse.to(self.start.theta)

    def propose(self, damping: float) -> Proposal:
        """Compute −(M⁻¹ + α)⁻¹ g = −M (1 + αM)⁻¹ g."""
        gradient, inverse = self.start.gradient, self._inverse
        if inverse is None:
            lr = self._optimizer.param_groups[0]["lr"]
            first = lr / max(1.0, float(gradient.norm()))
            return Proposal(direction=-gradient / (1.0 + damping), first=first)
        if damping:
            identity = torch.eye(len(gradient), dtype=inverse.dtype, device=inverse.device)
            gradient = torch.linalg.solve(identity + damping * inverse, gradient)
        return Proposal(direction=-(inverse @ gradient))

    def operator(self) -> LinearOperator:
        """Give M⁻¹."""
        inverse = self._inverse
        if inverse is None:
            size, theta = len(self.start.theta), self.start.theta
            return Identity(size, dtype=theta.dtype, device=theta.device)
        matrix = torch.linalg.inv(inverse)
        return Dense((matrix + matrix.T) / 2, symmetric=True)

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Ask the objective's Hessian for pᵀHp along lines, and M⁻¹ under damping."""
        if self._optimizer.rule is None:
            start = self.start
            return start.function.curvature(start.theta, direction)
        inverse = self._inverse
        image = direction if inverse is None else torch.linalg.solve(inverse, direction)
        return inner(direction, image)


def _make_limited(
    model: nn.Module, likelihood: Any, config: LBFGSConfig, generator: Any
) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.lr,
        max_iter=config.iterations,
        history_size=config.history,
        line_search_fn="strong_wolfe",
    )


ENTRY = OptimizerEntry(
    name="bfgs",
    config=BFGSConfig,
    make=lambda model, likelihood, config, generator: BFGS(model, **settings_of(config)),
    space={"lr": (1e-2, 1.0, "log")},
    color="#eaa21a",
    dash="dot",
    on_all_data=True,
)

LIMITED_ENTRY = OptimizerEntry(
    name="lbfgs",
    config=LBFGSConfig,
    make=_make_limited,
    space={"lr": (1e-2, 1.0, "log")},
    color="#eaa21a",
    dash="dashdot",
    on_all_data=True,
)
