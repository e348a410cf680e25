"""The default search space of every optimizer: one domain a hyperparameter worth searching."""

import dataclasses
from collections.abc import Mapping

from kobai.optim.catalogue import CONFIGS
from kobai.optim.domains import Choice, Domain, Integer, Linear, Log

_RATE = Log(1e-4, 1.0)
_SMALL_RATE = Log(1e-5, 1e-1)
_MOMENTUM = Linear(0.0, 0.99)
_DAMPING = Log(1e-4, 1.0)

_SPACES: dict[str, dict[str, Domain]] = {
    "sgd": {"lr": Log(1e-4, 10.0)},
    "momentum": {"lr": _RATE, "momentum": _MOMENTUM},
    "nesterov": {"lr": _RATE, "momentum": Linear(0.1, 0.99)},
    "adagrad": {"lr": Log(1e-4, 1.0)},
    "rmsprop": {"lr": _SMALL_RATE, "decay": Choice((0.9, 0.99, 0.999)), "momentum": _MOMENTUM},
    "adadelta": {"lr": Log(1e-2, 10.0), "rho": Linear(0.8, 0.99)},
    "adam": {"lr": _SMALL_RATE, "beta1": Linear(0.5, 0.99), "beta2": Choice((0.99, 0.999))},
    "adamw": {"lr": _SMALL_RATE, "beta1": Linear(0.5, 0.99), "weight_decay": Log(1e-4, 1.0)},
    "muon": {"lr": Log(1e-4, 1e-1), "momentum": Linear(0.5, 0.99)},
    "kfac": {"lr": Log(1e-3, 1.0), "momentum": _MOMENTUM, "damping": _DAMPING},
    "ekfac": {"lr": Log(1e-3, 1.0), "momentum": _MOMENTUM, "damping": _DAMPING},
    "gauss-newton": {"lr": Linear(0.1, 1.0)},
    "hessian-free": {"lr": Linear(0.1, 1.0), "max_iterations": Integer(10, 100, log=True)},
    "newton": {"lr": Log(1e-2, 1.0), "damping": _DAMPING},
    "saddle-free-newton": {"lr": Log(1e-2, 1.0), "damping": _DAMPING},
    "bfgs": {"lr": Log(1e-2, 1.0)},
    "lbfgs": {"lr": Log(1e-2, 1.0)},
    "nonlinear-cg": {"lr": Log(1e-3, 1.0)},
    "steepest-descent": {"lr": Log(1e-3, 10.0)},
    "coordinate-descent": {"lr": Log(1e-3, 10.0)},
}

_NATURAL = {"lr": Log(1e-2, 1.0), "damping": _DAMPING, "momentum": Linear(0.0, 0.95)}


def default_space(name: str) -> dict[str, Domain]:
    """The hyperparameters of an optimizer that are worth searching, each with its domain.

    Args:
        name: One of `kobai.optim.CONFIGS`.

    Returns:
        Field of the optimizer's settings → domain; a new dictionary.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown optimizer {name!r}; choose from {', '.join(CONFIGS)}")
    fields = {f.name for f in dataclasses.fields(CONFIGS[name])}
    known: Mapping[str, Domain] = _NATURAL if name.startswith("ngd") else _SPACES[name]
    return {field: domain for field, domain in known.items() if field in fields}
