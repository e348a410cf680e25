"""The loop as one recorded CUDA graph: no calls from Python while it is replayed."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.interface import Backend
from kobai.landscape.backends.passes import MovedParameters, Point, Reduce, one_pass
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk


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
        self._moved = MovedParameters(objective.space, directions)
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
            self._moved.theta(point)
            graph.replay()
            rows.append(found.clone())
        return torch.stack(rows)

    def _record(
        self, point: Point, chunks: Sequence[Chunk], reduce: Reduce
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Views of the buffer that every later point is written into.
        parameters = self._moved.at(point)
        device = self.objective.space.device
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        with torch.cuda.device(device):
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries choose kernels and workspaces before the recording
                    one_pass(self.objective, parameters, chunks, reduce)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                found = one_pass(self.objective, parameters, chunks, reduce)
        return graph, found
