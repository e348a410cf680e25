"""All algorithms of the chapter on a set of problems with equal budgets, and what follows from it.

Every method runs at its default learning rate and, where the rate is the length of its step, at the
best of a small grid, which is judged on a seed of its own. Finished pairs of problem and method are
saved at once; tables, profiles and verdicts are made from what is saved.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from kobai import data, models
from kobai.optim import CONFIGS, RMSpropConfig
from kobai.problem import Surface, surfaces
from kobai.results import (
    UNITS,
    BudgetRun,
    BudgetRuns,
    BudgetTable,
    ResultError,
    load,
    result_names,
    save,
)
from kobai.studies.budgets import (
    Budget,
    Method,
    Started,
    cost_to,
    cut,
    run_within,
    start_network,
    start_surface,
)
from kobai.studies.compare import Interrupted
from kobai.studies.setting import Setting, look_of

FACTORS = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
"""The grid: factors on a method's default learning rate."""

BOOK_METHODS = (
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "rmsprop-momentum", "adadelta", "adam",
    "steepest-descent", "coordinate-descent", "nonlinear-cg", "bfgs", "lbfgs", "newton",
    "saddle-free-newton",
)  # fmt: skip
"""The chapter's algorithms, in its order; the second row takes all training data at every step."""

IN_USE = ("momentum", "rmsprop-momentum", "adadelta", "adam")
"""The ones that section 8.5.4 names."""

TOLERANCE = 0.05
"""τ of the target."""

Start = Callable[[int], Started]


def method_named(name: str) -> Method:
    """A method of the suite.

    Raises:
        ValueError: If there is no such optimizer.
    """
    if name == "rmsprop-momentum":
        return Method(name=name, optimizer="rmsprop", config=RMSpropConfig(momentum=0.9))
    if name not in CONFIGS:
        raise ValueError(
            f"unknown optimizer {name!r}; choose from rmsprop-momentum, {', '.join(CONFIGS)}"
        )
    return Method(name=name, optimizer=name)


NETWORKS: dict[str, models.ModelConfig] = {
    "softmax": models.LinearConfig(widths=(), bias=True),
    "relu": models.MLPConfig(widths=(16,)),
    "deep tanh": models.MLPConfig(widths=(12,) * 3, activation="tanh", init="glorot-uniform"),
}
"""The networks: softmax regression, which is convex, and two perceptrons."""

SURFACES: dict[str, Callable[[torch.Generator], Surface]] = {
    "quadratic": lambda draw: surfaces.quadratic(100.0, 20, generator=draw),
    "rosenbrock": lambda draw: surfaces.rosenbrock(),
    "himmelblau": lambda draw: surfaces.himmelblau(),
}
"""Surfaces all of whose minima are equal; the quadratic is of condition number 100."""


def problems(
    splits: data.DataSplits,
    *,
    batch_size: int,
    model: str = "",
    chosen: Sequence[str] = (*NETWORKS, *SURFACES),
) -> dict[str, tuple[Start, bool]]:
    """The suite's problems.

    Args:
        splits: The data of the networks.
        batch_size: Examples a minibatch.
        model: A further network, by family or "package.module:factory"; empty for none.
        chosen: Names out of `NETWORKS` and `SURFACES`.

    Returns:
        Name → how it starts with a seed, and whether it is a network.

    Raises:
        ValueError: If a name is unknown or there is no problem.
    """
    found: dict[str, tuple[Start, bool]] = {}
    options = {n: NETWORKS[n] for n in chosen if n in NETWORKS}
    for name, (family, config) in {
        **{n: (n, c) for n, c in options.items()},
        **({model.rpartition(":")[2]: (model, None)} if model else {}),
    }.items():
        setting = Setting(splits=splits, model=family, model_options=config, dtype=torch.float64)
        found[name] = (
            lambda seed, setting=setting: start_network(setting, seed, batch_size=batch_size),
            True,
        )
    for name in chosen:
        if name in SURFACES:
            make = SURFACES[name]
            found[name] = (lambda seed, make=make: start_surface(make, seed), False)
        elif name not in NETWORKS:
            raise ValueError(
                f"unknown problem {name!r}; choose from {', '.join((*NETWORKS, *SURFACES))}"
            )
    if not found:
        raise ValueError("a suite needs at least one problem")
    return found


def run_method(
    start: Start, method: Method, problem: str, budget: Budget, *, seeds: int, seed: int
) -> BudgetRuns:
    """All runs of one method on one problem.

    Args:
        start: From a seed to the problem.
        method: The method.
        problem: The problem's name.
        budget: What it may spend.
        seeds: Seeds that count, from `seed` on.
        seed: The first; the one after the last judges the grid and counts for nothing else.
    """
    tried: dict[str, float] = {}
    if not method.on_all_data:
        judging = dataclasses.replace(budget, steps=1, seconds=1e-9)
        for factor in FACTORS:
            run = run_within(start(seed + seeds), method, judging, rate=factor, seed=seed + seeds)
            end = cut(run, "gradient evaluations", math.inf)[0]
            tried[f"{factor:g}"] = end if math.isfinite(end) else math.inf
    best = min(tried, key=lambda f: tried[f]) if tried else "1"
    runs = [
        run_within(start(seed + i), method, budget, rate=rate, seed=seed + i)
        for rate in dict.fromkeys((1.0, float(best)))
        for i in range(seeds)
    ]
    return BudgetRuns(problem=problem, method=method.name, runs=tuple(runs), tuned=float(best),
                      tried=tried, look=look_of(method.entry))  # fmt: skip


def run_suite(
    starts: Mapping[str, tuple[Start, bool]],
    methods: Sequence[Method],
    budget: Budget,
    folder: Path,
    *,
    seeds: int,
    seed: int,
    report: Callable[[str], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[BudgetTable, ...]:
    """Make the runs that are not in the folder yet, and a table for every kind of budget.

    Args:
        starts: As `problems` gives them.
        methods: The methods.
        budget: What each run may spend.
        folder: Runs are saved as ``runs_PROBLEM_METHOD``, tables as ``table_UNIT``.
        seeds: Seeds that count.
        seed: The first.
        report: Told of every pair.
        stop: Asked between pairs.

    Returns:
        One table a unit, in the order of `kobai.results.UNITS`.

    Raises:
        Interrupted: If `stop` said so; finished pairs are saved.
        ValueError: If a method does not count what it asks for.
    """
    there = set(result_names(folder)) if folder.is_dir() else set()
    made: dict[tuple[str, str], BudgetRuns] = {}
    for problem, (start, _) in starts.items():
        for method in methods:
            name = f"runs_{problem}_{method.name}".replace(" ", "-")
            found = _kept(folder, name) if name in there else None
            if found is None:
                if stop():
                    raise Interrupted
                report(f"{problem}: {method.name}")
                found = run_method(start, method, problem, budget, seeds=seeds, seed=seed)
                save(found, folder, name)
            made[problem, method.name] = found
    lowest = {
        problem: [start(seed + i).lowest for i in range(seeds)]
        for problem, (start, _) in starts.items()
    }
    networks = {problem: network for problem, (_, network) in starts.items()}
    amounts = (float(budget.steps), budget.gradients, budget.seconds)
    tables = tuple(
        tabulate_budget(made, networks, lowest, unit, amount)
        for unit, amount in zip(UNITS, amounts, strict=True)
    )
    for table in tables:
        save(table, folder, f"table_{table.unit.replace(' ', '-')}")
    return tables


def _kept(folder: Path, name: str) -> BudgetRuns | None:
    """Saved runs; None where the file is damaged and they must be made again."""
    try:
        return load(folder, name)
    except ResultError:
        return None


def tabulate_budget(
    made: Mapping[tuple[str, str], BudgetRuns],
    networks: Mapping[str, bool],
    lowest: Mapping[str, Sequence[float]],
    unit: str,
    amount: float,
) -> BudgetTable:
    """Cut every run at one budget.

    Args:
        made: (problem, method) → runs.
        networks: Problem → whether it is a network; names all problems in their order.
        lowest: Problem → the known minimum for each seed, or NaN.
        unit: One of `kobai.results.UNITS`.
        amount: The budget.
    """
    methods = tuple(dict.fromkeys(method for _, method in made))
    targets = {
        problem: _targets([m for (p, _), m in made.items() if p == problem], lowest[problem])
        for problem in networks
    }

    def over(read: Callable[[BudgetRun, float], float]) -> Float[np.ndarray, "M R Q S"]:
        return np.array([
            [
                [
                    [read(run, target) for run, target in
                     zip(made[p, m].at(rate(made[p, m])), targets[p], strict=True)]
                    for p in networks
                ]
                for rate in (lambda runs: 1.0, lambda runs: runs.tuned)
            ]
            for m in methods
        ])  # fmt: skip

    return BudgetTable(
        unit=unit,
        budget=amount,
        methods=methods,
        problems=tuple(networks),
        networks=tuple(networks.values()),
        rate=np.array([[made[p, m].tuned for p in networks] for m in methods]),
        loss=over(lambda run, target: cut(run, unit, amount)[0]),
        accuracy=over(lambda run, target: cut(run, unit, amount)[1]),
        cost=over(lambda run, target: cost_to(run, unit, amount, target)),
        tolerance=TOLERANCE,
    )


def _targets(runs: Sequence[BudgetRuns], lowest: Sequence[float]) -> list[float]:
    """L* + τ (L₀ − L*) of every seed, L* the known minimum or the lowest loss of any method."""
    found = []
    for position, known in enumerate(lowest):
        ends = [
            float(r.loss[np.isfinite(r.loss)].min())
            for m in runs
            for rate in {1.0, m.tuned}
            for r in m.at(rate)[position:][:1]
        ]
        least = min(ends) if math.isnan(known) else known
        start = float(runs[0].at(1.0)[position].loss[0])
        found.append(least + TOLERANCE * (start - least))
    return found
