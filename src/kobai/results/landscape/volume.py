"""A box of parameter space along three directions and the values in it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields, frozen_array
from kobai.results.landscape.plane import Check, Plane
from kobai.results.registry import register

_AXES = ("a", "b", "c")


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """Scalar fields on the grid θ₀ + a d₁ + b d₂ + c d₃.

    Attributes:
        label: Name of the volume.
        kind: How its directions were chosen.
        a: (A,) coordinates along the first direction, increasing.
        b: (B,) coordinates along the second.
        c: (C,) coordinates along the third.
        axis_names: What the three axes are.
        fields: Field name to (A, B, C) values; NaN or infinite where the value is not finite.
        direction_norms: (3,) Euclidean norms of the directions.
        cosines: (3, 3) cosines between them, ones on the diagonal.
        origin: What lies at (0, 0, 0).
        points: Label to (3,) coordinates of points worth marking.
        checks: Self-checks.
        seconds: Time it took, in seconds.
        note: Anything worth saying.
    """

    label: str
    kind: str
    a: Float[np.ndarray, "A"]
    b: Float[np.ndarray, "B"]
    c: Float[np.ndarray, "C"]
    axis_names: tuple[str, str, str]
    fields: dict[str, Float[np.ndarray, "A B C"]]
    direction_norms: Float[np.ndarray, "3"]
    cosines: Float[np.ndarray, "3 3"]
    origin: str
    points: dict[str, Float[np.ndarray, "3"]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    seconds: float = float("nan")
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "a": "f A", "b": "f B", "c": "f C", "direction_norms": "f 3", "cosines": "f 3 3",
            },
            floats=("seconds",),
        )  # fmt: skip
        for name in _AXES:
            axis = getattr(self, name)
            if len(axis) < 2 or not np.all(np.isfinite(axis)) or np.any(np.diff(axis) <= 0):
                raise ValueError(f"Volume.{name} must be at least two finite, increasing numbers")
        if len(self.axis_names) != 3:
            raise ValueError(f"Volume.axis_names must be three names; got {self.axis_names!r}")
        shape = tuple(len(getattr(self, name)) for name in _AXES)
        for owner, expected in (("fields", shape), ("points", (3,))):
            frozen = {n: frozen_array(values) for n, values in getattr(self, owner).items()}
            for name, values in frozen.items():
                if values.shape != expected:
                    raise ValueError(
                        f"Volume.{owner}[{name!r}] has shape {values.shape}; expected {expected}"
                    )
            object.__setattr__(self, owner, frozen)
        object.__setattr__(self, "axis_names", tuple(self.axis_names))
        object.__setattr__(self, "checks", tuple(self.checks))

    def slice(self, axis: str, index: int) -> Plane:
        """The plane of nodes at one coordinate of an axis, with the other two as its axes.

        Args:
            axis: "a", "b" or "c".
            index: Which node along it; negative counts from the end.

        Raises:
            ValueError: If there is no such axis or node.
        """
        if axis not in _AXES:
            raise ValueError(f"axis must be 'a', 'b' or 'c', got {axis!r}")
        across, nodes = _AXES.index(axis), getattr(self, axis)
        if not -len(nodes) <= index < len(nodes):
            raise ValueError(f"{axis} has {len(nodes)} nodes, got index {index}")
        keep = [k for k in range(3) if k != across]
        return Plane(
            label=f"{self.label}, {self.axis_names[across]} = {nodes[index]:.3g}",
            kind=self.kind,
            a=getattr(self, _AXES[keep[0]]),
            b=getattr(self, _AXES[keep[1]]),
            axis_names=(self.axis_names[keep[0]], self.axis_names[keep[1]]),
            fields={n: np.take(values, index, across) for n, values in self.fields.items()},
            direction_norms=self.direction_norms[keep],
            cosine=float(self.cosines[keep[0], keep[1]]),
            origin=self.origin,
            checks=self.checks,
            seconds=self.seconds,
            note=self.note,
        )
