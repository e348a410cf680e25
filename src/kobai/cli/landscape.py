"""`kobai landscape`: lines, planes and volumes of runs or of any model, and their true minimum."""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from kobai import landscape, plots, report, seeds
from kobai.cli.compare import resume_line
from kobai.cli.figures import write_figures
from kobai.cli.landscape_points import Points, find_points
from kobai.cli.options import FolderOptions, ProblemOptions, UsageError, parse
from kobai.cli.run_folder import Clock, Stop, claim, record
from kobai.cli.tables import to_json, wide_console
from kobai.landscape.axes import spread
from kobai.landscape.fields import all_fields
from kobai.landscape.tune import BackendName
from kobai.plots.mesh import FORMATS
from kobai.problem import EmpiricalRisk, Problem
from kobai.results import Line, MinimumProof, Plane, Volume, load, result_names, save
from kobai.studies import head_of

Landscape = Line | Plane | Volume
Kind = Literal["random", "pca", "hessian", "between", "gradient"]

BLOCKS = "blocks"
"""Folder below the run folder with the values measured so far."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeVerb(ProblemOptions, FolderOptions):
    """Draw the loss along one, two or three directions, with checks that it is right."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders of kobai train or compare; without one, --model and --data are drawn."""
    out: Path = Path("runs/landscape")
    """Run folder to write."""
    checkpoint: tuple[str, ...] = ()
    """Files with parameters of --model (.safetensors, or .pt with a state dict)."""
    label: str | None = None
    """Which runs of a folder, such as kfac-s0,sgd-s0; default: all."""
    directions: Kind = "random"
    """random; pca (of the paths of the runs); hessian (eigenvectors); between (the ends of the
    runs); gradient (steepest descent, last update)."""
    grid: str = "51x51"
    """Nodes along each direction: 101 (a line), 51x51 (a plane), 17x17x17 (a volume)."""
    range: str = "auto"
    """auto, or coordinates such as --range=-1:1 or --range=-1:1,0:2 (one for each direction)."""
    ratio: float = 5.0
    """An automatic range ends where the loss first reaches this multiple of its centre's."""
    source_grid: bool = False
    """Unit steps from the origin in the corner, as Algorithm 2 of the true-minimum paper prints."""
    norm: Literal["filter", "layer", "global", "none"] = "filter"
    """Scale of random directions."""
    exclude: str = "bias,norm"
    """What random directions leave alone: bias, norm, vectors, embedding or patterns."""
    only: str = ""
    """Patterns of the parameters that random directions move, such as layers.0.*; empty: all."""
    eigenvalues: Literal["largest", "smallest", "both", "magnitude"] = "both"
    """Which eigenvectors --directions hessian takes."""
    fields: str = "loss,accuracy"
    """Fields, separated by commas: loss, stderr, accuracy, class_loss, gradient_norm, slope_a, …,
    curvature_aa, …, curvature_min, curvature_max, hessian_min, hessian_max."""
    splits: str = ""
    """Further splits to measure, such as test."""
    examples: int = 10_000
    """Training examples the loss is evaluated on (count; the first ones)."""
    budget: str = ""
    """Time for a grid, such as 60s, 5min or 1h: all nodes if they fit, else a refined spline."""
    tol: float = 0.0
    """Evaluate only as many nodes as a spline needs to be this right (fraction); 0: all nodes."""
    batchnorm: Literal["frozen", "recalibrated", "interpolated"] = "frozen"
    """Statistics of batch normalisation away from the run: as trained (the function of the
    parameters that curvature is measured of); estimated anew at each node; or, with between,
    interpolated."""
    precision: Literal["given", "bfloat16"] = "given"
    """bfloat16 for overviews; refused where its error would show."""
    backend: BackendName = "auto"
    """How to go over the grid; auto measures, graph (CUDA graphs) needs a GPU."""
    true_minimum: Literal["none", "soft", "hard"] = "none"
    """Also the same landscape with the model's own outputs as targets, of which it is a minimum."""
    check: bool = False
    """Exit with 1 if a self-check fails."""
    plan: bool = False
    """Say how long it would take, and stop."""
    export: str = ""
    """Further formats, separated by commas: csv, vtp, stl, pdf."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = parse(LandscapeVerb, arguments, verb="landscape")
    wanted = _check(options)
    with _processes() as rank:
        return _run(options, wanted, command, rank)


def _run(options: Any, wanted: dict[str, Any], command: str, rank: int) -> int:
    clock, console = Clock(), Console(stderr=True, emoji=False, quiet=rank > 0)
    points = find_points(options.runs, options.checkpoint, options.label, options)
    objective = head_of(points.problem, options.examples)
    for split in wanted["splits"]:
        points.problem.objective(split=split)  # refuses what the data do not have
    directions = _directions(points, objective, options, len(wanted["axes"]))
    for line in str(directions.report()).splitlines():
        console.print(f"[dim]{line}[/dim]", highlight=False)
    if options.plan:
        _plan(points, objective, directions, options, wanted)
        return 0
    folder = options.out
    if rank == 0:
        claim(_for_good(options), "landscape")
        if options.fresh:
            shutil.rmtree(folder / BLOCKS, ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()
    with Stop().installed() as stop:
        found = _draw_all(points, directions, objective, options, wanted, stop, console, rank)
        interrupted = stop()
    if rank == 0:
        record(
            folder, command=command, seed=options.seed, device=objective.space.device,
            seconds=clock.seconds(),
        )  # fmt: skip
    if interrupted:
        console.print(f"interrupted; blocks of values are in {folder / BLOCKS}. Go on with:")
        console.print(f"  {resume_line(command)}", soft_wrap=True)
        return 130
    return _finish(found, options, wanted, folder, console) if rank == 0 else 0


def _finish(
    found: list[Any], options: Any, wanted: dict[str, Any], folder: Path, console: Console
) -> int:
    shutil.rmtree(folder / BLOCKS, ignore_errors=True)
    write_figures(folder)
    surfaces = [result for result in found if not isinstance(result, MinimumProof)]
    for name, result in wanted["saved"].items():
        if "pdf" in wanted["export"]:
            _pdf(result, folder / "figures", name)
        kinds = [kind for kind in wanted["export"] if kind != "pdf"]
        plots.export_landscape(result, folder / "export", name, formats=kinds)
    page = report.build(folder)
    if options.json:
        print(to_json(found))
    else:
        for result in found:
            wide_console().print(_table(result))
    console.print(f"report: {page}")
    failed = [
        f"{result.label}: {check.name}"
        for result in surfaces
        for check in result.checks
        if not check.passed
    ]
    if failed:
        console.print(f"self-checks failed: {', '.join(failed)}", style="bold red")
    return 1 if failed and options.check else 0


def _draw_all(
    points: Points,
    directions: landscape.Directions,
    objective: EmpiricalRisk,
    options: Any,
    wanted: dict[str, Any],
    stop: Stop,
    console: Console,
    rank: int,
) -> list[Any]:
    """The landscape, and that of the true minimum; each is kept as soon as it is finished."""
    form = ("line", "plane", "volume")[len(wanted["axes"]) - 1]
    name = f"{form}_{options.directions}"
    draw = _Draw(options, wanted, stop, console, rank)
    first = draw(points, points.problem, objective, directions, name)
    found: list[Any] = [first]
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
    found.append(minimum.proof)
    # The same axes, so that both can be laid side by side.
    wanted = {**wanted, "axes": [getattr(first, axis) for axis in "abc"[: len(wanted["axes"])]]}
    draw = _Draw(options, wanted, stop, console, rank)
    again = head_of(minimum.problem, options.examples)
    found.append(
        draw(points, minimum.problem, again, directions, f"{name}_true-minimum", true=True)
    )
    return found


class _Draw:
    """Evaluates one landscape and saves it, or loads it when resuming."""

    def __init__(
        self, options: Any, wanted: dict[str, Any], stop: Stop, console: Console, rank: int
    ) -> None:
        self.options, self.wanted, self.stop = options, wanted, stop
        self.console, self.rank = console, rank
        self.saved: dict[str, Landscape] = wanted["saved"]

    def __call__(
        self,
        points: Points,
        problem: Problem,
        objective: EmpiricalRisk,
        directions: landscape.Directions,
        name: str,
        *,
        true: bool = False,
    ) -> Landscape:
        options, folder = self.options, self.options.out
        if options.resume and name in result_names(folder):
            self.saved[name] = load(folder, name)
            return self.saved[name]
        label = name.replace("_", " ")
        if options.directions in ("random", "hessian", "gradient") and len(points.ends) > 1:
            label += f", around {next(iter(points.ends))}"
        evaluate: Callable[..., Landscape] = {
            1: landscape.evaluate_line,
            2: landscape.evaluate_plane,
            3: landscape.evaluate_volume,
        }[len(self.wanted["axes"])]
        settings: dict[str, Any] = dict(zip("abc", self.wanted["axes"], strict=False))
        paths = points.paths if options.directions in ("pca", "between") else {}
        if len(self.wanted["axes"]) == 2 and paths and not true:
            settings["trajectories"] = paths
        if options.batchnorm == "interpolated":
            settings["statistics"] = points.buffers
        with _progress(self.console, label) as progress:
            found = evaluate(
                objective,
                directions,
                **settings,
                fields=_possible(self.wanted["fields"], objective),
                splits={
                    split: head_of_split(problem, split, options.examples)
                    for split in self.wanted["splits"]
                },
                label=label,
                grid="source" if options.source_grid and not true else "centred",
                ratio=options.ratio,
                backend=options.backend,
                batchnorm=options.batchnorm,
                precision=options.precision,
                tol=options.tol or None,
                budget=self.wanted["budget"],
                folder=folder / BLOCKS / name,
                progress=progress,
                stop=self.stop,
                announce=self._announce,
            )
        if not self.stop() and self.rank == 0:
            save(found, folder, name)
        self.saved[name] = found
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


def head_of_split(problem: Problem, split: Any, count: int) -> EmpiricalRisk:
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
    points: Points,
    objective: EmpiricalRisk,
    directions: landscape.Directions,
    options: Any,
    wanted: dict[str, Any],
) -> None:
    """Print how long the grid would take, from a few nodes."""
    evaluate: Callable[..., Landscape] = {
        1: landscape.evaluate_line,
        2: landscape.evaluate_plane,
        3: landscape.evaluate_volume,
    }[len(wanted["axes"])]
    told: list[landscape.Estimate] = []
    evaluate(
        objective,
        directions,
        **dict(zip("abc", wanted["axes"], strict=False)),
        fields=_possible(wanted["fields"], objective),
        backend=options.backend,
        batchnorm=options.batchnorm,
        statistics=points.buffers if options.batchnorm == "interpolated" else None,
        checks=False,
        stop=lambda: True,
        announce=told.append,
    )
    print(to_json(told[0]) if options.json else spell_estimate(told[0]))


def _directions(
    points: Points, objective: EmpiricalRisk, options: Any, count: int
) -> landscape.Directions:
    label, theta = next(iter(points.ends.items()))
    generator = seeds.generator(options.seed, f"plane-{options.directions}")
    if options.directions == "random":
        return landscape.random_directions(
            objective, theta, norm=options.norm, count=count, generator=generator,
            exclude=_list(options.exclude), only=_list(options.only), origin_label=label,
        )  # fmt: skip
    if options.directions == "hessian":
        return landscape.eigen_directions(
            objective, theta, which=options.eigenvalues, count=count, generator=generator,
            origin_label=label,
        )  # fmt: skip
    if options.directions == "between":
        if count == 3:
            raise UsageError("--directions between draws a line or a plane: --grid 101 or 51x51")
        there = len(points.ends)
        if there < 2 or (count == 1 and there > 2):
            wanted = "two runs" if count == 1 else "two runs or more"
            raise UsageError(
                f"--directions between on --grid {options.grid} needs {wanted}, got {there}: "
                f"{', '.join(points.ends)}; name them with --label A,B"
            )
        return landscape.between_directions(
            points.ends, count=count, space=objective, generator=generator
        )
    if options.directions == "gradient":
        path = points.paths.get(label, [])
        update = path[-1] - path[-2] if len(path) > 1 else None
        if update is not None and not bool(update.any()):
            update = None
        return landscape.gradient_directions(
            objective, theta, update=update, count=count, generator=generator, origin_label=label
        )
    paths: dict[str, list[Tensor]] = points.paths
    if not paths:
        if len(points.ends) <= count:
            raise UsageError(
                f"--directions pca needs runs, or more than {count} checkpoints in order"
            )
        paths = {"checkpoints": list(points.ends.values())}
    return landscape.pca_directions(paths, count=count)


def _check(options: Any) -> dict[str, Any]:
    """What the words of the flags mean; wrong use is refused before anything is loaded."""
    if not re.fullmatch(r"\d+(x\d+){0,2}", options.grid):
        raise UsageError(f"--grid {options.grid}: give 101, 51x51 or 17x17x17")
    nodes = [int(n) for n in options.grid.split("x")]
    if min(nodes) < 2:
        raise UsageError(f"--grid {options.grid}: a direction needs 2 nodes or more")
    axes: list[Any] = list(nodes)
    if options.range != "auto":
        axes = _ranges(options.range, nodes)
        if options.source_grid:
            raise UsageError("--range and --source-grid exclude each other; give one")
    known = all_fields(len(nodes))
    fields = _list(options.fields)
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise UsageError(f"--fields {unknown[0]}: choose from {', '.join(known)}")
    export = _list(options.export)
    wrong = [kind for kind in export if kind not in (*FORMATS, "pdf")]
    if wrong:
        raise UsageError(f"--export {wrong[0]}: choose from csv, vtp, stl, pdf")
    for name in ("examples", "ratio"):
        if not getattr(options, name) > (1 if name == "ratio" else 0):
            raise UsageError(f"--{name} is too small: {getattr(options, name)}")
    if not 0 <= options.tol < 1:
        raise UsageError(f"--tol is a fraction below 1, got {options.tol}")
    return {
        "axes": axes,
        "fields": fields,
        "splits": _list(options.splits),
        "export": export,
        "budget": parse_duration(options.budget) if options.budget else None,
        "saved": {},
    }


def parse_duration(text: str) -> float:
    """Seconds from "60", "60s", "5min", "1.5h".

    Raises:
        UsageError: If it is something else or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h)?", text.strip())
    seconds = float(match[1]) * {"h": 3600, "min": 60, "m": 60}.get(match[2], 1) if match else 0
    if not seconds > 0:
        raise UsageError(f"--budget {text}: give a time such as 60s, 5min or 1h")
    return seconds


def _ranges(text: str, nodes: list[int]) -> list[Any]:
    pairs = text.split(",")
    if len(pairs) == 1:
        pairs *= len(nodes)
    axes = []
    for pair, count in zip(pairs, nodes, strict=False):
        low, colon, high = pair.partition(":")
        try:
            ends = (float(low), float(high))
        except ValueError:
            ends = (0.0, 0.0)
        if not colon or not ends[0] < ends[1] or len(pairs) != len(nodes):
            raise UsageError(
                f"--range {text}: give auto, or LOW:HIGH for all or for each of the "
                f"{len(nodes)} directions, such as --range=-1:1"
            )
        axes.append(spread(count, *ends))
    return axes


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _for_good(options: Any) -> Any:
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
