"""`kobai measure`: curvature of a run's end, of a model file or of a fresh model."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kobai import report, seeds
from kobai.cli.figures import write_figures
from kobai.cli.measure.curvature_tables import curvature_tables
from kobai.cli.measure.kernel_tables import kernel_tables
from kobai.cli.model_files import adam_of_gradients, adam_of_run, adam_of_state, load_file
from kobai.cli.options import MeasureOptions, UsageError, parse, refuse_problem_flags
from kobai.cli.problem import find_device, make_setting
from kobai.cli.run_folder import Clock, claim_measurements, record
from kobai.cli.saved_runs import labelled, open_run
from kobai.cli.tables import to_json, wide_console
from kobai.curvature import (
    STRUCTURES,
    AdamPoint,
    critical_rates,
    layer_densities,
    matrix_of,
    measure,
    measure_density,
    measure_ladder,
)
from kobai.kernels import isotropy, measure_kernel
from kobai.problem import EmpiricalRisk, ParameterSpace, Problem, evaluation_mode
from kobai.results import (
    CriticalRates,
    IsotropyTable,
    Ladder,
    SpectralDensity,
    Spectrum,
    TangentSummary,
    save,
)
from kobai.studies import checkpoint_folder, head_of, load_model, look_of

LADDER_ROWS = 2_000
"""Examples times outputs that the exactness ladder is measured on."""

Measured = Spectrum | SpectralDensity | CriticalRates | Ladder | TangentSummary | IsotropyTable


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = parse(MeasureOptions, arguments, verb="measure")
    _check(options)
    clock = Clock()
    if options.run is None:
        setting = make_setting(options)
        problem = setting.problem(options.seed)
        label, adam = "", None
        if options.checkpoint is not None:
            state = load_file(options.checkpoint, problem.model)
            adam = adam_of_state(state, ParameterSpace(problem.model))
            label = options.checkpoint.stem
        if options.out is not None:
            claim_measurements(options)
        found = _measure(problem, options, label=label, optimizer="", seed=options.seed, adam=adam)
        target: Path | None = options.out
    else:
        found = _measure_run(options.run, options)
        target = options.out or options.run
    if target is not None:
        for result in found:
            save(result, target, _name(result))
        if target != options.run:
            record(
                target, command=command, seed=options.seed, device=find_device(options.device),
                seconds=clock.seconds(),
            )  # fmt: skip
        write_figures(target)
        Console(stderr=True, emoji=False).print(f"report: {report.build(target)}")
    if options.json:
        print(to_json(found))
    else:
        for table in (*curvature_tables(found), *kernel_tables(found)):
            wide_console().print(table)
    return 0


def _name(result: Measured) -> str:
    kind = {
        Spectrum: "measure",
        SpectralDensity: "density",
        CriticalRates: "rates",
        Ladder: "ladder",
        TangentSummary: "kernel",
        IsotropyTable: "isotropy",
    }[type(result)]
    parts = (kind, *(getattr(result, name, "") for name in ("matrix", "label", "block")))
    return "_".join(filter(None, parts))


def _check(options: Any) -> None:
    """Refuse what would fail only after minutes."""
    if options.run is not None and options.checkpoint is not None:
        raise UsageError("--checkpoint FILE or a run folder, not both")
    if not 0 <= options.momentum < 1:
        raise UsageError(f"--momentum lies in [0, 1), got {options.momentum}")
    for name in ("probes", "steps", "kernel_examples"):
        if getattr(options, name) < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}"
            )
    if not options.damping > 0:
        raise UsageError(f"--damping must be positive, got {options.damping}")
    if not options.density_tolerance >= 0:
        raise UsageError(f"--density-tolerance must be 0 or more, got {options.density_tolerance}")
    unknown = [name for name in _preconditioners(options) if name not in (*STRUCTURES, "adam")]
    if unknown:
        names = ", ".join((*STRUCTURES, "adam"))
        raise UsageError(f"--preconditioner {unknown[0]}: choose from {names}")
    if options.preconditioner and options.which not in ("largest", "both"):
        raise UsageError("--preconditioner needs the largest eigenvalue: --which largest or both")


def _preconditioners(options: Any) -> list[Any]:
    return [name.strip() for name in options.preconditioner.split(",") if name.strip()]


def _measure(
    problem: Problem,
    options: Any,
    *,
    label: str,
    optimizer: str,
    seed: int,
    adam: AdamPoint | None = None,
) -> list[Measured]:
    """Everything the flags ask for at one point."""
    point: Any = {"label": label, "optimizer": optimizer, "seed": seed}
    with evaluation_mode(problem.model):
        objective = head_of(problem, options.curvature.examples)
        matrix = matrix_of(objective, options.matrix)
        classes = _classes(objective)
        count = options.curvature.eigenvalues
        if options.density and classes:
            # Fewer could not show that as many outliers as classes stand apart.
            count = max(count, (2 if options.which == "both" else 1) * (classes + 2))
        spectrum = measure(
            objective, matrix=options.matrix, operator=matrix, k=count, which=options.which,
            trace_tolerance=options.curvature.trace_tolerance,
            max_products=options.curvature.max_products,
            generator=seeds.generator(seed, "probes"), **point,
        )  # fmt: skip
        found: list[Measured] = [spectrum]
        if options.which in ("largest", "both") and len(spectrum.eigenvalues):
            asked = _preconditioners(options)
            if adam is None and "adam" in asked:
                adam = adam_of_gradients(objective)
            found.append(
                critical_rates(
                    objective, matrix, spectrum, momentum=options.momentum, adam=adam,
                    preconditioners=[name for name in asked if name != "adam"],
                    damping=options.damping,
                    max_products=options.curvature.max_products,
                    generator=seeds.generator(seed, "preconditioned"),
                )
            )  # fmt: skip
        settings: Any = {
            "name": options.matrix, "probes": options.probes, "steps": options.steps,
            "tolerance": options.density_tolerance, **point,
        }  # fmt: skip
        if options.density:
            found.append(
                measure_density(
                    matrix, known=spectrum.eigenvalues.tolist(), classes=classes,
                    generator=seeds.generator(seed, "density"), **settings,
                )
            )  # fmt: skip
        if options.per_layer:
            found += layer_densities(
                objective, matrix, generator=seeds.generator(seed, "layers"), **settings
            )
        if options.kernel or options.isotropy:
            some = head_of(problem, options.kernel_examples)
            if options.kernel:
                found.append(measure_kernel(some, **point))
            if options.isotropy:
                found.append(isotropy(some, damping=options.damping, **point))
        if options.exactness:
            # Chains of layers are solved in function space: memory grows with the square of it.
            few = head_of(problem, max(LADDER_ROWS // max(classes, 1), 1))
            found.append(measure_ladder(few, damping=options.damping, **point))
    return found


def _classes(objective: EmpiricalRisk) -> int:
    """Number of outputs of a classifier; 0 for regression, which has no classes to count."""
    axis = objective.likelihood.class_axis
    if axis is None:
        return 0
    batch = next(iter(objective.batches))
    with torch.no_grad():
        return objective.forward(objective.theta(), batch.take(slice(0, 1))).shape[axis]


def _measure_run(folder: Path, options: Any) -> list[Measured]:
    refuse_problem_flags(options, folder, "seed")
    setting, specs = open_run(folder, options)
    chosen = labelled(specs, options.label, folder)
    if options.out not in (None, folder):
        claim_measurements(options)
    found: list[Measured] = []
    for spec in chosen:
        problem = load_model(setting, spec, folder)
        adam = adam_of_run(checkpoint_folder(folder, spec.label), ParameterSpace(problem.model))
        made = _measure(
            problem, options, label=spec.label, optimizer=spec.entry.name, seed=spec.seed, adam=adam
        )
        look = look_of(spec.entry)
        found += [dataclasses.replace(m, look=look) if isinstance(m, Spectrum) else m for m in made]
    return found
