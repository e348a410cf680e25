"""The fastest back-end: measured on the spot, checked against the plain loop, noted."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from kobai.landscape.backends.candidates import Candidate, EvaluatorMaker
from kobai.landscape.backends.data import DeviceData
from kobai.landscape.backends.evaluator import ObjectiveEvaluator, ValueEvaluator
from kobai.landscape.backends.passes import Point
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.options import CLASS_FIELD, Settings
from kobai.landscape.processes import Processes
from kobai.layers import is_kind
from kobai.problem import EmpiricalRisk, Objective

EXAMPLES = 1024
"""Examples a candidate is timed on, or one chunk of its own if that is larger."""

SHARE = 0.05
"""Share of the estimated total time that comparing candidates may take."""

FREE = 0.02
"""Seconds that comparing may take however small the grid is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A way to evaluate an objective.

    Attributes:
        evaluator: Measures the objective.
        note: How it was chosen, as a sentence.
        candidate: What to ask for to get the same again; None for the objective's own value.
        splits: Name of a further objective to what measures it in the same way.
    """

    evaluator: ObjectiveEvaluator
    note: str
    candidate: Candidate | None
    splits: Mapping[str, ObjectiveEvaluator] = dataclasses.field(default_factory=dict)


def choose_for_grid(
    objective: Objective,
    directions: Directions,
    settings: Settings,
    *,
    points: int,
    processes: Processes,
    kept: Mapping[str, Any] | None,
) -> Choice:
    """Choose a way to evaluate an objective and its further splits, the same in all processes.

    Args:
        objective: Any objective.
        directions: The subspace.
        settings: What is computed.
        points: How many points will be evaluated.
        processes: The first one chooses.
        kept: What an interrupted run chose, as the folder's record has it.

    Raises:
        ValueError: If the back-end, a variant or a split does not apply.
    """
    if kept is None:
        choice = None
        if processes.rank == 0:
            choice = choose(objective, directions, settings, points=points)
        same = processes.agree(choice and (choice.candidate, choice.note))
    else:
        choice, candidate = None, kept["candidate"]
        same = Candidate(**candidate) if candidate else None, kept["note"]
    candidate, note = same
    if choice is None:
        choice = choose(objective, directions, settings, points=points, candidate=candidate)
    splits: dict[str, ObjectiveEvaluator] = {}
    for split, other in (settings.splits or {}).items():
        if not split.isidentifier():
            raise ValueError(f"splits are named like 'test', got {split!r}")
        if len(directions.origin) != other.space.dimension:
            raise ValueError(f"the split {split!r} belongs to another model")
        if candidate is not None and not isinstance(other, EmpiricalRisk):
            raise ValueError(f"the split {split!r} must be an EmpiricalRisk like the objective")
        free = dataclasses.replace(settings, backend="auto")
        splits[split] = choose(other, directions, free, points=1, candidate=candidate).evaluator
    return dataclasses.replace(choice, note=note, splits=splits)


def choose(
    objective: Objective,
    directions: Directions,
    settings: Settings | None = None,
    *,
    points: int = 1000,
    candidate: Candidate | None = None,
) -> Choice:
    """Pick the fastest way to evaluate an objective on a subspace.

    Candidates are timed on part of the data; the winner must agree with the plain loop over all
    data at a point, or the loop is taken and the note says so.

    Args:
        objective: Any objective; one that is not an empirical risk has just its `value`.
        directions: The subspace.
        settings: The back-end, if one is asked for, and what is computed.
        points: How many points will be evaluated; bounds the time spent on comparing.
        candidate: What was chosen before; nothing is compared again.

    Raises:
        ValueError: If the back-end or variant asked for does not apply.
    """
    settings = Settings() if settings is None else settings
    classes = _classes(objective) if CLASS_FIELD in (settings.fields or ()) else 0
    backend, plain = settings.backend, settings.backend in ("auto", "loop")
    if not isinstance(objective, EmpiricalRisk):
        if not plain:
            raise ValueError(
                f"backend={backend!r} needs an EmpiricalRisk, got {type(objective).__name__}"
            )
        if settings.batchnorm != "frozen" or settings.precision != "given":
            raise ValueError(
                "batchnorm and bfloat16 need an EmpiricalRisk, got " + type(objective).__name__
            )
        evaluator = ValueEvaluator(objective, directions)
        note = "value of the objective at each point"
        return Choice(evaluator=evaluator, note=note, candidate=None)
    maker = EvaluatorMaker(objective, directions, settings, classes)
    if candidate is not None:
        made = maker.make(candidate)
        if made is None:
            raise ValueError(f"{candidate} does not apply here")
        return Choice(evaluator=made, note=f"{made.name}, as chosen before", candidate=candidate)
    search = _Search(maker, points)
    if settings.batchnorm != "frozen":
        # Statistics that follow θ have one back-end, so there is nothing to compare.
        if not plain:
            raise ValueError(f"batchnorm={settings.batchnorm!r} needs backend='loop' or 'auto'")
        if objective.coupled:
            raise ValueError("a coupled objective has no running statistics; leave batchnorm out")
        return search.choice(Candidate(settings.batchnorm, search.usual))
    if settings.precision != "given" and not plain:
        raise ValueError(f"precision={settings.precision!r} needs backend='loop' or 'auto'")
    search.compare(backend, full=settings.precision == "given")
    return search.outcome()


def _classes(objective: Objective) -> int:
    axis = objective.likelihood.class_axis if isinstance(objective, EmpiricalRisk) else None
    if not isinstance(objective, EmpiricalRisk) or axis is None:
        raise ValueError("class_loss needs a categorical likelihood; leave it out of fields")
    batch = next(iter(objective.batches))
    with torch.no_grad():
        outputs = objective.forward(objective.theta(), batch.take(slice(0, 1)))
    return int(outputs.shape[axis])


class _Search:
    """Times candidates within a share of what the whole grid will take."""

    def __init__(self, maker: EvaluatorMaker, points: int) -> None:
        self.maker, self.make, self.points = maker, maker.make, points
        self.objective = maker.objective
        self.sizes = _chunk_sizes(maker.objective, maker.data)
        self.usual = self.sizes[len(self.sizes) // 2]
        self.timings: dict[Candidate, float] = {}
        self.refused: dict[str, str] = {}
        self.started = time.perf_counter()

    def compare(self, backend: str, *, full: bool) -> None:
        """Time the back-end asked for, or all that may be fastest.

        Questions with most to gain come first, because small grids leave no time for the others;
        each is answered with the winners so far.

        Args:
            backend: One of `BackendName`.
            full: Compute in full precision, which back-ends other than the loop need.

        Raises:
            ValueError: If the back-end asked for does not apply.
        """
        auto = backend == "auto"
        if auto or backend == "loop":
            self._loops()
        if backend == "vmap" or (auto and full and self._calls_dominate()):
            self._vmaps()
        if backend == "prefix" or (auto and full and self._best().backend == "loop"):
            self._prefixes()
        if backend == "graph" or (auto and full and self.objective.space.device.type == "cuda"):
            self._graph()
        if not self.timings:
            reason = self.refused.get(backend, "nothing can be reused, or it takes too much memory")
            raise ValueError(
                f"backend={backend!r} does not apply here: {reason}; use backend='auto'"
            )

    def outcome(self) -> Choice:
        """Make the winner, or the plain loop if the winner does not agree with it."""
        winner = self._best()
        note = f": {_times(self.timings)} a point, by measurement"
        for name, reason in self.refused.items():
            note += f" ({name} does not apply: {reason})"
        chosen = self.choice(winner, note)
        full = self.maker.settings.precision == "given"
        if not full or (winner.backend == "loop" and not winner.fold):
            return chosen
        plain = self.choice(Candidate("loop", self.usual))
        point = self.maker.typical[0]
        problem = _disagreement(chosen.evaluator, plain.evaluator, self.objective, point)
        return dataclasses.replace(plain, note=problem) if problem else chosen

    def choice(self, candidate: Candidate, note: str = "") -> Choice:
        """Make a candidate that applies."""
        made = self.make(candidate)
        assert made is not None
        return Choice(evaluator=made, note=made.name + note, candidate=candidate)

    def _best(self) -> Candidate:
        return min(self.timings, key=self.timings.__getitem__)

    def _loops(self) -> None:
        """Time the plain loop, in both layouts and all chunk sizes that time allows."""
        self._time(Candidate("loop", self.usual))
        if self.maker.data.has_images and any(
            is_kind(part, "convolution") for part in self.objective.model.modules()
        ):
            self._time(dataclasses.replace(self._best(), layout="channels_last"))
        self._sizes_of_best()
        if not self.objective.coupled:
            self._time(dataclasses.replace(self._best(), fold=True))

    def _vmaps(self) -> None:
        """Time many points at once, which some kernels and control flow by data refuse."""
        for width in (16, 128):
            try:
                self._time(Candidate("vmap", self.usual, width=width))
            except (RuntimeError, ValueError) as error:
                self.refused["vmap"] = str(error).splitlines()[0]
                return

    def _graph(self) -> None:
        """Time the recorded loop, which a forward pass that talks to the host refuses."""
        like = self._best() if self.timings else Candidate("loop", self.usual)
        try:
            self._time(Candidate("graph", like.chunk, layout=like.layout))
        except RuntimeError as error:
            self.refused["graph"] = str(error).splitlines()[0]

    def _prefixes(self) -> None:
        """Time reuse with the chunks of the best loop, and with other chunks if it is faster."""
        like = self._best() if self.timings else Candidate("loop", self.usual)
        self._time(dataclasses.replace(like, backend="prefix"))
        if self.timings and self._best().backend == "prefix":
            self._sizes_of_best()

    def _sizes_of_best(self) -> None:
        for size in self.sizes:
            self._time(dataclasses.replace(self._best(), chunk=size))

    def _time(self, candidate: Candidate) -> None:
        """Time a candidate, if it applies, is new and there is time."""
        if candidate in self.timings or (self.timings and not self._affordable()):
            return
        evaluator = self.make(candidate)
        if evaluator is None:
            return
        some = (self.maker.typical * candidate.width)[: candidate.width]
        examples = max(EXAMPLES, candidate.chunk)
        self.timings[candidate] = evaluator.seconds(some, examples)

    def _calls_dominate(self) -> bool:
        """Tell whether calling layers takes much of a pass: eight examples cost as many."""
        if self.objective.coupled:
            return False
        few = min(8, self.maker.data.size)
        evaluator = self.make(Candidate("loop", few))
        assert evaluator is not None
        calls = evaluator.seconds(self.maker.typical[:1], few) * few
        return self.timings[self._best()] * self.sizes[-1] < 3 * calls

    def _affordable(self) -> bool:
        expected = self.timings[self._best()] * self.maker.data.size * self.points
        return time.perf_counter() - self.started < max(SHARE * expected, FREE)


def _disagreement(
    chosen: ObjectiveEvaluator, loop: ObjectiveEvaluator, objective: EmpiricalRisk, point: Point
) -> str:
    """Say why the chosen evaluator cannot be used: it differs from the loop. Empty if not."""
    mine, plain = chosen.loss(*point), loop.loss(*point)
    # How far two exact ways of computing a loss of this size may differ by rounding.
    rounding = 100 * torch.finfo(objective.space.dtype).eps * (abs(plain) + 1e-3)
    same = mine == plain or (mine != mine and plain != plain)
    if same or abs(mine - plain) <= rounding:
        return ""
    return (
        f"loop: {chosen.name} was faster but gave {mine} instead of {plain} at {point}, so it was "
        "not used"
    )


def _chunk_sizes(objective: EmpiricalRisk, data: DeviceData) -> list[int]:
    """List the sizes worth trying, largest last."""
    largest = min(data.size, max(data.largest, 2048))
    if objective.coupled:
        return [largest]
    if objective.space.device.type != "cpu":
        return sorted({min(2048, largest), largest})
    # On a processor, chunks that stay in its cache are as fast as any or faster; images are
    # larger in there than they look, by as much as a layer has channels.
    sizes = (32, 128, 512) if data.has_images else (128, 512, 2048)
    return sorted({min(size, largest) for size in sizes})


def _times(timings: Mapping[Candidate, float]) -> str:
    best: dict[str, float] = {}
    for candidate, seconds in timings.items():
        best[candidate.backend] = min(best.get(candidate.backend, math.inf), seconds)
    fastest = min(best.values())
    return ", ".join(f"{name} {seconds / fastest:.2f}" for name, seconds in best.items())
