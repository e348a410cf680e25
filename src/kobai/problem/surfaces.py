"""Test surfaces: formulas one can look at, with their minima known.

Each function returns a `Surface`; `Surface.objective` makes the `Analytic` objective that every
optimizer takes. Minima are listed to double precision; a surface says whether descent can end
anywhere else.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.problem.objective import Analytic

# Roots of the gradients to double precision: 4x³ - 32x + 5 = 0, and Himmelblau's quartic systems.
_STYBLINSKI_TANG = (-2.903534027771177, -39.166165703771415)
_HIMMELBLAU = (
    (3.0, 2.0),
    (-2.805118086952745, 3.131312518250573),
    (-3.779310253377747, -3.283185991286170),
    (3.584428340330492, -1.848126526964404),
)


@final
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """A function of a few variables with known minima.

    Attributes:
        name: What it is called.
        function: From θ (P,) to the value, in torch.
        start: (P,) the customary starting point, float64.
        minima: (k, P) all global minimisers.
        minimum: Value there.
        unimodal: Whether every stationary point is a global minimiser.
        extent: (low, high), the square or cube in which the surface is customarily looked at.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    start: Float[Tensor, " P"]
    minima: Float[Tensor, "k P"]
    minimum: float
    unimodal: bool
    extent: tuple[float, float]

    def objective(self, start: Float[Tensor, " P"] | None = None) -> Analytic:
        """The surface as an objective, its one parameter a vector.

        Args:
            start: Where it begins, in the dtype and on the device to work in; default `start`.
        """
        return Analytic(self.function, self.start if start is None else start)

    def distance(self, theta: Float[Tensor, " P"]) -> float:
        """Euclidean distance to the nearest global minimiser."""
        return float((self.minima - theta.to(self.minima)).norm(dim=1).min())


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def quadratic(
    condition: float = 10.0, dimension: int = 2, *, generator: torch.Generator | None = None
) -> Surface:
    """½ θᵀAθ with eigenvalues of A spaced evenly in their logarithm, from 1 to `condition`.

    Args:
        condition: Condition number of A.
        dimension: P.
        generator: Draws the eigenvectors, uniformly over all rotations; None: the axes.

    Raises:
        ValueError: If the condition is below 1 or the dimension below 1.
    """
    if not (math.isfinite(condition) and condition >= 1):
        raise ValueError(f"the condition number is at least 1 and finite, got {condition}")
    _check_dimension(dimension, 1)
    values = torch.logspace(0.0, math.log10(condition), dimension, dtype=torch.float64)
    vectors = torch.eye(dimension, dtype=torch.float64)
    if generator is not None:
        draw = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
        vectors, upper = torch.linalg.qr(draw)
        # Signs make the draw uniform [Mezzadri 2007].
        vectors = vectors * upper.diagonal().sign()
    matrix = (vectors * values) @ vectors.T
    matrix = (matrix + matrix.T) / 2

    def function(theta: Tensor) -> Tensor:
        return 0.5 * theta @ (matrix.to(theta) @ theta)

    return Surface(
        name="quadratic",
        function=function,
        start=torch.ones(dimension, dtype=torch.float64),
        minima=torch.zeros(1, dimension, dtype=torch.float64),
        minimum=0.0,
        unimodal=True,
        extent=(-1.5, 1.5),
    )


def rosenbrock(dimension: int = 2) -> Surface:
    """Σ 100 (θᵢ₊₁ − θᵢ²)² + (1 − θᵢ)²: a long bent valley; unimodal for P < 4 [Rosenbrock 1960]."""
    _check_dimension(dimension, 2)

    def function(theta: Tensor) -> Tensor:
        head, tail = theta[:-1], theta[1:]
        return (100.0 * (tail - head.square()).square() + (1.0 - head).square()).sum()

    return Surface(
        name="rosenbrock",
        function=function,
        start=_vector(*([-1.2, 1.0] * dimension)[:dimension]),
        minima=torch.ones(1, dimension, dtype=torch.float64),
        minimum=0.0,
        unimodal=dimension < 4,
        extent=(-2.0, 2.0),
    )


def rastrigin(dimension: int = 2) -> Surface:
    """10 P + Σ θᵢ² − 10 cos 2πθᵢ: a bowl of egg-cups, minima near all integers [Rastrigin 1974]."""
    _check_dimension(dimension, 1)

    def function(theta: Tensor) -> Tensor:
        return (theta.square() + 10.0 * (1.0 - torch.cos(2 * math.pi * theta))).sum()

    return Surface(
        name="rastrigin",
        function=function,
        start=torch.full((dimension,), 2.2, dtype=torch.float64),
        minima=torch.zeros(1, dimension, dtype=torch.float64),
        minimum=0.0,
        unimodal=False,
        extent=(-5.12, 5.12),
    )


def beale() -> Surface:
    """Three squared residuals, flat towards the corners, with a saddle at (0, 1) [Beale 1958]."""

    def function(theta: Tensor) -> Tensor:
        x, y = theta[0], theta[1]
        return (
            (1.5 - x + x * y).square()
            + (2.25 - x + x * y**2).square()
            + (2.625 - x + x * y**3).square()
        )

    return Surface(
        name="beale",
        function=function,
        start=_vector(1.0, 1.0),
        minima=_vector(3.0, 0.5).unsqueeze(0),
        minimum=0.0,
        unimodal=False,
        extent=(-4.5, 4.5),
    )


def himmelblau() -> Surface:
    """(x² + y − 11)² + (x + y² − 7)²: four equal minima, four saddles, a hill [Himmelblau 1972]."""

    def function(theta: Tensor) -> Tensor:
        x, y = theta[0], theta[1]
        return (x**2 + y - 11.0).square() + (x + y**2 - 7.0).square()

    return Surface(
        name="himmelblau",
        function=function,
        start=_vector(0.0, 0.0),
        minima=torch.tensor(_HIMMELBLAU, dtype=torch.float64),
        minimum=0.0,
        unimodal=False,
        extent=(-5.0, 5.0),
    )


def styblinski_tang(dimension: int = 2) -> Surface:
    """½ Σ θᵢ⁴ − 16 θᵢ² + 5 θᵢ: 2ᴾ minima, one of them global [Styblinski & Tang 1990]."""
    _check_dimension(dimension, 1)

    def function(theta: Tensor) -> Tensor:
        return 0.5 * (theta**4 - 16.0 * theta**2 + 5.0 * theta).sum()

    place, value = _STYBLINSKI_TANG
    return Surface(
        name="styblinski-tang",
        function=function,
        start=torch.zeros(dimension, dtype=torch.float64),
        minima=torch.full((1, dimension), place, dtype=torch.float64),
        minimum=dimension * value,
        unimodal=False,
        extent=(-5.0, 5.0),
    )


def ackley(dimension: int = 2) -> Surface:
    """A funnel under ripples; its minimum at 0 is a cone, with no gradient there [Ackley 1987]."""
    _check_dimension(dimension, 1)

    def function(theta: Tensor) -> Tensor:
        square, wave = theta.square().mean(), torch.cos(2 * math.pi * theta).mean()
        return -20.0 * torch.exp(-0.2 * square.sqrt()) - torch.exp(wave) + 20.0 + math.e

    return Surface(
        name="ackley",
        function=function,
        start=torch.full((dimension,), 2.2, dtype=torch.float64),
        minima=torch.zeros(1, dimension, dtype=torch.float64),
        minimum=0.0,
        unimodal=False,
        extent=(-5.0, 5.0),
    )


def saddle() -> Surface:
    """½x² + ¼y⁴ − ½y²: an ordinary saddle at 0 between the minima (0, ±1)."""

    def function(theta: Tensor) -> Tensor:
        x, y = theta[0], theta[1]
        return 0.5 * x**2 + 0.25 * y**4 - 0.5 * y**2

    return Surface(
        name="saddle",
        function=function,
        start=_vector(1.0, 0.01),
        minima=torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64),
        minimum=-0.25,
        unimodal=False,
        extent=(-1.6, 1.6),
    )


def monkey_saddle() -> Surface:
    """x³ − 3xy² + ½(x² + y²)²: three valleys leave 0, where the whole Hessian vanishes.

    The quartic term, absent from the saddle's usual form, bounds it from below: in polar
    coordinates it is r³ cos 3φ + ½ r⁴, with its minima −27/32 at r = 3/2 and cos 3φ = −1.
    """

    def function(theta: Tensor) -> Tensor:
        x, y = theta[0], theta[1]
        return x**3 - 3.0 * x * y**2 + 0.5 * (x**2 + y**2).square()

    side, height = 0.75, 0.75 * math.sqrt(3.0)
    return Surface(
        name="monkey-saddle",
        function=function,
        start=_vector(0.02, 0.01),
        minima=torch.tensor([[-1.5, 0.0], [side, height], [side, -height]], dtype=torch.float64),
        minimum=-27.0 / 32.0,
        unimodal=False,
        extent=(-2.0, 2.0),
    )


def cliff(height: float = 10.0, width: float = 0.02) -> Surface:
    """A gentle slope to a minimum at (1, 0) that lies near the foot of a wall at x = 0.

    ½[(x − 1)²/10 + y²] + height · σ(−x/width). A step that overshoots onto the wall meets a
    gradient of height/(4 width), which throws the point far back; clipping is the remedy. Defaults
    make the wall's tail at the minimum smaller than rounding.

    Raises:
        ValueError: If a size is not positive, or the wall so wide that it moves the minimum.
    """
    if not (height > 0 and width > 0 and math.isfinite(height)):
        raise ValueError(f"height and width must be positive, got {height} and {width}")
    if height / width * math.exp(-1.0 / width) > 1e-15:
        raise ValueError(f"a wall of width {width} reaches the minimum at x = 1; make it thinner")

    def function(theta: Tensor) -> Tensor:
        x, y = theta[0], theta[1]
        return 0.05 * (x - 1.0) ** 2 + 0.5 * y**2 + height * torch.sigmoid(-x / width)

    return Surface(
        name="cliff",
        function=function,
        start=_vector(3.0, 0.5),
        minima=_vector(1.0, 0.0).unsqueeze(0),
        minimum=float(function(_vector(1.0, 0.0))),
        unimodal=True,
        extent=(-1.0, 4.0),
    )


def plateau(dimension: int = 2) -> Surface:
    """1 − exp(−½‖θ‖²): a well in a plain whose gradient fades as exp(−½‖θ‖²)."""
    _check_dimension(dimension, 1)

    def function(theta: Tensor) -> Tensor:
        return -torch.expm1(-0.5 * theta.square().sum())

    return Surface(
        name="plateau",
        function=function,
        start=torch.full((dimension,), 2.0 / math.sqrt(dimension), dtype=torch.float64),
        minima=torch.zeros(1, dimension, dtype=torch.float64),
        minimum=0.0,
        unimodal=True,
        extent=(-4.0, 4.0),
    )


SURFACES: dict[str, Callable[[], Surface]] = {
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "rastrigin": rastrigin,
    "beale": beale,
    "himmelblau": himmelblau,
    "styblinski-tang": styblinski_tang,
    "ackley": ackley,
    "saddle": saddle,
    "monkey-saddle": monkey_saddle,
    "cliff": cliff,
    "plateau": plateau,
}
"""Every surface by name, made with its defaults, in two dimensions."""


def _check_dimension(dimension: int, least: int) -> None:
    if dimension < least:
        raise ValueError(f"this surface has at least {least} dimension(s), got {dimension}")
