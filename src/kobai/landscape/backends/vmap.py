"""Many points in one pass, by torch.func.vmap over their parameters."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.interface import Backend
from kobai.landscape.backends.passes import Point, Reduce
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk


@final
class VmapBackend(Backend):
    """Many points in one pass, for networks so small that calling a layer costs more than it does.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        width: Points a pass.
    """

    def __init__(self, objective: EmpiricalRisk, directions: Directions, *, width: int) -> None:
        self.name = f"vmap over {width} points"
        self.objective = objective
        self.directions = directions
        self.width = width

    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """See `Backend.sums`."""
        vectors, origin = self.directions.vectors, self.directions.origin
        rows = []
        for start in range(0, len(points), self.width):
            some = torch.tensor(points[start : start + self.width], dtype=torch.float64)
            moved = vectors @ some.T.to(vectors.device, vectors.dtype) + origin.unsqueeze(1)
            parameters = self.objective.space.unflatten_columns(moved)
            total: Tensor | None = None
            for chunk in chunks:
                outputs = torch.func.vmap(
                    lambda one, chunk=chunk: self.objective.forward_parameters(one, chunk.batch)
                )(parameters)
                share = reduce(outputs, chunk.batch.targets, chunk.weights)
                total = share if total is None else total + share
            assert total is not None
            rows.append(total)
        return torch.cat(rows)
