"""Training by several gradients beside what their kernels predict."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class FunctionSpaceRuns:
    """Losses along training by K methods, with step sizes η = c/α, beside function space.

    Attributes:
        title: Of what.
        methods: (K,) names.
        factors: (F,) the c of η = c/α.
        loss: (F, K, T + 1, seeds) training loss ½‖f − y‖² per example.
        predicted: (F, K, T + 1, seeds) by the method's kernel at the start.
        learning_rates: (F, K, seeds) η.
        alpha: (K, seeds) mean diagonal of the method's kernel; of plain and entry-wise gradients,
            whose kernels are not isotropic, its largest eigenvalue.
        alpha_theory: (K,) predicted; NaN for none.
        spread: (K, seeds) ‖K̄ − α I‖/‖α I‖ with α the mean diagonal.
        test_error: (K, seeds) share of wrong test answers after training at the first factor.
        regression_error: (K, seeds) the same of the method's kernel regression.
        test_distance: (K, seeds) ‖f − f_regression‖/‖f_regression − f_0‖ on the test inputs.
    """

    title: str
    methods: tuple[str, ...]
    factors: Float[np.ndarray, " F"]
    loss: Float[np.ndarray, "F K T seeds"]
    predicted: Float[np.ndarray, "F K T seeds"]
    learning_rates: Float[np.ndarray, "F K seeds"]
    alpha: Float[np.ndarray, "K seeds"]
    alpha_theory: Float[np.ndarray, " K"]
    spread: Float[np.ndarray, "K seeds"]
    test_error: Float[np.ndarray, "K seeds"]
    regression_error: Float[np.ndarray, "K seeds"]
    test_distance: Float[np.ndarray, "K seeds"]

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "factors": "f F",
                "loss": "f F K T n",
                "predicted": "f F K T n",
                "learning_rates": "f F K n",
                "alpha": "f K n",
                "alpha_theory": "f K",
                "spread": "f K n",
                "test_error": "f K n",
                "regression_error": "f K n",
                "test_distance": "f K n",
            },
        )
        if len(self.methods) != len(self.alpha):
            raise ValueError(f"{len(self.methods)} methods named, {len(self.alpha)} given")


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Invariance:
    """How much one step of a method depends on the coordinates of the parameters.

    Attributes:
        title: Of which network.
        methods: (K,) names.
        maps: (A,) kinds of linear reparametrisation θ = A φ.
        change: (K, A) ‖δf' − δf‖/‖δf‖ of the outputs' first-order change by a step taken in φ
            against one in θ, mean over draws; NaN where the method has no meaning in φ.
    """

    title: str
    methods: tuple[str, ...]
    maps: tuple[str, ...]
    change: Float[np.ndarray, "K A"]

    def __post_init__(self) -> None:
        coerce_fields(self, arrays={"change": "f K A"})
        if (len(self.methods), len(self.maps)) != self.change.shape:
            raise ValueError(
                f"{len(self.methods)} methods and {len(self.maps)} maps named, change has "
                f"{self.change.shape}"
            )
