"""A spectral density with its errors, on a logarithmic axis."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from kobai.results.fields import coerce_fields
from kobai.results.registry import register

GAP = 1.5
"""Factor between neighbouring eigenvalues from which those above stand apart."""


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class SpectralDensity:
    """How the eigenvalues of a curvature matrix, or of one block of it, are spread.

    Densities are per decade of |λ|; the integral of `positive` is the share of eigenvalues above
    `floor`, that of `negative` the share below −`floor`. What is left lies in between, zero for all
    that the estimate can tell.

    Attributes:
        label: Name of the run or point.
        matrix: Which matrix: ``hessian``, ``ggn``, ``fisher-kronecker``, ….
        block: The layer whose diagonal block was measured; empty for the whole matrix.
        dimension: Number of eigenvalues described.
        grid: (g,) log10 |λ|, ascending.
        positive: (g,) density of positive eigenvalues.
        positive_error: (g,) its standard error over the probes.
        negative: (g,) density of negative eigenvalues.
        negative_error: (g,) its standard error.
        width: Standard deviation of the smoothing, in decades.
        floor: Size below which an eigenvalue counts as zero.
        largest: Largest node of the quadratures, close to the largest eigenvalue.
        smallest: Smallest node.
        negative_fraction: Share of eigenvalues below −`floor` (the saddle index over dimension).
        negative_low: Lower end of its 95 % sampling interval.
        negative_high: Upper end.
        negative_bracket_low: Least share that any spectrum with the same quadratures can have.
        negative_bracket_high: Highest such share: what the resolution leaves open.
        num_probes: Random vectors.
        num_steps: Lanczos steps of each.
        num_products: Matrix-vector products spent.
        eigenvalues: (k,) eigenvalues known one by one, ascending; drawn as marks.
        classes: Number of the network's outputs, which outliers are counted against; 0: none.
        status: ``finished``, ``converged``, or what went wrong.
        optimizer: Optimizer that led to the point; empty when none did.
        seed: Seed of that run, or None.
    """

    label: str
    matrix: str
    dimension: int
    grid: Float[np.ndarray, "g"]
    positive: Float[np.ndarray, "g"]
    positive_error: Float[np.ndarray, "g"]
    negative: Float[np.ndarray, "g"]
    negative_error: Float[np.ndarray, "g"]
    width: float
    floor: float
    largest: float
    smallest: float
    negative_fraction: float
    negative_low: float
    negative_high: float
    negative_bracket_low: float
    negative_bracket_high: float
    num_probes: int
    num_steps: int
    num_products: int
    status: str
    block: str = ""
    eigenvalues: Float[np.ndarray, "k"] = ()  # pyright: ignore[reportAssignmentType]
    classes: int = 0
    optimizer: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        coerce_fields(
            self,
            arrays={
                "grid": "f g",
                "positive": "f g",
                "positive_error": "f g",
                "negative": "f g",
                "negative_error": "f g",
                "eigenvalues": "f k",
            },
            floats=("width", "floor", "largest", "smallest", "negative_fraction", "negative_low",
                    "negative_high", "negative_bracket_low", "negative_bracket_high"),
            integers=("dimension", "num_probes", "num_steps", "num_products", "classes",
                      *(("seed",) if self.seed is not None else ())),
        )  # fmt: skip
        if np.any(np.diff(self.grid) <= 0):
            raise ValueError("SpectralDensity.grid must ascend")

    @property
    def outliers(self) -> tuple[int, float]:
        """How many eigenvalues stand apart above the rest, and by which factor the gap is wide.

        The widest gap in ratio among the positive eigenvalues known one by one, which counts from a
        factor of `GAP` on; (0, NaN) with fewer than two of them. What lies below the least of these
        is not looked at.
        """
        known = self.eigenvalues[self.eigenvalues > self.floor][::-1]
        if len(known) < 2:
            return 0, math.nan
        ratios = known[:-1] / known[1:]
        count = int(np.argmax(ratios)) + 1
        ratio = float(ratios[count - 1])
        return (count if ratio >= GAP else 0), ratio
