"""Compare the Fisher structures on one network with the full matrix, from full to diagonal."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Cost, human_bytes
from kobai.curvature.fisher import STRUCTURES, Fisher, StructureName
from kobai.curvature.scores import Labels
from kobai.curvature.structures import Structure
from kobai.linalg.operators.solvable import DampingForm
from kobai.problem import EmpiricalRisk

LARGEST = 5_000
"""Parameters of the largest network whose matrices are written out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """One structure held against the exact Fisher matrix.

    Attributes:
        structure: Name.
        frobenius_error: ‖M − F‖ / ‖F‖.
        cosine: Of the damped natural gradients d = (M + λ)⁻¹g and d* = (F + λ)⁻¹g.
        kl_ratio: √(dᵀFd / d*ᵀFd*): how far the step moves the predictions, 1 for the exact one.
        cost: What the structure takes.
        status: Of the factorisation, "ok" or why the direction is missing.
    """

    structure: str
    frobenius_error: float
    cosine: float
    kl_ratio: float
    cost: Cost
    status: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exactness:
    """The ladder; prints as a table.

    Attributes:
        damping: λ of the directions.
        damping_form: How it enters.
        labels: Kind of the candidates; the reference has exact labels.
        rungs: One a structure.
    """

    damping: float
    damping_form: str
    labels: str
    rungs: tuple[Rung, ...]

    def __str__(self) -> str:
        lines = [
            f"against the exact Fisher matrix, damping {self.damping:g} ({self.damping_form}), "
            f"labels {self.labels}",
            f"{'structure':<14}{'Frobenius':>10}{'cosine':>9}{'KL ratio':>10}{'memory':>12}"
            f"{'build':>10}{'solve':>10}  status",
        ]
        lines += [
            f"{r.structure:<14}{r.frobenius_error:>10.3g}{r.cosine:>9.4f}{r.kl_ratio:>10.3g}"
            f"{human_bytes(r.cost.memory):>12}{r.cost.build:>10.1e}{r.cost.solve:>10.1e}"
            f"  {r.status}"
            for r in self.rungs
        ]
        return "\n".join(lines)


def exactness(
    objective: EmpiricalRisk,
    structures: Sequence[StructureName | Structure] | None = None,
    *,
    damping: float = 1e-3,
    damping_form: DampingForm = "exact",
    labels: Labels = "exact",
    samples: int = 1,
    generator: torch.Generator | None = None,
    theta: Float[Tensor, " P"] | None = None,
) -> Exactness:
    """Hold Fisher structures against the exact Fisher matrix of a small network.

    Args:
        objective: A small network (or a small copy of one) and some data.
        structures: Which; default: all.
        damping: λ of the natural-gradient directions.
        damping_form: How λ enters the structures; the reference is always (F + λ I)⁻¹.
        labels: Kind of the candidates.
        samples: Labels drawn an example, for "sampled".
        generator: Draws labels, for "sampled".
        theta: Where; default: the module's parameters now.

    Returns:
        One rung a structure. Cost: P² numbers and P products for each matrix, and its solve.

    Raises:
        ValueError: If the network has more than 5,000 parameters.
    """
    size = objective.space.dimension
    if size > LARGEST:
        raise ValueError(
            f"matrices of {size} parameters would be written out, more than {LARGEST}; "
            "take a small copy of the network"
        )
    theta = objective.theta() if theta is None else theta
    reference = Fisher(objective, theta=theta)
    exact = reference.dense()
    gradient = objective.grad(theta)
    best = reference.solve(gradient, damping)
    rungs = []
    for structure in STRUCTURES if structures is None else structures:
        candidate = Fisher(
            objective, structure, labels, samples=samples, generator=generator, theta=theta
        )
        inverse = candidate.inverse(damping, damping_form)
        direction = inverse @ gradient
        error = torch.linalg.norm(candidate.dense() - exact) / torch.linalg.norm(exact)
        rungs.append(
            Rung(
                structure=structure if isinstance(structure, str) else type(structure).__name__,
                frobenius_error=float(error),
                cosine=float(torch.cosine_similarity(direction, best, 0)),
                kl_ratio=_kl_norm(exact, direction) / max(_kl_norm(exact, best), 1e-300),
                cost=candidate.cost,
                status=inverse.status,
            )
        )
    return Exactness(damping=damping, damping_form=damping_form, labels=labels, rungs=tuple(rungs))


def _kl_norm(matrix: Tensor, direction: Tensor) -> float:
    return math.sqrt(max(float(direction @ matrix @ direction), 0.0))
