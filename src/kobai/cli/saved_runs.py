"""Read what runs a folder of `kobai train` or `kobai compare` holds."""

import dataclasses
from pathlib import Path
from typing import Any

from kobai.cli.options import (
    CompareOptions,
    ProblemOptions,
    TrainOptions,
    UsageError,
    optimizer_field,
    optimizer_names,
    options_of,
    read_toml,
)
from kobai.cli.problem import make_setting
from kobai.cli.run_folder import SETTINGS
from kobai.studies import RunSpec, Setting


def labelled(specs: list[RunSpec], label: str | None, folder: Path) -> list[RunSpec]:
    """The runs with these labels, separated by commas; all of them where none is named.

    Raises:
        UsageError: If the folder holds no run with one of them.
    """
    if label is None:
        return specs
    wanted = [name.strip() for name in label.split(",") if name.strip()]
    known = {spec.label: spec for spec in specs}
    missing = [name for name in wanted if name not in known]
    if missing or not wanted:
        raise UsageError(
            f"--label {', '.join(missing) or 'is empty'}: {folder} holds {', '.join(known)}"
        )
    return [known[name] for name in dict.fromkeys(wanted)]


def open_run(folder: Path, options: ProblemOptions) -> tuple[Setting, list[RunSpec]]:
    """The setting and the runs of a run folder, on the device and threads asked for now.

    Raises:
        UsageError: If the folder is no run of kobai train or compare.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such run folder")
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
        RunSpec(optimizer=name, config=getattr(there, optimizer_field(name)), seed=there.seed + i)
        for name in names
        for i in range(count)
    ]
    return make_setting(there), specs
