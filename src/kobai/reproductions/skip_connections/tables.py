"""Tables 1 to 4: accuracy of the best trials, with and without skips, SGD and K-FAC."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kobai.reproductions.figures import FigureOutcome
from kobai.reproductions.skip_connections.cells import (
    CELLS,
    NEW_SEEDS,
    SETTINGS,
    Cell,
    Searched,
    search_all,
)
from kobai.reproductions.skip_connections.claims import PRINTED, SOURCE
from kobai.reproductions.skip_connections.config import Config
from kobai.results import Finding, Panel, Panels, Series, Trials, Verdict
from kobai.studies import top_k

MEASURES = ("train_accuracy", "test_accuracy")
_WORDS = {"train_accuracy": "training", "test_accuracy": "validation"}

Numbers = Mapping[tuple[str, Cell], tuple[float, float]]
"""(measure, cell) → mean over the best trials and its standard error."""


def figure_tables(
    config: Config, folder: Path, report: Callable[[str], None], stop: Callable[[], bool]
) -> FigureOutcome:
    """Search all cells and set the four tables beside the source's."""
    searched = search_all(config, folder, report, stop)
    trials = {cell: found.trials for cell, found in searched.items()}
    numbers = score(trials, config.counted)
    small, large = config.batch_sizes
    same = config.network == "linear" and config.depth == 6 and config.data_name == "mnist"
    note = (
        f"{config.data_name}, {config.depth} {config.network} layers of width 100; batches {small} "
        f"and {large}; {config.length:g} epochs; best {config.counted} of "
        f"{config.number_of_trials} trials a cell by final training accuracy, one seed each, "
        f"{config.workers} processes asking for {config.at_once or 8} at once; learning "
        "rate, momentum and final share of a linear decay searched by TPE; K-FAC's damping "
        + ("searched" if config.damping is None else f"fixed at {config.damping:g}")
        + ". Standard errors are over trials: they say how settings scatter, not how searches do; "
        f"the best {SETTINGS} settings of each cell were trained again on {NEW_SEEDS} new seeds."
        + ("" if same else " The source's numbers are for MNIST and six linear layers.")
    )
    lost = {cell.name: trials[cell].state.count("diverged") for cell in CELLS}
    note += " Diverged trials: " + ", ".join(f"{k} {v}" for k, v in lost.items()) + "."
    return FigureOutcome(
        results={
            "accuracy": picture(numbers, (small, large)),
            **{cell.name: trials[cell] for cell in CELLS},
        },
        findings=[*findings(numbers), *new_seeds(searched)],
        verdicts=judge(numbers),
        note=note,
    )


def score(trials: Mapping[Cell, Trials], k: int) -> dict[tuple[str, Cell], tuple[float, float]]:
    """Mean and standard error of each measure over each cell's best k trials.

    A trial that diverged has no final accuracy; it counts as 0 if it is among the best k.
    """
    found = {}
    for cell, table in trials.items():
        for measure in MEASURES:
            values = np.nan_to_num(table.final[measure].mean(axis=1), nan=0.0)
            mean, _, error = top_k(table.value, values, k=k, maximise=True)
            found[measure, cell] = (mean, error)
    return found


def new_seeds(searched: Mapping[Cell, Searched]) -> list[Finding]:
    """Accuracy of the best settings on seeds that the search has not seen, beside the search's.

    A run that diverged counts as 0; the standard error is over seeds of the mean over settings.
    """
    made = []
    for measure in MEASURES:
        for cell, found in searched.items():
            table = found.trials
            there = np.nan_to_num(table.final[measure].mean(axis=1), nan=0.0)
            best, _, _ = top_k(table.value, there, k=len(found.again), maximise=True)
            again = np.array(
                [[(o.final.get(measure) or [None])[0] or 0.0 for o in row] for row in found.again]
            ).mean(axis=0)
            made.append(
                Finding(
                    claim="",
                    what=f"{_WORDS[measure]} accuracy, {cell.batch} batch, {cell.network}, "
                    f"{cell.optimizer}: best {len(found.again)} settings on {len(again)} new "
                    "seeds; predicted: by the search",
                    measured=float(again.mean()),
                    error=float(again.std(ddof=1) / np.sqrt(len(again))),
                    predicted=best,
                )
            )
    return made


def _cell(optimizer: str, network: str, batch: str) -> Cell:
    return Cell(optimizer=optimizer, network=network, batch=batch)


def difference(numbers: Numbers, measure: str, first: Cell, second: Cell) -> tuple[float, float]:
    """First minus second, with the standard error of the difference."""
    one, two = numbers[measure, first], numbers[measure, second]
    return one[0] - two[0], float(np.hypot(one[1], two[1]))


def findings(numbers: Numbers) -> list[Finding]:
    """Every cell beside the source's number, then every difference that skips make."""
    made = []
    for measure in MEASURES:
        for cell in CELLS:
            mean, error = numbers[measure, cell]
            made.append(
                Finding(
                    claim="",
                    what=f"{_WORDS[measure]} accuracy, {cell.batch} batch, {cell.network}, "
                    f"{cell.optimizer}",
                    measured=mean,
                    error=error,
                    predicted=SOURCE[measure, cell.batch, cell.network, cell.optimizer],
                )
            )
    for measure in MEASURES:
        for batch in ("small", "large"):
            for optimizer in ("sgd", "kfac"):
                gap, error = difference(
                    numbers, measure, _cell(optimizer, "skips", batch),
                    _cell(optimizer, "plain", batch),
                )  # fmt: skip
                printed = PRINTED[measure, batch, optimizer]
                theirs = (
                    SOURCE[measure, batch, "skips", optimizer]
                    - SOURCE[measure, batch, "plain", optimizer]
                )
                slip = "" if abs(printed - theirs) <= 5e-4 else f" (it prints {printed:+.3f})"
                made.append(
                    Finding(
                        claim="",
                        what=f"skips minus plain, {_WORDS[measure]}, {batch} batch, {optimizer}; "
                        f"source recomputed{slip}",
                        measured=gap,
                        error=error,
                        predicted=theirs,
                    )
                )
    return made


def judge(numbers: Numbers) -> list[Verdict]:
    """A verdict on every claim about the tables."""
    kfac, sgd = "kfac", "sgd"

    def against(network: str, batch: str, sign: int):
        return [
            (f"{m}, {network}", sign, *difference(numbers, m, _cell(kfac, network, batch),
                                  _cell(sgd, network, batch)))
            for m in MEASURES
        ]  # fmt: skip

    def gain(optimizer: str, batch: str, measure: str) -> tuple[float, float]:
        return difference(
            numbers, measure, _cell(optimizer, "skips", batch), _cell(optimizer, "plain", batch)
        )

    def beyond(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
        return first[0] - second[0], float(np.hypot(first[1], second[1]))

    repair = [(m, 1, *gain(kfac, "large", m)) for m in MEASURES]
    most = [
        (f"{m}, more than at the small batch", 1,
         *beyond(gain(kfac, "large", m), gain(kfac, "small", m)))
        for m in MEASURES
    ]  # fmt: skip
    more = [
        (f"{m}, {b} batch", 1, *beyond(gain(kfac, b, m), gain(sgd, b, m)))
        for b in ("small", "large")
        for m in MEASURES
    ]
    lower = [(m, -1, *gain(sgd, "small", m)) for m in MEASURES]
    return [
        _verdict("small-batch", against("plain", "small", 1) + against("skips", "small", 1)),
        _verdict("large-plain", against("plain", "large", -1)),
        _verdict("large-skips", repair + most),
        _verdict("more-than-sgd", more),
        _verdict("sgd-small", lower),
        _verdict("kfac-wins", against("skips", "large", 1)),
    ]


def _verdict(claim: str, tests: list[tuple[str, int, float, float]]) -> Verdict:
    """Whether each difference has the claimed sign by more than two standard errors."""
    held = [sign * gap > 2 * error for _, sign, gap, error in tests]
    told = "; ".join(
        f"{_spelled(name)}: {100 * gap:+.2f} ± {100 * error:.2f} points"
        for name, _, gap, error in tests
    )
    word = "holds" if all(held) else "holds in part" if any(held) else "does not hold"
    return Verdict(claim=claim, verdict=word, because=told)


def _spelled(name: str) -> str:
    for measure, word in _WORDS.items():
        name = name.replace(measure, word)
    return name


def picture(numbers: Numbers, batches: tuple[int, int]) -> Panels:
    """The four tables as one figure: plain → skips for each optimizer, the source's beside."""
    panels = []
    for measure in MEASURES:
        for batch, size in zip(("small", "large"), batches, strict=True):
            series = []
            for optimizer in ("sgd", "kfac"):
                cells = [_cell(optimizer, network, batch) for network in ("plain", "skips")]
                found = [numbers[measure, cell] for cell in cells]
                theirs = [
                    SOURCE[measure, batch, network, optimizer] for network in ("plain", "skips")
                ]
                series.append(
                    Series(label=optimizer, x=np.arange(2.0), y=np.array([m for m, _ in found]),
                           error=np.array([e for _, e in found]), kind="both")
                )  # fmt: skip
                series.append(
                    Series(label=f"{optimizer}, source", x=np.arange(2.0), y=np.array(theirs),
                           kind="both")
                )  # fmt: skip
            panels.append(
                Panel(
                    title=f"{_WORDS[measure]}, batch {size}",
                    x_label="",
                    y_label=f"{_WORDS[measure]} accuracy",
                    series=tuple(series),
                    x_names=("plain", "skips"),
                    percent=True,
                )
            )
    return Panels(
        label="accuracy",
        title="Accuracy of the best trials, with and without skips",
        panels=tuple(panels),
        note="Bars are two standard errors over the best trials.",
    )
