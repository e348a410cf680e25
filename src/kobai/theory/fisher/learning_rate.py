"""The critical learning rate of full-batch gradient descent, from widths and variances."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from kobai.results import register
from kobai.theory.fisher.prediction import fisher_statistics
from kobai.theory.network import WideNetwork


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedLearningRate:
    """Largest stable learning rate at initialisation, or bounds on it.

    Attributes:
        value: η_c; NaN where only bounds are known, or nothing.
        lower: Lower bound, to leading order.
        upper: Upper bound, to leading order.
        eigenvalue: λ_max of the Fisher matrix in the scale of the loss.
        factor: η_c λ_max: 2, or 2 + 2β with momentum.
        status: That of `fisher_statistics`.
        notes: Domain of validity and refusals.
    """

    value: float
    lower: float
    upper: float
    eigenvalue: float
    factor: float
    status: str
    notes: tuple[str, ...] = ()


def critical_learning_rate(
    network: WideNetwork,
    examples: int | Float[np.ndarray, "N d"],
    *,
    loss: Literal["gaussian", "mse", "categorical"] = "gaussian",
    momentum: float | int = 0.0,
    normalization: Literal["none", "mean", "batch", "scale", "layer"] = "none",
    outputs: Float[np.ndarray, "N C"] | None = None,
    generator: np.random.Generator | None = None,
) -> PredictedLearningRate:
    """Predict where gradient descent starts to diverge: η_c = 2/λ_max of the Fisher matrix.

    Valid while the Jacobian stays near its initial value: at η slightly above η_c the loss grows
    for some 20 steps and may then coerce_fields at a flatter point, so test early steps.

    Args:
        network: Widths, variances, activation.
        examples: N, or the inputs; see `fisher_statistics`.
        loss: ``gaussian`` is ½‖f − y‖² a mean example; ``mse`` is ``nn.MSELoss()``, 2/C times
            that; ``categorical`` is cross-entropy.
        momentum: β of heavy-ball momentum, which multiplies η_c by 1 + β.
        normalization: See `fisher_statistics`.
        outputs: See `fisher_statistics`.
        generator: See `fisher_statistics`.

    Returns:
        The rate, or its bounds, or the reason for neither.

    Raises:
        ValueError: If a number is out of range.
    """
    if loss not in ("gaussian", "mse", "categorical"):
        raise ValueError(f"loss is 'gaussian', 'mse' or 'categorical', got {loss!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum lies in [0, 1), got {momentum}")
    statistics = fisher_statistics(
        network,
        examples,
        loss="categorical" if loss == "categorical" else "gaussian",
        normalization=normalization,
        outputs=outputs,
        generator=generator,
    )
    scale = 2 / network.outputs if loss == "mse" else 1.0
    factor = 2.0 + 2.0 * momentum

    def rate(eigenvalue: float) -> float:
        return factor / (scale * eigenvalue) if eigenvalue else float("inf")

    return PredictedLearningRate(
        value=rate(statistics.largest), lower=rate(statistics.upper), upper=rate(statistics.lower),
        eigenvalue=scale * statistics.largest, factor=factor, status=statistics.status,
        notes=statistics.notes,
    )  # fmt: skip
