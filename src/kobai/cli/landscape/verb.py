"""`kobai landscape`: lines, planes and volumes of runs or of any model, and their true minimum."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kobai import landscape, plots, report, seeds
from kobai.cli.figures import write_figures
from kobai.cli.landscape.flags import LandscapeRequest, LandscapeVerb, read_flags
from kobai.cli.landscape.points import StartingPoints, find_directions, find_points
from kobai.cli.options import parse
from kobai.cli.run_folder import Clock, Stop, claim, interrupted, record
from kobai.cli.tables import to_json, wide_console
from kobai.problem import EmpiricalRisk, Problem
from kobai.problem.problem import Split
from kobai.results import Line, MinimumProof, Plane, Volume, load, result_names, save
from kobai.studies import head_of

Landscape = Line | Plane | Volume

_EVALUATE: dict[int, Callable[..., Landscape]] = {
    1: landscape.evaluate_line,
    2: landscape.evaluate_plane,
    3: landscape.evaluate_volume,
}

BLOCKS = "blocks"
"""Folder below the run folder with the values measured so far."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = parse(LandscapeVerb, arguments, verb="landscape")
    request = read_flags(options)
    with _processes() as rank:
        return _run(options, request, command, rank)


def _run(options: LandscapeVerb, request: LandscapeRequest, command: str, rank: int) -> int:
    clock, console = Clock(), Console(stderr=True, emoji=False, quiet=rank > 0)
    points = find_points(options.runs, options.checkpoint, options.label, options)
    objective = head_of(points.problem, options.examples)
    for split in request.splits:
        points.problem.objective(split=split)  # refuses what the data do not have
    directions = find_directions(points, objective, options, len(request.axes))
    for line in str(directions.report()).splitlines():
        console.print(f"[dim]{line}[/dim]", highlight=False)
    if options.plan:
        _plan(points, objective, directions, options, request)
        return 0
    folder = options.out
    if rank == 0:
        claim(_for_good(options), "landscape")
        if options.fresh:
            shutil.rmtree(folder / BLOCKS, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()
    with Stop().installed() as stop:
        found = _draw_all(points, directions, objective, options, request, stop, console, rank)
        stopped = stop()
    if rank == 0:
        record(
            folder, command=command, seed=options.seed, device=objective.space.device,
            seconds=clock.seconds(),
        )  # fmt: skip
    if stopped:
        return interrupted(console, f"blocks of values are in {folder / BLOCKS}", command)
    return _finish(found, options, request, console) if rank == 0 else 0


def _finish(
    found: dict[str, Landscape | MinimumProof],
    options: LandscapeVerb,
    request: LandscapeRequest,
    console: Console,
) -> int:
    folder = options.out
    shutil.rmtree(folder / BLOCKS, ignore_errors=True)
    write_figures(folder)
    surfaces = {n: r for n, r in found.items() if not isinstance(r, MinimumProof)}
    for name, result in surfaces.items():
        if "pdf" in request.export:
            _pdf(result, folder / "figures", name)
        kinds = [kind for kind in request.export if kind != "pdf"]
        plots.export_landscape(result, folder / "export", name, formats=kinds)
    page = report.build(folder)
    if options.json:
        print(to_json(list(found.values())))
    else:
        for result in found.values():
            wide_console().print(_table(result))
    console.print(f"report: {page}")
    failed = [
        f"{result.label}: {check.name}"
        for result in surfaces.values()
        for check in result.checks
        if not check.passed
    ]
    if failed:
        console.print(f"self-checks failed: {', '.join(failed)}", style="bold red")
    return 1 if failed and options.check else 0


def _draw_all(
    points: StartingPoints,
    directions: landscape.Directions,
    objective: EmpiricalRisk,
    options: LandscapeVerb,
    request: LandscapeRequest,
    stop: Stop,
    console: Console,
    rank: int,
) -> dict[str, Landscape | MinimumProof]:
    """Name to landscape, and that of the true minimum; each is kept as soon as it is finished."""
    form = ("line", "plane", "volume")[len(request.axes) - 1]
    name = f"{form}_{options.directions}"
    draw = _Draw(options, request, stop, console, rank)
    first = draw(points, points.problem, objective, directions, name)
    found: dict[str, Landscape | MinimumProof] = {name: first}
    if options.true_minimum == "none" or stop():
        return found
    minimum = landscape.true_minimum(
        points.problem,
        options.true_minimum,
        theta=next(iter(points.ends.values())),
        label=next(iter(points.ends)),
        generator=seeds.generator(options.seed, "proof"),
    )
    if rank == 0:
        save(minimum.proof, options.out, "minimum")
    found["minimum"] = minimum.proof
    # The same axes, so that both can be laid side by side.
    axes = tuple(getattr(first, axis) for axis in "abc"[: len(request.axes)])
    draw = _Draw(options, dataclasses.replace(request, axes=axes), stop, console, rank)
    again = head_of(minimum.problem, options.examples)
    true = f"{name}_true-minimum"
    found[true] = draw(points, minimum.problem, again, directions, true, true=True)
    return found


class _Draw:
    """Evaluates one landscape and saves it, or loads it when resuming."""

    def __init__(
        self,
        options: LandscapeVerb,
        request: LandscapeRequest,
        stop: Stop,
        console: Console,
        rank: int,
    ) -> None:
        self.options, self.request, self.stop = options, request, stop
        self.console, self.rank = console, rank

    def __call__(
        self,
        points: StartingPoints,
        problem: Problem,
        objective: EmpiricalRisk,
        directions: landscape.Directions,
        name: str,
        *,
        true: bool = False,
    ) -> Landscape:
        options, folder = self.options, self.options.out
        if options.resume and name in result_names(folder):
            return load(folder, name)
        label = name.replace("_", " ")
        if options.directions in ("random", "hessian", "gradient") and len(points.ends) > 1:
            label += f", around {next(iter(points.ends))}"
        settings: dict[str, Any] = dict(zip("abc", self.request.axes, strict=False))
        paths = points.paths if options.directions in ("pca", "between") else {}
        if len(self.request.axes) == 2 and paths and not true:
            settings["trajectories"] = paths
        if options.batchnorm == "interpolated":
            settings["statistics"] = points.buffers
        with _progress(self.console, label) as progress:
            found = _EVALUATE[len(self.request.axes)](
                objective,
                directions,
                **settings,
                fields=_possible(self.request.fields, objective),
                splits={
                    split: head_of_split(problem, split, options.examples)
                    for split in self.request.splits
                },
                label=label,
                grid="source" if options.source_grid and not true else "centred",
                ratio=options.ratio,
                backend=options.backend,
                batchnorm=options.batchnorm,
                precision=options.precision,
                tol=options.tol or None,
                budget=self.request.budget,
                folder=folder / BLOCKS / name,
                progress=progress,
                stop=self.stop,
                announce=self._announce,
            )
        if isinstance(found, Plane):
            found = dataclasses.replace(found, looks=points.looks)
        if not self.stop() and self.rank == 0:
            save(found, folder, name)
        return found

    def _announce(self, estimate: landscape.Estimate) -> None:
        self.console.print(f"[dim]{spell_estimate(estimate)}[/dim]", highlight=False)


def spell_estimate(estimate: landscape.Estimate) -> str:
    """An estimate as a sentence."""
    seconds = estimate.seconds
    time = f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return (
        f"{estimate.nodes:,} nodes at {1e3 * estimate.each:.3g} ms: about {time} ({estimate.how})"
    )


def head_of_split(problem: Problem, split: Split, count: int) -> EmpiricalRisk:
    """The objective over the first examples of a split."""
    whole = problem.objective(split=split)
    if whole.size <= count:
        return whole
    batches, left = [], count
    for batch in whole.batches:
        if left <= 0:
            break
        batches.append(batch.take(slice(0, left)))
        left -= batches[-1].size
    return EmpiricalRisk(whole.model, whole.likelihood, tuple(batches))


def _possible(fields: tuple[str, ...], objective: EmpiricalRisk) -> tuple[str, ...]:
    """The fields without the accuracy where the likelihood has none (regression)."""
    if "accuracy" not in fields:
        return fields
    batch = next(iter(objective.batches)).take(slice(0, 2))
    with torch.no_grad():
        outputs = objective.forward(objective.theta(), batch)
    if objective.likelihood.correct(outputs, batch.targets) is not None:
        return fields
    return tuple(field for field in fields if field != "accuracy")


def _plan(
    points: StartingPoints,
    objective: EmpiricalRisk,
    directions: landscape.Directions,
    options: LandscapeVerb,
    request: LandscapeRequest,
) -> None:
    """Print how long the grid would take, from a few nodes."""
    told: list[landscape.Estimate] = []
    _EVALUATE[len(request.axes)](
        objective,
        directions,
        **dict(zip("abc", request.axes, strict=False)),
        fields=_possible(request.fields, objective),
        backend=options.backend,
        batchnorm=options.batchnorm,
        statistics=points.buffers if options.batchnorm == "interpolated" else None,
        checks=False,
        stop=lambda: True,
        announce=told.append,
    )
    print(to_json(told[0]) if options.json else spell_estimate(told[0]))


def _for_good(options: LandscapeVerb) -> Any:
    """The options that make a landscape what it is; others may change when it is resumed."""
    return dataclasses.replace(options, check=False, plan=False, export="")


def _table(result: Any) -> Table:
    if isinstance(result, MinimumProof):
        table = Table(title=f"true minimum, {result.targets} targets: {result.label}")
    else:
        table = Table(title=result.label, caption=result.note, caption_justify="left")
    for name in ("check", "found", "tolerance", "", "what was compared"):
        table.add_column(name)
    for check in result.checks:
        table.add_row(
            check.name, f"{check.value:.3g}", f"{check.tolerance:.3g}",
            "passed" if check.passed else "FAILED", check.detail,
        )  # fmt: skip
    return table


def _pdf(result: Landscape, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(result, Plane):
        figures = {
            "contour": plots.landscape_contour(result),
            "surface": plots.landscape_surface(result),
        }
    elif isinstance(result, Line):
        figures = {"line": plots.landscape_lines(result)}
    else:
        figures = {"slices": plots.landscape_slices(result)}
    for kind, figure in figures.items():
        (folder / f"{name}_{kind}.pdf").write_bytes(plots.to_pdf(figure))


@contextlib.contextmanager
def _progress(console: Console, label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; elsewhere nothing, as the time was announced."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextlib.contextmanager
def _processes() -> Iterator[int]:
    """Join the processes that torchrun started; the number of this one."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield dist.get_rank() if dist.is_initialized() else 0
        return
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
