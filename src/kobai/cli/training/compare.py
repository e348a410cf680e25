"""`kobai compare`: several optimizers on one problem, from data to report."""

import sys
from typing import Any

from rich.console import Console

from kobai import report
from kobai.cli.figures import write_figures
from kobai.cli.options import CompareOptions, UsageError, optimizer_field, optimizer_names, parse
from kobai.cli.problem import make_batch_schedule, make_schedule, make_setting
from kobai.cli.run_folder import Clock, Stop, claim, interrupted, record
from kobai.cli.tables import comparison_table, to_json, wide_console
from kobai.cli.training import suite
from kobai.results import History, Spectrum, history_to_csv, save
from kobai.studies import (
    Interrupted,
    RunSpec,
    Setting,
    best_first,
    draw_planes,
    measure_run,
    tabulate,
    train_run,
)
from kobai.training import ConsoleProgress


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    if any(word == "--suite" or word.startswith("--suite=") for word in arguments):
        return suite.main(arguments, command)
    options = parse(CompareOptions, arguments, verb="compare")
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    clock, console = Clock(), Console(stderr=True, emoji=False)
    setting, names = make_setting(options), optimizer_names(options.optimizers)
    specs = [
        RunSpec(
            optimizer=name, config=getattr(options, optimizer_field(name)), seed=options.seed + i
        )
        for name in names
        for i in range(options.seeds)
    ]
    rehearse(setting, specs, options)
    folder = claim(options, "compare")
    console.print(f"[dim]{setting.splits.name}: {setting.splits.describe()}[/dim]")
    with Stop().installed() as stop:
        try:
            histories = _train(setting, specs, options, stop)
            spectra = _measure(setting, specs, histories, options, stop, console)
            comparison = tabulate(
                setting,
                histories.values(),
                spectra,
                title=f"{', '.join(names)} on {setting.splits.name}",
                model=model_name(options),
                note=_note(setting, options),
            )
            save(comparison, folder, "comparison")
            history_to_csv(histories.values(), folder / "metrics.csv")
            ranked = best_first(specs, histories, options.seed)
            if ranked:
                draw_planes(
                    setting,
                    ranked,
                    options.landscape,
                    folder,
                    resume=options.resume,
                    stop=stop,
                    report=lambda line: console.print(f"[dim]{line}[/dim]"),
                )
        except Interrupted:
            histories, comparison = {}, None
    record(
        folder, command=command, seed=options.seed, device=setting.device, seconds=clock.seconds()
    )
    if comparison is None:
        return interrupted(console, f"everything finished is in {folder}", command)
    write_figures(folder)
    page = report.build(folder)
    if options.json:
        print(to_json(comparison))
    else:
        wide_console().print(comparison_table(comparison))
    console.print(f"report: {page}")
    diverged = [history.label for history in histories.values() if history.status == "diverged"]
    if diverged:
        console.print(f"diverged: {', '.join(diverged)} (kept, and counted in the table)")
    return 0


def rehearse(setting: Setting, specs: list[RunSpec], options: Any) -> None:
    """Build the problem, every optimizer and the schedule once, so that mistakes show at once.

    Raises:
        ValueError: Whatever would have failed later for the same reason.
    """
    make_schedule(options)
    problem = setting.problem(specs[0].seed)
    for spec in {spec.entry.name: spec for spec in specs}.values():
        spec.entry.build(problem.model, problem.likelihood, spec.config)
    training = options.training
    for name in ("epochs", "batch_size", "evaluate_every"):
        if not getattr(training, name) > 0:
            raise UsageError(
                f"--{name.replace('_', '-')} must be positive, got {getattr(training, name)}"
            )
    if training.patience is not None and not setting.validation:
        raise UsageError("--patience needs a validation split; add --validation 0.1")
    if training.batch_size > problem.train.size:
        print(
            f"kobai: --batch-size {training.batch_size} exceeds the {problem.train.size} training "
            "examples; using all of them",
            file=sys.stderr,
        )


def _train(setting: Setting, specs: list[RunSpec], options: Any, stop: Stop) -> dict[str, History]:
    histories = {}
    with ConsoleProgress(runs=len(specs)) as progress:
        for spec in specs:
            history = train_run(
                setting,
                spec,
                options.training,
                options.out,
                schedule=make_schedule(options),
                batch_schedule=make_batch_schedule(options),
                resume=options.resume,
                progress=progress,
                stop=stop,
            )
            if history.status == "interrupted":
                raise Interrupted
            histories[spec.label] = history
    return histories


def _measure(
    setting: Setting,
    specs: list[RunSpec],
    histories: dict[str, History],
    options: Any,
    stop: Stop,
    console: Console,
) -> dict[str, Spectrum]:
    console.print("[dim]measuring the curvature where each run ended[/dim]")
    spectra = {}
    for spec in specs:
        if stop():
            raise Interrupted
        if histories[spec.label].status != "diverged":
            spectra[spec.label] = measure_run(
                setting, spec, options.curvature, options.out, resume=options.resume
            )
    return spectra


def _note(setting: Setting, options: Any) -> str:
    size = len(setting.splits.train[0])
    curvature = min(options.curvature.examples, size)
    surface = min(options.landscape.examples, size)
    return (
        f"Hessian on {curvature} and landscape on {surface} of {size} training examples; "
        f"data: {setting.splits.source}."
    )


def model_name(options: Any) -> str:
    """The model with what was set for it, such as "mlp 512-512"."""
    widths = getattr(getattr(options, "model_options", None), "widths", None)
    return f"{options.model} {'-'.join(map(str, widths))}" if widths else options.model
