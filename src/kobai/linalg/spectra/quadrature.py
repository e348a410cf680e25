"""Spectral densities as quadratures: curves with errors, the share of eigenvalues below 0."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.estimators.estimate import student_quantile

Form = Literal["gaussian", "cumulative"]
Scale = Literal["linear", "log"]
Part = Literal["all", "positive", "negative"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A density or distribution function on a grid.

    Attributes:
        grid: (g,) ascending eigenvalues; on the log scale log10 of their size.
        value: (g,) mean over the probes. "gaussian": density per unit of ``grid``, with integral
            one over all eigenvalues. "cumulative": share of the eigenvalues up to the grid value.
        standard_error: (g,) of ``value``; infinite for a single probe.
        width: standard deviation of the Gaussian that smooths, in units of ``grid``; 0 for none.
    """

    grid: Float[Tensor, "g"]
    value: Float[Tensor, "g"]
    standard_error: Float[Tensor, "g"]
    width: float

    def integrated_error(self) -> float:
        """Integral of the standard error over the grid: an L1 distance."""
        return float(torch.trapezoid(self.standard_error, self.grid))


@dataclass(frozen=True, kw_only=True)
class Fraction:
    """The share of eigenvalues below a threshold, with its uncertainties.

    Attributes:
        value: the share, between 0 and 1.
        standard_error: over the probes.
        low: lower end of the sampling interval at the level asked for.
        high: its upper end.
        bracket: lowest and highest share that any spectrum with the same quadratures can have
            (Chebyshev-Markov-Stieltjes inequalities), averaged over the probes: what the resolution
            leaves open. Wide where many eigenvalues lie close to the threshold.
        threshold: the eigenvalue below which was counted.
    """

    value: float
    standard_error: float
    low: float
    high: float
    bracket: tuple[float, float]
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Density:
    """A spectral density as Gauss quadratures, one per probe.

    Attributes:
        nodes: (p, m) ascending, float64, CPU.
        weights: (p, m) non-negative, of sum one for each probe.
        dimension: n, the number of eigenvalues described.
        resolution: default width of the smoothing, as a fraction of the range of the nodes.
        num_products: products spent.
        status: "finished"; "converged" or "max-products" when a tolerance was asked for;
            "non-finite"; "not-symmetric" (the products contradict symmetry).
    """

    nodes: Float[Tensor, "p m"]
    weights: Float[Tensor, "p m"]
    dimension: int
    resolution: float
    num_products: int
    status: str

    def curve(
        self,
        grid: Float[Tensor, "g"] | None = None,
        *,
        form: Form = "gaussian",
        scale: Scale = "linear",
        part: Part = "all",
        width: float | None = None,
        points: int = 512,
        floor: float | None = None,
    ) -> Curve:
        """The density on a grid, with a standard error at each grid value.

        Args:
            grid: where to evaluate, ascending; on the log scale log10 of the eigenvalue's size.
                Default: ``points`` values over the whole range.
            form: "gaussian" smooths each node to a normal density; "cumulative" is the distribution
                function (smoothed when ``width`` is given, otherwise a staircase).
            scale: "log" works with log10 |λ|.
            part: "positive" or "negative" keeps the nodes of one sign; the integral is then their
                share. Sizes below ``floor`` have no sign and belong to "all" only.
            width: standard deviation of the smoothing in units of the grid; default for "gaussian":
                `resolution` times the range of the nodes (of their logarithms on the log scale).
            points: size of the default grid.
            floor: on the log scale sizes below count as ``floor``; default 1e-7 of the largest.

        Raises:
            ValueError: an unknown name, a width below zero.
        """
        if form not in ("gaussian", "cumulative"):
            raise ValueError(f"form is gaussian or cumulative; got {form!r}")
        if scale not in ("linear", "log"):
            raise ValueError(f"scale is linear or log; got {scale!r}")
        if part not in ("all", "positive", "negative"):
            raise ValueError(f"part is all, positive or negative; got {part!r}")
        if width is not None and not (width > 0 or (form == "cumulative" and width == 0)):
            raise ValueError(f"width is a standard deviation above 0; got {width}")
        largest = float(self.nodes.abs().max())
        floor = 1e-7 * largest if floor is None else floor
        weights, places = self.weights, self.nodes
        if part != "all":
            sign = 1.0 if part == "positive" else -1.0
            weights = weights * (sign * self.nodes > floor)
        if scale == "log":
            tiny = floor if floor > 0 else torch.finfo(torch.float64).tiny
            places = places.abs().clamp(min=tiny).log10()
        counted = places[weights > 0]
        low, high = (float(counted.min()), float(counted.max())) if counted.numel() else (0.0, 0.0)
        if width is None:
            spread = max(high - low, 1e-3 * max(abs(high), abs(low)), 1e-12)
            width = 0.0 if form == "cumulative" else self.resolution * spread
        if grid is None:
            margin = 5 * width if width else 0.05 * (high - low) + 1e-12
            grid = torch.linspace(low - margin, high + margin, points, dtype=torch.float64)
        grid = grid.to(device="cpu", dtype=torch.float64)
        each = torch.stack(
            [_evaluate(p, w, grid, form, width) for p, w in zip(places, weights, strict=True)]
        )
        return Curve(
            grid=grid, value=each.mean(dim=0), standard_error=_standard_error(each), width=width
        )

    def fraction_below(self, threshold: float, *, level: float = 0.95) -> Fraction:
        """Share of eigenvalues below a threshold, with a sampling interval and a bracket.

        Args:
            threshold: count eigenvalues < threshold.
            level: Confidence of the sampling interval (Student's t over the probes).
        """
        below = (self.nodes < threshold) & (self.weights > 0)
        share = (self.weights * below).sum(dim=1)
        # A quadrature bounds the true measure: without its last node below, with the first above.
        last = below & ~torch.nn.functional.pad(below[:, 1:], (0, 1))
        above = (self.nodes >= threshold) & (self.weights > 0)
        first = above & ~torch.nn.functional.pad(above[:, :-1], (1, 0))
        low_bound = share - (self.weights * last).sum(dim=1)
        high_bound = share + (self.weights * first).sum(dim=1)
        error = float(_standard_error(share))
        half = student_quantile(level, share.numel()) * error
        value = float(share.mean())
        return Fraction(
            value=value,
            standard_error=error,
            low=max(value - half, 0.0) if math.isfinite(half) else 0.0,
            high=min(value + half, 1.0) if math.isfinite(half) else 1.0,
            bracket=(float(low_bound.mean()), float(high_bound.mean())),
            threshold=threshold,
        )

    def negative_fraction(self, zero: float | None = None, *, level: float = 0.95) -> Fraction:
        """Share of negative eigenvalues (the saddle index over n).

        Args:
            zero: eigenvalues above -zero do not count as negative; default 1e-6 of the largest in
                size, where rounding and slowly resolved zeros lie.
            level: Confidence of the sampling interval.
        """
        zero = 1e-6 * float(self.nodes.abs().max()) if zero is None else zero
        if not zero >= 0:
            raise ValueError(f"zero is a size, at least 0; got {zero}")
        return self.fraction_below(-zero, level=level)


def _evaluate(
    places: Tensor, weights: Tensor, grid: Tensor, form: Form, width: float
) -> Float[Tensor, "g"]:
    """One probe's smoothed density or distribution function on the grid."""
    if form == "cumulative" and width == 0:
        return ((places[None, :] <= grid[:, None]) * weights).sum(dim=1)
    distance = (grid[:, None] - places[None, :]) / width
    if form == "cumulative":
        return (torch.special.ndtr(distance) * weights).sum(dim=1)
    return (torch.exp(-0.5 * distance.square()) * weights).sum(dim=1) / (
        width * math.sqrt(2 * math.pi)
    )


def _standard_error(each: Float[Tensor, "p *g"]) -> Float[Tensor, "*g"]:
    """Standard error of the mean over the first axis; infinite for one sample."""
    if each.shape[0] < 2:
        return torch.full_like(each[0], math.inf)
    return each.std(dim=0) / math.sqrt(each.shape[0])
