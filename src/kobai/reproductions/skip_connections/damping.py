"""Accuracy against K-FAC's damping, with and without skips: do they do the same work?"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kobai.reproductions.figures import Outcome
from kobai.reproductions.skip_connections.cells import CELLS, setting, task
from kobai.reproductions.skip_connections.config import Config
from kobai.results import Finding, Panel, Panels, Series, Verdict
from kobai.studies import Interrupted, run_trial

_RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
_MOMENTUM = 0.9


def figure_damping(
    config: Config, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> Outcome:
    """Best accuracy over learning rates at every damping, large batch."""
    del folder
    dampings = np.logspace(-4, 0, 5 if config.scale == "quick" else 9)
    best: dict[str, np.ndarray] = {}
    for network in ("plain", "skips"):
        where = setting(config, network)
        cell = next(
            c for c in CELLS if (c.optimizer, c.network, c.batch) == ("kfac", network, "large")
        )
        work = task(config, cell, where)
        rows = []
        for damping in dampings:
            values = []
            for rate in _RATES:
                outcome = run_trial(
                    dataclasses.replace(work, schedule=None),
                    {"lr": rate, "momentum": _MOMENTUM, "damping": float(damping)},
                    stop=stop,
                )
                if outcome.state == "interrupted":
                    raise Interrupted
                values.append(outcome.value)
            rows.append(max(values))
            report(f"{network}, damping {damping:.1e}: best training accuracy {rows[-1]:.4f}")
        best[network] = np.array(rows)
    gain = best["skips"] - best["plain"]
    weak, strong = int(np.argmin(dampings)), int(np.argmax(gain))
    plain_spread = float(np.ptp(best["plain"]))
    skips_spread = float(np.ptp(best["skips"]))
    alike = plain_spread > 2 * skips_spread and gain[weak] > 0
    return Outcome(
        results={
            "accuracy": Panels(
                label="damping",
                title="Best training accuracy over learning rates, large batch",
                columns=1,
                panels=(
                    Panel(
                        title="K-FAC",
                        x_label="damping",
                        y_label="training accuracy",
                        log_x=True,
                        percent=True,
                        series=tuple(
                            Series(label=name, x=dampings, y=values, kind="both")
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
                f"{100 * gain[weak]:+.2f} points (one seed)",
            )
        ],
        note=f"K-FAC, batch {config.batch_sizes[1]}, {config.length:g} epochs, momentum "
        f"{_MOMENTUM}, learning rates {_RATES}, constant; one seed.",
    )
