"""Saddle-free Newton: |H| in place of H, so that negative curvature repels."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.curvature import Hessian
from kobai.linalg import LinearOperator, eigh
from kobai.linalg.lanczos import KrylovBasis
from kobai.optim.damping import Damping, LevenbergMarquardt, check_damping, first_damping
from kobai.optim.second_order.base import (
    check_lr,
    diagnostics_of,
    is_finite,
    rebuild,
    record_of,
    refuse_second_group,
    start_record,
    trainable,
)
from kobai.optim.second_order.evaluator import Counted, as_objective, leave_gradient_of
from kobai.optim.second_order.globalisation import DAMPED_COUNTS, Proposal, exact_rule, take_step


def krylov_spectrum(
    operator: LinearOperator,
    start: Float[Tensor, " P"],
    size: int,
    *,
    generator: torch.Generator,
) -> tuple[Float[Tensor, " k"], Float[Tensor, "P k"]]:
    """Eigenvalues and orthonormal eigenvectors of an operator on the Krylov space of a vector.

    Args:
        operator: Symmetric.
        start: The vector, which lies in the space.
        size: Dimension k of the space; less where it closes earlier.
        generator: Not drawn from; the basis asks for one.

    Returns:
        (k,) Ritz values, ascending, float64, and (P, k) Ritz vectors. Cost: k products.
    """
    basis = KrylovBasis(operator, min(size + 1, operator.shape[0]), generator=generator)
    frontier = basis.inject(start.unsqueeze(1))
    while frontier and len(basis.multiplied) < size:
        if not basis.expand([frontier[0]]):
            break
        frontier = list(basis.frontier)
    ritz = basis.ritz()
    return ritz.values, basis.vectors(ritz.coefficients)


@final
class SaddleFreeNewton(torch.optim.Optimizer):
    r"""θ ← θ − η (|H| + α)⁻¹ ∇L, |H| the Hessian with its eigenvalues made positive.

    Called like `torch.optim.LBFGS`: ``optimizer.step(objective)``. Where curvature is positive it
    is Newton's method; along negative curvature it goes downhill, away from the saddle, and faster
    the flatter the saddle is. Up to `dense_limit` parameters all eigenvectors are used; beyond, the
    Krylov space of H and the gradient of dimension `subspace`, outside of which nothing moves. The
    gradient is left in ``.grad``.

    Args:
        model: The model; for a formula, ``objective.space.module``.
        lr: η, usually 1.
        damping: α: a number or a schedule step ↦ number (every finite step is then made), "auto"
            (a step is made only if it lowers the loss, α by the reduction ratio, with |H| in the
            model), or a `LevenbergMarquardt` rule with ``noise=0.0``.
        dense_limit: Most parameters for which the matrix is made.
        subspace: Dimension of the Krylov space.
        max_trials: Trials a step.

    Raises:
        ValueError: If a number is out of range or nothing is trainable.
        TypeError: If the damping is none of its forms.

    Cost of a step: a gradient, P products with H and P³, or `subspace` products, and a value a
    trial.

    Source: Dauphin et al. 2014, Identifying and attacking the saddle point problem in high-
    dimensional non-convex optimization (§6, Algorithm 1).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        damping: Damping = "auto",
        dense_limit: int = 500,
        subspace: int = 50,
        max_trials: int = 20,
    ) -> None:
        for name, count in (("subspace", subspace), ("max_trials", max_trials)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.model = model
        self.damping: Damping = exact_rule(damping, "SaddleFreeNewton")
        self.dense_limit, self.subspace = dense_limit, subspace
        self.max_trials = max_trials
        super().__init__(
            trainable(model), {"lr": check_lr(lr), "damping": first_damping(self.damping)}
        )
        start_record(self, DAMPED_COUNTS)

    def __repr__(self) -> str:
        group = self.param_groups[0]
        return (
            f"SaddleFreeNewton(lr={group['lr']:g}, damping={group['damping']:g}, "
            f"dense_limit={self.dense_limit}, subspace={self.subspace})"
        )

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "values", "gradients" and "products" with the Hessian asked for,
            "skipped_steps" (something was not finite), "rejected_trials", "rejected_steps" (no
            trial lowered the loss: nothing was moved). Of the last step:
            "status", "trials", "negative" (eigenvalues below zero among those seen) and "smallest"
            of them. "damping" of the next step and "decisions" about it; see
            `NaturalGradient.diagnostics`.
        """
        return diagnostics_of(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the one group of the constructor.

        Raises:
            ValueError: At a second group.
        """
        super().add_param_group(param_group)
        refuse_second_group(self)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one step.

        Args:
            closure: An `Objective` of the model.

        Returns:
            Its value before the step.

        Raises:
            TypeError: If it is anything else, such as a plain closure.
            ValueError: If it belongs to another model, or the model is not a function of θ now.
        """
        objective = as_objective(closure, self, self.model)
        group, record = self.param_groups[0], record_of(self)
        counts = record["counts"]
        if callable(self.damping) and not isinstance(self.damping, LevenbergMarquardt):
            group["damping"] = check_damping(self.damping(counts["steps"]))
        theta = objective.theta()
        counts["gradients"] += 1
        loss, gradient = objective.value_and_grad(theta)
        leave_gradient_of(objective, gradient)
        if not is_finite(loss, gradient):
            counts["skipped_steps"] += 1
        elif group["lr"] and bool(gradient.any()):
            values, vectors = self._spectrum(Counted(Hessian(objective, theta), counts), gradient)
            if is_finite(values, vectors):
                take_step(
                    objective,
                    theta,
                    loss,
                    _proposer(values, vectors, gradient, group["lr"]),
                    rule=self.damping,
                    max_trials=self.max_trials,
                    group=group,
                    record=record,
                )
                smallest = float(values[0]) if len(values) else 0.0
                record["last"] |= {"negative": int((values < 0).sum()), "smallest": smallest}
            else:
                counts["skipped_steps"] += 1
        counts["steps"] += 1
        return loss

    def _spectrum(self, hessian: LinearOperator, gradient: Tensor) -> tuple[Tensor, Tensor]:
        if len(gradient) <= self.dense_limit:
            matrix = hessian.dense()
            found = eigh((matrix + matrix.T) / 2)
            return found.values, found.vectors
        # The basis wants a generator for random starts, of which there are none here.
        unused = torch.Generator(device=gradient.device)
        return krylov_spectrum(hessian, gradient, self.subspace, generator=unused)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        group = self.param_groups[0]
        arguments = {
            "lr": self.defaults["lr"],
            "damping": self.damping,
            "dense_limit": self.dense_limit,
            "subspace": self.subspace,
            "max_trials": self.max_trials,
        }
        return rebuild, (type(self), self.model, arguments, group["params"], self.state_dict())


def _proposer(
    values: Tensor, vectors: Tensor, gradient: Tensor, lr: float
) -> Callable[[float], Proposal]:
    """Damping ↦ the step and what the model with |H| says of it."""
    magnitudes = values.to(device=gradient.device, dtype=torch.float64).abs()
    inside = vectors.T.to(torch.float64) @ gradient.double()

    def propose(damping: float) -> Proposal:
        shifted = magnitudes + damping
        # A flat direction without damping has no length; it is left alone.
        share = torch.where(shifted > 0, -lr * inside / shifted, 0.0)
        return Proposal(
            step=(vectors.double() @ share).to(gradient),
            predicted=float(inside @ share + 0.5 * (magnitudes * share.square()).sum()),
            status="ok",
        )

    return propose
