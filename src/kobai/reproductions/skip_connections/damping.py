"""Accuracy against K-FAC's damping, with and without skips: do they do the same work?"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.skip_connections.cells import CELLS, setting, task
from kobai.reproductions.skip_connections.config import Config
from kobai.results import Finding, Panel, Panels, Series, Verdict
from kobai.studies import Interrupted, run_trials

_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
_MOMENTUM = 0.9
_SEEDS = 3


def figure_damping(
    config: Config, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Best accuracy over learning rates at every damping, large batch."""
    del folder
    dampings = np.logspace(-4, 0, 5 if config.scale == "quick" else 9)
    best: dict[str, np.ndarray] = {}
    error: dict[str, np.ndarray] = {}
    for network in ("plain", "skips"):
        where = setting(config, network)
        cell = next(
            c for c in CELLS if (c.optimizer, c.network, c.batch) == ("kfac", network, "large")
        )
        work = dataclasses.replace(
            task(config, cell, where),
            schedule=None,
            seeds=tuple(range(config.seed, config.seed + _SEEDS)),
        )
        rows, spread = [], []
        for damping in dampings:
            outcomes = run_trials(
                work,
                [{"lr": r, "momentum": _MOMENTUM, "damping": float(damping)} for r in _RATES],
                stop=stop,
            )
            if any(outcome.state == "interrupted" for outcome in outcomes):
                raise Interrupted
            finest = max(outcomes, key=lambda outcome: outcome.value)
            rows.append(finest.value)
            values = [v for v in finest.final.get(work.metric, []) if v is not None]
            spread.append(float(np.std(values, ddof=1)) if len(values) == _SEEDS else np.nan)
            report(f"{network}, damping {damping:.1e}: best training accuracy {rows[-1]:.4f}")
        best[network] = np.array(rows)
        error[network] = np.array(spread) / np.sqrt(_SEEDS)
    gain = best["skips"] - best["plain"]
    weak, strong = int(np.argmin(dampings)), int(np.argmax(gain))
    plain_spread = float(np.ptp(best["plain"]))
    skips_spread = float(np.ptp(best["skips"]))
    alike = plain_spread > 2 * skips_spread and gain[weak] > 0
    return FigureOutcome(
        results={
            "accuracy": Panels(
                label="damping",
                title="Accuracy and damping, large batch",
                columns=1,
                panels=(
                    Panel(
                        title="K-FAC",
                        x_label="damping",
                        y_label="training accuracy",
                        log_x=True,
                        percent=True,
                        series=tuple(
                            Series(label=name, x=dampings, y=values, error=error[name], kind="both")
                            for name, values in best.items()
                        ),
                    ),
                ),
            )
        },
        findings=[
            Finding(
                claim="damping",
                what=f"gain of skips at damping {dampings[i]:.1e}",
                measured=float(gain[i]),
            )
            for i in sorted({weak, strong, len(dampings) - 1})
        ]
        + [
            Finding(claim="damping", what="range over dampings, plain", measured=plain_spread),
            Finding(claim="damping", what="range over dampings, skips", measured=skips_spread),
        ],
        verdicts=[
            Verdict(
                claim="damping",
                verdict="holds" if alike else "does not hold",
                because=f"over four decades of damping the plain network's best accuracy moves by "
                f"{100 * plain_spread:.2f} points, that with skips by "
                f"{100 * skips_spread:.2f}; at the least damping skips gain "
                f"{100 * gain[weak]:+.2f} points ({_SEEDS} seeds)",
            )
        ],
        note=f"K-FAC, batch {config.batch_sizes[1]}, {config.length:g} epochs, momentum "
        f"{_MOMENTUM}, learning rates {_RATES}, constant; means of {_SEEDS} seeds.",
    )
