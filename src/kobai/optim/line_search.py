"""Line searches decide how far to go along a direction.

Each is a frozen dataclass with one method, ``search(line, first)``. A `Line` is the objective along
one direction; it asks the same function (the same minibatch) at every trial point, counts what it
asks, and keeps the gradient of the last point so that nobody pays for it twice.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

SearchStatus = Literal["ok", "rounding", "max-evaluations", "non-finite", "unbounded"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinePoint:
    """A point of a line.

    Attributes:
        step: How far along the direction.
        value: φ(step), infinite where the function is not finite.
        slope: φ'(step), NaN where only the value was asked for.
    """

    step: float
    value: float
    slope: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineStep:
    """The end of a line search.

    Attributes:
        step: The step to take; 0 if there is none.
        value: The function there.
        slope: Its derivative along the direction there, NaN where it was not computed.
        status: "ok": the conditions hold. "rounding": they hold as far as the precision of the
            values can tell. "max-evaluations": the best point seen, which may be none.
            "non-finite": nothing finite was seen. "unbounded": the function kept falling to the
            longest step.
    """

    step: float
    value: float
    slope: float
    status: SearchStatus


@final
class Line:
    """φ(a) = f(θ + a p).

    Args:
        value_and_grad: f with its gradient.
        value: f alone.
        theta: θ.
        direction: p.
        start: f(θ).
        gradient: ∇f(θ).
        curvature: p ↦ pᵀHp at θ, where there is a Hessian to ask.
        known: Step → value of f there, where it was computed before.
    """

    def __init__(
        self,
        value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
        value: Callable[[Tensor], Tensor],
        theta: Float[Tensor, " P"],
        direction: Float[Tensor, " P"],
        *,
        start: float,
        gradient: Float[Tensor, " P"],
        curvature: Callable[[Tensor], float] | None = None,
        known: Mapping[float, float] | None = None,
    ) -> None:
        self._values = known or {}
        self._value_and_grad, self._value = value_and_grad, value
        self.theta, self.direction = theta, direction
        self._curvature = curvature
        slope = float((gradient * direction).double().sum())
        self.origin = LinePoint(step=0.0, value=start, slope=slope)
        self.rounding = 8 * torch.finfo(theta.dtype).eps * abs(start)
        self._known: tuple[LinePoint, Tensor, Tensor] | None = None

    def point(self, step: float) -> Float[Tensor, " P"]:
        """Compute θ + a p."""
        return self.theta + step * self.direction

    def value(self, step: float) -> LinePoint:
        """Compute φ(a) alone."""
        found = self._values.get(step)
        found = float(self._value(self.point(step))) if found is None else found
        known = found if math.isfinite(found) else math.inf
        return LinePoint(step=step, value=known, slope=math.nan)

    def slope(self, step: float) -> LinePoint:
        """Compute φ(a) and φ'(a); the gradient is kept for `gradient`."""
        value, gradient = self._value_and_grad(self.point(step))
        finite = bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())
        trial = LinePoint(
            step=step,
            value=float(value) if finite else math.inf,
            slope=float((gradient * self.direction).double().sum()) if finite else math.nan,
        )
        self._known = (trial, value, gradient)
        return trial

    def curvature(self) -> float:
        """Compute φ''(0); NaN where there is no Hessian to ask."""
        return math.nan if self._curvature is None else self._curvature(self.direction)

    def gradient(self, step: float) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """Give value and gradient at θ + a p, kept if they were the last asked for."""
        if self._known is None or self._known[0].step != step:
            self.slope(step)
        assert self._known is not None
        return self._known[1], self._known[2]


class LineSearch(abc.ABC):
    """Find how far to go along a line."""

    downhill: ClassVar[bool] = True
    """Tells whether the line must lead downhill."""

    @abc.abstractmethod
    def search(self, line: Line, first: float) -> LineStep:
        """Find a step.

        Args:
            line: A line that leads downhill.
            first: The first step tried, positive.
        """

    @abc.abstractmethod
    def resume(self, step: float, ratio: float) -> float | None:
        """Give the first trial after a search that found `step`; None for the learning rate again.

        Args:
            step: The last step.
            ratio: Last slope over the present one, which makes first-order changes equal
                [Nocedal and Wright 2006, equation 3.60].
        """


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(LineSearch):
    """Take the first step as it is, whatever it does to the function, unless that is not finite."""

    def resume(self, step: float, ratio: float) -> float | None:
        """Begin with the learning rate again."""
        return None

    def search(self, line: Line, first: float) -> LineStep:
        """Ask for one value."""
        trial = line.value(first)
        if math.isinf(trial.value):
            return _nothing(line, "non-finite")
        return _found(trial, "ok")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Backtracking(LineSearch):
    """Shorten steps until φ(a) ≤ φ(0) + c a φ'(0) (Armijo's rule).

    Attributes:
        sufficient: c, in (0, ½] so that the minimiser of a quadratic passes.
        shrink: Least and most that is left of a step: the next trial is the minimiser of the
            parabola through what is known, kept within these fractions.
        max_trials: Most values asked for.

    Source: Armijo 1966; Nocedal and Wright 2006, Numerical Optimization, §3.1 and §3.5.
    """

    sufficient: float = 1e-4
    shrink: tuple[float, float] = (0.1, 0.5)
    max_trials: int = 30

    def __post_init__(self) -> None:
        if not 0 < self.sufficient <= 0.5:
            raise ValueError(f"sufficient lies in (0, 1/2], got {self.sufficient}")
        low, high = self.shrink
        if not 0 < low <= high < 1:
            raise ValueError(f"shrink is two fractions 0 < low <= high < 1, got {self.shrink}")
        _check_trials(self.max_trials)

    def resume(self, step: float, ratio: float) -> float | None:
        """Begin with twice the last step, since trials never grow."""
        return 2 * step

    def search(self, line: Line, first: float) -> LineStep:
        """Ask for values only."""
        origin, step = line.origin, first
        for _ in range(self.max_trials):
            trial = line.value(step)
            if trial.value <= origin.value + self.sufficient * step * origin.slope:
                return _found(trial, "ok")
            if trial.value <= origin.value and -origin.slope * step <= line.rounding:
                return _found(trial, "rounding")
            excess = trial.value - origin.value - step * origin.slope
            curved = math.isfinite(excess) and excess > 0
            share = -origin.slope * step / (2 * excess) if curved else 0.0
            step *= min(max(share, self.shrink[0]), self.shrink[1])
        return _nothing(line, "max-evaluations")


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class StrongWolfe(LineSearch):
    """φ(a) ≤ φ(0) + c₁ a φ'(0) and |φ'(a)| ≤ c₂ |φ'(0)|: far enough, and not too far.

    A bracket grows until it holds such a point, then shrinks onto it by cubic interpolation. Near a
    minimum, where differences of values drown in rounding, the first condition is replaced by its
    equivalent in slopes, φ'(a) ≤ (2c₁ − 1) φ'(0) (status "rounding").

    Attributes:
        sufficient: c₁, in (0, ½).
        curvature: c₂, in (c₁, 1): 0.9 for quasi-Newton directions, 0.1 for conjugate gradients.
        max_trials: Most gradients asked for.
        longest: Largest step, as a multiple of the first trial.

    Source: Nocedal and Wright 2006, Numerical Optimization, Algorithms 3.5 and 3.6; Hager and Zhang
    2005, A new conjugate gradient method with guaranteed descent, §4 (approximate conditions).
    """

    sufficient: float = 1e-4
    curvature: float = 0.9
    max_trials: int = 40
    longest: float = 1e10

    def __post_init__(self) -> None:
        if not 0 < self.sufficient < self.curvature < 1 or self.sufficient >= 0.5:
            raise ValueError(
                "need 0 < sufficient < curvature < 1 and sufficient < 1/2, got "
                f"{self.sufficient} and {self.curvature}"
            )
        if not self.longest >= 1:
            raise ValueError(f"longest is a multiple of the first step, got {self.longest}")
        _check_trials(self.max_trials)

    def resume(self, step: float, ratio: float) -> float | None:
        """Begin where the slopes say, at a tenth to ten times the last step."""
        return step * min(max(ratio, 0.1), 10.0)

    def search(self, line: Line, first: float) -> LineStep:
        """Ask for a gradient at every trial."""
        origin = line.origin
        low, high = origin, None
        step, last_width = first, math.inf
        best = origin
        for _ in range(self.max_trials):
            trial = line.slope(step)
            if trial.value < best.value:
                best = trial
            if (status := self._accepts(line, trial)) is not None:
                return _found(trial, status)
            too_long = not math.isfinite(trial.value) or not self._falls(line, trial)
            if too_long or (low.step > 0 and trial.value >= low.value + line.rounding):
                high = trial
            else:
                ahead = (high.step if high is not None else math.inf) > low.step
                if trial.slope * (1.0 if ahead else -1.0) >= 0:
                    high = low
                low = trial
            if high is None:
                if step >= self.longest * first:
                    return _found(best, "unbounded")
                step = min(_extrapolated(origin, trial), self.longest * first)
                continue
            width = abs(high.step - low.step)
            if width <= 4e-16 * max(abs(low.step), abs(high.step)):
                break
            step = _inside(low, high, halve=width > 0.66 * last_width)
            last_width = width
        if best.step > 0:
            return _found(best, "max-evaluations")
        finite = high is None or math.isfinite(high.value)
        return _nothing(line, "max-evaluations" if finite else "non-finite")

    def _falls(self, line: Line, trial: LinePoint) -> bool:
        """Check the first condition, in values or, where these cannot tell, in slopes."""
        origin = line.origin
        if trial.value <= origin.value + self.sufficient * trial.step * origin.slope:
            return True
        return (
            abs(trial.value - origin.value) <= line.rounding
            and trial.slope <= (2 * self.sufficient - 1) * origin.slope
        )

    def _accepts(self, line: Line, trial: LinePoint) -> SearchStatus | None:
        origin = line.origin
        if not abs(trial.slope) <= -self.curvature * origin.slope:
            return None
        if trial.value <= origin.value + self.sufficient * trial.step * origin.slope:
            return "ok"
        return "rounding" if self._falls(line, trial) else None


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact(LineSearch):
    """The first minimiser along the line, where φ' changes its sign.

    Begins with −φ'(0)/φ''(0) if the Hessian can be asked (one product), which on a quadratic is the
    end; then false position on the slopes.

    Attributes:
        tol: |φ'(a)| relative to |φ'(0)| at which it ends.
        max_trials: Most gradients asked for.
        longest: Largest step, as a multiple of the first trial.
    """

    tol: float = 1e-10
    max_trials: int = 100
    longest: float = 1e10

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise ValueError(f"tol is a relative slope in (0, 1), got {self.tol}")
        if not self.longest >= 1:
            raise ValueError(f"longest is a multiple of the first step, got {self.longest}")
        _check_trials(self.max_trials)

    def resume(self, step: float, ratio: float) -> float | None:
        """Begin where the slopes say; of use where there is no Hessian."""
        return step * min(max(ratio, 0.1), 10.0)

    def search(self, line: Line, first: float) -> LineStep:
        """Ask for a gradient at every trial, and a product with the Hessian."""
        low, high = line.origin, None
        curvature = line.curvature()
        longest = self.longest * first
        step = first
        if curvature > 0 and -low.slope <= longest * curvature:
            step = -low.slope / curvature
        # Slopes of nearby points cannot be told apart better than this.
        floor = max(self.tol, 64 * torch.finfo(line.theta.dtype).eps) * abs(low.slope)
        falling, rising, last = low.slope, math.nan, ""
        for _ in range(self.max_trials):
            trial = line.slope(step)
            if abs(trial.slope) <= floor and trial.value <= line.origin.value + line.rounding:
                return _found(trial, "ok")
            higher = trial.value > low.value + line.rounding
            if trial.slope < 0 and not higher:
                # An end that stays twice counts half the next time (the Illinois rule).
                rising = rising / 2 if last == "low" else rising
                low, falling, last = trial, trial.slope, "low"
            else:
                falling = falling / 2 if last == "high" else falling
                high, rising, last = trial, trial.slope, "high"
            if high is None:
                if step >= longest:
                    return _found(low, "unbounded")
                step *= 4.0
                continue
            if high.step - low.step <= 4e-16 * high.step:
                break
            share = -falling / (rising - falling) if rising > 0 else 0.5
            share = share if math.isfinite(high.value) else 0.1
            step = low.step + share * (high.step - low.step)
        finite = high is None or math.isfinite(high.value)
        if low.step > 0:
            return _found(low, "rounding" if finite else "max-evaluations")
        return _nothing(line, "max-evaluations" if finite else "non-finite")


def _inside(low: LinePoint, high: LinePoint, *, halve: bool) -> float:
    """Choose a point well inside a bracket: minimiser of cubic or parabola, or the middle."""
    width = high.step - low.step
    share = 0.5
    if not halve and math.isfinite(high.value):
        if math.isfinite(high.slope):
            a = low.slope + high.slope - 3 * (high.value - low.value) / width
            root = a * a - low.slope * high.slope
            if root >= 0:
                turn = math.copysign(math.sqrt(root), width)
                below = high.slope - low.slope + 2 * turn
                share = 1 - (high.slope + turn - a) / below if below else 0.5
        else:
            excess = high.value - low.value - low.slope * width
            share = -low.slope * width / (2 * excess) if excess > 0 else 0.5
    if not math.isfinite(share):
        share = 0.5
    return low.step + min(max(share, 0.1), 0.9) * width


def _extrapolated(origin: LinePoint, trial: LinePoint) -> float:
    """Lengthen a step two to ten times, to where the slope would vanish if it went on so."""
    fall = trial.slope - origin.slope
    ahead = -origin.slope / fall * trial.step if fall > 0 else math.inf
    return min(max(ahead, 2 * trial.step), 10 * trial.step)


def _found(trial: LinePoint, status: SearchStatus) -> LineStep:
    return LineStep(step=trial.step, value=trial.value, slope=trial.slope, status=status)


def _nothing(line: Line, status: SearchStatus) -> LineStep:
    return LineStep(step=0.0, value=line.origin.value, slope=line.origin.slope, status=status)


def _check_trials(count: int) -> None:
    if count < 1:
        raise ValueError(f"max_trials must be at least 1, got {count}")


SEARCHES: dict[str, type[LineSearch]] = {
    "constant": Constant,
    "backtracking": Backtracking,
    "strong-wolfe": StrongWolfe,
    "exact": Exact,
}
"""The line searches by name, each with defaults for all settings."""

SearchName = Literal["backtracking", "strong-wolfe", "exact", "constant"]
"""Names of line searches."""

Search = SearchName | LineSearch
"""Forms of a line search: a name, or a search with settings of its own."""


def as_search(search: Search) -> LineSearch:
    """Give a line search by its name.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor a `LineSearch`.
    """
    if isinstance(search, LineSearch):
        return search
    if not isinstance(search, str):
        raise TypeError(f"search is a name or a LineSearch, got {type(search).__name__}")
    if search not in SEARCHES:
        raise ValueError(f"unknown line search {search!r}; choose from {', '.join(SEARCHES)}")
    return SEARCHES[search]()
