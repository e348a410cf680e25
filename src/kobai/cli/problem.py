"""From options to what the library takes: the device, the data, the setting."""

import sys
from typing import Any

import torch

from kobai import data
from kobai.cli.options import ProblemOptions, UsageError
from kobai.studies import Setting
from kobai.training import BatchSchedule, Schedule


def make_setting(options: ProblemOptions) -> Setting:
    """Load the data and describe the model; nothing is trained and nothing written.

    Raises:
        ValueError: If data, model or device do not exist or do not fit each other.
    """
    if options.seed < 0:
        raise UsageError(f"--seed must be 0 or more, got {options.seed}")
    if options.threads is not None:
        if options.threads < 1:
            raise UsageError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    # Curvature needs the full mantissa; reduced-precision products are never silently used.
    torch.set_float32_matmul_precision("highest")
    # The data do not depend on --seed: seeds differ in initialisation, order and labels.
    # `load` takes both limits or none; one beyond any data set is none.
    limits = (options.limit, options.test_limit)
    limit = tuple(sys.maxsize if one is None else one for one in limits)
    splits = data.load(options.data, limit=(limit[0], limit[1]), standardize=options.standardize)
    return Setting(
        splits=splits,
        model=options.model,
        model_options=getattr(options, "model_options", None),
        validation=options.validation,
        dtype=getattr(torch, options.dtype),
        device=find_device(options.device),
    )


def make_schedule(options: Any) -> Schedule | None:
    """The learning-rate schedule the options name; None for a plain constant one."""
    schedule: Schedule = options.schedule_options
    plain = options.schedule == "constant" and options.schedule_options.warmup == 0
    return None if plain else schedule


def make_batch_schedule(options: Any) -> BatchSchedule | None:
    """The batch-size schedule the options name; None for a constant size."""
    constant = options.batch_schedule == "constant"
    return None if constant else options.batch_schedule_options


def find_device(name: str) -> torch.device:
    """The device a name means; "auto" is a CUDA device where there is one.

    Raises:
        UsageError: If the device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here: {line}") from None
    return device
