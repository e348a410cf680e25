"""A plane through parameter space, the values on it, and what proves them right."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields, frozen_array
from kobai.results.look import Look
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class Check:
    """One self-check: a number that had to stay within a tolerance.

    Attributes:
        name: Short name, such as ``centre``.
        passed: Whether it did.
        value: The number found.
        tolerance: The bound on it.
        detail: What was compared with what.
    """

    name: str
    passed: bool
    value: float
    tolerance: float
    detail: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("value", "tolerance"), booleans=("passed",))


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """The path of one run, projected on a plane.

    Attributes:
        label: Name of the run.
        coordinates: (T, 2) orthogonal projection, in units of the two directions.
        off_plane: (T,) Euclidean distance from the plane in parameter space.
        loss: (T,) true loss at the points of the path (not at their projections).
        optimizer: Optimizer of the run; empty: the first word of the label.
    """

    label: str
    coordinates: Float[np.ndarray, "T 2"]
    off_plane: Float[np.ndarray, "T"]
    loss: Float[np.ndarray, "T"]
    optimizer: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, arrays={"coordinates": "f T 2", "off_plane": "f T", "loss": "f T"})


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Plane:
    """Scalar fields on the grid θ₀ + a d₁ + b d₂.

    Attributes:
        label: Name of the plane.
        kind: How its directions were chosen: ``random``, ``between``, ….
        a: (A,) coordinates along the first direction, increasing.
        b: (B,) coordinates along the second direction, increasing.
        axis_names: What the two axes are.
        fields: Field name (``loss``, ``accuracy``, …) to (A, B) values: first index a, second b;
            NaN or infinite where the value is not finite.
        direction_norms: (2,) Euclidean norms of the two directions.
        cosine: Cosine of the angle between them.
        origin: Label of the run whose end lies at (0, 0).
        trajectories: Paths projected on the plane.
        points: Label to (2,) coordinates of points worth marking.
        checks: Self-checks of this plane.
        seconds: Time it took, in seconds.
        note: Anything worth saying.
        looks: Optimizer → its look in figures, of those that led to paths and points.
    """

    label: str
    kind: str
    a: Float[np.ndarray, "A"]
    b: Float[np.ndarray, "B"]
    axis_names: tuple[str, str]
    fields: dict[str, Float[np.ndarray, "A B"]]
    direction_norms: Float[np.ndarray, "2"]
    cosine: float
    origin: str
    trajectories: tuple[Trajectory, ...] = ()
    points: dict[str, Float[np.ndarray, "2"]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    seconds: float = float("nan")
    note: str = ""
    looks: dict[str, Look] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"a": "f A", "b": "f B", "direction_norms": "f 2"},
            floats=("cosine", "seconds"),
        )
        for name in ("a", "b"):
            axis = getattr(self, name)
            if len(axis) < 2 or not np.all(np.isfinite(axis)) or np.any(np.diff(axis) <= 0):
                raise ValueError(f"Plane.{name} must be at least two finite, increasing numbers")
        if len(self.axis_names) != 2:
            raise ValueError(f"Plane.axis_names must be two names; got {self.axis_names!r}")
        shape = (len(self.a), len(self.b))
        object.__setattr__(self, "axis_names", tuple(self.axis_names))
        object.__setattr__(self, "fields", _mapping("fields", self.fields, shape))
        object.__setattr__(self, "points", _mapping("points", self.points, (2,)))
        object.__setattr__(self, "trajectories", tuple(self.trajectories))
        object.__setattr__(self, "checks", tuple(self.checks))


def _mapping(owner: str, values: dict, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    frozen = {}
    for name, value in values.items():
        array = frozen_array(value)
        if array.shape != shape:
            raise ValueError(
                f"Plane.{owner}[{name!r}] has shape {array.shape}; expected {shape}"
                + (" (first index a, second b)" if owner == "fields" else "")
            )
        frozen[name] = array
    return frozen
