"""Back-ends: ways to compute a network's outputs at many points of a subspace."""

import abc
import contextlib
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from kobai.landscape.directions import Directions
from kobai.landscape.folding import Folded, Folds
from kobai.landscape.held import Chunk
from kobai.problem import EmpiricalRisk, ParameterSpace

Point = tuple[float, ...]
Reduce = Callable[[Tensor, Chunk], Tensor]


class Mover:
    """Parameters at coordinates, in a buffer that is used again and again.

    The sum over all coordinates but the last is kept: along a row of a grid, a point costs one
    addition. Terms are summed in the order of `Directions.at`.

    Args:
        space: The parameters.
        directions: The subspace.
    """

    def __init__(self, space: ParameterSpace, directions: Directions) -> None:
        self.space = space
        self.origin = directions.origin
        self.columns = directions.vectors.T.contiguous()
        self._row: tuple[Point, Tensor] | None = None
        self._buffer = torch.empty_like(directions.origin)

    def theta(self, point: Point) -> Tensor:
        """θ(c), valid until the next call."""
        *before, last = point
        if self._row is None or self._row[0] != tuple(before):
            row = self.origin
            for value, column in zip(before, self.columns, strict=False):
                row = torch.add(row, column, alpha=value)
            self._row = (tuple(before), row)
        return torch.add(self._row[1], self.columns[-1], alpha=last, out=self._buffer)

    def parameters(self, point: Point) -> dict[str, Tensor]:
        """θ(c) cut into the module's parameters."""
        return self.space.unflatten(self.theta(point))


class Backend(abc.ABC):
    """Computes outputs at points and hands them on chunk by chunk.

    Attributes:
        name: What it is called in notes.
    """

    name: str

    @abc.abstractmethod
    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """Σ over chunks of `reduce(outputs, chunk)` at every point, (K, sums), on the device.

        Called without gradients and inside `kobai.problem.pure`.
        """


@final
class LoopBackend(Backend):
    """One point after the other: the plain way, and the reference for the others.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        folds: Normalisation layers and ReLUs to fold, for speed; None: every module as it is.
    """

    name = "loop"

    def __init__(
        self, objective: EmpiricalRisk, directions: Directions, *, folds: Folds | None = None
    ) -> None:
        self.objective = objective
        self._mover = Mover(objective.space, directions)
        self._folded = Folded(objective, folds) if folds else None
        if folds:
            self.name = f"loop ({len(folds.norms)} normalisation layers folded)"

    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """See `Backend.sums`."""
        rows = []
        with contextlib.nullcontext() if self._folded is None else self._folded.answering():
            for point in points:
                parameters = self._mover.parameters(point)
                if self._folded is not None:
                    self._folded.move(parameters)
                shares = [
                    reduce(self.objective.forward_parameters(parameters, chunk.batch), chunk)
                    for chunk in chunks
                ]
                rows.append(torch.stack(shares).sum(0))
        return torch.stack(rows)


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
                share = torch.stack([reduce(output, chunk) for output in outputs])
                total = share if total is None else total + share
            assert total is not None
            rows.append(total)
        return torch.cat(rows)
