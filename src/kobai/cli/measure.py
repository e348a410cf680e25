"""`kobai measure`: curvature of a run's end or of a fresh model."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from kobai import report, seeds
from kobai.cli.figures import write_figures
from kobai.cli.options import (
    CompareOptions,
    MeasureOptions,
    ProblemOptions,
    TrainOptions,
    UsageError,
    optimizer_names,
    options_of,
    parse,
    read_toml,
)
from kobai.cli.problem import make_setting
from kobai.cli.run_folder import SETTINGS
from kobai.cli.tables import spectrum_table, to_json, wide_console
from kobai.curvature import measure
from kobai.problem import Problem, evaluation_mode
from kobai.results import Spectrum, save
from kobai.studies import RunSpec, Setting, head_of, load_model


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = parse(MeasureOptions, arguments, verb="measure")
    if options.run is None:
        setting = make_setting(options)
        problem = setting.problem(options.seed)
        spectra = [_measure(problem, options, label="", optimizer="", seed=options.seed)]
        target: Path | None = options.out
    else:
        spectra = _measure_run(options.run, options)
        target = options.out or options.run
    if target is not None:
        for spectrum in spectra:
            save(spectrum, target, _name(spectrum))
        write_figures(target)
        Console(stderr=True, emoji=False).print(f"report: {report.build(target)}")
    if options.json:
        print(to_json(spectra))
    else:
        wide_console().print(spectrum_table(spectra))
    return 0


def _name(spectrum: Spectrum) -> str:
    return "_".join(filter(None, ["measure", spectrum.matrix, spectrum.label]))


def _measure(problem: Problem, options: Any, *, label: str, optimizer: str, seed: int) -> Spectrum:
    with evaluation_mode(problem.model):
        return measure(
            head_of(problem, options.curvature.examples),
            matrix=options.matrix,
            k=options.curvature.eigenvalues,
            trace_tolerance=options.curvature.trace_tolerance,
            max_products=options.curvature.max_products,
            label=label,
            optimizer=optimizer,
            seed=seed,
            generator=seeds.generator(seed, "probes"),
        )


def _measure_run(folder: Path, options: Any) -> list[Spectrum]:
    setting, specs = open_run(folder, options)
    chosen = [spec for spec in specs if options.label in (None, spec.label)]
    if not chosen:
        raise UsageError(
            f"--label {options.label}: {folder} holds {', '.join(s.label for s in specs)}"
        )
    return [
        _measure(
            load_model(setting, spec, folder),
            options,
            label=spec.label,
            optimizer=spec.optimizer,
            seed=spec.seed,
        )
        for spec in chosen
    ]


def open_run(folder: Path, options: ProblemOptions) -> tuple[Setting, list[RunSpec]]:
    """The setting and the runs of a run folder, on the device and threads asked for now.

    Raises:
        UsageError: If the folder is no run of kobai train or compare.
    """
    if not (folder / SETTINGS).is_file():
        raise UsageError(f"{folder}: holds no {SETTINGS}, so it is not a run folder of kobai")
    values = read_toml(folder / SETTINGS)
    verb = values.get("verb")
    kinds: dict[Any, type] = {"compare": CompareOptions, "train": TrainOptions}
    if verb not in kinds:
        raise UsageError(f"{folder}: a run of kobai {verb}; give one of train or compare")
    there = options_of(kinds[verb], values)
    there = dataclasses.replace(there, device=options.device, threads=options.threads)
    if verb == "train":
        names, count = optimizer_names(there.optimizer), 1
    else:
        names, count = optimizer_names(there.optimizers), there.seeds
    specs = [
        RunSpec(optimizer=name, config=getattr(there, name), seed=there.seed + i)
        for name in names
        for i in range(count)
    ]
    return make_setting(there), specs
