"""Domains of hyperparameters: the kinds of values a search can try, as text and as objects.

A domain says what may be tried and how distance is measured there; other modules draw from it.
`str` of a domain and `parse_domain` are inverse to each other, so that a search space can stand in
a settings file and on the command line.
"""

import ast
import dataclasses
import math
import re
from typing import Any, final

Value = float | int | str | bool | None


@final
@dataclasses.dataclass(frozen=True)
class Log:
    """A positive number, searched in its logarithm.

    Attributes:
        low: Smallest value, positive.
        high: Largest value.

    Raises:
        ValueError: If the interval is empty or reaches zero.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_interval(self, self.low, self.high)
        if self.low <= 0:
            raise ValueError(f"{self}: a logarithmic interval starts above zero; take linear(...)")

    def __str__(self) -> str:
        return f"log({self.low!r}, {self.high!r})"


@final
@dataclasses.dataclass(frozen=True)
class Linear:
    """A number in an interval.

    Attributes:
        low: Smallest value.
        high: Largest value.

    Raises:
        ValueError: If the interval is empty.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_interval(self, self.low, self.high)

    def __str__(self) -> str:
        return f"linear({self.low!r}, {self.high!r})"


@final
@dataclasses.dataclass(frozen=True)
class Integer:
    """A whole number in an interval, both ends included.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether distance is measured in the logarithm.

    Raises:
        ValueError: If the interval is empty or, searched in the logarithm, starts below one.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"{self}: the interval is empty; give low ≤ high")
        if self.log and self.low < 1:
            raise ValueError(f"{self}: a logarithmic interval of whole numbers starts at 1 or more")

    def __str__(self) -> str:
        return f"integer({self.low}, {self.high}{', log' if self.log else ''})"


@final
@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several values without an order.

    Attributes:
        values: The values, at least one, none twice.

    Raises:
        ValueError: If there is none, or one twice.
    """

    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("choice(): give at least one value")
        if len(set(map(repr, self.values))) != len(self.values):
            raise ValueError(f"{self}: a value stands there twice")

    def __str__(self) -> str:
        return f"choice({', '.join(map(repr, self.values))})"


@final
@dataclasses.dataclass(frozen=True)
class Fixed:
    """One value: nothing to search.

    Attributes:
        value: The value.
    """

    value: Value

    def __str__(self) -> str:
        return f"fixed({self.value!r})"


@final
@dataclasses.dataclass(frozen=True)
class When:
    """A domain that exists only for some values of another hyperparameter.

    Attributes:
        field: The other hyperparameter.
        values: Its values for which this one is searched; otherwise it keeps its default.
        domain: What is searched then.
    """

    field: str
    values: tuple[Value, ...]
    domain: "Log | Linear | Integer | Choice"

    def __str__(self) -> str:
        return f"when({self.field}, ({', '.join(map(repr, self.values))},), {self.domain})"


Domain = Log | Linear | Integer | Choice | Fixed | When


def parse_domain(text: str) -> Domain:
    """Read a domain from its text.

    Args:
        text: ``log(1e-4, 1)``, ``linear(0, 0.99)``, ``integer(1, 100)``, ``integer(1, 100, log)``,
            ``choice('a', 'b')``, ``fixed(0.9)``, ``when(labels, ('exact',), log(1e-3, 1))``, or a
            plain value, which is fixed.

    Raises:
        ValueError: If it is none of these.
    """
    text = text.strip()
    match = re.fullmatch(r"(log|linear|integer|choice|fixed|when)\s*\((.*)\)", text, re.DOTALL)
    if match is None:
        return Fixed(_literal(text, text))
    kind, inside = match.groups()
    if kind == "when":
        return _conditional(inside, text)
    if kind == "integer" and re.search(r",\s*log\s*$", inside):
        low, high = _numbers(re.sub(r",\s*log\s*$", "", inside), text)
        return Integer(_whole(low, text), _whole(high, text), log=True)
    if kind in ("log", "linear", "integer"):
        low, high = _numbers(inside, text)
        if kind == "integer":
            return Integer(_whole(low, text), _whole(high, text))
        return (Log if kind == "log" else Linear)(float(low), float(high))
    values = tuple(_literal(part.strip(), text) for part in inside.split(",") if part.strip())
    if kind == "fixed":
        if len(values) != 1:
            raise ValueError(f"{text!r}: fixed(...) takes one value")
        return Fixed(values[0])
    return Choice(values)


def _check_interval(domain: Log | Linear, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{domain}: give two finite numbers, the smaller one first")


def _conditional(inside: str, text: str) -> When:
    match = re.fullmatch(r"\s*([\w.]+)\s*,\s*(\(.*?\))\s*,\s*(\w+\(.*\))\s*", inside, re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r}: write when(FIELD, (VALUE, …), DOMAIN)")
    domain = parse_domain(match[3])
    if isinstance(domain, (Fixed, When)):
        raise ValueError(f"{text!r}: a condition holds an interval or a choice")
    values = _literal(match[2], text)
    return When(match[1], values if isinstance(values, tuple) else (values,), domain)


def _literal(text: str, whole: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        # A bare word is text, as on a command line.
        if re.fullmatch(r"[\w-]+", text):
            return text
        raise ValueError(
            f"{whole!r} is no search domain; write log(LOW, HIGH), linear(LOW, HIGH), "
            "integer(LOW, HIGH), choice(A, B, …) or one value"
        ) from None


def _numbers(inside: str, text: str) -> tuple[float, float]:
    values = _literal(f"({inside},)", text)
    good = len(values) == 2 and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    )
    if not good:
        raise ValueError(f"{text!r}: give two numbers, the smaller one first")
    return values


def _whole(value: float, text: str) -> int:
    if value != int(value):
        raise ValueError(f"{text!r}: {value} is no whole number")
    return int(value)
