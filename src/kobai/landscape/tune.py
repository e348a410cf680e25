"""Which back-end is fastest here: measured on the spot, checked against the plain loop, noted."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from kobai.landscape.backends import LoopBackend, Point, VmapBackend
from kobai.landscape.directions import Directions
from kobai.landscape.evaluator import Evaluator, RiskEvaluator, ValueEvaluator
from kobai.landscape.held import HeldData, Layout
from kobai.landscape.prefix import MEMORY_BOUND, PrefixBackend
from kobai.landscape.sites import find_sites, kept_bytes
from kobai.problem import EmpiricalRisk, Objective

BackendName = Literal["auto", "loop", "prefix", "vmap"]

EXAMPLES = 1024
"""Examples a candidate is timed on, or one chunk of its own if that is larger."""

SHARE = 0.05
"""Share of the estimated total time that comparing candidates may take."""

STACKED = 2**25
"""Numbers that the parameters of one vmap pass may take."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute: a back-end, a chunk size, a memory layout."""

    backend: Literal["loop", "prefix", "vmap"]
    chunk: int
    layout: Layout = "given"
    width: int = 1


def choose_evaluator(
    objective: Objective,
    directions: Directions,
    *,
    backend: BackendName = "auto",
    points: int = 1000,
) -> tuple[Evaluator, str]:
    """Pick the fastest way to evaluate an objective on a subspace.

    Candidates are timed on part of the data; the winner must agree with the plain loop over all
    data at a point, or the loop is taken and the note says so.

    Args:
        objective: Any objective; one that is not an empirical risk has just its `value`.
        directions: The subspace.
        backend: "auto", or the one to use.
        points: How many points will be evaluated; bounds the time spent on comparing.

    Returns:
        The evaluator and a sentence on how it was chosen.

    Raises:
        ValueError: If the back-end asked for does not apply.
    """
    if backend not in ("auto", "loop", "prefix", "vmap"):
        raise ValueError(f"backend must be 'auto', 'loop', 'prefix' or 'vmap', got {backend!r}")
    if not isinstance(objective, EmpiricalRisk):
        if backend not in ("auto", "loop"):
            raise ValueError(
                f"backend={backend!r} needs an EmpiricalRisk, got {type(objective).__name__}"
            )
        return ValueEvaluator(objective, directions), "value of the objective at each point"
    held = HeldData(objective)
    make = _maker(objective, directions, held)
    timings: dict[Candidate, float] = {}
    where = _typical_points(directions)
    started = time.perf_counter()

    def time_one(candidate: Candidate) -> None:
        evaluator = make(candidate)
        if evaluator is None:
            return
        some = where * math.ceil(candidate.width / len(where))
        timings[candidate] = evaluator.seconds(
            some[: max(candidate.width, 1)], max(EXAMPLES, candidate.chunk)
        )

    def within_bounds() -> bool:
        expected = min(timings.values()) * held.size * points
        return time.perf_counter() - started < SHARE * expected

    def best() -> Candidate:
        return min(timings, key=timings.__getitem__)

    def calls_dominate() -> bool:
        """Whether a forward pass is so short that calling the layers is what takes time."""
        return min(s * min(c.chunk, held.size) for c, s in timings.items()) < 2e-3

    refused = ""
    sizes = _chunk_sizes(objective, held)
    usual = sizes[len(sizes) // 2]
    # One question after the other, each answered with the winners so far; the questions with
    # most to gain come first, because small grids leave no time for the others.
    if backend in ("auto", "loop"):
        time_one(Candidate("loop", usual))
    if backend == "vmap" or (backend == "auto" and not objective.coupled and calls_dominate()):
        for width in (128, 16):
            try:
                time_one(Candidate("vmap", usual, width=width))
            except (RuntimeError, ValueError) as error:
                # Recurrent kernels and data-dependent control flow cannot be vectorised.
                refused = str(error).splitlines()[0]
                break
    if backend == "prefix" or (backend == "auto" and within_bounds()):
        time_one(Candidate("prefix", usual))
    if timings and held.has_images and _has_convolutions(objective) and within_bounds():
        time_one(dataclasses.replace(best(), layout="channels_last"))
    for size in sizes:
        if timings and size != best().chunk and within_bounds():
            time_one(dataclasses.replace(best(), chunk=size))
    if not timings:
        reason = refused or "nothing can be reused on this subspace, or it takes too much memory"
        raise ValueError(f"backend={backend!r} does not apply here: {reason}; use backend='auto'")
    winner = best()
    chosen = make(winner)
    assert chosen is not None
    note = f"{chosen.name}: {_times(timings)} a point, by measurement"
    if refused:
        note += f" (vmap does not apply: {refused})"
    if winner.backend == "loop":
        return chosen, note
    return _checked(chosen, objective, directions, held, where[0], sizes[-1], note)


def _checked(
    chosen: RiskEvaluator,
    objective: EmpiricalRisk,
    directions: Directions,
    held: HeldData,
    point: Point,
    chunk: int,
    note: str,
) -> tuple[Evaluator, str]:
    """The chosen evaluator if it agrees with the loop, else the loop."""
    loop = RiskEvaluator(objective, held, LoopBackend(objective, directions), chunk=chunk)
    mine, plain = chosen.loss(*point), loop.loss(*point)
    tolerance = agreement(objective, plain)
    if mine == plain or abs(mine - plain) <= tolerance or (mine != mine and plain != plain):
        return chosen, note
    return loop, (
        f"loop: {chosen.name} was faster but gave {mine} instead of {plain} at {point}, so it was "
        "not used"
    )


def agreement(objective: Objective, value: float) -> float:
    """How far two exact ways of computing a loss of this size may differ by rounding."""
    epsilon = torch.finfo(objective.space.dtype).eps
    return 100 * epsilon * (abs(value) + 1e-3)


def _maker(
    objective: EmpiricalRisk, directions: Directions, held: HeldData
) -> Callable[[Candidate], RiskEvaluator | None]:
    """A function from candidate to evaluator, None where the back-end does not apply."""
    batch = next(held.batches[0].chunks(64))
    traced: list = []

    def prefix() -> PrefixBackend | None:
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
        return PrefixBackend(objective, directions, traced[0])

    def make(candidate: Candidate) -> RiskEvaluator | None:
        if candidate.backend == "loop":
            backend = LoopBackend(objective, directions)
        elif candidate.backend == "prefix":
            backend = prefix()
            if backend is None:
                return None
        else:
            if candidate.width * objective.space.dimension > STACKED:
                return None
            backend = VmapBackend(objective, directions, width=candidate.width)
        return RiskEvaluator(
            objective, held, backend, chunk=candidate.chunk, layout=candidate.layout
        )

    return make


def _chunk_sizes(objective: EmpiricalRisk, held: HeldData) -> list[int]:
    """Sizes worth trying, largest last."""
    largest = min(held.size, max(held.largest, 2048))
    if objective.coupled:
        return [largest]
    if objective.space.device.type != "cpu":
        return sorted({min(2048, largest), largest})
    # On a processor, chunks that stay in its cache are as fast as any or faster.
    return sorted({min(size, largest) for size in (128, 512, 2048)})


def _has_convolutions(objective: EmpiricalRisk) -> bool:
    return any(isinstance(m, nn.modules.conv._ConvNd) for m in objective.model.modules())


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
