"""What a natural gradient does to the outputs: the kernel J (F + λ)⁻¹ Jᵀ / N of a Fisher structure.

With θ ← θ − η (F + λ)⁻¹ Jᵀ r / N the linearised outputs follow f ← f − η K̄ r. Source: Karakida and
Osawa 2020, Understanding approximate Fisher information for fast convergence of natural gradient
descent in wide neural networks (2010.00879).
"""

import dataclasses
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature import Fisher
from kobai.curvature.fisher import StructureName
from kobai.curvature.rows import Rows, Stacked
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.outer_products import OuterRows
from kobai.curvature.structures import Chain, LowRank, Structure, Tridiagonal, layers_of
from kobai.curvature.structures.full import FullFisher
from kobai.kernels.inputs import Points, at_points
from kobai.kernels.natural.block_actions import (
    Action,
    column_action,
    joined,
    kronecker_action,
    low_rank_action,
    severest,
    single_group,
)
from kobai.kernels.natural.coupled_action import coupled_action
from kobai.kernels.natural.output_factors import OutputFactors, output_factors
from kobai.kernels.tangent import output_rows
from kobai.linalg import BlockDiagonal, Kronecker, LinearOperator
from kobai.linalg.operators.solvable import DampingForm, SolvableOperator
from kobai.problem import EmpiricalRisk

Coordinates = Literal["outputs", "factor"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NaturalKernel:
    """A natural kernel between rows, as computed.

    Attributes:
        kernel: (R', R): rows of the left points, and the columns of the factor S of the training
            examples' output Hessians.
        status: "ok", "pseudo-inverse" (undamped and singular: the limit of vanishing damping), or
            how a factorisation failed.
        fisher: The matrix, with its coverage and cost.
        factors: S of the training examples.
        right: Rows of the training examples, part by part.
    """

    kernel: Float[Tensor, "S R"]
    status: str
    fisher: Fisher
    factors: OutputFactors
    right: list[Stacked]


def natural_kernel(
    objective: EmpiricalRisk,
    structure: StructureName | Structure = "full",
    damping: float = 0.0,
    x1: Points | None = None,
    *,
    damping_form: DampingForm = "each",
    theta: Float[Tensor, " P"] | None = None,
) -> Float[Tensor, "N1 C N C"]:
    """K̄(x1, X) = J(x1) (F + λ)⁻¹ J(X)ᵀ / W for a structure of the Fisher matrix over X.

    A step of size η moves the linearised outputs at x1 by −η K̄ r, r the residual at the examples.
    W is the objective's normaliser, N for a mean over examples. Directions in which no residual can
    point (of softmax: all logits up by the same) are mapped to zero; without them the kernel has a
    limit as λ → 0, and that limit, by pseudo-inverses, is what ``damping=0`` gives.

    Args:
        objective: The network and the examples X of the Fisher matrix.
        structure: Name of a structure, or a `Structure`; see `kobai.curvature.Fisher`.
        damping: λ, at least 0.
        x1: Where outputs are followed; default: the examples themselves.
        damping_form: How λ enters Kronecker factors: "each" (A + λ) ⊗ (B + λ) as in theory, "pi"
            or "exact"; see `kobai.linalg.operators.solvable.SolvableOperator`.
        theta: Where; default: the module's parameters now.

    Returns:
        (N1, C, N, C); not a number where a factorisation failed (`isotropy` says why). Cost: the
        structure's own, and Gram matrices of the rows; nothing of size P².

    Raises:
        ValueError: If a name is unknown, damping is negative, or a dense system is too large.
    """
    found = natural_action(
        objective, structure, damping, x1, damping_form=damping_form, theta=theta
    )
    each = found.fisher.source.outputs_per_example
    examples = objective.size
    kernel = found.kernel.view(-1, each, examples, each)
    return torch.einsum("ncmj,mjk->ncmk", kernel, found.factors.inverse.to(kernel.dtype))


def natural_action(
    objective: EmpiricalRisk,
    structure: StructureName | Structure,
    damping: float,
    x1: Points | None = None,
    *,
    coordinates: Coordinates = "outputs",
    damping_form: DampingForm = "each",
    theta: Float[Tensor, " P"] | None = None,
) -> NaturalKernel:
    """The kernel with the columns of the factor on the right, and how it went.

    Args:
        objective: As for `natural_kernel`.
        structure: Likewise.
        damping: Likewise.
        x1: Likewise.
        coordinates: Rows of the left: "outputs" themselves, or "factor": Sᵀ times the outputs, so
            that the kernel of the exact Fisher matrix is the identity on what residuals can be.
        damping_form: Likewise.
        theta: Likewise.
    """
    if coordinates == "factor" and x1 is not None:
        raise ValueError("coordinates='factor' belong to the objective's own examples")
    at = at_points(objective, x1)
    if objective.coupled:
        raise ValueError(
            "a natural kernel needs examples that do not depend on each other; the objective is "
            "coupled"
        )
    fisher = Fisher(objective, structure, theta=theta)
    fisher.operator.check_damping(damping, damping_form)
    right = _stacked(fisher.source)
    left = right
    factors = output_factors(objective, fisher.theta)
    if coordinates == "outputs":
        source = output_rows(at, fisher.theta)
        if [p.kind for p in source.parts] != [p.kind for p in fisher.source.parts]:
            raise ValueError("the layers are called differently on the two sets of points")
        left = _stacked(source)
    action = _act(fisher, left, right, damping, damping_form)
    return NaturalKernel(
        kernel=action.kernel, status=action.status, fisher=fisher, factors=factors, right=right
    )


def _stacked(source: ScoreRows) -> list[Stacked]:
    """The rows of every part over all data."""
    batches = list(source)
    return [Stacked(pieces) for pieces in zip(*batches, strict=True)]


def _act(
    fisher: Fisher,
    left: list[Stacked],
    right: list[Stacked],
    damping: float,
    damping_form: DampingForm,
) -> Action:
    operator: LinearOperator = fisher.operator
    weight = fisher.objective.weight
    if isinstance(operator, FullFisher):
        operator = operator.solver()
    if isinstance(operator, Tridiagonal) or (
        isinstance(operator, Chain) and (damping_form == "exact" or damping == 0)
    ):
        first, second = (_by_layer(fisher.source, rows) for rows in (left, right))
        own = second if left is right else first
        return coupled_action(operator, own, second, weight, damping)
    if isinstance(operator, BlockDiagonal):
        blocks, places = operator.blocks, operator.indices
    else:
        blocks, places = (operator,), (torch.arange(operator.shape[0]),)
    owner = torch.empty(fisher.shape[0], dtype=torch.int64)
    for position, part in enumerate(fisher.source.parts):
        owner[part.indices] = position
    total: Tensor | None = None
    statuses: list[str] = []
    everything = torch.arange(fisher.shape[0])
    for block, place in zip(blocks, places, strict=True):
        assert isinstance(block, SolvableOperator)
        coordinates = everything[place.cpu() if isinstance(place, Tensor) else place]
        positions = owner[coordinates].unique().tolist()
        action = _block(
            block, coordinates, [left[i] for i in positions], [right[i] for i in positions],
            left is right, weight, damping, damping_form,
        )  # fmt: skip
        statuses.append(action.status)
        total = action.kernel if total is None else total + action.kernel
    assert total is not None
    return Action(kernel=total, status=severest(statuses))


def _block(
    block: SolvableOperator,
    coordinates: Tensor,
    left: list[Stacked],
    right: list[Stacked],
    own: bool,
    weight: float,
    damping: float,
    damping_form: DampingForm,
) -> Action:
    pieces, others = list(left[0].pieces), list(right[0].pieces)
    outer = [rows for rows in pieces if isinstance(rows, OuterRows)]
    inner = [rows for rows in others if isinstance(rows, OuterRows)]
    factored = damping_form != "exact" or damping == 0
    if (
        isinstance(block, Kronecker)
        and factored
        and len(outer) == len(pieces)
        and len(inner) == len(others)
    ):
        if outer[0].groups > 1:
            group = int((inner[0].indices == int(coordinates[0])).nonzero()) // len(coordinates)
            outer = [single_group(rows, group) for rows in outer]
            inner = [single_group(rows, group) for rows in inner]
        return kronecker_action(block, outer, inner, weight, damping, damping_form)
    second = joined(right)
    first = second if own else joined(left)
    if isinstance(block, LowRank):
        return low_rank_action(first, second, weight, damping)
    return column_action(block, coordinates, first, second, weight, damping, damping_form)


def _by_layer(source: ScoreRows, rows: list[Stacked]) -> list[Rows]:
    return [joined([rows[i] for i in layer.positions]) for layer in layers_of(source)]
