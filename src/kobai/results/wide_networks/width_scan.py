"""Quantities against width: measured over seeds, beside theory's lines."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class WidthScan:
    """Several quantities of several kinds of network, along the width.

    Attributes:
        title: What was measured.
        groups: (G,) kinds, such as regression and softmax.
        quantities: (Q,) names.
        widths: (S,) ascending.
        measured: (G, Q, S, seeds); NaN where not measured.
        predicted: (G, Q, S) theory, mean over the same networks where it depends on them; NaN
            where there is none.
    """

    title: str
    groups: tuple[str, ...]
    quantities: tuple[str, ...]
    widths: Float[np.ndarray, " S"]
    measured: Float[np.ndarray, "G Q S seeds"]
    predicted: Float[np.ndarray, "G Q S"]

    def __post_init__(self) -> None:
        coerce_fields(
            self, arrays={"widths": "f S", "measured": "f G Q S n", "predicted": "f G Q S"}
        )  # fmt: skip
        if (len(self.groups), len(self.quantities)) != self.measured.shape[:2]:
            raise ValueError(
                f"{len(self.groups)} groups and {len(self.quantities)} quantities named, "
                f"measured has {self.measured.shape[:2]}"
            )

    @property
    def mean(self) -> Float[np.ndarray, "G Q S"]:
        """Mean over seeds."""
        return np.asarray(self.measured.mean(3))

    @property
    def error(self) -> Float[np.ndarray, "G Q S"]:
        """Standard error over seeds; NaN with one seed."""
        count = self.measured.shape[3]
        if count < 2:
            return np.full(self.measured.shape[:3], np.nan)
        return np.asarray(self.measured.std(3, ddof=1) / np.sqrt(count))
