"""The shape of a landscape in numbers: smoothness, asymmetry, many planes, ways between minima."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields, frozen_array
from kobai.results.landscape.plane import Plane
from kobai.results.registry import register

MEASURES = (
    "curvature_low",
    "curvature_high",
    "roughness",
    "nonconvex",
    "radius",
    "steepness",
    "asymmetry",
    "anisotropy",
)
"""The numbers of `Smoothness`, in the order of its attributes."""


@register
@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """Numbers for "smoother", "sharper" and "less symmetric"; definitions in `landscape`.

    Attributes:
        label: Label of the plane.
        field: Which of its fields.
        epsilon: Height of the sublevel set above the centre, in the field's units.
        curvature_low: Least curvature over the plane, per squared distance.
        curvature_high: Largest curvature.
        roughness: Curvature range times mean squared half-width over twice the range of the field:
            no unit, so that networks can be compared; 0 for a round bowl.
        nonconvex: Share of the area where the surface bends down in some direction.
        radius: Radius of the disc as large as the sublevel set around the centre, a distance.
        steepness: ε / radius: mean ascent out of the basin.
        asymmetry: Share of the field above its centre that is odd under reflection in the centre.
        anisotropy: Spread of the field around circles about the centre, over its mean there.
        unit: Root mean square of the directions' norms: the distance that one unit of the plane's
            coordinates is.
        cut_off: Whether the sublevel set reaches the edge, so that `radius` is a lower bound.
        missing: Nodes that are not finite; they are left out.
        note: Anything worth saying.
    """

    label: str
    field: str
    epsilon: float
    curvature_low: float
    curvature_high: float
    roughness: float
    nonconvex: float
    radius: float
    steepness: float
    asymmetry: float
    anisotropy: float
    unit: float = 1.0
    cut_off: bool = False
    missing: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(
            self, floats=("epsilon", *MEASURES), booleans=("cut_off",), integers=("missing",)
        )

    @property
    def relative_radius(self) -> float:
        """Radius in the plane's own coordinates, such as shares of each filter's norm."""
        return self.radius / self.unit

    @property
    def relative_steepness(self) -> float:
        """Mean ascent out of the basin per unit of the plane's own coordinates."""
        return self.steepness * self.unit


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """One field on many random planes through one point, and its quantiles.

    Attributes:
        label: Name of the point.
        field: Which field.
        a: (A,) coordinates along the first direction of each plane.
        b: (B,) along the second.
        values: (M, A, B) the field on each of M planes.
        levels: (Q,) levels of the quantiles, in (0, 1), increasing.
        quantiles: (Q, A, B) over the planes at every node; NaN where a plane is not finite.
        smoothness: One a plane.
        note: How the planes were drawn.
    """

    label: str
    field: str
    a: Float[np.ndarray, "A"]
    b: Float[np.ndarray, "B"]
    values: Float[np.ndarray, "M A B"]
    levels: Float[np.ndarray, "Q"]
    quantiles: Float[np.ndarray, "Q A B"]
    smoothness: tuple[Smoothness, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "a": "f A", "b": "f B", "values": "f M A B", "levels": "f Q",
                "quantiles": "f Q A B",
            },
        )  # fmt: skip
        object.__setattr__(self, "smoothness", tuple(self.smoothness))

    def measure(self, name: str) -> Float[np.ndarray, " M"]:
        """One of `MEASURES` on every plane.

        Raises:
            ValueError: If there is no such measure.
        """
        if name not in MEASURES:
            raise ValueError(f"there is no measure {name!r}; there are {', '.join(MEASURES)}")
        return np.array([getattr(entry, name) for entry in self.smoothness])

    def rays(self) -> Float[np.ndarray, "L A"]:
        """The field along the axes of all planes, where both axes have the same coordinates.

        Raises:
            ValueError: If the axes differ, or do not hold 0.
        """
        zero_a, zero_b = np.flatnonzero(self.a == 0), np.flatnonzero(self.b == 0)
        if not len(zero_a) or not len(zero_b) or not np.array_equal(self.a, self.b):
            raise ValueError("rays need equal axes through 0; choose odd, symmetric ones")
        along = (self.values[:, :, zero_b[0]], self.values[:, zero_a[0], :])
        return frozen_array(np.concatenate(along))


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Connection:
    """The loss on the way from one solution to another: straight, and along a trained curve.

    Attributes:
        label: Name of the pair.
        t: (T,) from 0 (start) to 1 (end).
        straight: (T,) loss on the straight line.
        curve: (T,) loss on the curve.
        straight_barrier: Largest height above the straight line between the two losses.
        curve_barrier: The same on the curve.
        distance: Length of the straight line.
        length: Length of the curve.
        losses: (S,) loss of every training step: mean over its points of the curve.
        status: ``finished`` or ``diverged``.
        note: Anything worth saying.
    """

    label: str
    t: Float[np.ndarray, "T"]
    straight: Float[np.ndarray, "T"]
    curve: Float[np.ndarray, "T"]
    straight_barrier: float
    curve_barrier: float
    distance: float
    length: float
    losses: Float[np.ndarray, "S"]
    status: str = "finished"
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"t": "f T", "straight": "f T", "curve": "f T", "losses": "f S"},
            floats=("straight_barrier", "curve_barrier", "distance", "length"),
        )


@register
@dataclass(frozen=True, kw_only=True)
class MovingFrame:
    """Small planes that follow a path, each through one of its points.

    Attributes:
        label: Name of the run.
        steps: Index of the point of the path that each frame is centred on.
        frames: The planes; first axis along the path, second across it.
    """

    label: str
    steps: tuple[int, ...]
    frames: tuple[Plane, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(int(step) for step in self.steps))
        object.__setattr__(self, "frames", tuple(self.frames))
        if len(self.steps) != len(self.frames):
            raise ValueError(f"{len(self.frames)} frames need as many steps, got {len(self.steps)}")
