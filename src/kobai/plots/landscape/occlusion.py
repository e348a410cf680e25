"""What an eye sees of a height field: which points its own hills hide."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.interpolate import RegularGridInterpolator


@dataclass(frozen=True, kw_only=True, eq=False)
class Relief:
    """A height field in a box, seen from far away (parallel projection).

    Attributes:
        a: (A,) coordinates along the first side.
        b: (B,) coordinates along the second side.
        height: (A, B) heights; NaN where the field has a hole.
        box: Lengths of the three sides of the box as drawn.
        bottom: Height at the bottom of the box.
        top: Height at its top.
    """

    a: Float[np.ndarray, "A"]
    b: Float[np.ndarray, "B"]
    height: Float[np.ndarray, "A B"]
    box: tuple[float, float, float]
    bottom: float
    top: float

    def at(self, points: Float[np.ndarray, "K 2"]) -> Float[np.ndarray, "K"]:
        """Heights by bilinear interpolation; NaN outside the grid."""
        return RegularGridInterpolator(
            (self.a, self.b), self.height, method="linear", bounds_error=False, fill_value=np.nan
        )(points)

    def visible(
        self, points: Float[np.ndarray, "K 3"], *, elevation: float, azimuth: float
    ) -> Bool[np.ndarray, "K"]:
        """Whether nothing of the surface lies between each point and the eye.

        Walks 160 steps from the point towards the eye and compares heights; a hundredth of the
        box is forgiven, so that points on the surface do not hide themselves.

        Args:
            points: In the coordinates of the field.
            elevation: Height of the eye, in degrees.
            azimuth: Direction of the eye around the vertical axis, in degrees.

        Returns:
            One truth value a point.
        """
        low = np.array([self.a[0], self.b[0], self.bottom])
        unit = np.array([np.ptp(self.a), np.ptp(self.b), self.top - self.bottom]) / self.box
        up, around = np.deg2rad([elevation, azimuth])
        towards = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
        steps = np.linspace(0.0, sum(self.box), 161)[1:]
        start = (points - low) / unit
        way = start[:, None, :] + steps[None, :, None] * towards
        ground = (self.at((way * unit + low).reshape(-1, 3)[:, :2]) - self.bottom) / unit[2]
        margin = 0.01 * self.box[2]
        with np.errstate(invalid="ignore"):
            hidden = ground.reshape(way.shape[:2]) > way[..., 2] + margin
        return ~hidden.any(axis=1)


def runs_of(mask: Bool[np.ndarray, "K"]) -> list[slice]:
    """The stretches of a mask that are true, each with at least two points.

    Args:
        mask: One truth value a point of a line.

    Returns:
        Slices, in order.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [slice(first, last) for first, last in pairs if last - first > 1]
