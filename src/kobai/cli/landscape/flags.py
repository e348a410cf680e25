"""The flags of `kobai landscape` and what their words mean."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal, cast, get_args

import numpy as np
import tyro

from kobai.cli.options import FolderOptions, ProblemOptions, UsageError
from kobai.landscape.grid.axes import spread
from kobai.landscape.grid.fields import all_fields
from kobai.landscape.options import BackendName
from kobai.plots.landscape.mesh import FORMATS
from kobai.problem.problem import Split

Kind = Literal["random", "pca", "hessian", "between", "gradient"]


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
    eigenvalues: Literal["largest", "smallest", "both", "magnitude", "bulk"] = "both"
    """Which eigenvectors --directions hessian takes; bulk: random, orthogonal to the outliers."""
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
    """Further formats, separated by commas: csv, pdf, and of planes vtp and stl."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeRequest:
    """What the words of the flags mean.

    Attributes:
        axes: Number of nodes or coordinates along each direction.
        fields: Fields to measure.
        splits: Further splits.
        export: Formats.
        budget: Seconds, or None.
    """

    axes: tuple[int | np.ndarray, ...]
    fields: tuple[str, ...]
    splits: tuple[Split, ...]
    export: tuple[str, ...]
    budget: float | None


def read_flags(options: LandscapeVerb) -> LandscapeRequest:
    """Read the words of the flags; wrong use is refused before anything is loaded.

    Raises:
        UsageError: If a flag makes no sense.
    """
    if not re.fullmatch(r"\d+(x\d+){0,2}", options.grid):
        raise UsageError(f"--grid {options.grid}: give 101, 51x51 or 17x17x17")
    nodes = [int(n) for n in options.grid.split("x")]
    if min(nodes) < 2:
        raise UsageError(f"--grid {options.grid}: a direction needs 2 nodes or more")
    axes: list[int | np.ndarray] = list(nodes)
    if options.range != "auto":
        axes = [*parse_ranges(options.range, nodes)]
        if options.source_grid:
            raise UsageError("--range and --source-grid exclude each other; give one")
    known = all_fields(len(nodes))
    fields = words(options.fields)
    unknown = [field for field in fields if field not in known]
    if unknown:
        raise UsageError(f"--fields {unknown[0]}: choose from {', '.join(known)}")
    splits = words(options.splits)
    for split in splits:
        if split not in get_args(Split):
            raise UsageError(f"--splits {split}: choose from {', '.join(get_args(Split))}")
    export = words(options.export)
    wrong = [kind for kind in export if kind not in (*FORMATS, "pdf")]
    if wrong:
        raise UsageError(f"--export {wrong[0]}: choose from csv, vtp, stl, pdf")
    meshes = [kind for kind in export if kind in ("vtp", "stl")]
    if meshes and len(nodes) != 2:
        raise UsageError(f"--export {meshes[0]}: is for planes, and --grid is {options.grid}")
    for name in ("examples", "ratio"):
        if not getattr(options, name) > (1 if name == "ratio" else 0):
            raise UsageError(f"--{name} is too small: {getattr(options, name)}")
    if not 0 <= options.tol < 1:
        raise UsageError(f"--tol is a fraction below 1, got {options.tol}")
    return LandscapeRequest(
        axes=tuple(axes),
        fields=fields,
        splits=cast("tuple[Split, ...]", splits),
        export=export,
        budget=parse_duration(options.budget) if options.budget else None,
    )


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


def parse_ranges(text: str, nodes: list[int]) -> list[np.ndarray]:
    """Coordinates from "-1:1" for all directions or "-1:1,0:2" for each.

    Raises:
        UsageError: If it is something else.
    """
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


def words(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
