"""Numbers made visible: short spellings, contour levels, clipping, the accuracy axis."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def spell(value: float, digits: int = 3) -> str:
    """A number as a person writes it: ``0.0123``, ``1,230``, ``1.2×10⁻⁷``, ``∞``.

    Args:
        value: The number.
        digits: Significant digits.

    Returns:
        The text; ``–`` for NaN.
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if -4 <= exponent < max(digits, 5):
        text = f"{rounded:,.{max(digits - 1 - exponent, 0)}f}"
    else:
        mantissa = f"{rounded / 10.0**exponent:.{digits - 1}f}"
        text = f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "−")


def tick(value: float) -> str:
    """The shortest spelling of a round number, for axis ticks and contour labels."""
    text = spell(value, 4)
    head, times, tail = text.partition("×")
    if "." in head:
        head = head.rstrip("0").rstrip(".")
    if head in {"1", "−1"} and times:
        return f"{head.removesuffix('1')}{tail}"
    return head + times + tail


@dataclass(frozen=True, kw_only=True)
class Range:
    """How a field is mapped to colour or height.

    Attributes:
        low: Least finite value.
        high: Largest value shown.
        log: Whether equal ratios are equal steps.
        clipped: Number of finite values above ``high``, shown as ``high``.
        missing: Number of values that are not finite.
        largest: Largest finite value.
    """

    low: float
    high: float
    log: bool
    clipped: int
    missing: int
    largest: float

    def sentence(self, field: str, shown_as: str) -> str:
        """What the reader must know about clipping and missing values; empty when nothing.

        Args:
            field: The field in words.
            shown_as: How values that are not finite are drawn, such as ``hatched``.

        Returns:
            The text, without a full stop.
        """
        parts = []
        if self.clipped:
            parts.append(
                f"{field} clipped at {spell(self.high)} ({self.clipped} "
                f"{'value' if self.clipped == 1 else 'values'} above, up to {spell(self.largest)})"
            )
        if self.missing:
            parts.append(
                f"{self.missing} {'value is' if self.missing == 1 else 'values are'} not finite "
                f"({shown_as})"
            )
        return " · ".join(parts)


def field_range(
    values: Float[np.ndarray, "A B"], *, log: bool | None = None, clip: float | None = None
) -> Range:
    """Decide how to show a field.

    Without ``clip``, values are clipped only when the largest exceeds 30 times the 95th
    percentile (both above the minimum), and then at twice that percentile: a few exploding
    corners would otherwise flatten everything else. Without ``log``, positive fields that span
    more than a factor of 5 are shown in logarithm.

    Args:
        values: The field; may hold NaN and infinities.
        log: Logarithmic or not; by the rule when None. A field with values ≤ 0 is never.
        clip: Largest value to show; by the rule when None.

    Returns:
        The decision.

    Raises:
        ValueError: No value is finite, or ``clip`` is not above the least value.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no value of this field is finite; there is nothing to draw")
    low, largest = float(finite.min()), float(finite.max())
    high = largest
    if clip is not None:
        if not clip > low:
            raise ValueError(f"clip={clip} is not above the least value {low:.4g}")
        high = min(float(clip), largest)
    else:
        body = float(np.quantile(finite, 0.95))
        if largest - low > 30 * (body - low) > 0:
            high = low + 2 * (body - low)
            high = max(high, float(f"{high:.1e}"))
    positive = low > 0
    use_log = positive and (high > 5 * low if log is None else log)
    return Range(
        low=low,
        high=high if high > low else low + max(abs(low), 1.0) * 1e-6,
        log=use_log,
        clipped=int((finite > high).sum()),
        missing=int(values.size - finite.size),
        largest=largest,
    )


def contour_levels(low: float, high: float, *, log: bool, count: int = 9) -> Float[np.ndarray, "K"]:
    """Round levels strictly between two values, about ``count`` of them.

    Args:
        low: Least value.
        high: Largest value.
        log: Levels at 1, 2, 5 × powers of ten (thinned or refined to the count), else equal steps.
        count: How many to aim at.

    Returns:
        Increasing levels; at least one unless the interval is empty.
    """
    if not high > low:
        return np.empty(0)
    if log and high / low > 10 ** (count / 9):
        menus = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        options = [
            [m * 10.0**d for d in decades for m in menu if low < m * 10.0**d < high]
            for menu in menus
        ]
        best = min(options, key=lambda levels: abs(len(levels) - count))
        return np.array(best[:: max(1, round(len(best) / count))])
    step = _round_step((high - low) / count)
    levels = np.arange(math.floor(low / step), math.ceil(high / step) + 1) * step
    levels = levels[(levels > low) & (levels < high)]
    return levels if levels.size else np.array([(low + high) / 2])


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= step * 0.999)


_ACCURACIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0)


@dataclass(frozen=True, kw_only=True)
class AccuracyAxis:
    """An axis on which halving the error is always the same step; 100 % stays finite.

    Attributes:
        floor: Error at which the axis bends towards 100 %: half the least positive error.
    """

    floor: float

    def forward(self, accuracy: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Accuracy to position: −log₁₀(1 − accuracy + floor)."""
        return np.asarray(-np.log10(np.maximum(1 - np.asarray(accuracy), 0.0) + self.floor))

    def inverse(self, position: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Position to accuracy."""
        return np.asarray(1 + self.floor - 10.0 ** -np.asarray(position, dtype=float))

    def ticks(self, low: float, high: float) -> list[float]:
        """Round accuracies between two, none closer than a tenth of the axis to the next."""
        inside = [value for value in _ACCURACIES if low <= value <= high]
        span = float(self.forward(np.array(high)) - self.forward(np.array(low)))
        kept: list[float] = []
        for value in reversed(inside):
            gap = span / 10
            where = float(self.forward(np.array(value)))
            if not kept or float(self.forward(np.array(kept[-1]))) - where >= gap:
                kept.append(value)
        return kept[::-1]


def accuracy_axis(values: Float[np.ndarray, "K"]) -> AccuracyAxis | None:
    """The axis for these accuracies, or None where a plain one does better.

    Args:
        values: Every accuracy that will be drawn; NaN is skipped.

    Returns:
        The axis when the best accuracy exceeds 90 %.
    """
    finite = values[np.isfinite(values)]
    if not finite.size or finite.max() <= 0.9:
        return None
    errors = 1 - finite[finite < 1]
    least = float(errors.min()) if errors.size else 0.01
    return AccuracyAxis(floor=max(least / 2, 1e-6))


def percent(value: float) -> str:
    """An accuracy tick: ``99.5 %``."""
    return f"{100 * value:.4g} %"
