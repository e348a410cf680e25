"""`kobai tune`: a study on one optimizer, shared by workers, taken up again by itself."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from kobai import report
from kobai.cli.figures import write_figures
from kobai.cli.options import TuneOptions, UsageError, optimizer_field, optimizer_names, parse
from kobai.cli.problem import make_schedule, make_setting
from kobai.cli.run_folder import Clock, Stop, claim, record, resume_line
from kobai.cli.tables import to_json, wide_console
from kobai.cli.training.compare import model_name, rehearse
from kobai.optim import Domain, parse_domain
from kobai.results import Scores, Trials, save
from kobai.studies import RunSpec, Setting, Study, Task, TrialOutcome, best_values, summarise

WORKER = "KOBAI_TUNE_WORKER"
"""Environment variable with the number of a worker that another process has started."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = parse(TuneOptions, arguments, verb="tune")
    if options.fresh:
        options = dataclasses.replace(options, resume=False)
    for name in ("workers", "top", "rerun_seeds"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
    clock, console = Clock(), Console(stderr=True, emoji=False)
    if options.threads is None and options.workers > 1:
        options = dataclasses.replace(
            options, threads=max(1, (os.cpu_count() or 1) // options.workers)
        )
    setting = make_setting(options)
    task = make_task(setting, options)
    rehearse(setting, [RunSpec(optimizer=task.optimizer, config=task.config, seed=0)], options)
    space = make_space(options)
    worker = int(os.environ.get(WORKER, "0"))
    folder = options.out if worker else claim(options, "tune")
    study = Study(task, space, options.study, folder, seed=options.seed)
    if worker:
        with Stop().installed() as stop:
            complete = study.work(worker=worker, stop=stop)
        study.close()
        return 0 if complete else 130
    console.print(f"[dim]{setting.splits.name}: {setting.splits.describe()}[/dim]")
    console.print(f"[dim]{study.done()} of {options.study.trials} trials are done[/dim]")
    with Stop().installed() as stop:
        others = _start_workers(arguments, options)
        progress = _Lines(console, study, clock)
        complete = study.work(stop=stop, finished=progress)
        codes = [process.wait() for process in others]
        again = None
        if complete and not stop() and options.rerun:
            console.print(f"[dim]training the best {options.rerun} again on new seeds[/dim]")
            first = max(task.seeds) + 1
            again = study.rerun(
                settings=options.rerun,
                seeds=tuple(range(first, first + options.rerun_seeds)),
                stop=stop,
            )
    trials = study.trials()
    if any(code not in (0, 130) for code in codes):
        console.print(f"a worker failed (exit codes {codes}); its trials were queued again")
    record(
        folder, command=command, seed=options.seed, device=setting.device, seconds=clock.seconds()
    )
    save(trials, folder, "trials")
    if not complete or stop():
        console.print(
            f"interrupted after {len(trials.value)} of {trials.budget} trials; go on with:"
        )
        console.print(f"  {resume_line(command).removesuffix(' --resume')}", soft_wrap=True)
        return 130
    importance = study.importance()
    study.close()
    scores = summarise(trials, k=options.top, importance=importance, rerun=again or ())
    save(scores, folder, "scores")
    write_figures(folder)
    page = report.build(folder)
    if options.json:
        print(to_json(scores))
    else:
        wide_console().print(scores_table(trials, scores, title=model_name(options)))
    console.print(f"report: {page}")
    return 0


def make_task(setting: Setting, options: Any) -> Task:
    """What all trials have in common, from the options.

    Raises:
        UsageError: If the metric belongs to a split that is not there.
    """
    (name,) = optimizer_names(options.optimizer)
    split = options.study.metric.partition("_")[0]
    there = {
        "train": True,
        "validation": bool(setting.validation),
        "test": setting.splits.test is not None,
    }
    if not there[split]:
        raise UsageError(
            f"--study.metric {options.study.metric} needs a {split} split"
            + ("; add --validation 0.1" if split == "validation" else "")
        )
    schedule = make_schedule(options)
    searched = any(vars(options.space_schedule).values()) if options.schedule else False
    return Task(
        setting=setting,
        optimizer=name,
        config=getattr(options, optimizer_field(name)),
        schedule=options.schedule_options if searched else schedule,
        training=options.training,
        seeds=tuple(range(options.study.seeds_per_trial)),
        metric=options.study.metric,
    )


def make_space(options: Any) -> dict[str, Domain]:
    """The search space, from the texts of the options; an empty text leaves a setting alone.

    Raises:
        UsageError: If a text is no domain.
    """
    groups = {"": options.space, "schedule.": options.space_schedule}
    space = {}
    for prefix, group in groups.items():
        for field in dataclasses.fields(group):
            text = getattr(group, field.name)
            if text:
                try:
                    space[prefix + field.name] = parse_domain(text)
                except ValueError as error:
                    raise UsageError(f"--space.{prefix}{field.name}: {error}") from None
    return space


def _start_workers(arguments: list[str], options: Any) -> list[subprocess.Popen]:
    """The other workers: this command again, each with its number."""
    words = [word for word in arguments if word not in ("--fresh", "--json")]
    command = [sys.executable, "-m", "kobai", "tune", *words, "--threads", str(options.threads)]
    return [
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, WORKER: str(number)}
        )
        for number in range(1, options.workers)
    ]


class _Lines:
    """A line for every tenth of the study, with the time that is left."""

    def __init__(self, console: Console, study: Study, clock: Clock) -> None:
        self._console, self._study, self._clock = console, study, clock
        self._began = self._told = study.done()
        self._best: float | None = None
        self._last: tuple[int, float] | None = None

    def __call__(self, done: int, outcome: TrialOutcome) -> None:
        """Take note of a trial that ended."""
        better = max if self._study.task.maximise else min
        value = outcome.value
        self._best = value if self._best is None else better(self._best, value)
        total = self._study.options.trials
        few = done - self._told < max(1, total // 10) and done < total
        if few or (done, self._best) == self._last:  # trials trained together end together
            return
        self._told, self._last = done, (done, self._best)
        rate = self._clock.seconds() / max(done - self._began, 1)
        self._console.print(
            f"[dim]{done} of {total} trials, best so far {self._best:.4g}, "
            + (f"about {rate * (total - done) / 60:.1f} min left" if done < total else "done")
            + "[/dim]"
        )


def scores_table(trials: Trials, scores: Scores, *, title: str) -> Table:
    """Means of the best trials, and what is left of them on new seeds."""
    table = Table(
        title=f"{trials.optimizer} on {title}: best {scores.counted} of {len(trials.value)} "
        f"trials by {scores.metric.replace('_', ' ')}"
    )
    table.add_column("measure")
    for name in ("mean of the best", "sd", "standard error", "in the study", "on new seeds"):
        table.add_column(name, justify="right")
    for name, (mean, sd, error) in scores.top.items():
        again = scores.rerun.get(name)
        table.add_row(
            name.replace("_", " "),
            f"{mean:.4f}",
            f"{sd:.4f}",
            f"{error:.4f}",
            *(("–", "–") if again is None else (f"{again[0]:.4f}", f"{again[1]:.4f}")),
        )
    ended = ", ".join(f"{count} {state}" for state, count in scores.states.items())
    best = ", ".join(
        f"{name} {value if isinstance(value, str) else format(value, '.4g')}"
        for name, value in best_values(trials).items()
    )
    table.caption = f"{ended}; best: {best}"
    return table
