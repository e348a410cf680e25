"""Small results with known shapes, for the tests of plots and report."""

import dataclasses

import numpy as np

from kobai.results import (
    Aggregate,
    Check,
    Comparison,
    ComparisonRow,
    History,
    Plane,
    Provenance,
    Spectrum,
    Trajectory,
)

RATES = {"sgd": 0.12, "adam": 0.25, "kfac": 0.6}


def a_history(optimizer="sgd", seed=0, **changes) -> History:
    """Exponential decay to a floor, faster for better optimizers; test loss a little above."""
    epoch = np.arange(9.0)
    decay = np.exp(-RATES.get(optimizer, 0.2) * epoch) * (1 + 0.05 * seed)
    fields = {
        "label": f"{optimizer}-{seed}",
        "optimizer": optimizer,
        "seed": seed,
        "status": "finished",
        "step": (epoch * 10).astype(np.int64),
        "epoch": epoch,
        "seconds": epoch * 0.5,
        "train_loss": 2.3 * decay + 0.01,
        "train_accuracy": 1 - 0.9 * decay / decay.max(),
        "test_loss": 2.3 * decay + 0.05,
        "test_accuracy": 1 - 0.88 * decay / decay.max() - 0.02,
        "learning_rate": np.full(9, 0.1),
        "step_loss": 2.3 * np.exp(-np.arange(80.0) / 30),
    }
    return History(**{**fields, **changes})


def histories(seeds=2) -> list[History]:
    return [a_history(name, seed) for name in RATES for seed in range(seeds)]


def a_plane(**changes) -> Plane:
    """A tilted bowl on a grid that is not square, so that a transposed picture is wrong."""
    a, b = np.linspace(-1, 2, 13), np.linspace(-0.5, 1, 10)
    loss = 0.05 + (a[:, None] - 1) ** 2 + 0.3 * (b[None] - 0.2) ** 2
    path = np.column_stack([np.linspace(-0.5, 1, 6), np.linspace(0.8, 0.2, 6)])
    fields = {
        "label": "between the ends",
        "kind": "between",
        "a": a,
        "b": b,
        "axis_names": ("towards adam-0", "towards kfac-0"),
        "fields": {"loss": loss, "accuracy": 1 - loss / 10},
        "direction_norms": np.array([4.0, 5.0]),
        "cosine": 0.0,
        "origin": "sgd-0",
        "trajectories": (
            Trajectory(
                label="kfac-0",
                optimizer="kfac",
                coordinates=path,
                off_plane=np.linspace(3, 0, 6),
                loss=np.geomspace(3, 0.06, 6),
            ),
        ),
        "points": {"kfac-0": path[-1], "sgd-0": np.zeros(2)},
        "checks": (
            Check(name="centre", passed=True, value=1e-9, tolerance=1e-6, detail="as evaluated"),
            Check(name="slope", passed=False, value=0.2, tolerance=1e-3, detail="differences"),
        ),
        "seconds": 1.5,
    }
    return Plane(**{**fields, **changes})


def a_spectrum(optimizer="sgd", seed=0, **changes) -> Spectrum:
    fields = {
        "label": f"{optimizer}-{seed}",
        "optimizer": optimizer,
        "seed": seed,
        "matrix": "hessian",
        "dimension": 50,
        "eigenvalues": np.array([-0.02, 0.1, 0.5, 4.0]),
        "residuals": np.array([1e-4, 1e-4, 1e-3, 1e-2]),
        "trace": 6.0,
        "trace_error": 0.2,
        "gradient_norm": 0.01,
        "loss": 0.06,
        "num_products": 40,
        "status": "converged",
    }
    return Spectrum(**{**fields, **changes})


def a_row(optimizer, **changes) -> ComparisonRow:
    rate = RATES.get(optimizer, 0.2)
    numbers = {
        "train_loss": (0.1 / rate, 0.01),
        "train_accuracy": (0.9 + rate / 10, 0.001),
        "test_loss": (0.12 / rate, 0.01),
        "test_accuracy": (0.89 + rate / 10, 0.001),
        "seconds_per_epoch": (rate, 0.02),
        "steps_to_95": (20 / rate, 3.0),
        "lambda_max": (1 / rate, 0.2),
        "trace": (10 / rate, 1.0),
    }
    values = {name: Aggregate(mean=mean, sd=sd, count=2) for name, (mean, sd) in numbers.items()}
    fields = {"optimizer": optimizer, "seeds": 2, "statuses": {"finished": 2}, **values}
    return ComparisonRow(**{**fields, **changes})


def a_comparison(**changes) -> Comparison:
    fields = {
        "title": "three optimizers",
        "data": "digits",
        "model": "mlp 64-32-10",
        "parameters": 2410,
        "rows": tuple(a_row(name) for name in RATES),
    }
    return Comparison(**{**fields, **changes})


def a_provenance(**changes) -> Provenance:
    fields = {
        "kobai": "0.1.0",
        "python": "3.11.2",
        "torch": "2.13.0",
        "numpy": "2.4.6",
        "commit": "0123456789abcdef",
        "platform": "Linux x86_64",
        "device": "cpu",
        "threads": 2,
        "seed": 0,
        "command": "kobai compare --data digits --optimizers sgd,adam,kfac --out runs/demo",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 61.0,
    }
    return Provenance(**{**fields, **changes})


def with_holes(plane: Plane) -> Plane:
    """The plane with three values that are not finite and a corner that explodes."""
    loss = plane.fields["loss"].copy()
    loss[0, 0], loss[0, 1], loss[5, 5] = np.nan, np.inf, np.nan
    loss[-1, -1] = 1e7
    return dataclasses.replace(plane, fields={"loss": loss})
