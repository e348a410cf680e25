"""Continuation: minimise a blurred objective first, then ever sharper ones from there."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.problem import Objective
from kobai.problem.objective import sum_of_shares


@final
class Blurred(Objective):
    """E J(θ + σ ε) over normal ε, as a mean over fixed antithetic pairs θ ± σ d.

    The draws are made once (common random numbers), so this is a smooth deterministic function that
    any optimizer can take, line searches too; `at` changes σ and keeps them. Pairs remove the error
    of all odd terms: the gradient of a quadratic is exact. With "cubature" the draws are rotated
    axes of length √P, one rotation for every P pairs, which makes the value of every cubic exact as
    well.

    Args:
        objective: J.
        sigma: σ, in units of the parameters; 0 is J itself.
        pairs: Number of pairs; for "cubature" a multiple of P.
        sampling: "gaussian" or "cubature".
        generator: Draws the directions.

    Raises:
        ValueError: If σ is negative or the number of pairs does not fit.

    Cost of a value or gradient: 2 · pairs of those of J. Memory: pairs · P numbers.

    Source: Goodfellow, Bengio and Courville 2016, Deep Learning, §8.7.6 and equation 8.40; Stroud
    1971 (the cubature rule of degree 3).
    """

    def __init__(
        self,
        objective: Objective,
        sigma: float,
        *,
        pairs: int = 16,
        sampling: Literal["gaussian", "cubature"] = "gaussian",
        generator: torch.Generator,
    ) -> None:
        size = objective.space.dimension
        if pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {pairs}")
        if sampling not in ("gaussian", "cubature"):
            raise ValueError(f"sampling is gaussian or cubature, got {sampling!r}")
        if sampling == "cubature" and pairs % size:
            raise ValueError(f"cubature needs a multiple of P = {size} pairs, got {pairs}")
        draws = torch.randn(pairs, size, generator=generator, dtype=torch.float64)
        if sampling == "cubature":
            draws = math.sqrt(size) * torch.linalg.qr(draws.view(-1, size, size)).Q.reshape(
                pairs, size
            )
        space = objective.space
        self._set(objective, sigma, draws.to(dtype=space.dtype, device=space.device))

    def _set(self, objective: Objective, sigma: float, draws: Tensor) -> None:
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma must be non-negative and finite, got {sigma}")
        self.objective, self.sigma, self.draws = objective, sigma, draws
        self.space = objective.space

    def at(self, sigma: float) -> "Blurred":
        """The same draws under another σ."""
        other = object.__new__(Blurred)
        other._set(self.objective, sigma, self.draws)
        return other

    def _points(self, theta: Tensor) -> Iterable[Tensor]:
        if self.sigma == 0:
            yield theta
            return
        for draw in self.draws:
            yield theta + self.sigma * draw
            yield theta - self.sigma * draw

    @property
    def _weight(self) -> float:
        return 1.0 if self.sigma == 0 else 1.0 / (2 * len(self.draws))

    def value(self, theta: Float[Tensor, " P"]) -> Float[Tensor, ""]:
        """The mean of J over all points."""
        values = [self.objective.value(point) for point in self._points(theta)]
        return self._weight * torch.stack(values).sum()

    def value_and_grad(
        self, theta: Float[Tensor, " P"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " P"]]:
        """The mean of J and of its gradients over all points."""
        return sum_of_shares(self, theta)

    def differentiable(self, theta: Float[Tensor, " P"]) -> Iterable[Float[Tensor, ""]]:
        """The weighted shares of J at every point."""
        for point in self._points(theta):
            for share in self.objective.differentiable(point):
                yield self._weight * share

    def __call__(self) -> Float[Tensor, ""]:
        """Value and gradient at the module's parameters, as a torch closure."""
        value, gradient = self.value_and_grad(self.theta())
        for name, piece in self.space.unflatten(gradient).items():
            self.space.module.get_parameter(name).grad = piece.clone()
        return value


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stages:
    """What a continuation did.

    Attributes:
        sigmas: (S,) blur of each stage.
        thetas: (S, P) where each stage ended.
        blurred: (S,) blurred objective there.
        values: (S,) objective itself there.
    """

    sigmas: Float[np.ndarray, " S"]
    thetas: Float[np.ndarray, "S P"]
    blurred: Float[np.ndarray, " S"]
    values: Float[np.ndarray, " S"]


def minimize_by_continuation(
    objective: Objective,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    sigmas: Sequence[float],
    *,
    steps: int,
    pairs: int = 16,
    sampling: Literal["gaussian", "cubature"] = "gaussian",
    generator: torch.Generator,
) -> Stages:
    """Minimise J blurred by each σ in turn, each stage from the end of the one before.

    Args:
        objective: J; its module is moved.
        make: Makes a fresh optimizer for every stage.
        sigmas: σ of the stages, falling; the last may be 0 for J itself.
        steps: Steps a stage.
        pairs: See `Blurred`; the same draws serve all stages.
        sampling: See `Blurred`.
        generator: Draws them.

    Raises:
        ValueError: If σ does not fall, or there are no stages or steps.
    """
    if not sigmas or steps < 1:
        raise ValueError(f"need at least one sigma and one step, got {sigmas} and {steps}")
    if any(b >= a for a, b in itertools.pairwise(sigmas)):
        raise ValueError(f"sigmas must fall from stage to stage, got {list(sigmas)}")
    first = Blurred(objective, sigmas[0], pairs=pairs, sampling=sampling, generator=generator)
    thetas, blurs, values = [], [], []
    for sigma in sigmas:
        stage = first.at(sigma)
        optimizer = make(objective.space.module)
        for _ in range(steps):
            optimizer.step(stage)  # type: ignore[arg-type]
        theta = objective.theta()
        thetas.append(theta.double().cpu().numpy())
        blurs.append(float(stage.value(theta)))
        values.append(float(objective.value(theta)))
    return Stages(
        sigmas=np.array(sigmas, dtype=np.float64),
        thetas=np.stack(thetas),
        blurred=np.array(blurs),
        values=np.array(values),
    )
