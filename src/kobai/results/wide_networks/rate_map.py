"""Loss after training over learning rate and network size, with the rates theory allows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class RateMap:
    """Heat maps of training, one panel a variant: learning rates × sizes × seeds.

    Attributes:
        title: What was trained.
        size_name: What the sizes are, such as ``width M``.
        loss_name: What the losses are.
        panels: (K,) names of the variants.
        rates: (R,) learning rates, ascending.
        sizes: (S,) widths or depths, ascending.
        loss: (K, S, R, seeds) loss after training over loss before; infinite where it diverged.
        rise: (K, S, R, seeds) the loss after over before, of the one step in the early part of
            training at which it rose most; below 1 it fell at every step.
        theory: (K, S) predicted largest learning rate; NaN where theory gives none.
        lower: (K, S) predicted lower bound of it; NaN for none.
        upper: (K, S) predicted upper bound.
        measured: (K, S) 2/λ_max measured at the initial points, mean over seeds; NaN if not.
        steps: Steps of training.
    """

    title: str
    size_name: str
    loss_name: str
    panels: tuple[str, ...]
    rates: Float[np.ndarray, " R"]
    sizes: Float[np.ndarray, " S"]
    loss: Float[np.ndarray, "K S R seeds"]
    rise: Float[np.ndarray, "K S R seeds"]
    theory: Float[np.ndarray, "K S"]
    lower: Float[np.ndarray, "K S"]
    upper: Float[np.ndarray, "K S"]
    measured: Float[np.ndarray, "K S"]
    steps: int

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "rates": "f R",
                "sizes": "f S",
                "loss": "f K S R n",
                "rise": "f K S R n",
                "theory": "f K S",
                "lower": "f K S",
                "upper": "f K S",
                "measured": "f K S",
            },
            integers=("steps",),
        )
        if len(self.panels) != len(self.loss):
            raise ValueError(f"{len(self.panels)} panels named, {len(self.loss)} given")

    def largest_rate(self, *, tolerance: float = 1e-3) -> Float[np.ndarray, "K S seeds"]:
        """The largest learning rate up to which the loss fell at every early step.

        Between the last rate of the grid that did and the first that did not, the geometric mean
        stands; NaN where even the smallest failed, and where none did.

        Args:
            tolerance: Share by which a step may raise the loss; rounding and, of one example a
                step, noise.

        Returns:
            (K, S, seeds) rates.
        """
        failed = ~(self.rise <= 1 + tolerance)
        first = np.where(failed.any(2), failed.argmax(2), 0)
        inside = (first > 0) & failed.any(2)
        edge = np.sqrt(self.rates[first] * self.rates[np.maximum(first - 1, 0)])
        return np.where(inside, edge, np.nan)
