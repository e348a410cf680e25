"""Trust regions: the best step of a quadratic model among those not too long to be believed."""

import dataclasses
import math
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg import LinearOperator, cholesky


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrustStep:
    """A step within a ball, and what the model m(p) = gᵀp + ½ pᵀBp says of it.

    Attributes:
        step: p.
        predicted: m(p), negative where a decrease is expected.
        on_boundary: Whether ‖p‖ is the radius.
        status: "ok"; "negative-curvature" (the step follows a direction of it to the boundary);
            "max-iterations" (of conjugate gradients); "indefinite" (the dogleg needs B positive
            definite; the step is then the best along −g).
        products: Products with B.
    """

    step: Float[Tensor, " P"]
    predicted: float
    on_boundary: bool
    status: Literal["ok", "negative-curvature", "max-iterations", "indefinite"]
    products: int


def steihaug(
    operator: LinearOperator,
    gradient: Float[Tensor, " P"],
    radius: float,
    *,
    tol: float | None = None,
    max_iterations: int = 250,
) -> TrustStep:
    """Run conjugate gradients on B p = −g until the residual is small or the boundary is met.

    Args:
        operator: B, symmetric, of any signs.
        gradient: g.
        radius: Δ.
        tol: Relative residual; None: min(½, √‖g‖), which makes Newton's method converge
            superlinearly.
        max_iterations: Most products.

    Source: Steihaug 1983; Nocedal and Wright 2006, Numerical Optimization, Algorithm 7.2.
    """
    _check_radius(radius)
    norm = float(gradient.norm())
    limit = (min(0.5, math.sqrt(norm)) if tol is None else tol) * norm
    z = torch.zeros_like(gradient)
    image = torch.zeros_like(gradient)
    residual, direction = gradient.clone(), -gradient
    if norm == 0:
        return TrustStep(step=z, predicted=0.0, on_boundary=False, status="ok", products=0)
    for count in range(1, max_iterations + 1):
        product = operator @ direction
        curvature = _dot(direction, product)
        square = _dot(residual, residual)
        if curvature <= 0:
            reach = _to_boundary(z, direction, radius, gradient + image, product)
            return _finish(
                gradient, z + reach * direction, image + reach * product, "negative-curvature",
                count, boundary=True,
            )  # fmt: skip
        scale = square / curvature
        if float((z + scale * direction).norm()) >= radius:
            reach = _positive_root(z, direction, radius)
            return _finish(
                gradient, z + reach * direction, image + reach * product, "ok", count,
                boundary=True,
            )  # fmt: skip
        z, image = z + scale * direction, image + scale * product
        residual = residual + scale * product
        if float(residual.norm()) <= limit:
            return _finish(gradient, z, image, "ok", count, boundary=False)
        direction = (_dot(residual, residual) / square) * direction - residual
    return _finish(gradient, z, image, "max-iterations", max_iterations, boundary=False)


def dogleg(matrix: Float[Tensor, "P P"], gradient: Float[Tensor, " P"], radius: float) -> TrustStep:
    """Go along −g to the model's minimiser there, then towards the Newton step, until the boundary.

    Args:
        matrix: B, symmetric; positive definite, or else the path ends with its first leg.
        gradient: g.
        radius: Δ.

    Source: Powell 1970; Nocedal and Wright 2006, Numerical Optimization, §4.1.
    """
    _check_radius(radius)
    norm = float(gradient.norm())
    if norm == 0:
        zero = torch.zeros_like(gradient)
        return TrustStep(step=zero, predicted=0.0, on_boundary=False, status="ok", products=0)
    image = matrix @ gradient
    curvature = _dot(gradient, image)
    factor = cholesky(matrix)
    definite = factor.status == "ok"
    newton = -factor.solve(gradient)
    if definite and float(newton.norm()) <= radius:
        return _finish(gradient, newton, matrix @ newton, "ok", 1, boundary=False)
    scale = norm**2 / curvature if curvature > 0 else math.inf
    if scale * norm >= radius or not definite:
        length = min(scale, radius / norm)
        boundary = length * norm >= radius * (1 - 1e-12)
        status = "ok" if definite else "indefinite"
        return _finish(gradient, -length * gradient, -length * image, status, 1, boundary=boundary)
    cauchy = -scale * gradient
    step = cauchy + _positive_root(cauchy, newton - cauchy, radius) * (newton - cauchy)
    return _finish(gradient, step, matrix @ step, "ok", 2, boundary=True)


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrustRegion:
    """The rule for the radius, and how the model is minimised within it.

    Attributes:
        subproblem: "steihaug" (any signs, products alone) or "dogleg" (dense).
        initial: First radius.
        maximum: Largest radius.
        accept: Ratio of the actual to the predicted change above which a step is made.

    Source: Nocedal and Wright 2006, Numerical Optimization, Algorithm 4.1.
    """

    subproblem: Literal["steihaug", "dogleg"] = "steihaug"
    initial: float = 1.0
    maximum: float = 1000.0
    accept: float = 0.15

    def __post_init__(self) -> None:
        if self.subproblem not in ("steihaug", "dogleg"):
            raise ValueError(f"subproblem is steihaug or dogleg, got {self.subproblem!r}")
        if not 0 < self.initial <= self.maximum < math.inf:
            raise ValueError(f"need 0 < initial <= maximum, got {self.initial} and {self.maximum}")
        if not 0 <= self.accept < 0.25:
            raise ValueError(f"accept lies in [0, 1/4), got {self.accept}")

    def update(self, radius: float, ratio: float, *, length: float, on_boundary: bool) -> float:
        """Give the next radius: a quarter of the step below ratio ¼, twice the radius above ¾.

        Args:
            radius: The present one.
            ratio: Actual over predicted change; NaN or −∞ where the loss was not finite.
            length: ‖p‖ of the step tried.
            on_boundary: Whether the step ended at the radius.
        """
        if not ratio >= 0.25:
            return 0.25 * min(length, radius)
        if ratio > 0.75 and on_boundary:
            return min(2 * radius, self.maximum)
        return radius


def _finish(
    gradient: Tensor, step: Tensor, image: Tensor, status: str, products: int, *, boundary: bool
) -> TrustStep:
    return TrustStep(
        step=step,
        predicted=_dot(gradient, step) + 0.5 * _dot(step, image),
        on_boundary=boundary,
        status=status,  # type: ignore[arg-type]
        products=products,
    )


def _positive_root(start: Tensor, direction: Tensor, radius: float) -> float:
    """Find t ≥ 0 with ‖start + t direction‖ = radius."""
    a, b = _dot(direction, direction), _dot(start, direction)
    c = _dot(start, start) - radius**2
    root = math.sqrt(max(b * b - a * c, 0.0))
    # The form without cancellation.
    return -c / (b + root) if b > 0 else (root - b) / a


def _to_boundary(
    start: Tensor, direction: Tensor, radius: float, slope: Tensor, product: Tensor
) -> float:
    """Take the crossing of the boundary along a line with the lower model."""
    ahead = _positive_root(start, direction, radius)
    back = -_positive_root(start, -direction, radius)
    linear, quadratic = _dot(slope, direction), _dot(direction, product)

    def model(t: float) -> float:
        return t * linear + 0.5 * t * t * quadratic

    return min(ahead, back, key=model)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).double().sum())


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"the radius must be positive and finite, got {radius}")
