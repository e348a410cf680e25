"""`kobai data`: list, fetch and verify data sets."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from kobai import data
from kobai.cli.options import UsageError
from kobai.cli.tables import to_json, wide_console


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """List the data sets, fetch the files of one, or verify them by their checksums."""

    action: Annotated[Literal["list", "fetch", "verify"], tyro.conf.Positional] = "list"
    """What to do."""
    name: Annotated[str | None, tyro.conf.Positional] = None
    """Data set to fetch or verify; without one, verify checks every one that is here."""
    root: Path | None = None
    """Folder of the files; default: KOBAI_DATA, then the user cache."""
    json: bool = False
    """Print JSON on standard output."""


def main(arguments: list[str], command: str) -> int:
    """Run the verb; the exit code (1 when a file is not what it should be)."""
    options = tyro.cli(DataOptions, args=arguments, prog="kobai data")
    if options.action == "list":
        rows = data.available(root=options.root)
        if options.json:
            print(to_json(list(rows)))
        else:
            wide_console().print(_table(rows))
        return 0
    if options.action == "fetch":
        if options.name is None:
            raise UsageError("name the data set to fetch, such as kobai data fetch mnist")
        paths = data.fetch(options.name, root=options.root)
        for path in paths:
            print(path)
        if not paths:
            print(f"{options.name} is built in and needs no files")
        return 0
    here = [row.name for row in data.available(root=options.root) if row.found]
    names = [options.name] if options.name else here
    checks = [check for name in names for check in data.verify(name, root=options.root)]
    if options.json:
        print(to_json([dataclasses.replace(c, path=c.path and str(c.path)) for c in checks]))
    else:
        for check in checks:
            print(f"{'ok ' if check.ok else 'BAD'} {check.name}: {check.detail}")
    return 0 if all(check.ok for check in checks) else 1


def _table(rows: tuple[data.Availability, ...]) -> Table:
    table = Table("name", "what", "here", "where", title="data sets", caption_justify="left")
    for row in rows:
        table.add_row(row.name, row.description, "yes" if row.found else "no", row.where)
    forms = "\n".join(f"  {form}: {what}" for form, what in data.FORMS.items())
    table.caption = f"and data of your own:\n{forms}"
    return table
