"""Critical learning rates of several methods at one point, and the ladder of structures."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.exactness import exactness
from kobai.curvature.fisher import Fisher, StructureName
from kobai.curvature.learning_rate import critical_learning_rate
from kobai.linalg import LinearOperator
from kobai.problem import EmpiricalRisk
from kobai.results import CriticalRate, CriticalRates, Ladder, LadderRung, Spectrum


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamPoint:
    """The part of Adam's step at a point that is not the gradient.

    Attributes:
        diagonal: (P,) √v̂ + ε, what it divides by.
        beta1: β₁ of its averaged gradient.
        source: Where the second moments come from, in words.
    """

    diagonal: Float[Tensor, " P"]
    beta1: float
    source: str


def critical_rates(
    objective: EmpiricalRisk,
    matrix: LinearOperator,
    spectrum: Spectrum,
    *,
    momentum: float | int = 0.9,
    preconditioners: Sequence[StructureName] = (),
    damping: float | int = 1e-3,
    adam: AdamPoint | None = None,
    theta: Float[Tensor, " P"] | None = None,
    max_products: int = 500,
    generator: torch.Generator,
) -> CriticalRates:
    """Critical rates of gradient descent, heavy ball, Nesterov, Adam and preconditioned descent.

    Args:
        objective: The loss.
        matrix: The curvature matrix.
        spectrum: Its spectrum, with the largest eigenvalue: plain methods cost no product more.
        momentum: β of heavy ball and Nesterov; 0 leaves them out.
        preconditioners: Fisher structures P; each costs the search for λ_max(P⁻¹H).
        damping: Added to each structure.
        adam: Also Adam's rate, with this diagonal: (2 + 2β₁)/((1 − β₁) λ_max(P⁻¹H)).
        theta: Where; default: the module's parameters now.
        max_products: Budget of each search.
        generator: Draws starting vectors.

    Returns:
        One rate a method, with the error that follows from its eigenvalue's.

    Raises:
        ValueError: If the momentum is out of range or a structure unknown.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum lies in [0, 1), got {momentum}")
    finite = len(spectrum.eigenvalues) > 0
    top = float(spectrum.eigenvalues[-1]) if finite else math.nan
    spread = float(spectrum.residuals[-1]) if finite else math.nan
    rules = [("gradient descent", "2/λ_max", 2.0)]
    if momentum:
        rules += [
            (f"heavy ball, β = {momentum:g}", "(2 + 2β)/λ_max", 2 + 2 * momentum),
            (
                f"Nesterov, β = {momentum:g}",
                "(2 + 2β)/((1 + 2β) λ_max)",
                (2 + 2 * momentum) / (1 + 2 * momentum),
            ),
        ]
    rates = []
    for method, rule, factor in rules:
        value = factor / top if top > 0 else math.inf if top <= 0 else math.nan
        # An interval that reaches 0 leaves the rate open.
        error = factor * spread / (top * (top - spread)) if top > spread else math.inf
        rates.append(
            CriticalRate(
                method=method, rule=rule, value=value, error=error, eigenvalue=top,
                eigenvalue_error=spread, status=spectrum.status if top > 0 else "flat",
            )
        )  # fmt: skip
    spent = 0
    for name in preconditioners:
        rate = critical_learning_rate(
            matrix, preconditioner=Fisher(objective, name, theta=theta), damping=damping,
            max_products=max_products, generator=generator,
        )  # fmt: skip
        spent += rate.num_products
        rates.append(
            CriticalRate(
                method=f"gradient descent, {name} preconditioner", rule=rate.rule,
                value=rate.value, error=rate.error, eigenvalue=rate.eigenvalue,
                eigenvalue_error=rate.eigenvalue_error, status=rate.status,
            )
        )  # fmt: skip
    if adam is not None:
        rate = critical_learning_rate(
            matrix, preconditioner=adam.diagonal, adam_beta1=adam.beta1,
            max_products=max_products, generator=generator,
        )  # fmt: skip
        spent += rate.num_products
        rates.append(
            CriticalRate(
                method=f"Adam, β₁ = {adam.beta1:g}, {adam.source}", rule=rate.rule,
                value=rate.value, error=rate.error, eigenvalue=rate.eigenvalue,
                eigenvalue_error=rate.eigenvalue_error, status=rate.status,
            )
        )  # fmt: skip
    return CriticalRates(
        label=spectrum.label, matrix=spectrum.matrix, rates=tuple(rates), damping=float(damping),
        num_products=spent, optimizer=spectrum.optimizer, seed=spectrum.seed,
    )  # fmt: skip


def measure_ladder(
    objective: EmpiricalRisk,
    *,
    damping: float | int = 1e-3,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
) -> Ladder:
    """`kobai.curvature.exactness` with exact labels, as a result.

    Args:
        objective: A small network and data.
        damping: λ of the natural-gradient directions.
        label: Name of the point.
        optimizer: Optimizer that led there.
        seed: Seed of that run.

    Raises:
        ValueError: If the network has more than 5,000 parameters.
    """
    table = exactness(objective, damping=float(damping))
    return Ladder(
        label=label,
        damping=table.damping,
        damping_form=table.damping_form,
        labels=table.labels,
        examples=objective.size,
        rungs=tuple(
            LadderRung(
                structure=rung.structure,
                frobenius_error=rung.frobenius_error,
                cosine=rung.cosine,
                kl_ratio=rung.kl_ratio,
                memory=rung.cost.memory,
                build=float(rung.cost.build),
                solve=float(rung.cost.solve),
                status=rung.status,
            )
            for rung in table.rungs
        ),
        optimizer=optimizer,
        seed=seed,
    )
