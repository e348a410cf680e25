"""What a suite's tables say about the advice of the source: profiles, numbers and verdicts."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from kobai.optim import OPTIMIZERS
from kobai.results import (
    BudgetTable,
    Claim,
    Finding,
    Panel,
    Panels,
    Reproduction,
    Series,
    Verdict,
)
from kobai.studies.scores import performance_profile
from kobai.studies.suite import IN_USE

RATIO = 4.0
"""Within this factor of the best method a method counts as never far behind."""

ON_ALL_DATA = {name for name, entry in OPTIMIZERS.items() if entry.on_all_data}
"""Methods that take all training data at every step."""

RATES = ("default rate", "best of the grid")

CLAIMS = (
    Claim(key="8.5.4-one", where="section 8.5.4", figure="profiles",
          text="it is hard to name one best algorithm"),
    Claim(key="8.5.4-used", where="section 8.5.4", figure="profiles",
          text="SGD with momentum, RMSProp with momentum, AdaDelta and Adam are in use (here: on "
          "networks they are within four times the best as often as the median of the others)"),
    Claim(key="8.6-cost", where="section 8.6", figure="profiles",
          text="second-order methods make better steps, but the steps are too dear for networks"),
)  # fmt: skip


def shares(
    table: BudgetTable, *, networks: bool, tuned: bool, ratio: float = RATIO
) -> dict[str, float]:
    """Share of the instances (problem × seed) each method solves within a factor of the best.

    Args:
        table: The costs.
        networks: Count networks, else surfaces.
        tuned: At the best rate of the grid, else at the default one.
        ratio: The factor.
    """
    profile = performance_profile(_costs(table, networks, tuned), np.array([ratio]))
    return dict(zip(table.methods, profile[:, 0].tolist(), strict=True))


def _costs(table: BudgetTable, networks: bool, tuned: bool) -> Float[np.ndarray, "M I"]:
    chosen = np.array(table.networks) == networks
    return table.cost[:, int(tuned), chosen].reshape(len(table.methods), -1)


def profiles(
    tables: Sequence[BudgetTable], *, networks: bool, tuned: bool, all_data: bool
) -> Panels:
    """Performance profiles, one panel a unit.

    Args:
        tables: One a unit.
        networks: Of the networks, else of the surfaces.
        tuned: At the best rate of the grid, else at the default one.
        all_data: Draw the methods that take all data at every step, else those on minibatches;
            ratios are to the best of all methods either way.
    """
    members = [m for m in tables[0].methods if (m in ON_ALL_DATA) == all_data]
    panels = []
    for table in tables:
        cost = _costs(table, networks, tuned)
        # As far as the worst ratio of a method that solved something.
        best = np.where(np.isfinite(cost).any(axis=0), cost.min(axis=0), 1.0)
        ratio = cost / best
        widest = max(10.0, float(ratio[np.isfinite(ratio)].max(initial=1.0)))
        ratios = np.geomspace(1.0, widest, 400)
        profile = performance_profile(cost, ratios)
        curves = [
            Series(label=m, x=ratios, y=profile[table.methods.index(m)]) for m in members
        ]  # fmt: skip
        # All panels reach up to everything, also where nothing was solved.
        top = Series(label="", x=ratios[[0, -1]], y=np.ones(2), kind="faint")
        panels.append(
            Panel(title=f"within {table.budget:g} {table.unit}", y_label="share solved",
                  x_label="factor on the best method's cost", log_x=True, percent=True,
                  series=(top, *curves))
        )  # fmt: skip
    kind, table = "networks" if networks else "surfaces", tables[0]
    names = [p for p, n in zip(table.problems, table.networks, strict=True) if n == networks]
    return Panels(
        label="profiles",
        title=f"Performance profiles on {kind}, methods on "
        f"{'all data' if all_data else 'minibatches'}, {RATES[tuned]}",
        panels=tuple(panels),
        columns=len(tables),
        note=f"{', '.join(names)}; {table.cost.shape[-1]} seeds each. Solved: within "
        f"{100 * table.tolerance:g} % of the way down to the lowest loss any method reached, "
        "before the budget was spent.",
    )


def conclude(tables: Sequence[BudgetTable], *, seed: int, seconds: float, note: str = ""
             ) -> Reproduction:  # fmt: skip
    """Findings and a verdict on every claim.

    Args:
        tables: One a unit.
        seed: First seed.
        seconds: What all of it took.
        note: The setting.
    """
    findings, verdicts = [], []
    for judge in (_one_best, _in_use, _second_order):
        found, verdict = judge(tables)
        findings += found
        verdicts.append(verdict)
    return Reproduction(
        source="deep-learning-book", figure="profiles", title="All algorithms within equal budgets",
        scale="full", seed=seed, seconds=seconds, claims=CLAIMS, findings=tuple(findings),
        verdicts=tuple(verdicts), note=note,
    )  # fmt: skip


def _word(conditions: Sequence[bool]) -> str:
    return "holds" if all(conditions) else "holds in part" if any(conditions) else "does not hold"


def _one_best(tables: Sequence[BudgetTable]) -> tuple[list[Finding], Verdict]:
    """Whether one method has the lowest mean loss on every problem, budget by budget."""
    several, words = [], []
    for table in tables:
        means = table.loss[:, 1].mean(axis=-1)
        best = [table.methods[i] for i in means.argmin(axis=0)]
        several.append(len(set(best)) > 1)
        words.append(f"{table.budget:g} {table.unit}: " + ", ".join(
            f"{m} ({p})" for p, m in zip(table.problems, best, strict=True)))  # fmt: skip
    return [], Verdict(claim="8.5.4-one", verdict=_word(several),
                       because="lowest mean loss at the best rate within " + "; ".join(words)
                       )  # fmt: skip


def _in_use(tables: Sequence[BudgetTable]) -> tuple[list[Finding], Verdict]:
    """Whether the four are within `RATIO` of the best as often as the median of the others."""
    by_name = {table.unit: table for table in tables}
    findings: list[Finding] = []
    good: list[bool] = []
    words: list[str] = []
    for unit in ("gradient evaluations", "CPU seconds"):
        for tuned in (False, True):
            share = shares(by_name[unit], networks=True, tuned=tuned)
            others = [v for m, v in share.items() if m not in IN_USE]
            named = {m: share[m] for m in IN_USE if m in share}
            median = float(np.median(others)) if others else math.nan
            findings += [
                Finding(claim="8.5.4-used", measured=value,
                        what=f"share of networks within {RATIO:g} times the best, {unit}, "
                        f"{RATES[tuned]}: {m}") for m, value in share.items()
            ]  # fmt: skip
            good += [value > 0 and value >= median for value in named.values()]
            words.append(f"{unit}, {RATES[tuned]}: " + ", ".join(
                f"{100 * v:.0f} % {m}" for m, v in named.items())
                + f", median of the others {100 * median:.0f} %")  # fmt: skip
    return findings, Verdict(claim="8.5.4-used", verdict=_word(good or [False]),
                             because="; ".join(words))  # fmt: skip


def _second_order(tables: Sequence[BudgetTable]) -> tuple[list[Finding], Verdict]:
    """Whether Newton's methods need fewer steps, but more evaluations, than minibatch methods."""
    by_name = {table.unit: table for table in tables}
    second = [m for m in ("newton", "saddle-free-newton") if m in tables[0].methods]
    first = [m for m in tables[0].methods if m not in ON_ALL_DATA]
    if not second or not first:
        return [], Verdict(claim="8.6-cost", verdict="not run",
                           because="needs Newton's method and one on minibatches")  # fmt: skip
    shown, findings = {}, []
    for unit in ("steps", "gradient evaluations"):
        table = by_name[unit]
        rows = {
            kind: table.cost[[table.methods.index(m) for m in members], 1]
            for kind, members in (("second-order", second), ("minibatch", first))
        }
        chosen = np.array(table.networks)
        for kind, cost in rows.items():
            # The best of the kind on each instance; unsolved ones count as infinite.
            best = cost[:, chosen].min(axis=0).ravel()
            shown[unit, kind] = float(np.median(best))
            findings.append(Finding(claim="8.6-cost", measured=shown[unit, kind],
                                    what=f"median of {unit} to the target, best {kind} method"
                                    ))  # fmt: skip
    fewer = shown["steps", "second-order"] < shown["steps", "minibatch"]
    dearer = (
        shown["gradient evaluations", "second-order"] > shown["gradient evaluations", "minibatch"]
    )
    because = "; ".join(f"{kind}: {value:.3g} {unit}" for (unit, kind), value in shown.items())
    return findings, Verdict(claim="8.6-cost", verdict=_word([fewer, dearer]),
                             because=f"median over networks and seeds, the best of each kind, to "
                             f"the target within budget: {because}")  # fmt: skip
