"""The quadratic model of a minibatch's loss along a few directions, example by example.

M(δ) = ḡᵀδ + ½ δᵀ(G + λ)δ for δ = Σ c_d δ_d, with G the Gauss-Newton matrix of the minibatch, needs
of each direction only the change u_d = J δ_d of the outputs: one forward pass. Written for every
example, the model also says how certain its coefficients are.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from kobai.problem import Likelihood


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class QuadraticModel:
    """Losses of single examples and their model along D directions.

    Attributes:
        losses: ℓₙ at the present parameters, not divided by anything.
        linear: rₙ·u_d, the derivative of ℓₙ along direction d.
        curvature: u_dᵀ Hₙ u_e.
        weight: The objective's normaliser.
    """

    losses: Float64[Tensor, " N"]
    linear: Float64[Tensor, "N D"]
    curvature: Float64[Tensor, "N D D"]
    weight: float

    @property
    def slope(self) -> Float64[Tensor, " D"]:
        """gᵀδ_d, derivatives of the objective."""
        return self.linear.sum(0) / self.weight

    @property
    def bend(self) -> Float64[Tensor, "D D"]:
        """δ_dᵀ G δ_e."""
        return self.curvature.sum(0) / self.weight

    @property
    def error(self) -> Float64[Tensor, " D"]:
        """Standard errors of the slopes, from their scatter over examples; infinite for one."""
        count = len(self.linear)
        if count < 2:
            return torch.full_like(self.slope, math.inf)
        scatter = (self.linear - self.linear.mean(0)).square().sum(0)
        return (scatter * count / (count - 1)).sqrt() / self.weight

    def change(self, coefficients: Float64[Tensor, " D"]) -> Float64[Tensor, " N"]:
        """The model's change of each loss by the step Σ c_d δ_d, without damping."""
        bent = torch.einsum("nde,d,e->n", self.curvature, coefficients, coefficients)
        return self.linear @ coefficients + 0.5 * bent


def quadratic_model(
    likelihood: Likelihood,
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    changes: Sequence[Sequence[Tensor]],
    factors: Sequence[float] | None = None,
) -> QuadraticModel:
    """The model of the objective Σ ℓ / W from the changes of its outputs.

    Args:
        likelihood: What the outputs mean.
        outputs: Of each forward pass.
        targets: Of each forward pass.
        changes: For each direction, J δ_d of each forward pass.
        factors: Weights of the passes where the loss weighs them; default: equal ones.
    """
    losses, linear, curvature = [], [], []
    weight = 0.0
    factors = [1.0] * len(outputs) if factors is None else factors
    for index, (f, y) in enumerate(zip(outputs, targets, strict=True)):
        own = [u[index] for u in changes]
        factor = factors[index]
        residual = likelihood.residual(f, y)
        bent = [likelihood.hvp(f, y, u) for u in own]
        losses.append(factor * likelihood.nll(f, y).double())
        linear.append(factor * torch.stack([_inner(residual, u) for u in own], 1))
        rows = [torch.stack([_inner(b, u) for u in own], 1) for b in bent]
        curvature.append(factor * torch.stack(rows, 1))
        weight += factor * likelihood.weight(y)
    return QuadraticModel(
        losses=torch.cat(losses),
        linear=torch.cat(linear),
        curvature=torch.cat(curvature),
        weight=weight,
    )


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of examples, summed in float64."""
    return (a * b).flatten(1).sum(1, dtype=torch.float64)


def minimiser(
    slope: Float64[Tensor, " D"],
    bend: Float64[Tensor, "D D"],
    penalty: Float64[Tensor, "D D"] | None = None,
) -> Float64[Tensor, " D"]:
    """Coefficients c that minimise slopeᵀc + ½ cᵀ(bend + penalty)c.

    The penalty is λ times the inner products of the directions. Where directions coincide the
    shortest solution is taken; directions the model is flat in get no part.

    Source: Martens and Grosse 2015, §7 (two directions: the preconditioned gradient and the last
    update).
    """
    matrix = bend if penalty is None else bend + penalty
    matrix = 0.5 * (matrix + matrix.T)
    # Directions of very different length: in units of each one's own curvature.
    unit = matrix.diagonal().clamp(min=0).sqrt()
    inverse = torch.where(unit > 0, 1 / unit, 0.0)
    scaled = matrix * inverse[:, None] * inverse[None, :]
    values, vectors = torch.linalg.eigh(scaled)
    limit = len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())
    inner = vectors.T @ (-slope * inverse)
    inner = torch.where(values > limit, inner / values.clamp(min=limit or 1.0), 0.0)
    return inverse * (vectors @ inner)


def shrunk(slope: Float64[Tensor, " D"], error: Float64[Tensor, " D"]) -> Float64[Tensor, " D"]:
    """Slopes less what their standard errors explain: the positive part of 1 − error²/slope².

    Where there is no telling the error (one example) the slope is taken as it is.

    Source: James and Stein 1961, Estimation with quadratic loss (the positive-part form).
    """
    known = torch.isfinite(error)
    share = 1 - torch.where(known, error, 0.0).square() / slope.square().clamp(min=1e-300)
    return slope * share.clamp(min=0.0)
