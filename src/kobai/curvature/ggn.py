"""The generalised Gauss-Newton matrix and the Jacobian of a network, matrix-free."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.linearization import Linearization
from kobai.linalg import LinearOperator
from kobai.problem import EmpiricalRisk


@final
class GGN(LinearOperator):
    """G = (1/W) Σₙ Jₙᵀ Hₙ Jₙ, P × P, with Hₙ the Hessian of example n's loss in its outputs.

    W is the objective's normaliser. For the three likelihoods of kobai this is also the true Fisher
    information, labels summed exactly. One product costs about a forward and a backward pass; with
    kept graphs the forward of the outputs is not repeated.

    Args:
        objective: The network, its likelihood and data.
        theta: Where; default: the module's parameters now. A copy is taken.
        keep: See `kobai.curvature.linearization.Linearization`.

    Raises:
        ValueError: If θ has the wrong shape, or the module is not a function of θ, naming it.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        theta: Float[Tensor, " P"] | None = None,
        *,
        keep: bool | None = None,
    ) -> None:
        self.objective = objective
        self.theta = (objective.theta() if theta is None else theta).detach().clone()
        self._linear = Linearization(objective, self.theta, keep=keep)
        size = objective.space.dimension
        super().__init__(
            (size, size),
            dtype=self.theta.dtype,
            device=self.theta.device,
            positive_semidefinite=True,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        # `vjp` returns transposed rows: one column after the other in memory, and so is their sum.
        total: Tensor | None = None
        for batch in self._linear:
            pulled = batch.vjp(batch.curved(batch.jvp(columns)) / self.objective.weight)
            total = pulled.clone() if total is None else total.add_(pulled)
        return torch.zeros_like(columns) if total is None else total

    def _adjoint(self) -> LinearOperator:
        return self


@final
class Jacobian(LinearOperator):
    """J = ∂f/∂θ over all examples, (N·outputs) × P; rows in the order of `objective.outputs`.

    Not divided by N. J @ v costs about a forward pass, J.T @ u about a backward pass.

    Args:
        objective: The network and data.
        theta: Where; default: the module's parameters now.
        keep: See `kobai.curvature.linearization.Linearization`.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        theta: Float[Tensor, " P"] | None = None,
        *,
        keep: bool | None = None,
    ) -> None:
        self.objective = objective
        self._linear = Linearization(objective, theta, keep=keep)
        rows = sum(batch.outputs.numel() for batch in self._linear)
        theta = self._linear.theta
        super().__init__((rows, theta.numel()), dtype=theta.dtype, device=theta.device)

    def _matmat(self, columns: Tensor) -> Tensor:
        return torch.cat([batch.jvp(columns).flatten(1).T for batch in self._linear])

    def _adjoint(self) -> LinearOperator:
        return _JacobianTranspose(self)


@final
class _JacobianTranspose(LinearOperator):
    """Jᵀ, P × (N·outputs)."""

    def __init__(self, jacobian: Jacobian) -> None:
        self._jacobian = jacobian
        rows, columns = jacobian.shape
        super().__init__((columns, rows), dtype=jacobian.dtype, device=jacobian.device)

    def _matmat(self, columns: Tensor) -> Tensor:
        total = columns.new_zeros(self.shape[0], columns.shape[1])
        start = 0
        for batch in self._jacobian._linear:
            stop = start + batch.outputs.numel()
            piece = columns[start:stop].T.reshape(-1, *batch.outputs.shape)
            total += batch.vjp(piece)
            start = stop
        return total

    def _adjoint(self) -> LinearOperator:
        return self._jacobian
