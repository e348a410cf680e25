"""A line through parameter space and the values on it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from kobai.results import Check, register


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
        arrays = {"a": self.a, **{f"fields[{name!r}]": v for name, v in self.fields.items()}}
        for name, values in arrays.items():
            if values.shape != self.a.shape or values.ndim != 1:
                raise ValueError(f"Line.{name} has shape {values.shape}; expected {self.a.shape}")
        object.__setattr__(self, "a", _frozen(self.a))
        object.__setattr__(self, "fields", {n: _frozen(v) for n, v in self.fields.items()})
        object.__setattr__(self, "checks", tuple(self.checks))


def _frozen(values: np.ndarray) -> np.ndarray:
    copy = np.array(values, dtype=np.float64)
    copy.setflags(write=False)
    return copy
