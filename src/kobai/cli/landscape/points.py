"""Where landscapes are drawn: ends and paths of runs or checkpoints, and directions from there."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kobai import landscape, seeds
from kobai.cli.landscape.flags import LandscapeVerb, words
from kobai.cli.model_files import read_model_file
from kobai.cli.options import UsageError, read_toml, refuse_problem_flags
from kobai.cli.problem import make_setting
from kobai.cli.run_folder import SETTINGS
from kobai.cli.saved_runs import open_run
from kobai.problem import EmpiricalRisk, Problem
from kobai.results import Look
from kobai.studies import RunSpec, Setting, checkpoint_folder, load_model, look_of
from kobai.training import snapshots


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StartingPoints:
    """What the landscape is of.

    Attributes:
        problem: The problem, its model as at the first point, in evaluation mode.
        ends: Label to parameters, the first one the origin.
        paths: Label to the snapshots of the run, its end last; empty for checkpoints.
        buffers: Label to the model's buffers there.
        looks: Optimizer to its look in figures.
    """

    problem: Problem
    ends: dict[str, Tensor]
    paths: dict[str, list[Tensor]]
    buffers: dict[str, dict[str, Tensor]]
    looks: dict[str, Look] = dataclasses.field(default_factory=dict)


def find_points(
    runs: Sequence[str], checkpoints: Sequence[str], label: str | None, options: Any
) -> StartingPoints:
    """Points of run folders, or of checkpoint files, or a fresh model.

    Raises:
        UsageError: If folders, labels or files are not there or do not fit each other.
    """
    if runs and checkpoints:
        raise UsageError("give run folders or --checkpoint with --model, not both")
    if runs:
        return _of_runs([Path(run) for run in runs], label, options)
    return _of_checkpoints([Path(file) for file in checkpoints], options)


def _of_runs(folders: Sequence[Path], label: str | None, options: Any) -> StartingPoints:
    first: Problem | None = None
    ends: dict[str, Tensor] = {}
    paths: dict[str, list[Tensor]] = {}
    buffers: dict[str, dict[str, Tensor]] = {}
    known: list[str] = []
    lost: list[str] = []
    chosen: list[tuple[Path, Setting, list[RunSpec]]] = []
    for folder in folders:
        refuse_problem_flags(options, folder)
        setting, specs = open_run(folder, options)
        known += [spec.label for spec in specs]
        chosen.append((folder, setting, specs))
    wanted = None if label is None else [n.strip() for n in label.split(",") if n.strip()]
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise UsageError(f"--label {', '.join(missing)}: the runs are {', '.join(known)}")
    _require_same_data(folders)
    for folder, setting, specs in chosen:
        for spec in specs:
            if wanted is not None and spec.label not in wanted:
                continue
            name = spec.label if len(folders) == 1 else f"{spec.label} ({folder.name})"
            problem = load_model(setting, spec, folder)
            theta = problem.space.theta()
            if first is not None and len(theta) != first.space.dimension:
                raise UsageError(f"{folder}: another model than that of {folders[0]}")
            if not bool(torch.isfinite(theta).all()):
                lost.append(name)  # a diverged run has no place to look from
                continue
            first = first or problem
            ends[name] = theta
            buffers[name] = {n: b.clone() for n, b in problem.model.named_buffers()}
            steps = snapshots(checkpoint_folder(folder, spec.label))[1]
            paths[name] = [step.to(theta) for step in steps]
    if first is None:
        raise UsageError(
            f"no run ended with finite parameters: {', '.join(lost)} diverged; choose others"
        )
    if lost:
        print(
            f"kobai: {', '.join(lost)} diverged and is left out: there is no place to look from",
            file=sys.stderr,
        )
    looks = {spec.entry.name: look_of(spec.entry) for *_, specs in chosen for spec in specs}
    return StartingPoints(problem=first, ends=ends, paths=paths, buffers=buffers, looks=looks)


def _require_same_data(folders: Sequence[Path]) -> None:
    """Refuse runs on different data: the loss of all of them is that of the first's."""
    first = read_toml(folders[0] / SETTINGS)
    for folder in folders[1:]:
        other = read_toml(folder / SETTINGS)
        for name in ("data", "limit", "standardize", "validation", "model", "model_options"):
            if first.get(name) != other.get(name):
                raise UsageError(
                    f"{folder}: its {name} is {other.get(name)}, that of {folders[0]} "
                    f"{first.get(name)}; one landscape belongs to one problem"
                )


def _of_checkpoints(files: Sequence[Path], options: Any) -> StartingPoints:
    setting = make_setting(options)
    problem = setting.problem(options.seed)
    problem.model.eval()
    ends: dict[str, Tensor] = {}
    buffers: dict[str, dict[str, Tensor]] = {}
    for file in files:
        name = file.stem if file.stem not in ends else str(file)
        state = read_model_file(file)[0]
        try:
            problem.model.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"{file}: does not fit the model ({_line(error)})") from None
        ends[name] = problem.space.theta()
        buffers[name] = {n: b.clone() for n, b in problem.model.named_buffers()}
    if not files:
        ends["initial"] = problem.space.theta()
        buffers["initial"] = {n: b.clone() for n, b in problem.model.named_buffers()}
    if len(files) > 1:
        problem.model.load_state_dict(read_model_file(files[0])[0])
    return StartingPoints(problem=problem, ends=ends, paths={}, buffers=buffers)


def find_directions(
    points: StartingPoints, objective: EmpiricalRisk, options: LandscapeVerb, count: int
) -> landscape.Directions:
    """As many directions of the kind that `--directions` names.

    Raises:
        UsageError: If there are too few runs or checkpoints for them.
    """
    label, theta = next(iter(points.ends.items()))
    generator = seeds.generator(options.seed, f"plane-{options.directions}")
    if options.directions == "random":
        return landscape.random_directions(
            objective, theta, norm=options.norm, count=count, generator=generator,
            exclude=words(options.exclude), only=words(options.only), origin_label=label,
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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
