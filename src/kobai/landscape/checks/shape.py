"""Self-checks of the surface's shape: its slopes and curvatures are those of the objective.

Values of the surface alone, by differences, against automatic differentiation in all of parameter
space: an error in the units of an axis, in the scaling of a direction or in precision shows here.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.checks.differences import first_derivative, second_derivative
from kobai.landscape.derivatives import has_kinks, projected_hessian, slopes
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective
from kobai.results import Check


def slope(
    objective: Objective, directions: Directions, evaluator: Evaluator, half: Sequence[float]
) -> Check:
    """Check that finite differences of the surface equal ∇L·d, away from the centre.

    Args:
        objective: The objective.
        directions: The subspace.
        evaluator: What measured the surface.
        half: Half-width of the range along each direction.
    """
    signs = (0.5, -0.3, 0.4)
    place = [s * h for s, h in zip(signs, half, strict=False)]
    theta = directions.at(place)
    value, exact, _ = slopes(objective, theta, directions.vectors)
    kinks = has_kinks(objective, theta)
    noise = _noise(objective, value)
    rows = []
    for k in range(directions.count):
        line, wanted = _line(evaluator, place, k), float(exact[k])
        if kinks:
            # The smallest step that rounding allows has the fewest kinks on it.
            floor = 1e-3 * abs(value) / half[k]
            step = _clip(1e3 * noise / max(abs(wanted), floor), 1e-6 * half[k], half[k] / 4)
            found = (line(step) - line(-step)) / (2 * step)
            # What it differs by is what slopes vary by between the ends.
            vector = directions.vectors[:, k : k + 1]
            ends = [[c + t * (i == k) for i, c in enumerate(place)] for t in (step, -step)]
            varied = max(
                abs(float(slopes(objective, directions.at(end), vector)[1]) - wanted)
                for end in ends
            )
            tolerance = 0.03 * abs(wanted) + floor + varied + 5 * noise / step
            rows.append((wanted, found, tolerance))
            continue
        found, error = first_derivative(line, 0.25 * half[k], noise=noise)
        relative = math.sqrt(torch.finfo(objective.space.dtype).eps)
        rows.append((wanted, found, 5 * error + relative * abs(wanted)))
    return _derivative_check("slope", rows, "∇L·d", "the surface's own slope", kinks)


def curvature(
    objective: Objective, directions: Directions, evaluator: Evaluator, half: Sequence[float]
) -> Check:
    """Check second differences of the surface at its centre against dᵀHd from Hessian products.

    Where the loss has kinks (ReLU), that is not a theorem: a second difference also counts how
    slopes jump at the kinks. It still equals the integral of exact slopes,
    ∫₀ʰ (∇L(t)·d - ∇L(-t)·d) dt / h², and is held against that by Gauss's rule, with a step as small
    as rounding allows; dᵀHd is stated beside it.
    """
    kinks = has_kinks(objective, directions.origin)
    hessian = projected_hessian(objective, directions.origin, directions.vectors).diagonal()
    value = float(objective.value(directions.origin))
    zero = [0.0] * directions.count
    rows, aside = [], []
    for k in range(directions.count):
        line = _line(evaluator, zero, k)
        exact = float(hessian[k])
        if kinks:
            aside.append(f"dᵀHd {exact:.4g}")
            typical = max(abs(exact), 1e-3 * abs(value) / half[k] ** 2)
            rows.append(_kinked(objective, directions, line, k, value, typical, half[k]))
            continue
        found, error = second_derivative(line, 0.25 * half[k], noise=_noise(objective, value))
        relative = math.sqrt(torch.finfo(objective.space.dtype).eps)
        rows.append((exact, found, 5 * error + relative * abs(exact)))
    other = "from slopes" if kinks else "dᵀHd"
    check = _derivative_check("curvature", rows, other, "second difference", kinks)
    if aside:
        note = "; the Hessian alone, which does not see kinks: " + ", ".join(aside)
        check = dataclasses.replace(check, detail=check.detail + note)
    return check


def _kinked(
    objective: Objective,
    directions: Directions,
    line: Callable[[float], float],
    k: int,
    value: float,
    typical: float,
    half: float,
) -> tuple[float, float, float]:
    """Give change of slope, second difference and tolerance, at the first step that settles it.

    A step is good when it meets no kink or very many: a single one spoils Gauss's rule.
    """
    noise = _noise(objective, value)
    smallest = _clip(math.sqrt(1e3 * noise / typical), 1e-7 * half, half / 4)
    rows = []
    for factor in (1.0, 30.0):
        step = min(factor * smallest, half / 4)
        exact, spread = _change_of_slope(objective, directions, k, step)
        found = (line(step) - 2 * value + line(-step)) / step**2
        rows.append((exact, found, 0.05 * abs(exact) + spread + 8 * noise / step**2))
        if rows[-1][2] <= 0.5 * abs(exact) or step == half / 4:
            break
    return min(rows, key=lambda row: row[2] / max(abs(row[0]), 1e-300))


def _change_of_slope(
    objective: Objective, directions: Directions, k: int, step: float
) -> tuple[float, float]:
    """Integrate g(t) = ∇L(t)·d - ∇L(-t)·d over (0, h) by three Gauss nodes, over h²; and its error.

    Between kinks g is nearly proportional to t; its largest departure from that, over h, bounds
    what single kinks between the nodes can do to the rule.
    """
    nodes, weights = np.polynomial.legendre.leggauss(3)
    vector = directions.vectors[:, k : k + 1]
    times, changes = 0.5 * step * (1.0 + nodes), []
    for t in times:
        ends = [[s * t if i == k else 0.0 for i in range(directions.count)] for s in (1.0, -1.0)]
        up, down = (float(slopes(objective, directions.at(e), vector)[1]) for e in ends)
        changes.append(up - down)
    change = np.array(changes)
    rate = float(change @ times / (times @ times))
    departure = float(np.abs(change - rate * times).max())
    return float(0.5 * weights @ change / step), departure / step


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _line(evaluator: Evaluator, place: Sequence[float], k: int):
    """Make the loss along direction k through a place a function of one coordinate."""

    def line(t: float) -> float:
        return evaluator.loss(*(c + t if i == k else c for i, c in enumerate(place)))

    return line


def _noise(objective: Objective, value: float) -> float:
    """Estimate the rounding error in one value of the loss."""
    return 2 * torch.finfo(objective.space.dtype).eps * max(abs(value), 1e-3)


def _derivative_check(
    name: str, rows: Sequence[tuple[float, float, float]], exact: str, found: str, kinks: bool
) -> Check:
    def excess(row: tuple[float, float, float]) -> float:
        gap = abs(row[0] - row[1])
        return gap / row[2] if math.isfinite(gap) and row[2] > 0 else (gap and math.inf)

    worst = max(rows, key=excess)
    gap = abs(worst[0] - worst[1])
    detail = "; ".join(f"{exact} {e:.6g}, {found} {f:.6g}" for e, f, _ in rows)
    weak = any(t > 0.5 * abs(e) for e, _, t in rows)
    return Check(
        name=name,
        passed=bool(gap <= worst[2]),
        value=gap,
        tolerance=worst[2],
        detail=detail
        + (" (the loss has kinks)" if kinks else "")
        + (" (weak: rounding or kinks leave a wide tolerance)" if weak else ""),
    )
