"""Test error of several methods against the number of training examples."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSizes:
    """Learning curves over data set sizes, and how much was augmented on the way.

    Attributes:
        title: Of what.
        methods: (K,) names.
        sizes: (S,) numbers of training examples, ascending.
        error: (K, S, seeds) share of wrong test answers; NaN where not measured.
        selected: (S, T, seeds) share of the examples that self-paced augmentation augmented, in T
            equal stretches of training.
        threshold: Its τ.
    """

    title: str
    methods: tuple[str, ...]
    sizes: Float[np.ndarray, " S"]
    error: Float[np.ndarray, "K S seeds"]
    selected: Float[np.ndarray, "S T seeds"]
    threshold: float

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={"sizes": "f S", "error": "f K S n", "selected": "f S T n"},
            floats=("threshold",),
        )
        if len(self.methods) != len(self.error):
            raise ValueError(f"{len(self.methods)} methods named, {len(self.error)} given")
