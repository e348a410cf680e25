"""A study's trials: how the search went, what the best have in common, what a setting is worth."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kobai.plots.scales import spell
from kobai.plots.style import ACCENT, INK, MUTED, OTHER_MAP, RULE, dress, plain
from kobai.results import Scores, Trials

_BLUE = "#2b6cb8"
_SLICES = 8


def search_history(trials: Trials, scores: Scores | None = None) -> Figure:
    """The score of every trial in order, the best so far, and the expected best of k trials.

    Args:
        trials: The trials.
        scores: Their summary, for the expected best; None leaves that line out.

    Returns:
        The figure.

    Raises:
        ValueError: No trial has a finite score.
    """
    value, good = _shown(trials)
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.subplots()
    x = np.arange(1, len(value) + 1)
    bad = ~np.isin(trials.state, ("finished",))
    axes.plot(x[~bad & good], value[~bad & good], "o", color=_BLUE, ms=4, alpha=0.6, mew=0)
    low, high = _limits(value[good & ~bad] if (good & ~bad).any() else value[good], trials)
    worst = low if trials.maximise else high
    clipped = np.clip(np.where(np.isfinite(value), value, worst), low, high)
    axes.plot(x[bad], clipped[bad], "x", color=ACCENT, ms=5, mew=1.2)
    best = np.fmax.accumulate if trials.maximise else np.fmin.accumulate
    axes.plot(x, best(np.where(good, value, np.nan)), color=INK, linewidth=1.4)
    labels = [("trial", "o", _BLUE), ("best so far", "-", INK)]
    if bad.any():
        labels.append((f"{int(bad.sum())} diverged, failed or pruned", "x", ACCENT))
    if scores is not None and len(scores.best_of) == len(value):
        axes.plot(x, scores.best_of, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
        labels.append(("expected best of k trials", "--", MUTED))
    for place, (text, _, color) in enumerate(labels):
        axes.annotate(text, (0.985, 0.05 + 0.075 * place), xycoords="axes fraction",
                      ha="right", size=8.5, color=color)  # fmt: skip
    axes.set_ylim(low, high)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(plain(_name(trials.metric)))
    _percent(axes, trials)
    dress(axes)
    return figure


def top_distribution(groups: Sequence[tuple[str, Trials]], *, k: int) -> Figure:
    """Scores of the best k trials of each study, with their mean; all others faint behind.

    Args:
        groups: Name and trials of each study; all with the same metric.
        k: How many of the best count.

    Returns:
        The figure, one row a study.

    Raises:
        ValueError: No trial has a finite score.
    """
    figure = Figure(figsize=(7.6, 1.0 + 0.62 * len(groups)), layout="constrained")
    axes = figure.subplots()
    tops: list[Float[np.ndarray, " K"]] = []
    for row, (_, trials) in enumerate(groups):
        value, good = _shown(trials)
        ordered = np.sort(value[good])[:: -1 if trials.maximise else 1]
        top = ordered[:k]
        tops.append(top)
        scatter = 0.3 * (np.modf(np.arange(len(ordered)) * 0.618034)[0] - 0.5)
        axes.plot(ordered, row + scatter, "o", color=RULE, ms=3, mew=0)
        axes.plot(top, row + scatter[: len(top)], "o", color=_BLUE, ms=3.4, alpha=0.55, mew=0)
        axes.plot([top.mean()] * 2, [row - 0.36, row + 0.36], color=ACCENT, linewidth=2)
        axes.annotate(
            _spelled(top.mean(), trials), (top.mean(), row - 0.38), ha="center", va="bottom",
            size=8.5, color=ACCENT, weight="bold",
        )  # fmt: skip
    axes.set_yticks(range(len(groups)), [plain(name, limit=34) for name, _ in groups])
    axes.set_ylim(len(groups) - 0.4, -0.7)
    axes.set_xlim(*_limits(np.concatenate(tops), groups[0][1]))
    most = max(map(len, tops))
    each = " of each" if len(groups) > 1 else ""
    axes.set_xlabel(plain(f"{_name(groups[0][1].metric)}, best {most}{each} and their mean"))
    _percent(axes, groups[0][1], axis="x")
    dress(axes)
    axes.grid(False, axis="y")
    return figure


def sensitivity(trials: Trials, scores: Scores | None = None) -> Figure:
    """Score against each hyperparameter, with the best and the median of every slice.

    Args:
        trials: The trials.
        scores: Their summary; its importances stand in the titles.

    Returns:
        The figure, one panel a hyperparameter.

    Raises:
        ValueError: No trial has a finite score, or nothing was searched.
    """
    value, good = _shown(trials)
    names = list(trials.parameters)
    if not names:
        raise ValueError("nothing was searched; there is no sensitivity to draw")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.6, 2.7 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    done = np.array([state == "finished" for state in trials.state]) & good
    limits = _limits(value[done] if done.any() else value[good], trials)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        name = names[place]
        x = trials.parameters[name]
        shown = good & np.isfinite(x)
        if name in trials.log:
            axes.set_xscale("log")
        axes.plot(x[shown], np.clip(value[shown], *limits), "o", color=_BLUE, ms=3, alpha=0.45,
                  mew=0)  # fmt: skip
        if name in trials.categories:
            axes.set_xticks(range(len(trials.categories[name])), trials.categories[name])
        elif shown.sum() > 4 and np.ptp(x[shown]) > 0:
            _slices(axes, x[shown], value[shown], trials)
        share = scores.importance.get(name) if scores is not None else None
        title = plain(name) + (f"  explains {100 * share:.0f} %" if share is not None else "")
        axes.set_title(title, loc="left", size=9.5, color=INK)
        axes.set_ylim(*limits)
        dress(axes)
        if place % columns == 0:
            axes.set_ylabel(plain(_name(trials.metric)))
            _percent(axes, trials)
    return figure


def parallel_coordinates(trials: Trials) -> Figure:
    """Every trial as a line across its hyperparameters, coloured by its rank; good ones on top.

    Args:
        trials: The trials.

    Returns:
        The figure.

    Raises:
        ValueError: No trial has a finite score, or nothing was searched.
    """
    value, good = _shown(trials)
    names = list(trials.parameters)
    if not names:
        raise ValueError("nothing was searched; there are no coordinates to draw")
    figure = Figure(figsize=(2.0 * len(names) + 2.4, 3.9), layout="constrained")
    axes = figure.subplots()
    heights, labels = [], []
    for name in names:
        x = trials.parameters[name]
        scaled = np.log(x) if name in trials.log else x
        low, high = np.nanmin(scaled), np.nanmax(scaled)
        heights.append((scaled - low) / (high - low) if high > low else scaled * 0 + 0.5)
        ends = np.exp([low, high]) if name in trials.log else (low, high)
        words = trials.categories.get(name)
        labels.append([words[int(e)] if words else spell(float(e), 2) for e in ends])
    order = np.argsort(np.argsort(value[good] if trials.maximise else -value[good]))
    rank = order / max(len(order) - 1, 1)
    lines = np.stack([np.array(heights).T[good], np.tile(np.arange(len(names)), (good.sum(), 1))])
    drawn = np.moveaxis(lines, 0, -1)[:, :, ::-1]
    sequence = np.argsort(rank)
    axes.add_collection(
        LineCollection(
            list(drawn[sequence]),
            colors=OTHER_MAP(0.95 - 0.9 * rank[sequence]),
            linewidths=0.6 + 1.2 * rank[sequence] ** 4,
            alpha=0.75,
        )
    )
    for place, (name, (low, high)) in enumerate(zip(names, labels, strict=True)):
        axes.axvline(place, color=RULE, linewidth=1)
        axes.annotate(
            low, (place, -0.04), annotation_clip=False, ha="center", va="top", size=8, color=MUTED
        )
        axes.annotate(high, (place, 1.03), annotation_clip=False, ha="center", size=8, color=MUTED)
        axes.annotate(
            plain(name), (place, 1.12), annotation_clip=False, ha="center", size=9.5, color=INK
        )
    axes.annotate(
        f"dark: best of {len(order)} by {_name(trials.metric)}", (0.5, -0.16),
        xycoords="axes fraction", ha="center", size=8.5, color=MUTED,
    )  # fmt: skip
    axes.set_xlim(-0.3, len(names) - 0.7)
    axes.set_ylim(-0.02, 1.02)
    axes.axis("off")
    return figure


def _shown(trials: Trials) -> tuple[np.ndarray, np.ndarray]:
    good = np.isfinite(trials.value)
    if not good.any():
        raise ValueError("no trial has a finite score; nothing to draw")
    return trials.value, good


def _limits(value: np.ndarray, trials: Trials) -> tuple[float, float]:
    """From the worse quarter's end to the best, so that lost trials do not flatten the rest."""
    sign = 1.0 if trials.maximise else -1.0
    low, high = np.quantile(sign * value, 0.25), np.max(sign * value)
    low = min(low, np.quantile(sign * value, 0.5) - 1e-12)
    pad = 0.08 * (high - low) or 1e-3
    ends = sign * (low - pad), sign * (high + pad)
    return float(min(ends)), float(max(ends))


def _slices(axes: Axes, x: np.ndarray, value: np.ndarray, trials: Trials) -> None:
    edges = np.unique(np.quantile(x, np.linspace(0, 1, min(_SLICES, len(x) // 3 + 1) + 1)))
    if len(edges) < 3:
        return
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    groups = [value[place == i] for i in range(len(edges) - 1)]
    middle = [float(np.median(x[place == i])) for i in range(len(edges) - 1)]
    best = np.max if trials.maximise else np.min
    axes.plot(middle, [best(g) for g in groups], color=INK, linewidth=1.4)
    axes.plot(middle, [np.median(g) for g in groups], color=MUTED, linewidth=1.2,
              linestyle=(0, (4, 2)))  # fmt: skip


def _name(metric: str) -> str:
    return metric.replace("_", " ")


def _spelled(value: float, trials: Trials) -> str:
    return f"{100 * value:.2f} %" if trials.metric.endswith("accuracy") else spell(value)


def _percent(axes: Axes, trials: Trials, *, axis: str = "y") -> None:
    if trials.metric.endswith("accuracy"):
        target = axes.yaxis if axis == "y" else axes.xaxis
        target.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
