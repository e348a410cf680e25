"""Candidates: a back-end with its chunk size and layout, and the evaluator that it makes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, final

from kobai.landscape.backends.batchnorm import Interpolated, Recalibrated
from kobai.landscape.backends.data import DeviceData, Layout
from kobai.landscape.backends.evaluator import RiskEvaluator
from kobai.landscape.backends.folding import Folded, Folds, find_folds
from kobai.landscape.backends.graph import GraphBackend
from kobai.landscape.backends.interface import Backend
from kobai.landscape.backends.loop import LoopBackend
from kobai.landscape.backends.passes import Point
from kobai.landscape.backends.reusable_calls import ReusableCall, find_reusable_calls, kept_bytes
from kobai.landscape.backends.reuse import MEMORY_BOUND, ReusedCalls
from kobai.landscape.backends.vmap import VmapBackend
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.options import Settings
from kobai.problem import EmpiricalRisk

STACKED = 2**25
"""Numbers that the parameters of one vmap pass may take."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute: a back-end, a chunk size, a memory layout."""

    backend: Literal["loop", "prefix", "vmap", "graph", "recalibrated", "interpolated"]
    chunk: int
    layout: Layout = "given"
    width: int = 1
    fold: bool = False


@final
class EvaluatorMaker:
    """Makes evaluators of one objective from candidates.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        settings: What is computed, whichever way is fastest.
        classes: Number of classes whose losses are measured too.
    """

    def __init__(
        self, objective: EmpiricalRisk, directions: Directions, settings: Settings, classes: int
    ) -> None:
        self.objective, self.directions, self.settings = objective, directions, settings
        self.classes = classes
        self.data = DeviceData(objective)
        self._batch = next(self.data.batches[0].chunks(64))
        self.typical = _typical_points(directions)

    def make(self, candidate: Candidate) -> RiskEvaluator | None:
        """Make the evaluator of a candidate, None where its back-end does not apply."""
        backend = self._backend(candidate)
        if backend is None:
            return None
        return RiskEvaluator(
            self.objective,
            self.data,
            backend,
            chunk=candidate.chunk,
            layout=candidate.layout,
            classes=self.classes,
            precision=self.settings.precision,
        )

    def _backend(self, candidate: Candidate) -> Backend | None:
        objective, directions = self.objective, self.directions
        if candidate.backend == "graph":
            return GraphBackend(objective, directions)
        if candidate.backend == "vmap":
            if candidate.width * objective.space.dimension > STACKED:
                return None
            return VmapBackend(objective, directions, width=candidate.width)
        reuse = treatment = None
        folds = self._folds if candidate.fold else None
        if candidate.backend == "recalibrated":
            treatment = Recalibrated(objective)
        elif candidate.backend == "interpolated":
            treatment = Interpolated(objective, directions, self.settings.statistics or {})
        elif candidate.backend == "prefix":
            if not self._calls:
                return None
            reuse = ReusedCalls(objective, directions, self._calls)
            folds = folds and folds.beside([c.path for c in self._calls if c.kind != "linear"])
        elif candidate.fold and not folds:
            return None
        if folds:
            treatment = Folded(objective, folds)
        return LoopBackend(objective, directions, treatment=treatment, reuse=reuse)

    @functools.cached_property
    def _folds(self) -> Folds:
        return find_folds(self.objective, self._batch)

    @functools.cached_property
    def _calls(self) -> Sequence[ReusableCall]:
        """Calls that can be reused, verified at some points; empty if memory forbids it."""
        count = self.directions.count
        calls = find_reusable_calls(self.objective, self.directions, self._batch)
        size = kept_bytes(calls, count) * self.data.size / self._batch.size
        if not calls or size > MEMORY_BOUND:
            return ()
        reuse = ReusedCalls(self.objective, self.directions, calls)
        return calls if reuse.holds(self._batch, [(0.0,) * count, *self.typical]) else ()


def _typical_points(directions: Directions) -> list[Point]:
    """Give two points about a third of the origin's norm away along each direction."""
    size = float(directions.origin.double().norm())
    steps = [0.3 * size / norm if size else 0.3 for norm in directions.norms]
    return [tuple(steps), tuple(-0.5 * step for step in steps)]
