"""How the inverses of one renewal were come by, counted."""

import dataclasses
from typing import final

from kobai.curvature.blocks.shifted_inverse import REPLACED


@final
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inversions:
    """How layers' inverses were come by, in numbers of layers.

    Attributes:
        float64: Needed float64.
        damped: Needed more damping.
        failed: Could not be inverted and keep their old inverse.
        cholesky: Were left to Cholesky by Newton-Schulz.
    """

    float64: int = 0
    damped: int = 0
    failed: int = 0
    cholesky: int = 0

    @classmethod
    def of(cls, *statuses: int) -> "Inversions":
        """Of one layer, by the statuses of its matrices."""
        worst = max(code % REPLACED for code in statuses)
        return cls(
            float64=int(worst == 1),
            damped=int(worst == 2),
            failed=int(worst == 3),
            cholesky=int(any(code >= REPLACED for code in statuses)),
        )

    def __add__(self, other: "Inversions") -> "Inversions":
        return Inversions(
            float64=self.float64 + other.float64,
            damped=self.damped + other.damped,
            failed=self.failed + other.failed,
            cholesky=self.cholesky + other.cholesky,
        )
