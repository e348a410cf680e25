"""`kobai report`: rebuild the page of a run folder."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from kobai import report
from kobai.cli.figures import write_figures
from kobai.cli.options import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Rebuild the figures and the report of a run folder from its saved results.

    Results that are damaged are named on the page, and the exit code is 1.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code."""
    options = tyro.cli(ReportOptions, args=arguments, prog="kobai report")
    if not options.run.is_dir():
        raise UsageError(f"{options.run}: there is no such run folder")
    write_figures(options.run)
    print(report.build(options.run))
    return 1 if report.gather(options.run).damaged else 0
