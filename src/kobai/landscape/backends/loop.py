"""One point after the other: the plain way, and the reference for the others."""

import contextlib
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.interface import Backend, Treatment
from kobai.landscape.backends.passes import MovedParameters, Point, Reduce, one_pass
from kobai.landscape.backends.reuse import ReusedCalls
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk


@final
class LoopBackend(Backend):
    """Runs the model at one point after the other.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        treatment: What the model is treated with at each point; None: it runs as it is.
        reuse: Calls that need no repetition.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        directions: Directions,
        *,
        treatment: Treatment | None = None,
        reuse: ReusedCalls | None = None,
    ) -> None:
        self.objective, self.treatment, self.reuse = objective, treatment, reuse
        self._moved = MovedParameters(objective.space, directions)
        if reuse is not None:
            self.name = reuse.name
        else:
            self.name = "loop" if treatment is None else treatment.name

    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """See `Backend.sums`."""
        rows, before = [], None
        with contextlib.ExitStack() as stack:
            if self.treatment is not None:
                stack.enter_context(self.treatment.during())
            if self.reuse is not None:
                stack.enter_context(self.reuse.during(chunks))
                before = self.reuse.begin
            for point in points:
                parameters = self._moved.at(point)
                if self.treatment is not None:
                    self.treatment.move(point, parameters, chunks)
                if self.reuse is not None:
                    self.reuse.point = point
                rows.append(one_pass(self.objective, parameters, chunks, reduce, before=before))
        return torch.stack(rows)
