"""Surfaces of two variables with the paths of optimizers on them."""

from collections.abc import Callable

import numpy as np
import torch
from contourpy import contour_generator
from jaxtyping import Float
from torch import Tensor

from kobai.problem import Objective
from kobai.results import Panel, Series


def contours(
    function: Callable[[Tensor], Tensor],
    x: tuple[float, float],
    y: tuple[float, float],
    levels: Float[np.ndarray, "K"],
    *,
    size: int = 121,
) -> Series:
    """Level lines as one curve, its pieces separated by gaps.

    Args:
        function: From θ (2,) to the value.
        x: Range of the first variable.
        y: Range of the second.
        levels: Heights of the lines.
        size: Points a side of the grid on which the function is evaluated.
    """
    across, up = np.linspace(*x, size), np.linspace(*y, size)
    grid = torch.from_numpy(np.stack(np.meshgrid(across, up), -1).reshape(-1, 2))
    with torch.no_grad():
        values = torch.func.vmap(function)(grid).reshape(size, size).numpy()
    tracer = contour_generator(across, up, values)
    gap = np.full((1, 2), np.nan)
    pieces = [
        p for level in levels for line in tracer.lines(level) for p in (np.asarray(line), gap)
    ]
    joined = np.concatenate(pieces) if pieces else gap
    return Series(label="", x=joined[:, 0], y=joined[:, 1])


def walk(
    objective: Objective, optimizer: torch.optim.Optimizer, steps: int
) -> Float[np.ndarray, "T P"]:
    """The points an optimizer visits, the start included; it ends early where it is not finite."""
    points = [objective.theta()]
    for _ in range(steps):
        optimizer.step(objective)  # pyright: ignore
        points.append(objective.theta())
        if not bool(points[-1].isfinite().all()):
            points.pop()
            break
    return torch.stack(points).double().numpy()


def path(label: str, points: Float[np.ndarray, "T P"], *, kind: str = "both") -> Series:
    """The first two coordinates of a walk as a curve."""
    return Series(label=label, x=points[:, 0], y=points[:, 1], kind=kind)


def values_along(objective: Objective, points: Float[np.ndarray, "T P"]) -> Float[np.ndarray, "T"]:
    """The objective at every point of a walk."""
    theta = torch.from_numpy(points).to(objective.space.dtype)
    return np.array([float(objective.value(point)) for point in theta])


def map_panel(
    title: str,
    level_lines: Series,
    paths: list[Series],
    *,
    names: tuple[str, str] = ("θ₁", "θ₂"),
) -> Panel:
    """Level lines with paths on them."""
    return Panel(title=title, x_label=names[0], y_label=names[1], series=(level_lines, *paths))
