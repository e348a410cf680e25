"""K-FAC's settings and counters: what is allowed, what is counted, when it is time again."""

import math
from typing import Any

import torch
from torch import Tensor

from kobai.curvature.blocks.shifted_inverse import METHODS
from kobai.optim.damping import LevenbergMarquardt

KFAC_RULE = LevenbergMarquardt(
    initial=0.01, raise_by=2.0, lower_by=0.5, minimum=1e-8, maximum=1e3, noise=1.0
)
"""What damping="auto" stands for: at most one change an inversion, hence the larger factors."""

FIXED_BOUND = 0.03
"""What kl_bound="auto" stands for beside a learning rate in numbers."""

GROUP = ("lr", "damping", "momentum", "weight_decay")
"""Settings of a parameter group."""

COUNTS: tuple[str, ...] = (
    "skipped_steps",
    "bounded_steps",
    "statistics",
    "refused_statistics",
    "waiting_blocks",
    "inversions",
    "inversions_float64",
    "inversions_damped",
    "inversions_failed",
    "inversions_cholesky",
    "products_from_rows",
    "changed_gradients",
)
"""What is counted over an optimizer's life; see `KFAC.diagnostics`."""

STATISTICS_DENSITY = 10
INVERSE_DENSITY = 2


def check_group(group: dict[str, Any]) -> None:
    """Refuse settings of a parameter group that no step could be made with.

    Raises:
        ValueError: Naming the setting.
    """
    for name in ("lr", "damping"):
        value = group[name]
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0.0 <= group["momentum"] < 1.0:
        raise ValueError(f"momentum must lie in [0, 1), got {group['momentum']}")
    if not (math.isfinite(group["weight_decay"]) and group["weight_decay"] >= 0):
        raise ValueError(
            f"weight_decay must be non-negative and finite, got {group['weight_decay']}"
        )


def first_lr(lr: Any) -> float:
    """The number a parameter group has for a learning rate; "auto" is a factor of one.

    Raises:
        ValueError: If it is another word.
    """
    if isinstance(lr, str):
        if lr != "auto":
            raise ValueError(f"lr is a number or 'auto', got {lr!r}")
        return 1.0
    return lr


def check_settings(
    statistics_every: int | str,
    inverse_every: int | str,
    control_every: int,
    kl_bound: float | str | None,
    output_damping: float,
    labels: str,
    inverse: str,
    factor_dtype: torch.dtype | None,
) -> None:
    """Refuse settings of the whole optimizer that make no sense.

    Raises:
        ValueError: Naming the setting.
    """
    for name, interval in (
        ("statistics_every", statistics_every),
        ("inverse_every", inverse_every),
        ("control_every", control_every),
    ):
        if isinstance(interval, str):
            if interval != "auto" or name == "control_every":
                raise ValueError(f"{name} is a number of steps or 'auto', got {interval!r}")
        elif interval < 1:
            raise ValueError(f"{name} must be at least 1 step, got {interval}")
    if isinstance(kl_bound, str):
        if kl_bound != "auto":
            raise ValueError(f"kl_bound is a positive number, None or 'auto', got {kl_bound!r}")
    elif kl_bound is not None and not kl_bound > 0:
        raise ValueError(f"kl_bound must be positive, None or 'auto', got {kl_bound}")
    if not (math.isfinite(output_damping) and output_damping >= 0):
        raise ValueError(f"output_damping must be non-negative and finite, got {output_damping}")
    if inverse not in METHODS:
        raise ValueError(f"inverse must be one of {', '.join(METHODS)}, got {inverse!r}")
    if factor_dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"factor_dtype is torch.float32, torch.float64 or None, got {factor_dtype}: averages "
            "in less lose what an update adds"
        )
    if labels not in ("sampled", "exact", "observed"):
        raise ValueError(f"labels must be 'sampled', 'exact' or 'observed', got {labels!r}")


def due(step: int, last: int | None, every: int, density: int) -> bool:
    """Whether it is time again: intervals are 1/density of the steps so far, up to `every`.

    Args:
        step: Number of steps made.
        last: The step of the last time, or None.
        every: Longest interval.
        density: How many times in the steps made so far.
    """
    return last is None or step - last >= min(every, max(1, last // density))


def all_finite(gradients: list[Tensor]) -> bool:
    """Whether no gradient holds NaN or infinity."""
    # A sum is finite only if every entry is; where it overflows by itself, look closely.
    return all(math.isfinite(float(g.sum())) or bool(torch.isfinite(g).all()) for g in gradients)
