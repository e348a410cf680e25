"""A network linearised at a point once, multiplied by many times.

For each batch the outputs f(θ) are computed with their graph, and the vector-Jacobian product Jᵀw
with a graph of its own for a placeholder w. Jᵀw is linear in w, so its derivative along w applied
to v is J v: both directions then run on kept graphs and nothing before the first trained layer is
computed again. Unlike forward mode this passes through recurrent layers and attention.
"""

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows.pullback import Pullback
from kobai.layers.derivatives import PlainLayers
from kobai.problem import Batch, EmpiricalRisk, pure

KEPT_BATCHES = 4
"""Graphs are kept between products for objectives of at most this many batches."""


@final
class LinearizedBatch:
    """Outputs of one batch at θ with their Jacobian J, shape (N·outputs, P), as products.

    Attributes:
        outputs: f(θ), detached, shape (N, *outputs).
        targets: The batch's targets on the outputs' device.
    """

    def __init__(self, objective: EmpiricalRisk, theta: Tensor, batch: Batch) -> None:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            with pure(objective.model, coupled=objective.coupled), PlainLayers(once=True):
                outputs = objective.forward(leaf, batch)
            placeholder = torch.zeros_like(outputs, requires_grad=True)
            (pulled,) = torch.autograd.grad(outputs, leaf, placeholder, create_graph=True)
        self.outputs = outputs.detach()
        self.targets = batch.targets.to(self.outputs.device)
        self._likelihood = objective.likelihood
        self._curvature: Pullback | None = None
        work = batch.size * theta.numel()
        self._backward = Pullback(outputs, leaf, work=work)
        self._forward = Pullback(pulled, placeholder, work=work)

    def jvp(self, columns: Float[Tensor, "P K"]) -> Float[Tensor, "K N *outputs"]:
        """J times K columns. Cost of one column: about a forward pass."""
        return self._forward(columns.T)

    def vjp(self, cotangents: Float[Tensor, "K N *outputs"]) -> Float[Tensor, "P K"]:
        """Jᵀ times K cotangents. Cost of one: about a backward pass."""
        return self._backward(cotangents).T

    def curved(self, tangents: Float[Tensor, "K N *outputs"]) -> Float[Tensor, "K N *outputs"]:
        """The Hessian of each example's loss in its outputs times K tangents.

        It is the derivative of the residual, which is known in closed form: kept as a graph, so
        that probabilities are computed once and not at every product.
        """
        if self._curvature is None:
            with torch.enable_grad():
                outputs = self.outputs.clone().requires_grad_()
                residual = self._likelihood.residual(outputs, self.targets)
            self._curvature = Pullback(residual, outputs)
        return self._curvature(tangents)


@final
class Linearization:
    """All batches of an objective, linearised at θ.

    Args:
        objective: The network, its likelihood and data.
        theta: Where; default: the module's parameters now.
        keep: Keep the graphs between products (fast; memory of about three times the saved
            activations of all data), or build them anew at each pass over the data. Default: keep
            them when the data is in at most four batches.

    Raises:
        ValueError: If θ has the wrong shape or the module is not a function of θ.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        theta: Float[Tensor, " P"] | None = None,
        *,
        keep: bool | None = None,
    ) -> None:
        self.objective = objective
        self.theta = (objective.theta() if theta is None else theta).detach()
        if self.theta.shape != (objective.space.dimension,):
            raise ValueError(
                f"theta must have shape ({objective.space.dimension},), "
                f"got {tuple(self.theta.shape)}"
            )
        self.keep = len(objective.batches) <= KEPT_BATCHES if keep is None else keep
        self._kept = list(self._build()) if self.keep else None

    def _build(self) -> Iterator[LinearizedBatch]:
        for batch in self.objective.batches:
            yield LinearizedBatch(self.objective, self.theta, batch)

    def __iter__(self) -> Iterator[LinearizedBatch]:
        return self._build() if self._kept is None else iter(self._kept)
