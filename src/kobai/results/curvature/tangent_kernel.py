"""A network's tangent kernel at one point, summarised."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class TangentSummary:
    """What the tangent kernel Θ = J Jᵀ of some examples says about training near a point.

    Attributes:
        label: Name of the run or point.
        examples: N.
        outputs: C, of one example.
        parameters: P.
        kind: ``full``, the kernel between all outputs; or ``trace``, summed over outputs, where
            the full one is too large.
        method: How it was computed, with the counts behind the choice.
        eigenvalues: (R,) of Θ/N, ascending: rates at which gradient descent on a squared loss
            learns the kernel's directions.
        learning_rate: 2/λ_max of Θ/N: full-batch descent on ½‖f − y‖² diverges above it; NaN for
            ``trace``.
        alignment: Centred kernel–label alignment ⟨Θ, y yᵀ⟩/(‖Θ‖ ‖y yᵀ‖), NaN without such labels.
        residual_share: Share of the squared residual f − y that lies in the fastest tenth of the
            directions, NaN likewise.
        layers: Names of the layers.
        layer_shares: (L,) of the trace: who moves the outputs.
        status: ``ok``, or what went wrong.
        optimizer: Optimizer that led to the point; empty when none did.
        seed: Seed of that run, or None.
    """

    label: str
    examples: int
    outputs: int
    parameters: int
    kind: str
    method: str
    eigenvalues: Float[np.ndarray, "R"]
    learning_rate: float
    alignment: float
    residual_share: float
    layers: tuple[str, ...]
    layer_shares: Float[np.ndarray, "L"]
    status: str
    optimizer: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"eigenvalues": "f R", "layer_shares": "f L"},
            floats=("learning_rate", "alignment", "residual_share"),
            integers=("examples", "outputs", "parameters"),
        )
        if len(self.layers) != len(self.layer_shares):
            raise ValueError(
                f"TangentSummary has {len(self.layers)} layers and {len(self.layer_shares)} shares"
            )
