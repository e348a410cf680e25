"""Ways from one solution to another: straight, and along a trained curve; how high they climb."""

import dataclasses
import itertools
import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.between import between_directions
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Objective
from kobai.results import Connection

DIVERGED = 1e4
"""Training a curve ends where its loss exceeds the first one (or 1) so many times."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A path γ(t), t ∈ [0, 1], between two points, bent by a third.

    Attributes:
        start: γ(0), shape (P,).
        end: γ(1).
        control: The control point.
        kind: "bezier": (1−t)² start + 2t(1−t) control + t² end; "polygon": two straight pieces that
            meet in the control point at t = ½.
        connection: The loss along it and along the straight line.
    """

    start: Float[Tensor, " P"]
    end: Float[Tensor, " P"]
    control: Float[Tensor, " P"]
    kind: str
    connection: Connection

    def at(self, t: float) -> Float[Tensor, " P"]:
        """Compute γ(t)."""
        return _at(self.kind, t, self.start, self.control, self.end)

    def directions(self, *, labels: tuple[str, str, str] = ("start", "end", "bend")) -> Directions:
        """Make the plane that holds the curve, exactly: through both ends and the control point.

        Raises:
            ValueError: If the control point lies on the line between the ends.
        """
        points = (self.start, self.end, self.control)
        return between_directions(dict(zip(labels, points, strict=True)))

    def path(self, count: int = 33) -> list[Float[Tensor, " P"]]:
        """Give points at equal steps of t, for `project_trajectory`."""
        return [self.at(float(t)) for t in np.linspace(0, 1, count)]


def connect(
    objective: Objective,
    start: Float[Tensor, " P"],
    end: Float[Tensor, " P"],
    *,
    kind: Literal["bezier", "polygon"] = "bezier",
    steps: int = 200,
    points: int = 4,
    lr: float = 0.02,
    resolution: int = 33,
    label: str = "",
    generator: torch.Generator,
) -> Curve:
    """Train a curve of low loss between two points, and measure both ways.

    The control point minimises the mean loss over t (uniform in [0, 1]) by Adam with a cosine
    schedule; every step takes the gradient at `points` values of t, one drawn from each of as many
    equal parts (Garipov et al. 2018, Loss surfaces, mode connectivity and fast ensembling of DNNs,
    §3).

    The barrier of a way is the largest height of its loss above the straight line between the
    losses of its ends, or 0 (Frankle et al. 2020, Linear mode connectivity, definition of error
    barrier, with the line in place of the mean, so that unequal ends make no barrier).

    Args:
        objective: Whose loss; batch normalisation stays frozen on the way.
        start: One solution (P,).
        end: The other.
        kind: Quadratic Bézier curve, or two straight pieces.
        steps: Steps of training; 0 leaves the curve straight.
        points: Values of t per step.
        lr: Largest length of a step per coordinate, as a share of the root mean square of
            end − start.
        resolution: Values of t at which both ways are measured, ends included.
        label: Name of the pair.
        generator: Draws t.

    Returns:
        The curve with its `connection`. Cost: steps · points gradients, 2 · resolution values.

    Raises:
        ValueError: If the ends coincide, differ in length, or a number is out of range.
    """
    if start.shape != end.shape:
        raise ValueError(f"both ends need one shape, got {tuple(start.shape)}, {tuple(end.shape)}")
    if steps < 0 or points < 1 or not lr > 0 or resolution < 3:
        raise ValueError(
            f"steps ≥ 0, points ≥ 1, lr > 0 and resolution ≥ 3 are needed, got steps={steps}, "
            f"points={points}, lr={lr}, resolution={resolution}"
        )
    distance = float((end - start).double().norm())
    if not distance > 0:
        raise ValueError("both ends are the same point; there is no way to go")
    step_size = lr * distance / math.sqrt(len(start))
    control, losses, status = _train(
        objective, start, end, kind, steps, points, step_size, generator
    )
    ts, fine = np.linspace(0, 1, resolution), np.linspace(0, 1, 8 * resolution)
    straight = _losses(objective, [start + float(t) * (end - start) for t in ts])
    bent = _losses(objective, [_at(kind, t, start, control, end) for t in ts])
    way = [_at(kind, t, start, control, end) for t in fine]
    length = sum(float((q - p).double().norm()) for p, q in itertools.pairwise(way))
    connection = Connection(
        label=label,
        t=ts,
        straight=straight,
        curve=bent,
        straight_barrier=barrier(ts, straight),
        curve_barrier=barrier(ts, bent),
        distance=distance,
        length=length,
        losses=np.array(losses),
        status=status,
        note=f"{kind} curve, {len(losses)} steps",
    )
    return Curve(
        start=start.detach(), end=end.detach(), control=control, kind=kind, connection=connection
    )


def barrier(t: Float[np.ndarray, " T"], losses: Float[np.ndarray, " T"]) -> float:
    """Find the largest height of a loss above the line between its first and last value, or 0.

    Args:
        t: From 0 to 1.
        losses: The loss there; one that is not finite makes the barrier infinite.
    """
    if not np.isfinite(losses).all():
        return math.inf
    line = losses[0] + (losses[-1] - losses[0]) * (t - t[0]) / (t[-1] - t[0])
    return max(0.0, float((losses - line).max()))


def _weights(kind: str, t: float) -> tuple[float, float, float]:
    """Give the weights of start, control point and end."""
    if kind == "bezier":
        return (1 - t) ** 2, 2 * t * (1 - t), t**2
    return max(0.0, 1 - 2 * t), 1 - abs(1 - 2 * t), max(0.0, 2 * t - 1)


def _at(kind: str, t: float, start: Tensor, control: Tensor, end: Tensor) -> Tensor:
    weights = _weights(kind, float(t))
    if weights[0] == 1 or weights[2] == 1:  # the ends themselves, to the bit
        return (start if weights[0] == 1 else end).clone()
    return weights[0] * start + weights[1] * control + weights[2] * end


def _train(
    objective: Objective,
    start: Tensor,
    end: Tensor,
    kind: str,
    steps: int,
    points: int,
    step_size: float,
    generator: torch.Generator,
) -> tuple[Tensor, list[float], str]:
    """Train the control point; return it, the loss of every step, and how it went."""
    control = ((start + end) / 2).detach().clone().requires_grad_()
    if steps == 0:
        return control.detach(), [], "finished"
    optimizer = torch.optim.Adam([control], lr=step_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    for _ in range(steps):
        draws = torch.rand(points, generator=generator, device=generator.device).tolist()
        total, gradient = 0.0, torch.zeros_like(start)
        for k, draw in enumerate(draws):
            t = (k + draw) / points
            value, slope = objective.value_and_grad(_at(kind, t, start, control.detach(), end))
            total += float(value) / points
            gradient += (_weights(kind, t)[1] / points) * slope
        losses.append(total)
        if not math.isfinite(total) or abs(total) > DIVERGED * max(1.0, abs(losses[0])):
            return control.detach().clone(), losses, "diverged"
        control.grad = gradient
        optimizer.step()
        schedule.step()
    return control.detach().clone(), losses, "finished"


def _losses(objective: Objective, thetas: list[Tensor]) -> Float[np.ndarray, " T"]:
    return np.array([float(objective.value(theta)) for theta in thetas])
