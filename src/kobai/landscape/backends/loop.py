"""Back-ends: ways to compute a network's outputs at many points of a subspace."""

import abc
import contextlib
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.folding import Folded, Folds
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk, ParameterSpace

Point = tuple[float, ...]
Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Outputs (K, n, …) at K points, targets (n, …) and weights (n,) to sums (K, sums)."""

WAITING = 2**18
"""Numbers in outputs that wait for the next chunk's, so that small ones are reduced together."""


class Pending:
    """Adds up what chunks contribute at one point, several small chunks in one call.

    Args:
        reduce: From outputs to sums.
    """

    def __init__(self, reduce: Reduce) -> None:
        self._reduce = reduce
        self._outputs: list[Tensor] = []
        self._chunks: list[Chunk] = []
        self._shares: list[Tensor] = []

    def add(self, outputs: Tensor, chunk: Chunk) -> None:
        """The outputs of a chunk (n, …)."""
        if self._outputs and self._outputs[0].shape[1:] != outputs.shape[1:]:
            self._flush()
        self._outputs.append(outputs)
        self._chunks.append(chunk)
        if sum(waiting.numel() for waiting in self._outputs) > WAITING:
            self._flush()

    def total(self) -> Tensor:
        """All sums (sums,)."""
        if self._outputs:
            self._flush()
        return torch.stack(self._shares).sum(0)

    def _flush(self) -> None:
        targets = _joined([chunk.batch.targets for chunk in self._chunks])
        weights = _joined([chunk.weights for chunk in self._chunks])
        outputs = _joined(self._outputs)
        self._shares.append(self._reduce(outputs.unsqueeze(0), targets, weights)[0])
        self._outputs, self._chunks = [], []


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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


def one_point(
    objective: EmpiricalRisk,
    parameters: dict[str, Tensor],
    chunks: Sequence[Chunk],
    reduce: Reduce,
) -> Tensor:
    """All sums (sums,) at the parameters given: forward passes one chunk after the other."""
    pending = Pending(reduce)
    for chunk in chunks:
        pending.add(objective.forward_parameters(parameters, chunk.batch), chunk)
    return pending.total()


class Backend(abc.ABC):
    """Computes outputs at points and hands them on chunk by chunk.

    Attributes:
        name: What it is called in notes.
    """

    name: str

    @abc.abstractmethod
    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """Σ over chunks of what `reduce` makes of them at every point, (K, sums), on the device.

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
                rows.append(one_point(self.objective, parameters, chunks, reduce))
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
                share = reduce(outputs, chunk.batch.targets, chunk.weights)
                total = share if total is None else total + share
            assert total is not None
            rows.append(total)
        return torch.cat(rows)


@final
class GraphBackend(Backend):
    """The loop as one recorded CUDA graph, replayed at every point: no calls from Python.

    One point is evaluated over all chunks while CUDA records its kernels; θ lies in a buffer that
    every point overwrites. For networks whose kernels are shorter than their launches.

    A forward pass that synchronises with the host or branches on values cannot be recorded: CUDA
    says so and the back-end does not apply.

    Args:
        objective: The empirical risk, on a CUDA device.
        directions: The subspace.

    Raises:
        ValueError: If the objective is not on a CUDA device.
    """

    name = "CUDA graph"

    def __init__(self, objective: EmpiricalRisk, directions: Directions) -> None:
        device = objective.space.device
        if device.type != "cuda":
            raise ValueError(
                f"backend='graph' needs CUDA, and the objective is on {device}; move the model to "
                "a GPU, or use backend='auto'"
            )
        self.objective = objective
        self._mover = Mover(objective.space, directions)
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._owners: list[Chunk] = []

    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """See `Backend.sums`. The first call with these chunks records them."""
        key = tuple(id(chunk) for chunk in chunks)
        if key not in self._recorded:
            self._recorded[key] = self._record(points[0], chunks, reduce)
            self._owners += chunks  # keeps the ids from being given to other objects
        graph, found = self._recorded[key]
        rows = []
        for point in points:
            self._mover.theta(point)
            graph.replay()
            rows.append(found.clone())
        return torch.stack(rows)

    def _record(
        self, point: Point, chunks: Sequence[Chunk], reduce: Reduce
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Views of the buffer that every later point is written into.
        parameters = self._mover.parameters(point)
        device = self.objective.space.device
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.device(device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose kernels and workspaces before the recording
                    one_point(self.objective, parameters, chunks, reduce)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                found = one_point(self.objective, parameters, chunks, reduce)
        return graph, found
