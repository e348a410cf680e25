"""Solve with the damped Fisher matrix for the natural direction, on the smaller side.

The gradient is a combination of the Fisher matrix's own rows: g = Gᵀz/W with z the residual in the
factor's coordinates, S z = r where S Sᵀ is the output Hessian. Hence

    (GᵀG/W + λ)⁻¹ g = Gᵀ (GGᵀ/W + λ)⁻¹ z / W,

a system of the size of examples times outputs whose result lies in the range of Gᵀ by construction.
The textbook form (g − Gᵀ(…)⁻¹Gg/W)/λ is the same in exact arithmetic, but cancels: with small or
no damping it puts rounding, divided by λ, into directions the data knows nothing about.
"""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature import Fisher
from kobai.curvature.structures import LayerStructure, LowRank, TridiagonalStructure, layers_of
from kobai.curvature.structures.full import FullFisher, FullStructure
from kobai.linalg import BlockDiagonal, Damped, Dense, conjugate_gradient
from kobai.linalg.factor import cholesky, eigh
from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.operators.solvable import DampingForm, SolvableOperator
from kobai.optim.second_order.base import SecondOrder
from kobai.optim.second_order.descent import RiskModel
from kobai.optim.second_order.evaluator import StartingPoint, inner

SOLVE_COUNTS = ("jittered_solves", "unconverged_solves", "cg_iterations")
"""Counts of `FisherModel.solve`."""

LARGEST_SYSTEM = 5_000
"""Rows of the largest dense system; beyond, "full" is solved by conjugate gradients."""

_CG_TOLERANCE = 1e-6
_CG_ITERATIONS = 500
_REPRODUCED = 1e-6

_REFINEMENTS = 5
_LEAST_PROGRESS = 0.1
"""Share of an error that a refinement may leave: beyond, the factor is too inexact to refine."""

_ROWS_TOGETHER = 128


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A direction (F + λ)⁻¹ g and how the solve went.

    Attributes:
        value: The direction; not finite where the solve failed.
        status: "ok"; "jittered" (more damping was needed); "pseudo-inverse" (undamped and singular:
            the shortest solution); "indefinite" (g makes a negative angle with the direction, as
            "tridiagonal" allows); "max-iterations" and the other statuses of
            `kobai.linalg.conjugate_gradient`; or why the factorisation failed.
        iterations: Iterations of conjugate gradients, 0 for direct solves.
    """

    value: Float[Tensor, " P"]
    status: str
    iterations: int = 0


class FisherModel(RiskModel):
    """A model whose matrix is a structure of the Fisher matrix.

    Args:
        optimizer: Its counts are raised.
        start: The point.
        fisher: The matrix there.
        damping_form: How damping is shared out to factors.
    """

    def __init__(
        self,
        optimizer: SecondOrder,
        start: StartingPoint,
        fisher: Fisher,
        damping_form: DampingForm = "exact",
    ) -> None:
        self.start, self.optimizer = start, optimizer
        self._fisher = fisher
        self._form: DampingForm = damping_form

    def solve(self, damping: float) -> Direction:
        """Compute (F + λ)⁻¹ g and count what the solve took."""
        counts = self.optimizer.record["counts"]
        found = natural_direction(self._fisher, self.start.gradient, damping, self._form)
        counts["jittered_solves"] += found.status in ("jittered", "pseudo-inverse")
        counts["cg_iterations"] += found.iterations
        counts["unconverged_solves"] += bool(found.iterations) and found.status != "ok"
        return found

    def operator(self) -> LinearOperator:
        """Give the matrix."""
        return self._fisher

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀFp."""
        return inner(direction, self._fisher @ direction)


def natural_direction(
    fisher: Fisher,
    gradient: Float[Tensor, " P"],
    damping: float,
    damping_form: DampingForm = "exact",
    *,
    largest: int | None = None,
) -> Direction:
    """Compute (F + λ)⁻¹ g for any structure.

    Args:
        fisher: The matrix, at the point where the gradient was taken.
        gradient: Gradient of the same objective.
        damping: λ.
        damping_form: See `kobai.linalg.operators.solvable.SolvableOperator`.
        largest: Rows of the largest dense system; default `LARGEST_SYSTEM`.

    Raises:
        ValueError: If the structure needs a larger dense system.
    """
    largest = LARGEST_SYSTEM if largest is None else largest
    system = dense_system(fisher)
    if system > largest and isinstance(fisher.structure, FullStructure):
        return _iterated(fisher, gradient, damping)
    if system > largest:
        raise ValueError(
            f"this Fisher structure needs a dense system of {system} rows, more than {largest}; "
            "take smaller batches, or structure 'full' (then solved by conjugate gradients), "
            "'kronecker' or 'diagonal'"
        )
    operator: LinearOperator = fisher.operator
    if isinstance(operator, FullFisher):
        operator = operator.solver()
    if not isinstance(operator, BlockDiagonal):
        places: tuple[object, ...] = (slice(None),)
        blocks: tuple[LinearOperator, ...] = (operator,)
    else:
        places, blocks = operator.indices, operator.blocks
    rowed = any(isinstance(block, LowRank) for block in blocks)
    if not rowed and damping > 0:
        inverse = fisher.inverse(damping, damping_form)
        value, status = inverse @ gradient, inverse.status
        # "tridiagonal" has no factorisation that tells; a definite matrix has no such direction.
        if status == "ok" and float(torch.dot(gradient, value)) < 0:
            status = "indefinite"
        return Direction(value=value, status=status)
    coordinates = _coordinates(fisher) if rowed else None
    if len(blocks) == 1 and isinstance(places[0], slice):
        assert isinstance(operator, SolvableOperator)
        value, status = _block(operator, gradient, damping, damping_form, coordinates)
        return Direction(value=value, status=status)
    value, statuses = torch.empty_like(gradient), []
    for block, place in zip(blocks, places, strict=True):
        assert isinstance(block, SolvableOperator)
        value[place], status = _block(block, gradient[place], damping, damping_form, coordinates)
        statuses.append(status)
    return Direction(value=value, status=max(statuses, key=_severity))


def dense_system(fisher: Fisher) -> int:
    """Give the rows of the largest dense system that is solved on the side of the examples."""
    size, count = fisher.shape[0], fisher.source.count
    if isinstance(fisher.structure, FullStructure):
        return min(size, count)
    if isinstance(fisher.structure, LayerStructure):
        return max(min(layer.size, count) for layer in layers_of(fisher.source))
    if isinstance(fisher.structure, TridiagonalStructure):
        return min(size, count * len(layers_of(fisher.source)))
    return 0


def _severity(status: str) -> int:
    mild = ("ok", "pseudo-inverse", "jittered")
    return mild.index(status) if status in mild else len(mild)


def _block(
    block: SolvableOperator,
    gradient: Tensor,
    damping: float,
    damping_form: DampingForm,
    coordinates: Tensor | None,
) -> tuple[Tensor, str]:
    """Compute one block's share of the direction."""
    if isinstance(block, LowRank) and coordinates is not None:
        inner, status = dual_solution(block.dual(), coordinates, damping)
        return block.rows.transpose((inner / block.weight).unsqueeze(1)).squeeze(1), status
    if isinstance(block, Dense) and damping == 0:
        return _shortest(block.dense(), gradient)
    inverse = block.inverse(damping, damping_form)
    return inverse @ gradient, inverse.status


def dual_solution(
    matrix: Float[Tensor, "R R"], right: Float[Tensor, " R"], damping: float
) -> tuple[Float[Tensor, " R"], str]:
    """Compute (K + λ)⁻¹ z, factorised in the precision of K, refined by residuals in float64.

    Each refinement multiplies the error by about the same ratio, that of two corrections in a row;
    once what is left is below the rounding of K's precision, a factorisation in float64 would
    give the same numbers at twice the cost. Where the ratio says that this will not be, or the
    factorisation fails, it is done in float64, up the ladder of `kobai.linalg.factor.cholesky`.
    """
    factor = cholesky(matrix, damping=damping, precision=matrix.dtype)
    if factor.triangle.dtype == matrix.dtype and matrix.dtype != torch.float64:
        target, limit = right.double(), torch.finfo(matrix.dtype).eps
        value = factor.solve(right).double()
        before = float(value.norm())
        for _ in range(_REFINEMENTS):
            correction = factor.solve((target - _exact_product(matrix, value, damping)).to(right))
            value += correction
            after = float(correction.norm())
            ratio = after / before if before > 0 else 0.0
            if not ratio < _LEAST_PROGRESS:
                break
            if ratio / (1 - ratio) * after <= limit * float(value.norm()):
                return value.to(right.dtype), factor.status
            before = after
        factor = cholesky(matrix, damping=damping)
    return factor.solve(right), factor.status


def _exact_product(
    matrix: Float[Tensor, "R R"], vector: Float[Tensor, " R"], damping: float
) -> Float[Tensor, " R"]:
    """Compute (K + λ) v in float64, some rows at a time, without a copy of K."""
    pieces = [rows.double() @ vector for rows in matrix.split(_ROWS_TOGETHER)]
    return torch.cat(pieces) + damping * vector


def _shortest(matrix: Tensor, gradient: Tensor) -> tuple[Tensor, str]:
    """Find the shortest solution of a positive semidefinite system that has one."""
    spectral = eigh(matrix)
    if spectral.status != "ok":
        return torch.full_like(gradient, torch.nan), spectral.status
    values, vectors = spectral.values, spectral.vectors
    limit = values.abs().max() * len(values) * torch.finfo(matrix.dtype).eps
    kept = values > limit
    inner = (vectors.T @ gradient.to(vectors.dtype))[kept] / values[kept]
    status = "ok" if bool(kept.all()) else "pseudo-inverse"
    return (vectors[:, kept] @ inner).to(gradient.dtype), status


def _iterated(fisher: Fisher, gradient: Tensor, damping: float) -> Direction:
    """Solve by conjugate gradients; a product costs about a forward and a backward pass."""
    solution = conjugate_gradient(
        Damped(fisher, damping), gradient, tol=_CG_TOLERANCE, max_iterations=_CG_ITERATIONS
    )
    status = "ok" if solution.status == "converged" else solution.status
    return Direction(value=solution.value, status=status, iterations=solution.iterations)


def _coordinates(fisher: Fisher) -> Float[Tensor, " R"] | None:
    """Find z with S z = r, rows by example and then cotangent; None where there is none.

    There is none for sampled labels, nor where a probability is too small for the factor to carry
    the residual: the general form of the solve then serves.
    """
    source = fisher.source
    if fisher.labels == "sampled":
        return None
    objective = fisher.objective
    if fisher.labels == "observed":
        scale = objective.likelihood.scale**0.5
        return torch.full((source.count,), scale, dtype=fisher.dtype, device=fisher.device)
    cotangents = source.scores.start()
    pieces: list[Tensor] = []
    outputs = objective.outputs(fisher.theta) if source.outputs is None else source.outputs
    start = 0
    for batch in objective.batches:
        own = outputs[start : start + batch.size]
        start += batch.size
        targets = batch.targets.to(own.device)
        residual = objective.likelihood.residual(own, targets).flatten(1).double()
        factor = cotangents(own, targets).flatten(2).permute(1, 2, 0).double()
        spread = factor.diagonal(dim1=1, dim2=2)
        if bool((spread != 0).all()) and not bool((factor - spread.diag_embed()).any()):
            pieces.append(residual / spread)
            continue
        spectral = eigh(factor @ factor.mT)
        values, vectors = spectral.values, spectral.vectors
        limit = values.amax(1, keepdim=True) * values.shape[1] * torch.finfo(torch.float64).eps
        turned = (vectors.mT @ residual.unsqueeze(2)).squeeze(2)
        inner = torch.where(values > limit, turned / values, 0.0)
        z = (factor.mT @ (vectors @ inner.unsqueeze(2))).squeeze(2)
        missed = ((factor @ z.unsqueeze(2)).squeeze(2) - residual).norm()
        if not bool(missed <= _REPRODUCED * residual.norm()):
            return None
        pieces.append(z)
    return torch.cat(pieces).flatten().to(fisher.dtype)
