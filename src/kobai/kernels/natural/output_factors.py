"""The factor of the output Hessian, example by example, and the directions it can reach.

With S Sᵀ the Hessian of an example's loss in its outputs, a residual is r = S z: softmax residuals
sum to zero, so z lives in a space of one dimension less than there are outputs.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kobai.problem import EmpiricalRisk

_RESOLUTION = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OutputFactors:
    """S of every example in its singular basis, S = U diag(s) Vᵀ.

    Attributes:
        matrices: S, (N, C, C).
        right: V, (N, C, C), columns in order of descending s.
        inverse: S⁺, (N, C, C).
        kept: Which columns have s > 0 to rounding, (N, C).
    """

    matrices: Float[Tensor, "N C C"]
    right: Float[Tensor, "N C C"]
    inverse: Float[Tensor, "N C C"]
    kept: Bool[Tensor, "N C"]

    @property
    def rank(self) -> int:
        """Number of directions in which residuals can point, over all examples."""
        return int(self.kept.sum())

    @property
    def whole(self) -> bool:
        """Whether that is every direction."""
        return bool(self.kept.all())


def output_factors(objective: EmpiricalRisk, theta: Float[Tensor, " P"]) -> OutputFactors:
    """S of all examples, C products of the likelihood's factor each; float64."""
    # Float64 from here on: in float32 the direction that S cannot reach is lost in rounding.
    outputs = objective.outputs(theta).double()
    pieces: list[Tensor] = []
    start = 0
    for batch in objective.batches:
        own = outputs[start : start + batch.size]
        start += batch.size
        targets = batch.targets.to(own.device)
        size = own[0].numel()
        units = torch.eye(size, dtype=own.dtype, device=own.device)
        units = units.view(size, 1, *own.shape[1:]).expand(-1, *own.shape)
        columns = [objective.likelihood.factor_product(own, targets, unit) for unit in units]
        pieces.append(torch.stack(columns).flatten(2).permute(1, 2, 0))
    matrices = torch.cat(pieces)
    left, values, right = torch.linalg.svd(matrices)
    kept = values > _RESOLUTION * values.amax(1, keepdim=True)
    scaled = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    inverse = (right.mT * scaled.unsqueeze(1)) @ left.mT
    return OutputFactors(matrices=matrices, right=right.mT, inverse=inverse, kept=kept)
