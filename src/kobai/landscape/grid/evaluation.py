"""From an objective and directions to fields on a grid, and the proof: any number of directions."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kobai.landscape.backends.choice import Candidate, Choice, Variant, choose
from kobai.landscape.backends.evaluator import Evaluator, RiskEvaluator
from kobai.landscape.backends.loop import Point
from kobai.landscape.checks.proof import interpolation, prove, require_overview
from kobai.landscape.checks.values import ModuleState, untouched
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.axes import Axis, coordinates, spread
from kobai.landscape.grid.blocks import STORED_SECONDS, Collector, Crew, Store
from kobai.landscape.grid.extent import box_range, find_range
from kobai.landscape.grid.fields import CLASS_FIELD, FieldEvaluator, Wanted, resolve
from kobai.landscape.grid.nodes import grid_points, on_grid
from kobai.landscape.grid.refinement import Refined, refine
from kobai.landscape.options import Estimate, Settings
from kobai.problem import Categorical, EmpiricalRisk, Objective
from kobai.results import Check

NOISE = 0.02
"""Standard errors above this share of the range are warned of."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """Fields on a grid with their proof."""

    axes: list[np.ndarray]
    fields: dict[str, np.ndarray]
    checks: tuple[Check, ...]
    note: str


def evaluate(
    objective: Objective,
    directions: Directions,
    axes: Sequence[Axis],
    settings: Settings,
    *,
    marked: Callable[[Objective], Sequence[Sequence[float] | np.ndarray]] = lambda _: (),
) -> Evaluated:
    """Evaluate all fields on a grid.

    Args:
        objective: Any objective.
        directions: As many as there are axes.
        axes: Coordinates or numbers of nodes.
        settings: How.
        marked: Further points that automatic ranges should hold, from the objective in fast chunks.
    """
    started = time.perf_counter()
    before = ModuleState.of(objective.space.module)
    wanted_axes = [_axis(axis, name, settings) for axis, name in zip(axes, "abc", strict=False)]
    count = int(np.prod([n if isinstance(n, int) else len(n) for n in wanted_axes]))
    crew = Crew()
    kept = crew.agree(_kept_choice(settings))
    choice = _choose(objective, directions, settings, count, crew, kept)
    evaluator = choice.evaluator
    others = _others(directions, settings, choice.candidate)
    wanted = resolve(settings.fields, evaluator, others, count=directions.count)
    _allow(wanted, settings)
    smooth = in_fast_chunks(evaluator, objective)
    points = [*directions.points.values(), *marked(smooth)]
    grid = _axes(wanted_axes, evaluator, directions, points, settings.ratio)
    if settings.precision == "bfloat16":
        require_overview(objective, directions, evaluator, grid)
    combined = FieldEvaluator(evaluator, smooth, directions, wanted, others)
    each = crew.agree(_seconds_each(combined, grid))
    if settings.announce is not None:
        total = each * count / crew.size
        settings.announce(Estimate(nodes=count, each=each, seconds=total, how=evaluator.name))
    store = _store(objective, directions, grid, settings, wanted, choice, each, count, kept)
    collector = Collector(
        combined,
        count,
        progress=settings.progress,
        stop=settings.stop,
        store=store,
        block=0 if store is None else int(store.record["block"]),
        crew=crew,
    )
    found = _measure(grid, collector, settings, each, started)
    fields = on_grid(grid, combined.fields, found.values)
    mask = found.evaluated.reshape(fields["loss"].shape)
    proof: list[Check] = []
    complete = found.reason != "stopped" and bool(np.isfinite(found.values[:, 0]).any())
    if settings.checks and complete and not np.isnan(found.values[~found.evaluated]).any():
        proof = prove(objective, directions, evaluator, smooth, grid, fields["loss"], mask, choice)
        if found.errors and settings.tol is not None:
            proof.append(interpolation(found, settings.tol))
    proof.append(untouched(before, objective.space.module))
    if not mask.all():
        fields["evaluated"] = mask.astype(float)
    return Evaluated(
        axes=grid,
        fields=fields,
        checks=tuple(proof),
        note=_note(directions, choice, settings, fields, mask, found, crew),
    )


def in_fast_chunks(evaluator: Evaluator, objective: Objective) -> Objective:
    """The objective in the chunks that the evaluator found fast."""
    return evaluator.in_chunks() if isinstance(evaluator, RiskEvaluator) else objective


def _axis(axis: Axis, name: str, settings: Settings) -> np.ndarray | int:
    nodes = coordinates(axis, name)
    if settings.grid == "centred":
        return nodes
    if not isinstance(nodes, int):
        raise ValueError(
            f"grid='source' steps from the origin by ones and takes a number of nodes, got "
            f"coordinates for {name}; leave grid out to give coordinates"
        )
    return np.arange(nodes, dtype=np.float64)


def _variant(objective: Objective, settings: Settings) -> Variant:
    classes = 0
    if settings.fields is not None and CLASS_FIELD in settings.fields:
        classes = _classes(objective)
    return Variant(
        batchnorm=settings.batchnorm,
        statistics=settings.statistics or {},
        precision=settings.precision,
        classes=classes,
    )


def _classes(objective: Objective) -> int:
    if not isinstance(objective, EmpiricalRisk) or not isinstance(
        objective.likelihood, Categorical
    ):
        raise ValueError("class_loss needs a categorical likelihood; leave it out of fields")
    batch = next(iter(objective.batches))
    with torch.no_grad():
        outputs = objective.forward(objective.theta(), batch.take(slice(0, 1)))
    return int(outputs.shape[objective.likelihood.axis])


def _kept_choice(settings: Settings) -> dict[str, Any] | None:
    """What the first run in the folder decided, if there was one."""
    if settings.folder is None:
        return None
    plan = Path(settings.folder) / "plan.json"
    if not plan.is_file():
        return None
    try:
        return json.loads(plan.read_text())["record"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{plan}: damaged ({error}); delete the folder") from None


def _choose(
    objective: Objective,
    directions: Directions,
    settings: Settings,
    count: int,
    crew: Crew,
    kept: dict[str, Any] | None,
) -> Choice:
    """The evaluator: as kept, or as the first process chooses, or by measurement here."""
    variant = _variant(objective, settings)
    candidate = None if kept is None or not kept["candidate"] else Candidate(**kept["candidate"])
    note = "" if kept is None else kept["note"]
    if candidate is None and (crew.rank == 0 or crew.size == 1):
        choice = choose(
            objective, directions, backend=settings.backend, points=count, variant=variant
        )
        candidate, note = choice.candidate, choice.note
        if crew.size == 1:
            return choice
    candidate, note = crew.agree((candidate, note))
    made = choose(
        objective,
        directions,
        backend=settings.backend,
        points=count,
        variant=variant,
        candidate=candidate,
    )
    return Choice(evaluator=made.evaluator, note=note, candidate=candidate)


def _others(
    directions: Directions, settings: Settings, candidate: Candidate | None
) -> dict[str, Evaluator]:
    """Evaluators of other splits, which go over their data as the objective's does."""
    found: dict[str, Evaluator] = {}
    for split, other in (settings.splits or {}).items():
        if not split.isidentifier():
            raise ValueError(f"splits are named like 'test', got {split!r}")
        if len(directions.origin) != other.space.dimension:
            raise ValueError(f"the split {split!r} belongs to another model")
        if candidate is not None and not isinstance(other, EmpiricalRisk):
            raise ValueError(f"the split {split!r} must be an EmpiricalRisk like the objective")
        variant = _variant(other, settings)
        found[split] = choose(
            other,
            directions,
            backend="auto",
            points=1,
            variant=variant,
            candidate=candidate if isinstance(other, EmpiricalRisk) else None,
        ).evaluator
    return found


def _allow(wanted: Wanted, settings: Settings) -> None:
    """Refuse fields that the settings leave without a meaning."""
    if not wanted.derivatives:
        return
    if settings.batchnorm != "frozen":
        raise ValueError(
            "slopes and curvatures are those of the model with frozen statistics; leave them out "
            f"of fields, or take batchnorm='frozen' instead of {settings.batchnorm!r}"
        )
    if settings.precision != "given":
        raise ValueError("bfloat16 is for overviews, not for slopes and curvatures")


def _axes(
    wanted: Sequence[np.ndarray | int],
    evaluator: Evaluator,
    directions: Directions,
    marked: Sequence[Sequence[float] | np.ndarray],
    ratio: float,
) -> list[np.ndarray]:
    """Coordinates of every axis; ranges are looked for only where a number of nodes is given."""
    if all(isinstance(axis, np.ndarray) for axis in wanted):
        return [np.asarray(axis) for axis in wanted]
    ranges = box_range(marked, directions.count) if len(marked) else None
    if ranges is None:
        ranges = find_range(evaluator, directions, ratio=ratio)
    return [
        spread(axis, *limits) if isinstance(axis, int) else axis
        for axis, limits in zip(wanted, ranges, strict=True)
    ]


def _seconds_each(evaluator: Evaluator, grid: Sequence[np.ndarray]) -> float:
    """Seconds a node takes, after the first, which may be slow for reasons of its own."""
    point: Point = tuple(float(axis[len(axis) // 2]) for axis in grid)
    evaluator.measure([point])
    start = time.perf_counter()
    evaluator.measure([point])
    return time.perf_counter() - start


def _store(
    objective: Objective,
    directions: Directions,
    grid: Sequence[np.ndarray],
    settings: Settings,
    wanted: Wanted,
    choice: Choice,
    each: float,
    count: int,
    kept: dict[str, Any] | None,
) -> Store | None:
    if settings.folder is None:
        return None
    digest = hashlib.sha256()
    for array in (directions.origin, directions.vectors.T):
        digest.update(array.detach().cpu().contiguous().numpy().tobytes())
    for axis in grid:
        digest.update(np.ascontiguousarray(axis, dtype="<f8").tobytes() + b"|")
    digest.update(repr((wanted.names, settings.batchnorm, settings.precision)).encode())
    for label, buffers in sorted((settings.statistics or {}).items()):
        for name, value in sorted(buffers.items()):
            digest.update(f"{label}.{name}".encode() + value.cpu().numpy().tobytes())
    digest.update(_identity(choice.evaluator, objective, directions).encode())
    for split, other in sorted((settings.splits or {}).items()):
        digest.update(f"{split}: {_identity(None, other, directions)}".encode())

    def record() -> dict[str, Any]:
        block = max(1, min(int(STORED_SECONDS / max(each, 1e-9)), 1024, count // 4))
        candidate = choice.candidate
        return {
            "candidate": None if candidate is None else dataclasses.asdict(candidate),
            "note": choice.note,
            "block": block,
            "seconds_each": each,
            "nodes": count,
        }

    crew = Crew()
    folder = Path(settings.folder)
    if crew.rank == 0:
        # The first process writes the plan; the others read it.
        Store(folder, digest.hexdigest(), record)
    crew.agree(None)
    store = Store(folder, digest.hexdigest(), record)
    store.record = crew.agree(store.record)
    return store


def _identity(evaluator: Evaluator | None, objective: Objective, directions: Directions) -> str:
    """What tells one objective from another: its data, or its value where there are none."""
    if isinstance(evaluator, RiskEvaluator):
        return evaluator.held.fingerprint()
    return float(objective.value(directions.origin)).hex()


def _measure(
    grid: Sequence[np.ndarray],
    collector: Collector,
    settings: Settings,
    each: float,
    started: float,
) -> Refined:
    """All nodes, or as few as the tolerance and the budget ask for."""
    count = int(np.prod([len(axis) for axis in grid]))
    fits = False
    if settings.budget is not None and settings.tol is None:
        left = settings.budget - (time.perf_counter() - started)
        fits = collector.crew.agree(each * count / collector.crew.size <= left)
    if (settings.tol is None and settings.budget is None) or fits:
        values, reached = collector.measure(grid_points(grid))
        reason = "exact" if reached.all() else "stopped"
        return Refined(values=values, evaluated=reached, errors={}, reason=reason, note="")
    return refine(
        grid, collector, tol=settings.tol, budget=settings.budget, each=each, started=started
    )


def _note(
    directions: Directions,
    choice: Choice,
    settings: Settings,
    fields: Mapping[str, np.ndarray],
    mask: np.ndarray,
    found: Refined,
    crew: Crew,
) -> str:
    evaluator = choice.evaluator
    losses = fields["loss"]
    parts = [directions.note] if directions.note else []
    parts.append(choice.note)
    if settings.batchnorm != "frozen":
        parts.append(
            f"batch normalisation {settings.batchnorm}: no check of slope and curvature, which are "
            "those of frozen statistics"
        )
    if crew.size > 1:
        parts.append(f"shared by {crew.size} processes")
    if found.note:
        parts.append(found.note)
    elif not mask.all():
        parts.append(f"stopped after {int(mask.sum())} of {mask.size} nodes")
    broken = int((~np.isfinite(losses[mask])).sum())
    if broken:
        parts.append(f"{broken} of {int(mask.sum())} nodes are not finite")
    noise = _noise(directions, evaluator, fields)
    if noise > NOISE:
        parts.append(
            f"warning: the standard error of the mean over examples is {100 * noise:.2g} % of the "
            "range of the losses"
        )
    return "; ".join(parts)


def _noise(directions: Directions, evaluator: Evaluator, fields: Mapping[str, np.ndarray]) -> float:
    """Standard error of the losses in shares of their range: the median, or that at the centre."""
    losses = fields["loss"][np.isfinite(fields["loss"])]
    span = float(np.ptp(losses)) if losses.size else 0.0
    if not isinstance(evaluator, RiskEvaluator) or not span > 0:
        return 0.0
    if "stderr" in fields:
        errors = fields["stderr"][np.isfinite(fields["stderr"])]
        error = float(np.median(errors)) if errors.size else 0.0
    else:
        error = float(evaluator.measure([(0.0,) * directions.count])[0, 1])
    return error / span if np.isfinite(error) else 0.0
