"""Minima: the proof of one, how far a run got, what the flat spots of a plane really are."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields, one_of
from kobai.results.landscape.plane import Check, Plane
from kobai.results.registry import register

SOLUTIONS = ("none", "LM", "GM", "TM")
"""No minimum, local, global, true minimum, in the order in which one includes the other."""

KINDS = ("minimum", "saddle", "maximum", "unknown")
"""What the eigenvalues of a Hessian make of a stationary point."""


@register
@dataclass(frozen=True, kw_only=True)
class MinimumProof:
    """What makes a network's own outputs a problem whose minimum is known.

    Losses are means over examples of what the likelihood says (nats); where targets are
    probabilities, `loss` is the excess over `floor`.

    Attributes:
        label: Name of the point.
        targets: ``soft`` (the outputs themselves) or ``hard`` (their decisions).
        likelihood: Name of the likelihood.
        examples: N.
        dimension: P.
        loss: Loss at θ* above its floor.
        floor: Loss at θ* that no parameters can remove: the mean entropy of the targets.
        original_loss: Loss at θ* on the labels the data came with.
        gradient_norm: ‖∇L(θ*)‖.
        gradient_tolerance: What rounding of the outputs alone can make of it.
        original_gradient_norm: ‖∇L(θ*)‖ on the labels the data came with.
        eigenvalue_min: Smallest eigenvalue of the Hessian; NaN where it was not asked for.
        eigenvalue_min_error: Bound on its error.
        eigenvalue_max: Largest eigenvalue of the Hessian.
        eigenvalue_max_error: Bound on its error.
        curvature_gap: Largest ‖(H − G) v‖ / ‖G v‖ over random v, G the Gauss-Newton matrix.
        checks: The conditions of a minimum, each with its tolerance.
        num_products: Hessian products spent on the eigenvalues.
        status: Of the eigenvalue search: ``converged`` or what fell short; empty without one.
        note: What was left out of the original likelihood, if anything.
    """

    label: str
    targets: str
    likelihood: str
    examples: int
    dimension: int
    loss: float
    floor: float
    original_loss: float
    gradient_norm: float
    gradient_tolerance: float
    original_gradient_norm: float
    eigenvalue_min: float
    eigenvalue_min_error: float
    eigenvalue_max: float
    eigenvalue_max_error: float
    curvature_gap: float
    checks: tuple[Check, ...]
    num_products: int
    status: str
    note: str = ""

    def __post_init__(self) -> None:
        one_of(self, "targets", ("soft", "hard"))
        coerce_fields(
            self,
            integers=("examples", "dimension", "num_products"),
            floats=(
                "loss", "floor", "original_loss", "gradient_norm", "gradient_tolerance",
                "original_gradient_norm", "eigenvalue_min", "eigenvalue_min_error",
                "eigenvalue_max", "eigenvalue_max_error", "curvature_gap",
            ),
        )  # fmt: skip
        object.__setattr__(self, "checks", tuple(self.checks))

    @property
    def holds(self) -> bool:
        """Whether every condition was met within its tolerance."""
        return all(check.passed for check in self.checks)


@register
@dataclass(frozen=True, kw_only=True)
class Solution:
    """How far a run got, by the definitions of local, global and true minimum.

    T is the training loss, V the validation loss, i counts records.

    Attributes:
        label: Name of the run.
        kind: The best of ``none``, ``LM``, ``GM``, ``TM`` that was reached.
        local_epoch: Epoch at which T first stood still; NaN if it never did.
        global_epoch: Epoch at which it first stood still at nearly zero; NaN if never.
        true_epoch: Epoch at which V was nearly zero as well; NaN if never.
        local_loss: T at `local_epoch`.
        least_loss: Least T of the run.
        final_loss: Last T.
        final_validation_loss: Last V; NaN without validation data.
        epochs: Length of the run.
        plateau: |T_{i+1} − T_i| up to this share of the loss's scale is standing still.
        zero: Losses up to this are nearly zero, in nats.
        patience: For so many records in a row.
        trivial: Whether the local minimum is no better than a constant prediction.
        note: Anything worth saying.
    """

    label: str
    kind: str
    local_epoch: float
    global_epoch: float
    true_epoch: float
    local_loss: float
    least_loss: float
    final_loss: float
    final_validation_loss: float
    epochs: float
    plateau: float
    zero: float
    patience: int
    trivial: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        one_of(self, "kind", SOLUTIONS)
        coerce_fields(
            self,
            integers=("patience",),
            booleans=("trivial",),
            floats=(
                "local_epoch", "global_epoch", "true_epoch", "local_loss", "least_loss",
                "final_loss", "final_validation_loss", "epochs", "plateau", "zero",
            ),
        )  # fmt: skip


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class CriticalPoint:
    """A stationary point of a slice, and what it is in the whole of parameter space.

    Attributes:
        coordinates: (2,) on the plane.
        loss: Loss there.
        plane_kind: What it is on the plane: one of `KINDS`.
        plane_eigenvalues: (2,) of the Hessian restricted to the plane, per unit distance.
        plane_gradient_norm: Norm of the gradient's part in the plane, after refinement.
        gradient_norm: ‖∇L‖ in all of parameter space.
        genuine: Whether that is nearly zero: stationary in the whole space.
        kind: What the Hessian of the whole space makes of it: one of `KINDS`.
        eigenvalue_min: Its smallest eigenvalue; NaN where it was not asked for.
        eigenvalue_max: Its largest.
        status: ``refined``, or ``interpolated`` where Newton's method left the neighbourhood.
        polished_coordinates: (2,) where an optimizer that began here ended, projected; NaN without.
        polished_off_plane: Distance of that end from the plane.
        polished_loss: Loss there.
        polished_gradient_norm: ‖∇L‖ there.
    """

    coordinates: Float[np.ndarray, "2"]
    loss: float
    plane_kind: str
    plane_eigenvalues: Float[np.ndarray, "2"]
    plane_gradient_norm: float
    gradient_norm: float
    genuine: bool
    kind: str
    eigenvalue_min: float
    eigenvalue_max: float
    status: str
    polished_coordinates: Float[np.ndarray, "2"]
    polished_off_plane: float = float("nan")
    polished_loss: float = float("nan")
    polished_gradient_norm: float = float("nan")

    def __post_init__(self) -> None:
        one_of(self, "plane_kind", KINDS)
        one_of(self, "kind", KINDS)
        coerce_fields(
            self,
            arrays={
                "coordinates": "f 2", "plane_eigenvalues": "f 2", "polished_coordinates": "f 2"
            },
            booleans=("genuine",),
            floats=(
                "loss", "plane_gradient_norm", "gradient_norm", "eigenvalue_min", "eigenvalue_max",
                "polished_off_plane", "polished_loss", "polished_gradient_norm",
            ),
        )  # fmt: skip


@register
@dataclass(frozen=True, kw_only=True)
class CriticalPoints:
    """All stationary points found on a plane, lowest loss first.

    Attributes:
        label: Label of the plane.
        points: The points.
        scale: Median ‖∇L‖ over nodes spread over the plane, what "nearly zero" is measured by.
        tolerance: ‖∇L‖ up to this share of `scale` is genuine.
        plane: The plane they lie on, for pictures.
        note: Anything worth saying.
    """

    label: str
    points: tuple[CriticalPoint, ...]
    scale: float
    tolerance: float
    plane: Plane | None = None
    note: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("scale", "tolerance"))
        object.__setattr__(self, "points", tuple(self.points))
