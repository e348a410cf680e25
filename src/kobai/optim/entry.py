"""Describe an optimizer by name: its settings, how it is made, what is worth searching, its look.

An entry stands in the optimizer's own file, as plain data; `kobai.optim.registry` lists them. An
optimizer of your own is an entry too: pass it where names are taken.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from kobai.optim.domains import Choice, Domain, Fixed, Integer, Linear, Log
from kobai.optim.line_search import SEARCHES
from kobai.problem import Likelihood

Dash = Literal["solid", "dash", "dot", "dashdot", "longdash"]

Space = Mapping[str, Any]
"""Field of the settings → domain as plain data: (low, high) or (low, high, scale) with the scale
"linear", "log", "integer" or "integer log"; a list of choices; a single value, which is fixed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerEntry:
    """An optimizer by name.

    Attributes:
        name: Its name on the command line and in results.
        config: The class of its settings, a frozen dataclass whose fields all have defaults.
        make: ``make(model, likelihood, config, generator)`` → the optimizer. The generator may be
            None.
        space: What is worth searching; see `Space`.
        label: Its name in figures; default: the name.
        color: Hexadecimal colour in figures; empty for one by the name.
        dash: Pattern of its line in figures.
        needs_objective: Whether ``step`` takes an objective and no plain closure.
        on_all_data: Whether a step is meant for all training data, not for a minibatch.
    """

    name: str
    config: type[Any]
    make: Callable[[nn.Module, Any, Any, torch.Generator | None], torch.optim.Optimizer]
    space: Space = dataclasses.field(default_factory=dict)
    label: str = ""
    color: str = ""
    dash: Dash = "solid"
    needs_objective: bool = False
    on_all_data: bool = False

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        fields = {f.name for f in dataclasses.fields(self.config)}
        if strangers := [name for name in self.space if name not in fields]:
            raise ValueError(
                f"the space of {self.name!r} names {strangers}, which are no settings of it; "
                f"choose from {', '.join(sorted(fields))}"
            )
        self.domains()

    def domains(self) -> dict[str, Domain]:
        """Give the default search space as domains, a new dictionary."""
        return {field: domain_of(plain) for field, plain in self.space.items()}

    def build(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        config: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> torch.optim.Optimizer:
        """Make the optimizer for all trainable parameters of a model.

        Raises:
            ValueError: If the model has nothing to train.
            TypeError: If the settings belong to another optimizer.
        """
        chosen = self.config() if config is None else config
        if not isinstance(chosen, self.config):
            raise TypeError(
                f"{self.name} takes settings of type {self.config.__name__}, got "
                f"{type(chosen).__name__}"
            )
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError(
                f"{type(model).__name__} has no trainable parameters; "
                "set requires_grad=True on those to be learned"
            )
        return self.make(model, likelihood, chosen, generator)


def settings_of(config: Any) -> dict[str, Any]:
    """Give the fields of a settings dataclass, not copied."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def domain_of(plain: Any) -> Domain:
    """Read a domain from plain data.

    Args:
        plain: See `Space`; a domain is returned as it is.

    Raises:
        ValueError: If an interval has another form or scale.
    """
    if isinstance(plain, Domain):
        return plain
    if isinstance(plain, list):
        return Choice(tuple(plain))
    if not isinstance(plain, tuple):
        return Fixed(plain)
    low, high, *rest = plain
    scale = rest[0] if len(rest) == 1 else None if rest else "linear"
    if scale == "log":
        return Log(low, high)
    if scale == "linear":
        return Linear(low, high)
    if scale in ("integer", "integer log"):
        return Integer(low, high, log=scale == "integer log")
    raise ValueError(
        f"{plain}: an interval is (low, high, scale), the scale one of linear, log, integer and "
        "integer log"
    )


def check_positive(name: str, flag: str, value: float | int) -> None:
    """Refuse a setting that is not positive, naming its flag."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"--{name}.{flag} must be positive and finite, got {value}")


def check_fraction(name: str, flag: str, value: float | int) -> None:
    """Refuse a setting outside [0, 1), naming its flag."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"--{name}.{flag} must lie in [0, 1), got {value}")


def check_decay(name: str, value: float | int) -> None:
    """Refuse a negative weight decay."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"--{name}.weight_decay must be non-negative and finite, got {value}")


def check_choice(name: str, flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a setting that is none of the choices, naming its flag."""
    if value not in choices:
        raise ValueError(f"--{name}.{flag} must be one of {', '.join(choices)}; got {value!r}")


def check_damping(name: str, value: float | str, *, positive: bool = False) -> None:
    """Refuse a damping that is neither a number in range nor "auto", naming its flag."""
    if value == "auto":
        return
    if isinstance(value, str):
        raise ValueError(f"--{name}.damping must be a number or auto, got {value!r}")
    if positive:
        check_positive(name, "damping", value)
    elif not 0 <= value < math.inf:
        raise ValueError(f"--{name}.damping must be non-negative and finite, got {value}")


def check_line(name: str, lr: float, search: str, iterations: int) -> None:
    """Refuse settings of a method of line searches that are out of range, naming their flags."""
    check_positive(name, "lr", lr)
    check_choice(name, "search", search, tuple(SEARCHES))
    check_positive(name, "iterations", iterations)
