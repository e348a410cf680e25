"""Which back-end is fastest here: measured on the spot, checked against the plain loop, noted."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

from kobai.landscape.backends.batchnorm import (
    BatchNormMode,
    InterpolatedBackend,
    RecalibratedBackend,
    Statistics,
)
from kobai.landscape.backends.data import HeldData, Layout
from kobai.landscape.backends.evaluator import Evaluator, Precision, RiskEvaluator, ValueEvaluator
from kobai.landscape.backends.folding import Folds, find_folds
from kobai.landscape.backends.loop import Backend, GraphBackend, LoopBackend, Point, VmapBackend
from kobai.landscape.backends.reusable_calls import find_sites, kept_bytes
from kobai.landscape.backends.reuse import MEMORY_BOUND, PrefixBackend
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk, Objective

BackendName = Literal["auto", "loop", "prefix", "vmap", "graph"]

EXAMPLES = 1024
"""Examples a candidate is timed on, or one chunk of its own if that is larger."""

SHARE = 0.05
"""Share of the estimated total time that comparing candidates may take."""

FREE = 0.02
"""Seconds that comparing may take however small the grid is."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What is computed, whichever way is fastest.

    Attributes:
        batchnorm: Statistics of batch normalisation; see `kobai.landscape.backends.batchnorm`.
        statistics: For "interpolated", label of marked points to buffers.
        precision: "given" or "bfloat16".
        classes: Number of classes whose losses are measured too.
    """

    batchnorm: BatchNormMode = "frozen"
    statistics: Statistics = dataclasses.field(default_factory=dict)
    precision: Precision = "given"
    classes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """An evaluator, a sentence on how it was chosen, and what to ask for to get it again."""

    evaluator: Evaluator
    note: str
    candidate: Candidate | None


def choose_evaluator(
    objective: Objective,
    directions: Directions,
    *,
    backend: BackendName = "auto",
    points: int = 1000,
) -> tuple[Evaluator, str]:
    """Pick the fastest way to evaluate an objective on a subspace; see `choose`.

    Returns:
        The evaluator and a sentence on how it was chosen.
    """
    choice = choose(objective, directions, backend=backend, points=points)
    return choice.evaluator, choice.note


def choose(
    objective: Objective,
    directions: Directions,
    *,
    backend: BackendName = "auto",
    points: int = 1000,
    variant: Variant | None = None,
    candidate: Candidate | None = None,
) -> Choice:
    """Pick the fastest way to evaluate an objective on a subspace.

    Candidates are timed on part of the data; the winner must agree with the plain loop over all
    data at a point, or the loop is taken and the note says so.

    Args:
        objective: Any objective; one that is not an empirical risk has just its `value`.
        directions: The subspace.
        backend: "auto", or the one to use.
        points: How many points will be evaluated; bounds the time spent on comparing.
        variant: What to compute, when it is not the plain loss.
        candidate: What was chosen before; nothing is compared again.

    Raises:
        ValueError: If the back-end or variant asked for does not apply.
    """
    variant = Variant() if variant is None else variant
    if backend not in get_args(BackendName):
        raise ValueError(f"backend must be one of {get_args(BackendName)}, got {backend!r}")
    if not isinstance(objective, EmpiricalRisk):
        if backend not in ("auto", "loop"):
            raise ValueError(
                f"backend={backend!r} needs an EmpiricalRisk, got {type(objective).__name__}"
            )
        if variant != Variant():
            raise ValueError(
                "batchnorm, class_loss and bfloat16 need an EmpiricalRisk, got "
                f"{type(objective).__name__}"
            )
        plain = ValueEvaluator(objective, directions)
        return Choice(evaluator=plain, note="value of the objective at each point", candidate=None)
    held = HeldData(objective)
    search = _Search(objective, directions, held, points, variant)
    if candidate is not None:
        made = search.make(candidate)
        if made is None:
            raise ValueError(f"{candidate} does not apply here")
        return Choice(evaluator=made, note=f"{made.name}, as chosen before", candidate=candidate)
    if variant.batchnorm != "frozen":
        # One way only, over the chunks in which statistics are averaged: nothing to compare.
        if backend not in ("auto", "loop"):
            raise ValueError(f"batchnorm={variant.batchnorm!r} needs backend='loop' or 'auto'")
        if objective.coupled:
            raise ValueError("a coupled objective has no running statistics; leave batchnorm out")
        only = Candidate(variant.batchnorm, search.usual)
        made = search.make(only)
        assert made is not None
        return Choice(evaluator=made, note=made.name, candidate=only)
    # Questions with most to gain come first, because small grids leave no time for the others;
    # each is answered with the winners so far.
    if backend in ("auto", "loop"):
        search.loops()
    if variant.precision != "given" and backend not in ("auto", "loop"):
        raise ValueError(f"precision={variant.precision!r} needs backend='loop' or 'auto'")
    full = variant.precision == "given"
    if backend == "vmap" or (backend == "auto" and full and search.calls_dominate()):
        search.vmaps()
    if backend == "prefix" or (backend == "auto" and full and search.best().backend == "loop"):
        search.prefixes()
    on_cuda = objective.space.device.type == "cuda"
    if backend == "graph" or (backend == "auto" and full and on_cuda):
        search.graphs()
    if not search.timings:
        reason = search.refused.get(backend, "nothing can be reused, or it takes too much memory")
        raise ValueError(f"backend={backend!r} does not apply here: {reason}; use backend='auto'")
    winner = search.best()
    chosen = search.make(winner)
    assert chosen is not None
    note = f"{chosen.name}: {_times(search.timings)} a point, by measurement"
    for name, reason in search.refused.items():
        note += f" ({name} does not apply: {reason})"
    if (winner.backend == "loop" and not winner.fold) or variant.precision != "given":
        return Choice(evaluator=chosen, note=note, candidate=winner)
    plain = search.make(Candidate("loop", search.usual))
    assert plain is not None
    problem = _disagreement(chosen, plain, objective, search.where[0])
    if problem:
        return Choice(evaluator=plain, note=problem, candidate=Candidate("loop", search.usual))
    return Choice(evaluator=chosen, note=note, candidate=winner)


class _Search:
    """Times candidates within a share of what the whole plane will take."""

    def __init__(
        self,
        objective: EmpiricalRisk,
        directions: Directions,
        held: HeldData,
        points: int,
        variant: Variant,
    ) -> None:
        self.objective, self.held, self.points = objective, held, points
        self.make = _maker(objective, directions, held, variant)
        self.where = _typical_points(directions)
        self.sizes = _chunk_sizes(objective, held)
        self.usual = self.sizes[len(self.sizes) // 2]
        self.timings: dict[Candidate, float] = {}
        self.refused: dict[str, str] = {}
        self.started = time.perf_counter()

    def best(self) -> Candidate:
        """The fastest so far."""
        return min(self.timings, key=self.timings.__getitem__)

    def loops(self) -> None:
        """The plain loop, in both layouts and all chunk sizes that time allows."""
        self.time(Candidate("loop", self.usual))
        convolutions = any(
            isinstance(m, nn.modules.conv._ConvNd) for m in self.objective.model.modules()
        )
        if self.held.has_images and convolutions:
            self.time(dataclasses.replace(self.best(), layout="channels_last"))
        self.sizes_of_best()
        if not self.objective.coupled:
            self.time(dataclasses.replace(self.best(), fold=True))

    def vmaps(self) -> None:
        """Many points at once; recurrent kernels and data-dependent control flow refuse that."""
        for width in (16, 128):
            try:
                self.time(Candidate("vmap", self.usual, width=width))
            except (RuntimeError, ValueError) as error:
                self.refused["vmap"] = str(error).splitlines()[0]
                return

    def graphs(self) -> None:
        """The loop recorded by CUDA, which a forward pass that talks to the host refuses."""
        like = self.best() if self.timings else Candidate("loop", self.usual)
        try:
            self.time(Candidate("graph", like.chunk, layout=like.layout))
        except RuntimeError as error:
            self.refused["graph"] = str(error).splitlines()[0]

    def prefixes(self) -> None:
        """Reuse of what does not move, as the best loop goes over the data, then as it likes."""
        like = self.best() if self.timings else Candidate("loop", self.usual)
        self.time(dataclasses.replace(like, backend="prefix"))
        if self.timings and self.best().backend == "prefix":
            self.sizes_of_best()

    def sizes_of_best(self) -> None:
        """Other chunk sizes of the winner so far."""
        for size in self.sizes:
            self.time(dataclasses.replace(self.best(), chunk=size))

    def time(self, candidate: Candidate) -> None:
        """Time a candidate, if it applies, is new and there is time."""
        if candidate in self.timings or (self.timings and not self._affordable()):
            return
        evaluator = self.make(candidate)
        if evaluator is None:
            return
        some = (self.where * candidate.width)[: candidate.width]
        examples = max(EXAMPLES, candidate.chunk)
        self.timings[candidate] = evaluator.seconds(some, examples)

    def calls_dominate(self) -> bool:
        """Whether calling the layers takes much of a forward pass: eight examples cost as many."""
        if self.objective.coupled:
            return False
        few = min(8, self.held.size)
        evaluator = self.make(Candidate("loop", few))
        assert evaluator is not None
        calls = evaluator.seconds(self.where[:1], few) * few
        return self.timings[self.best()] * self.sizes[-1] < 3 * calls

    def _affordable(self) -> bool:
        expected = self.timings[self.best()] * self.held.size * self.points
        return time.perf_counter() - self.started < max(SHARE * expected, FREE)


def _disagreement(
    chosen: RiskEvaluator, loop: RiskEvaluator, objective: EmpiricalRisk, point: Point
) -> str:
    """Why the chosen evaluator cannot be used: it differs from the loop. Empty if it does not."""
    mine, plain = chosen.loss(*point), loop.loss(*point)
    same = mine == plain or (mine != mine and plain != plain)
    if same or abs(mine - plain) <= agreement(objective, plain):
        return ""
    return (
        f"loop: {chosen.name} was faster but gave {mine} instead of {plain} at {point}, so it was "
        "not used"
    )


def agreement(objective: Objective, value: float) -> float:
    """How far two exact ways of computing a loss of this size may differ by rounding."""
    epsilon = torch.finfo(objective.space.dtype).eps
    return 100 * epsilon * (abs(value) + 1e-3)


def _maker(
    objective: EmpiricalRisk, directions: Directions, held: HeldData, variant: Variant
) -> Callable[[Candidate], RiskEvaluator | None]:
    """A function from candidate to evaluator, None where the back-end does not apply."""
    batch = next(held.batches[0].chunks(64))
    traced: list = []
    found: list[Folds] = []

    def folds(candidate: Candidate) -> Folds | None:
        if not candidate.fold:
            return None
        if not found:
            found.append(find_folds(objective, batch))
        return found[0]

    def prefix(candidate: Candidate) -> PrefixBackend | None:
        if not traced:
            sites = find_sites(objective, directions, batch)
            size = kept_bytes(sites, directions.count) * held.size / batch.size
            usable = bool(sites) and size <= MEMORY_BOUND
            if usable:
                backend = PrefixBackend(objective, directions, sites)
                usable = backend.holds(
                    batch, [(0.0,) * directions.count, *_typical_points(directions)]
                )
            traced.append(sites if usable else None)
        if traced[0] is None:
            return None
        return PrefixBackend(objective, directions, traced[0], folds=folds(candidate))

    def make(candidate: Candidate) -> RiskEvaluator | None:
        backend: Backend | None
        if candidate.backend == "loop":
            if candidate.fold and not folds(candidate):
                return None
            backend = LoopBackend(objective, directions, folds=folds(candidate))
        elif candidate.backend == "recalibrated":
            backend = RecalibratedBackend(objective, directions)
        elif candidate.backend == "interpolated":
            backend = InterpolatedBackend(objective, directions, variant.statistics)
        elif candidate.backend == "graph":
            backend = GraphBackend(objective, directions)
        elif candidate.backend == "prefix":
            backend = prefix(candidate)
            if backend is None:
                return None
        else:
            if candidate.width * objective.space.dimension > STACKED:
                return None
            backend = VmapBackend(objective, directions, width=candidate.width)
        return RiskEvaluator(
            objective,
            held,
            backend,
            chunk=candidate.chunk,
            layout=candidate.layout,
            classes=variant.classes,
            precision=variant.precision,
        )

    return make


def _chunk_sizes(objective: EmpiricalRisk, held: HeldData) -> list[int]:
    """Sizes worth trying, largest last."""
    largest = min(held.size, max(held.largest, 2048))
    if objective.coupled:
        return [largest]
    if objective.space.device.type != "cpu":
        return sorted({min(2048, largest), largest})
    # On a processor, chunks that stay in its cache are as fast as any or faster; images are
    # larger in there than they look, by as much as a layer has channels.
    sizes = (32, 128, 512) if held.has_images else (128, 512, 2048)
    return sorted({min(size, largest) for size in sizes})


def _typical_points(directions: Directions) -> list[Point]:
    """Two points about a third of the origin's norm away along each direction."""
    size = float(directions.origin.double().norm())
    steps = [0.3 * size / norm if size else 0.3 for norm in directions.norms]
    return [tuple(steps), tuple(-0.5 * step for step in steps)]


def _times(timings: dict[Candidate, float]) -> str:
    best: dict[str, float] = {}
    for candidate, seconds in timings.items():
        key = candidate.backend
        best[key] = min(best.get(key, math.inf), seconds)
    fastest = min(best.values())
    return ", ".join(f"{name} {seconds / fastest:.2f}" for name, seconds in best.items())
