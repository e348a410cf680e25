"""Fisher structure "diagonal": the mean square of every gradient entry, exactly."""

from typing import final

import torch

from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.structures.interface import Structure
from kobai.linalg.operators.leaves import Diagonal
from kobai.linalg.operators.solvable import SolvableOperator


@final
class DiagonalStructure(Structure):
    """diag(F): sums of squares of the gradient rows, per example also under weight sharing."""

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line a part."""
        return Coverage(
            Covered(
                parameters=part.parameters, block="diagonal", size=str(part.size),
                numbers=part.size, build=float(source.count) * part.size * places,
                solve=float(part.size), reason=part.reason,
            )
            for part, places in zip(source.parts, source.places, strict=True)
        )  # fmt: skip

    def build(self, source: ScoreRows) -> SolvableOperator:
        """A diagonal operator."""
        return Diagonal(row_squares(source) / source.objective.weight)


def row_squares(source: ScoreRows) -> torch.Tensor:
    """Sums of squares of all rows in the order of θ, streamed over the batches."""
    total = torch.zeros_like(source.theta)
    for parts in source:
        for rows in parts:
            total[rows.indices.to(total.device)] += rows.squares()
    return total
