"""The Hessian of any objective, matrix-free."""

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.linearization import KEPT_BATCHES
from kobai.curvature.rows.pullback import Pullback
from kobai.layers.derivatives import PlainLayers
from kobai.linalg import LinearOperator
from kobai.problem import EmpiricalRisk, Objective, pure


@final
class Hessian(LinearOperator):
    """∇²L(θ), P × P, as products: the gradient's graph, built once, is differentiated again.

    In the objective's normalisation (mean over examples). One product costs about as much as one
    gradient when graphs are kept (the forward and first backward pass are not repeated), three
    otherwise.

    Args:
        objective: Any objective.
        theta: Where; default: the module's parameters now. A copy is taken.
        keep: Keep the graphs between products; default: when the data is in at most four batches.

    Raises:
        ValueError: If θ has the wrong shape, or the module is not a function of θ (active dropout,
            BatchNorm in training mode), naming it.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Float[Tensor, " P"] | None = None,
        *,
        keep: bool | None = None,
    ) -> None:
        self.objective = objective
        self.theta = (objective.theta() if theta is None else theta).detach().clone()
        size = objective.space.dimension
        if self.theta.shape != (size,):
            raise ValueError(f"theta must have shape ({size},), got {tuple(self.theta.shape)}")
        super().__init__(
            (size, size), dtype=self.theta.dtype, device=self.theta.device, symmetric=True
        )
        self._leaf = self.theta.clone().requires_grad_()
        batches, self._work = 1, size
        if isinstance(objective, EmpiricalRisk):
            batches = len(objective.batches)
            self._work = size * -(-objective.size // batches)
        keep = batches <= KEPT_BATCHES if keep is None else keep
        self._kept = list(self._gradients()) if keep else None

    def _gradients(self) -> Iterator[Pullback]:
        """The gradient of each share of L, ready to be differentiated once more."""
        with torch.enable_grad():
            if isinstance(self.objective, EmpiricalRisk):
                gradients = self._of_risk(self.objective)
            else:
                gradients = self._of_shares()
            for gradient in gradients:
                yield Pullback(gradient, self._leaf, work=self._work)

    def _of_risk(self, risk: EmpiricalRisk) -> Iterator[Tensor]:
        """Jᵀr of each batch: r is known in closed form, and its graph shorter than the loss's."""
        for batch in risk.batches:
            with pure(risk.model, coupled=risk.coupled), PlainLayers():
                outputs = risk.forward(self._leaf, batch)
            if not outputs.requires_grad:
                raise ValueError(
                    "no gradient flows from the model's outputs to its trainable parameters "
                    "(torch.no_grad or detach in its forward pass?)"
                )
            targets = batch.targets.to(outputs.device)
            residual = risk.likelihood.residual(outputs, targets) / risk.weight
            yield torch.autograd.grad(outputs, self._leaf, residual, create_graph=True)[0]

    def _of_shares(self) -> Iterator[Tensor]:
        """The gradient of each share of a scalar objective."""
        for share in self.objective.differentiable(self._leaf):
            yield torch.autograd.grad(share, self._leaf, create_graph=True)[0]

    def _matmat(self, columns: Tensor) -> Tensor:
        # Added up as rows, one column after the other in memory, as they come and are used.
        total: Tensor | None = None
        for gradient in self._gradients() if self._kept is None else self._kept:
            rows = gradient(columns.T)
            # Autograd may hand back the very vector it was given.
            total = rows.clone() if total is None else total.add_(rows)
        return torch.zeros_like(columns) if total is None else total.T

    def _adjoint(self) -> LinearOperator:
        return self
