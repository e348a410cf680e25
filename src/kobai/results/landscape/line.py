"""A line through parameter space and the values on it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields, frozen_array
from kobai.results.landscape.plane import Check
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """Scalar fields on θ₀ + a d.

    Attributes:
        label: Name of the line.
        kind: How its direction was chosen: ``random``, ``between``, ….
        a: (A,) coordinates, increasing.
        axis_name: What the axis is.
        fields: Field name to (A,) values; NaN or infinite where the value is not finite.
        direction_norm: Euclidean norm of the direction.
        origin: What lies at coordinate zero.
        points: Label to coordinate of points worth marking.
        checks: Self-checks.
        seconds: Time it took, in seconds.
        note: Anything worth saying.
    """

    label: str
    kind: str
    a: Float[np.ndarray, "A"]
    axis_name: str
    fields: dict[str, Float[np.ndarray, "A"]]
    direction_norm: float
    origin: str
    points: dict[str, float] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    seconds: float = float("nan")
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, arrays={"a": "f A"}, floats=("direction_norm", "seconds"))
        if len(self.a) < 2 or not np.all(np.isfinite(self.a)) or np.any(np.diff(self.a) <= 0):
            raise ValueError("Line.a must be at least two finite, increasing numbers")
        frozen = {name: frozen_array(values) for name, values in self.fields.items()}
        for name, values in frozen.items():
            if values.shape != self.a.shape:
                raise ValueError(
                    f"Line.fields[{name!r}] has shape {values.shape}; expected {self.a.shape}"
                )
        object.__setattr__(self, "fields", frozen)
        object.__setattr__(self, "points", {n: float(p) for n, p in self.points.items()})
        object.__setattr__(self, "checks", tuple(self.checks))
