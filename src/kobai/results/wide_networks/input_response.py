"""How much outputs change when inputs are pushed along some directions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class InputResponse:
    """Change of the outputs against the size of a push, for several kinds of direction.

    Attributes:
        title: Of which network.
        times: (T,) when: such as before and after training.
        directions: (D,) kinds: such as the metric's top ones and random ones.
        sizes: (E,) lengths of the push, relative to the mean length of an input.
        change: (T, D, E, seeds) root mean square of ‖f(x + δ) − f(x)‖.
        predicted: (T, D, E, seeds) to first order, from the metric.
        flips: (T, D, E, seeds) share of inputs whose largest output becomes another.
        spectrum: (T, M_0, seeds) eigenvalues of the metric, ascending.
        outputs: C.
    """

    title: str
    times: tuple[str, ...]
    directions: tuple[str, ...]
    sizes: Float[np.ndarray, " E"]
    change: Float[np.ndarray, "T D E seeds"]
    predicted: Float[np.ndarray, "T D E seeds"]
    flips: Float[np.ndarray, "T D E seeds"]
    spectrum: Float[np.ndarray, "T M seeds"]
    outputs: int

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "sizes": "f E",
                "change": "f T D E n",
                "predicted": "f T D E n",
                "flips": "f T D E n",
                "spectrum": "f T M n",
            },
            integers=("outputs",),
        )
        if (len(self.times), len(self.directions)) != self.change.shape[:2]:
            raise ValueError(
                f"{len(self.times)} times and {len(self.directions)} directions named, change has "
                f"{self.change.shape[:2]}"
            )
