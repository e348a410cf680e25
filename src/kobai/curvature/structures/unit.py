"""Fisher structure "unit": a block for what feeds each output unit or channel."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.outer_products import OuterRows
from kobai.curvature.structures.interface import Structure, layers_of
from kobai.linalg import LinearOperator
from kobai.linalg.factor import STATUSES, cholesky, eigh, worst
from kobai.linalg.operators.blocks import BlockDiagonal
from kobai.linalg.operators.solvable import (
    DampingForm,
    MatrixFunction,
    SolvableOperator,
    shifted_power,
)


@final
class EqualBlocks(SolvableOperator):
    """Many diagonal blocks of one size, multiplied and factorised together.

    Args:
        matrices: (U, k, k), symmetric positive semidefinite; coordinates are (U, k) flat.
    """

    def __init__(self, matrices: Float[Tensor, "U k k"]) -> None:
        self.matrices = matrices
        size = matrices.shape[0] * matrices.shape[1]
        super().__init__(
            (size, size), dtype=matrices.dtype, device=matrices.device, positive_semidefinite=True
        )

    def trace(self) -> float:
        """Sum of all diagonals."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, " Uk"]:
        """All diagonals."""
        return self.matrices.diagonal(dim1=1, dim2=2).reshape(-1).clone()

    def _matmat(self, columns: Tensor) -> Tensor:
        count, size, _ = self.matrices.shape
        return (self.matrices @ columns.reshape(count, size, -1)).flatten(0, 1)

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        factor = cholesky(self.matrices, damping=damping)
        return MatrixFunction(
            EqualBlocks(factor.inverse()),
            status=factor.status,
            jitter=float(factor.jitter.max()),
            log_determinant=float(factor.logdet().sum()),
        )

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        spectral = eigh(self.matrices)
        resolution = self.matrices.shape[1] * torch.finfo(torch.float64).eps
        powers, statuses, jitter, logdet = [], [spectral.status], 0.0, 0.0
        for values in spectral.values:
            power, status, extra, part = shifted_power(values, exponent, damping, resolution)
            powers.append(power)
            statuses.append(status)
            jitter, logdet = max(jitter, extra), logdet + part
        turned = spectral.vectors * torch.stack(powers).unsqueeze(1)
        matrices = (turned @ spectral.vectors.mT).to(self.dtype)
        return MatrixFunction(
            EqualBlocks((matrices + matrices.mT) / 2),
            status=worst([s for s in statuses if s in STATUSES]),
            jitter=jitter,
            log_determinant=logdet,
        )


@final
class UnitStructure(Structure):
    """Blocks of `ParameterSpace.blocks("unit")`: weights and bias of a unit, scale and shift.

    Memory U k² for U units of k parameters: what a unit-wise natural gradient takes.
    """

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line for the units of each layer."""
        reasons = {n: part.reason for part in source.parts for n in part.parameters}
        return Coverage(
            Covered(
                parameters=parameters, block="unit", size=f"{len(units)} of {width}×{width}",
                numbers=2 * len(units) * width**2,
                build=float(source.count) * len(units) * width**2,
                solve=len(units) * width**3 / 3,
                reason="; ".join(dict.fromkeys(reasons[n] for n in parameters)),
            )
            for parameters, units in _units(source)
            for width in [units.shape[1]]
        )  # fmt: skip

    def build(self, source: ScoreRows) -> SolvableOperator:
        """Block-diagonal over the layers, each many equal blocks."""
        groups = _units(source)
        sums = [source.theta.new_zeros(len(u), u.shape[1], u.shape[1]) for _, u in groups]
        layers = layers_of(source)
        where = {name: i for i, layer in enumerate(layers) for name in layer.parameters}
        for parts in source:
            written: dict[int, tuple[Tensor, Tensor]] = {}
            for total, (parameters, units) in zip(sums, groups, strict=True):
                position = where[parameters[0]]
                layer = layers[position]
                rows = parts[layer.positions[0]]
                if (
                    isinstance(rows, OuterRows)
                    and len(layer.positions) == 1
                    and torch.equal(rows.indices, units.reshape(-1))
                ):
                    total += rows.unit_moments()
                    continue
                if position not in written:
                    joined = layer.rows(parts)
                    place = torch.full((source.theta.numel(),), -1)
                    place[joined.indices] = torch.arange(joined.size)
                    written = {position: (joined.dense(), place)}
                matrix, place = written[position]
                total += _moments(matrix, place[units])
        weight = source.objective.weight
        return BlockDiagonal(
            [EqualBlocks(total / weight) for total in sums],
            [units.reshape(-1) for _, units in groups],
        )


def _moments(matrix: Float[Tensor, "R p"], units: Tensor) -> Float[Tensor, "U k k"]:
    """Σ over rows of each unit's outer products."""
    stacks = matrix.T[units.to(matrix.device)]
    return stacks @ stacks.mT


def _units(source: ScoreRows) -> list[tuple[tuple[str, ...], Tensor]]:
    """Per group of parameters: their names and the coordinates of each unit, (U, k)."""
    groups: dict[tuple[str, ...], list[Tensor]] = {}
    for block in source.objective.space.blocks("unit"):
        groups.setdefault(block.parameters, []).append(block.indices)
    return [(parameters, torch.stack(units)) for parameters, units in groups.items()]
