"""How evenly a natural gradient moves the outputs, structure by structure."""

from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature import STRUCTURES
from kobai.curvature.fisher import StructureName
from kobai.curvature.rows.outer_products import OuterRows
from kobai.curvature.structures import (
    ChainStructure,
    FullStructure,
    KroneckerStructure,
    LayerStructure,
    Structure,
    TridiagonalStructure,
    layers_of,
)
from kobai.kernels.natural.block_actions import joined
from kobai.kernels.natural.expected_isotropy import expectation, part_facts
from kobai.kernels.natural.kernel import NaturalKernel, natural_action
from kobai.kernels.natural.output_factors import OutputFactors, output_factors
from kobai.linalg.factor import eigh
from kobai.linalg.operators.solvable import DampingForm
from kobai.problem import EmpiricalRisk
from kobai.results import Isotropy, IsotropyTable

_SMALL = 0.01
"""Deviations from theory that ask for a reason, and what damping may be of an eigenvalue."""


@overload
def isotropy(
    objective: EmpiricalRisk,
    structure: StructureName | Structure,
    damping: float | int = 0.0,
    *,
    damping_form: DampingForm = "each",
    tolerance: float = 0.1,
    theta: Float[Tensor, " P"] | None = None,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
) -> Isotropy: ...
@overload
def isotropy(
    objective: EmpiricalRisk,
    structure: None = None,
    damping: float | int = 0.0,
    *,
    damping_form: DampingForm = "each",
    tolerance: float = 0.1,
    theta: Float[Tensor, " P"] | None = None,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
) -> IsotropyTable: ...
def isotropy(
    objective: EmpiricalRisk,
    structure: StructureName | Structure | None = None,
    damping: float | int = 0.0,
    *,
    damping_form: DampingForm = "each",
    tolerance: float = 0.1,
    theta: Float[Tensor, " P"] | None = None,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
) -> Isotropy | IsotropyTable:
    """Whether a structure's natural gradient moves outputs like the exact one: K̄ = α I.

    Where it does, training errors fall as (1 − η α)ᵗ in the linearised network, with η = 1/α in one
    step. K̄ is taken in the coordinates of the output Hessian's factor, S z = r, and on the
    directions that residuals have: for Gaussian likelihoods J (F + λ)⁻¹ Jᵀ/N itself, for softmax
    Sᵀ J (F + λ)⁻¹ Jᵀ S/N without the direction √p of every example.

    Args:
        objective: The network and the examples.
        structure: Name of a structure, or a `Structure`; None: a table of all.
        damping: λ, at least 0; 0 is the limit, by pseudo-inverses.
        damping_form: See `natural_kernel`.
        tolerance: Spread up to which the table calls a structure isotropic.
        theta: Where; default: the module's parameters now.
        label: Of the table.
        optimizer: Of the table.
        seed: Of the table.

    Returns:
        One `Isotropy`, or an `IsotropyTable` with the cheapest structure that is as good as the
        exact one. Cost: the structures' own, and (N C)² numbers each.

    Raises:
        ValueError: As `natural_kernel`; for the table if damping or tolerance is negative. A
            structure that cannot be formed has a row in the table with the reason as its status.

    Example:
        >>> import torch
        >>> from kobai import Problem
        >>> from kobai.kernels import isotropy
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 3, 1, dtype=torch.float64)
        >>> _ = torch.nn.init.ones_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> x = torch.eye(3, dtype=torch.float64)
        >>> problem = Problem(model, "gaussian", train=(x, torch.ones_like(x[:, :1])))
        >>> round(isotropy(problem.objective(), "layer").alpha, 6)
        1.0
    """
    if structure is not None:
        return _isotropy(objective, structure, float(damping), damping_form, theta)
    if not tolerance >= 0:
        raise ValueError(f"tolerance is a spread of at least 0, got {tolerance}")
    if not damping >= 0:
        raise ValueError(f"damping is a number of at least 0, got {damping}")
    rows = []
    for name in STRUCTURES:
        try:
            rows.append(_isotropy(objective, name, float(damping), damping_form, theta))
        except ValueError as error:
            if not rows:
                raise
            rows.append(_failed(name, str(error)))
    exact = rows[0].spread
    allowed = max(tolerance, exact)
    good = [row for row in rows if row.spread <= allowed]
    cheapest = min(good, key=lambda row: row.cost).structure if good else ""
    at = objective.theta() if theta is None else theta
    factors = output_factors(objective, at)
    return IsotropyTable(
        label=label, damping=float(damping), damping_form=damping_form,
        examples=objective.size, outputs=factors.kept.shape[1],
        directions=factors.rank, tolerance=tolerance,
        cheapest=cheapest, rows=tuple(rows), optimizer=optimizer, seed=seed,
    )  # fmt: skip


def _isotropy(
    objective: EmpiricalRisk,
    structure: StructureName | Structure,
    damping: float,
    damping_form: DampingForm,
    theta: Tensor | None,
) -> Isotropy:
    found = natural_action(
        objective, structure, damping, coordinates="factor", damping_form=damping_form, theta=theta
    )
    kernel = reachable(found.kernel, found.factors)
    count = len(kernel)
    alpha = float(kernel.diagonal().mean())
    deviation = kernel - alpha * torch.eye(count, dtype=kernel.dtype, device=kernel.device)
    scale = abs(alpha) if alpha else float("nan")
    source = found.fisher.source
    facts = part_facts(source, found.right, found.factors)
    expected = expectation(found.fisher.structure, source, facts, found.factors.rank)
    spread = float(torch.linalg.matrix_norm(deviation)) / (scale * count**0.5)
    reasons = list(expected.reasons)
    off = not (spread <= _SMALL and abs(alpha - expected.alpha) <= _SMALL * scale)
    if off and expected.isotropic:
        reasons += _causes(found, damping)
    cost = found.fisher.cost
    once = sum(part.size * places for part, places in zip(source.parts, source.places, strict=True))
    return Isotropy(
        structure=structure if isinstance(structure, str) else type(structure).__name__,
        alpha=alpha, spread=spread, worst=float(deviation.abs().max()) / scale,
        prediction=expected.alpha, expected=expected.isotropic, reasons=tuple(reasons),
        learning_rate=1 / alpha if alpha else float("inf"),
        cost=cost.build + cost.solve + float(cost.passes) * objective.size * once,
        memory=cost.memory, passes=cost.passes, status=found.status,
    )  # fmt: skip


def reachable(kernel: Float[Tensor, "R R"], factors: OutputFactors) -> Float[Tensor, "r r"]:
    """The kernel between orthonormal directions that residuals can have; float64."""
    kernel = kernel.double()
    if factors.whole:
        return kernel
    examples, each, _ = factors.right.shape
    split = kernel.view(examples, each, examples, each)
    turned = torch.einsum("nci,ncmd,mdj->nimj", factors.right, split, factors.right)
    kept = factors.kept.reshape(-1)
    return turned.reshape(kernel.shape)[kept][:, kept]


def _causes(found: NaturalKernel, damping: float) -> list[str]:
    """What of the theory's assumptions does not hold in this network, by its eigenvalues."""
    causes = []
    eps = torch.finfo(found.kernel.dtype).eps
    for name, values in _spectra(found):
        least, largest = float(values.min()), float(values.max())
        if damping > _SMALL * least and damping > 0:
            causes.append(
                f"damping {damping:.3g} is not small against the smallest eigenvalue "
                f"{max(least, 0.0):.2g} of {name}"
            )
        elif least <= len(values) * eps * largest:
            rank = int((values > len(values) * eps * largest).sum())
            causes.append(f"{name} has numerical rank {rank} of {len(values)}")
    return causes or ["finite width: rows of different directions are not yet orthogonal"]


def _spectra(found: NaturalKernel) -> list[tuple[str, Tensor]]:
    """Eigenvalues that damping competes with, by what they belong to."""
    source, rows = found.fisher.source, found.right
    weight, structure = found.fisher.objective.weight, found.fisher.structure
    if isinstance(structure, FullStructure):
        return [("K/N", _values(joined(rows).gram() / weight, found.factors))]
    if isinstance(structure, LayerStructure | TridiagonalStructure | ChainStructure):
        return [
            (
                f"K/N of layer {layer.name}",
                _values(joined([rows[i] for i in layer.positions]).gram() / weight, found.factors),
            )
            for layer in layers_of(source)
        ]
    spectra: list[tuple[str, Tensor]] = []
    if isinstance(structure, KroneckerStructure):
        for part, own in zip(source.parts, rows, strict=True):
            pieces = [piece for piece in own.pieces if isinstance(piece, OuterRows)]
            if len(pieces) == len(own.pieces) and pieces[0].places == 1 == pieces[0].groups:
                spectra += _factor_spectra(part.parameters[0], pieces, found, weight)
    return spectra


def _factor_spectra(
    name: str, pieces: list[OuterRows], found: NaturalKernel, weight: float
) -> list[tuple[str, Tensor]]:
    inputs = torch.cat([piece.inputs[0, :, 0] for piece in pieces])
    back = torch.cat([piece.gradients[0, :, :, 0].flatten(0, 1) for piece in pieces])
    own = [(f"the input factor of {name}", eigh(inputs @ inputs.T / len(inputs)).values)]
    if back.shape[1] >= found.factors.rank:
        values = _values(back @ back.T / weight, found.factors)
        own.append((f"the output factor of {name}", values))
    return own


def _values(gram: Tensor, factors: OutputFactors) -> Tensor:
    return eigh(reachable(gram, factors)).values


def _failed(name: str, why: str) -> Isotropy:
    nan = float("nan")
    return Isotropy(
        structure=name, alpha=nan, spread=nan, worst=nan, prediction=nan, expected=False,
        reasons=(why,), learning_rate=nan, cost=nan, memory=0, passes=0, status="not formed",
    )  # fmt: skip
