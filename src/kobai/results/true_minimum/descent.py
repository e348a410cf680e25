"""Runs that head for a known minimum: how near they come, in loss, parameters and function."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.landscape.minimum import Solution
from kobai.results.landscape.plane import Plane
from kobai.results.landscape.shape import Ensemble
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class Descent:
    """One run on data relabelled by θ*, seen from θ*.

    Attributes:
        label: Name of the run, such as ``same start``.
        optimizer: What it was trained by.
        radius: ‖θ_0 − θ*‖ / ‖θ*‖ at its start.
        epoch: (T,) passes over the data.
        loss: (T,) training loss above its floor.
        test_loss: (T,) the same on unseen inputs, relabelled as well; NaN without any.
        distance: (T,) ‖θ − θ*‖ / ‖θ*‖.
        function: (T,) root mean squared difference of predicted probabilities on the training data.
        gradient_norm: ‖∇L‖ at the end.
        status: ``finished`` or ``diverged``.
    """

    label: str
    optimizer: str
    radius: float
    epoch: Float[np.ndarray, "T"]
    loss: Float[np.ndarray, "T"]
    test_loss: Float[np.ndarray, "T"]
    distance: Float[np.ndarray, "T"]
    function: Float[np.ndarray, "T"]
    gradient_norm: float
    status: str = "finished"

    def __post_init__(self) -> None:
        columns = ("epoch", "loss", "test_loss", "distance", "function")
        coerce_fields(
            self, arrays=dict.fromkeys(columns, "f T"), floats=("radius", "gradient_norm")
        )


@register
@dataclass(frozen=True, kw_only=True)
class Descents:
    """Runs towards one true minimum.

    Attributes:
        label: Name of the network.
        runs: The runs.
        zero: Loss above the floor up to which it counts as reached.
        note: Setting.
    """

    label: str
    runs: tuple[Descent, ...]
    zero: float
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("zero",))
        object.__setattr__(self, "runs", tuple(self.runs))


@register
@dataclass(frozen=True, kw_only=True)
class PlanePanels:
    """Planes to be seen side by side at one scale.

    Attributes:
        label: What they have in common.
        planes: One to four.
        titles: One a plane.
        low: Least loss told apart from smaller ones; 0 for no such bound.
        high: Largest loss told apart from larger ones; infinite for no such bound.
        note: Anything worth saying.
    """

    label: str
    planes: tuple[Plane, ...]
    titles: tuple[str, ...]
    low: float = 0.0
    high: float = float("inf")
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("low", "high"))
        object.__setattr__(self, "planes", tuple(self.planes))
        object.__setattr__(self, "titles", tuple(self.titles))
        if len(self.planes) != len(self.titles):
            raise ValueError(f"{len(self.planes)} planes need as many titles, got {self.titles}")


@register
@dataclass(frozen=True, kw_only=True)
class ShapeTable:
    """Smoothness of several networks over random planes.

    Attributes:
        label: What they have in common.
        rows: One ensemble a network.
        note: How the planes were drawn.
    """

    label: str
    rows: tuple[Ensemble, ...]
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))


@register
@dataclass(frozen=True, kw_only=True)
class SolutionTable:
    """How far the runs of several networks got.

    Attributes:
        label: What they have in common.
        names: Name of the network of each run.
        runs: One a network and seed.
        chance: Loss of the best constant prediction.
    """

    label: str
    names: tuple[str, ...]
    runs: tuple[Solution, ...]
    chance: float

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("chance",))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "runs", tuple(self.runs))
        if len(self.names) != len(self.runs):
            raise ValueError(f"{len(self.runs)} runs need as many names, got {self.names}")
