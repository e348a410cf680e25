"""`kobai reproduce`: the figures and tables of a source, made again."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console

from kobai import report, reproductions
from kobai.cli.figures import write_figures
from kobai.cli.options import FolderOptions, UsageError, from_values, read_toml
from kobai.cli.problem import find_device
from kobai.cli.run_folder import Clock, Stop, claim, interrupted, record
from kobai.cli.tables import findings_table, to_json, verdicts_table, wide_console
from kobai.studies import Interrupted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceOptions(FolderOptions):
    """What every source takes beside its own configuration."""

    out: Path = Path("runs/reproduce")
    """Run folder to write."""
    json: bool = False
    """Print the summary as JSON on standard output instead of tables."""
    source: Annotated[str, tyro.conf.Suppress] = ""
    """The source; it comes before the flags."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    name, rest = _name(arguments)
    module = reproductions.source(name)
    options = _parse(name, module.Config, rest)
    config = module.Config(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(module.Config)}
    )
    reproductions.chosen_figures(config.figure, module.FIGURES)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    clock, console = Clock(), Console(stderr=True, emoji=False)
    folder = claim(options, "reproduce")
    with Stop().installed() as stop:
        try:
            summary = module.run(
                config,
                folder,
                progress=lambda line: console.print(f"[dim]{line}[/dim]", highlight=False),
                stop=stop,
            )
        except Interrupted:
            summary = None
    record(
        folder,
        command=command,
        seed=config.seed,
        device=find_device(getattr(config, "device", "cpu")),
        seconds=clock.seconds(),
    )
    if summary is None:
        return interrupted(console, f"finished figures are in {folder}", command)
    write_figures(folder)
    page = report.build(folder)
    if options.json:
        print(to_json(summary))
    else:
        wide = wide_console()
        wide.print(findings_table(summary))
        wide.print(verdicts_table(summary))
    console.print(f"report: {page}")
    return 0


def _name(arguments: list[str]) -> tuple[str, list[str]]:
    """The source, which comes first; its flags follow from it."""
    known = ", ".join(reproductions.SOURCES)
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name}" for name in reproductions.SOURCES)
        text = (
            "usage: kobai reproduce SOURCE [flags]\n\n"
            f"Make the figures and tables of a source again.\n\nsources:\n{lines}\n\n"
            "kobai reproduce SOURCE --help shows every flag."
        )
        if arguments:
            print(text)
            raise SystemExit(0)
        raise UsageError(f"name a source: {known}")
    name = reproductions.FORMER_NAMES.get(arguments[0], arguments[0])
    if name not in reproductions.SOURCES:
        raise UsageError(f"unknown source {name!r}; choose from {known}")
    return name, arguments[1:]


def _parse(name: str, config: type, arguments: list[str]) -> Any:
    """The flags of a source's configuration and of the run folder."""
    options = dataclasses.make_dataclass(
        "Options", [], bases=(config, ReproduceOptions), frozen=True, kw_only=True
    )
    options.__doc__ = config.__doc__
    start = {"source": name, "out": Path(f"runs/{name}")}
    default, text = options(**start), _config_file(arguments)
    if text is not None:
        values = read_toml(Path(text))
        if values.get("source", name) != name:
            raise UsageError(f"{text}: settings of {values['source']}, not of {name}")
        default = from_values(options, {"source": name, **values})
    return tyro.cli(options, args=arguments, default=default, prog=f"kobai reproduce {name}")


def _config_file(arguments: list[str]) -> str | None:
    """The value of --config, read before anything is parsed."""
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None
