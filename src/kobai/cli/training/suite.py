"""`kobai compare --suite`: a book's algorithms on a set of problems within equal budgets."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from kobai import data, report
from kobai.cli.figures import write_figures
from kobai.cli.options import FolderOptions, UsageError, from_values, read_toml, scan
from kobai.cli.run_folder import Clock, Stop, claim, interrupted, record
from kobai.cli.tables import to_json, verdicts_table, wide_console
from kobai.report import budget_rows
from kobai.reproductions import FORMER_NAMES
from kobai.results import BudgetTable, Panels, save
from kobai.studies import Interrupted
from kobai.studies.budgets import PRODUCT, VALUE, Budget
from kobai.studies.suite import (
    BOOK_METHODS,
    NETWORKS,
    SURFACES,
    method_named,
    problems,
    run_suite,
)
from kobai.studies.suite_claims import conclude, profiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteOptions(FolderOptions):
    """All algorithms of the chapter on networks and surfaces, each run to the end of three budgets.

    Methods that follow minibatches are tried at seven learning rates on a seed of its own, and then
    run at their default rate and at the best of these. Three tables, performance profiles, and a
    verdict on the chapter's advice about choosing.
    """

    out: Path = Path("runs/suite")
    """Run folder to write."""
    suite: Literal["deep-learning-book"] = "deep-learning-book"
    """The suite: the algorithms of Goodfellow, Bengio and Courville, Deep Learning, chapter 8."""
    optimizers: str = ",".join(BOOK_METHODS)
    """Methods, separated by commas."""
    problems: str = ",".join((*NETWORKS, *SURFACES))
    """Problems, separated by commas."""
    data: str = "digits"
    """Data set of the networks: any classification or regression; see kobai compare."""
    limit: int = 2000
    """Use at most so many training examples, evenly from the classes (count)."""
    model: str = ""
    """A further network: a model's name or package.module:factory; empty: none."""
    batch_size: int = 64
    """Examples a minibatch."""
    budget: Budget = Budget()
    seeds: int = 3
    """Seeds of every pair, counted from --seed (count)."""
    seed: int = 0
    """Seed everything random is drawn from (an integer, 0 or more)."""
    threads: int | None = None
    """Threads for computing (count); default: as many as there are cores."""
    json: bool = False
    """Print the tables as JSON on standard output."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = _parse(arguments)
    if options.seed < 0 or options.seeds < 1 or options.batch_size < 1 or options.limit < 2:
        raise UsageError("--seed is 0 or more, --seeds and --batch-size 1 or more, --limit 2")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    methods = [method_named(name) for name in _names(options.optimizers)]
    splits = data.load(options.data, limit=(options.limit, 2000), standardize=True)
    starts = problems(
        splits,
        batch_size=options.batch_size,
        model=options.model,
        chosen=_names(options.problems),
    )
    clock, console = Clock(), Console(stderr=True, emoji=False)
    folder = claim(options, "compare")

    def say(line: str) -> None:
        console.print(f"[dim]{line}[/dim]", highlight=False)

    with Stop().installed() as stop:
        try:
            tables = run_suite(
                starts, methods, options.budget, folder, seeds=options.seeds, seed=options.seed,
                report=say, stop=stop,
            )  # fmt: skip
        except Interrupted:
            tables = None
    if tables is None:
        _record(folder, command, options, clock)
        return interrupted(console, f"everything finished is in {folder}", command)
    summary = conclude(
        tables,
        seed=options.seed,
        seconds=clock.seconds(),
        note=f"{options.data}, {len(splits.train[0])} examples, batches of {options.batch_size}; "
        f"{torch.get_num_threads()} thread(s). A value without a gradient counts {VALUE:.2g} "
        f"gradients, a product with the Hessian {PRODUCT:g}. Methods from steepest descent on take "
        "all data at every step; a step of lbfgs is four iterations.",
    )
    for name, figure in _profiles(tables).items():
        save(figure, folder, f"figure_profiles_{name}")
    save(summary, folder, "figure_profiles")
    save(dataclasses.replace(summary, figure=""), folder, "summary")
    _record(folder, command, options, clock)
    write_figures(folder)
    page = report.build(folder)
    if options.json:
        print(to_json([*tables, summary]))
    else:
        wide = wide_console()
        for table in tables:
            wide.print(_shown(table))
        wide.print(verdicts_table(summary))
    console.print(f"report: {page}")
    return 0


def _profiles(tables: Sequence[BudgetTable]) -> dict[str, Panels]:
    """Every profile that has a curve, networks first."""
    found = {}
    for networks in sorted(set(tables[0].networks), reverse=True):
        for tuned, rate in ((True, "tuned"), (False, "default")):
            for all_data, which in ((False, "minibatches"), (True, "all-data")):
                figure = profiles(tables, networks=networks, tuned=tuned, all_data=all_data)
                if any(series.label for series in figure.panels[0].series):
                    kind = "networks" if networks else "surfaces"
                    found[f"{kind}_{rate}_{which}"] = figure
    return found


def _shown(table: BudgetTable) -> Table:
    heads, rows = budget_rows(table)
    shown = Table(title=f"loss within {table.budget:g} {table.unit}")
    for position, head in enumerate(heads):
        shown.add_column(head, justify="right" if position else "left")
    for row in rows:
        shown.add_row(*row)
    return shown


_FORMER_WORDS = {f"{start}{old}": f"{start}{new}" for old, new in FORMER_NAMES.items()
           for start in ("", "--suite=")}  # fmt: skip
"""Former names of the suite on the command line → what is said now."""


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(names)) != len(names):
        raise UsageError(f"a name is given twice in {text!r}; name each once")
    return names


def _parse(arguments: list[str]) -> SuiteOptions:
    arguments = [_FORMER_WORDS.get(word, word) for word in arguments]
    default = SuiteOptions()
    if (text := scan(arguments, "config")) is not None:
        default = from_values(SuiteOptions, read_toml(Path(text)))
    return tyro.cli(
        SuiteOptions,
        args=arguments,
        default=default,
        prog="kobai compare --suite deep-learning-book",
    )


def _record(folder: Path, command: str, options: SuiteOptions, clock: Clock) -> None:
    record(folder, command=command, seed=options.seed, device=torch.device("cpu"),
           seconds=clock.seconds())  # fmt: skip
