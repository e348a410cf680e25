"""Critical learning rates at one point, each with its error."""

from dataclasses import dataclass

from kobai.results.fields import coerce_fields
from kobai.results.registry import register


@register
@dataclass(frozen=True, kw_only=True)
class CriticalRate:
    """The learning rate above which one method leaves the point along its sharpest direction.

    Attributes:
        method: Such as ``gradient descent`` or ``gradient descent, kronecker``.
        rule: The formula.
        value: η_c; infinite where nothing curves upwards, NaN where unknown.
        error: Bound on its error that follows from the eigenvalue's.
        eigenvalue: λ_max, of P⁻¹H with a preconditioner P.
        eigenvalue_error: Bound on its error.
        status: ``converged`` or what fell short.
    """

    method: str
    rule: str
    value: float
    error: float
    eigenvalue: float
    eigenvalue_error: float
    status: str

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("value", "error", "eigenvalue", "eigenvalue_error"))


@register
@dataclass(frozen=True, kw_only=True)
class CriticalRates:
    """Critical learning rates of several methods at one point.

    Attributes:
        label: Name of the run or point.
        matrix: The curvature matrix behind them.
        rates: One a method.
        damping: Added to preconditioners.
        num_products: Products spent beyond those of the spectrum.
        optimizer: Optimizer that led to the point; empty when none did.
        seed: Seed of that run, or None.
    """

    label: str
    matrix: str
    rates: tuple[CriticalRate, ...]
    damping: float
    num_products: int
    optimizer: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        coerce_fields(self, floats=("damping",), integers=("num_products",))
