"""The options of an evaluation on a grid, whatever the number of directions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict, get_args

from torch import Tensor

from kobai.problem import Objective

Grid = Literal["centred", "source"]
BackendName = Literal["auto", "loop", "prefix", "vmap", "graph"]
BatchNormMode = Literal["frozen", "recalibrated", "interpolated"]
Precision = Literal["given", "bfloat16"]
Progress = Callable[[int, int], None]
Stop = Callable[[], bool]

Statistics = Mapping[str, Mapping[str, Tensor]]
"""Label of a marked point to the buffers (or the state dict) of the model there."""

CLASS_FIELD = "class_loss"
"""The field that stands for the losses of all classes, as class_loss_0, class_loss_1, …"""

RATIO = 5.0
"""The grid ends where the loss along a direction first reaches this multiple of its centre's."""

COARSE_PRECISION = 0.02
"""The error that bfloat16 may make, in shares of the range of the losses looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The time that an evaluation will take, told before it starts.

    Attributes:
        nodes: Nodes of the grid, all of which are evaluated unless a tolerance or budget is given.
        each: Seconds per node, measured.
        seconds: Seconds in all, with as many processes as share the work, checks left out.
        how: How nodes are evaluated.
    """

    nodes: int
    each: float
    seconds: float
    how: str


class GridOptions(TypedDict, total=False):
    """Options of `evaluate_line`, `evaluate_plane` and `evaluate_volume`, all by name.

    Attributes:
        fields: Some of "loss" (always there), "stderr" (of the mean over examples), "accuracy",
            "class_loss" (mean over the examples of each class k, as class_loss_k),
            "gradient_norm" (of ∇L in all of parameter space), "slope_a", "slope_b", … (∇L·d along
            each direction), "curvature_aa", "curvature_ab", … (dᵢᵀHdⱼ), "curvature_min" and
            "curvature_max" (eigenvalues of the Hessian restricted to the subspace, per unit
            distance), "hessian_min" and "hessian_max" (extreme eigenvalues of the Hessian in all of
            parameter space, by Lanczos). Default: loss, and accuracy where there is one.
        splits: Name to a further objective of the same model, such as ``{"test": …}``: loss,
            standard error, accuracy and class losses asked for come as "test_loss" and so on.
        label: Name of the result.
        grid: "centred", or "source": unit steps i = 0 … K - 1 from the origin, which lies in the
            corner, as in Algorithm 2 of Wang & Thawonmas 2022 (axes are then numbers of nodes).
        ratio: Where a range is looked for, it ends where the loss along a direction first reaches
            this multiple of its centre's.
        backend: "auto" (measured), "loop", "prefix", "vmap" or, on a GPU, "graph".
        batchnorm: "frozen" (default), "recalibrated" or "interpolated"; what each means, and why
            frozen is the default, is told in `kobai.landscape.backends.batchnorm`.
        statistics: For "interpolated", label of marked points to the model's buffers there.
        precision: "given", or "bfloat16" for overviews: refused where its error would show.
        tol: Evaluate only as many nodes as a spline needs to be right within this share of the loss
            at nodes held out to verify it, an estimate and no bound
            (`kobai.landscape.grid.refinement`); the field "evaluated" tells which nodes are values
            and which are spline. None: all nodes.
        budget: Seconds for the grid: all nodes if they fit, else as with `tol` for as long.
        folder: Keep blocks of values here as they come; the same call again goes on where it was
            interrupted and gives the same result to the bit.
        checks: Prove the result (default); failed checks do not raise, see `raise_if_failed`.
        progress: Called with (nodes done, nodes in all).
        stop: Asked between blocks of nodes; True ends early, with NaN at the nodes left out and a
            note that says so, and without checks.
        announce: Told before the start how long it will take.
    """

    fields: Sequence[str] | None
    splits: Mapping[str, Objective] | None
    label: str
    grid: Grid
    ratio: float
    backend: BackendName
    batchnorm: BatchNormMode
    statistics: Statistics | None
    precision: Precision
    tol: float | None
    budget: float | None
    folder: Path | str | None
    checks: bool
    progress: Progress | None
    stop: Stop | None
    announce: Callable[[Estimate], None] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """`GridOptions` with their defaults, checked."""

    fields: Sequence[str] | None = None
    splits: Mapping[str, Objective] | None = None
    label: str = ""
    grid: Grid = "centred"
    ratio: float = RATIO
    backend: BackendName = "auto"
    batchnorm: BatchNormMode = "frozen"
    statistics: Statistics | None = None
    precision: Precision = "given"
    tol: float | None = None
    budget: float | None = None
    folder: Path | str | None = None
    checks: bool = True
    progress: Progress | None = None
    stop: Stop | None = None
    announce: Callable[[Estimate], None] | None = None

    def __post_init__(self) -> None:
        words = {"grid": Grid, "backend": BackendName, "batchnorm": BatchNormMode}
        for name, allowed in {**words, "precision": Precision}.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}"
                )
        if self.tol is not None and not 0 < self.tol < 1:
            raise ValueError(f"tol must lie between 0 and 1, got {self.tol}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget must be positive (seconds), got {self.budget}")
        if self.statistics and self.batchnorm != "interpolated":
            raise ValueError("statistics= are for batchnorm='interpolated'; leave them out")
        if self.precision == "bfloat16" and self.tol is not None and self.tol < COARSE_PRECISION:
            raise ValueError(
                f"bfloat16 is good to about {COARSE_PRECISION:.0%}, got tol={self.tol}; use "
                "precision='given'"
            )
