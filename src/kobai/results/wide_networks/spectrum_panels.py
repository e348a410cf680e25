"""Whole spectra beside each other, with the eigenvalues theory predicts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import frozen_array
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumPanels:
    """Eigenvalues of several matrices, all those that are not zero.

    Attributes:
        title: Of what.
        eigenvalues: Name of a matrix → its eigenvalues, ascending.
        predicted: Name of a matrix → predicted eigenvalues, ascending, as many as theory gives.
        notes: Name of a matrix → a line under its name.
    """

    title: str
    eigenvalues: Mapping[str, Float[np.ndarray, " R"]]
    predicted: Mapping[str, Float[np.ndarray, " T"]]
    notes: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in ("eigenvalues", "predicted"):
            arrays = {key: frozen_array(value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, arrays)
        object.__setattr__(self, "notes", dict(self.notes))
