"""Small planes that follow a run: what the loss looks like around each point of its path."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kobai.landscape.directions.subspace import Directions
from kobai.landscape.surfaces import evaluate_plane
from kobai.problem import Objective
from kobai.results import MovingFrame


def frame_directions(
    path: Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]],
    step: int,
    *,
    across: Float[Tensor, " P"] | None = None,
    generator: torch.Generator | None = None,
) -> Directions:
    """Make a moving frame: unit directions along a path at one of its points, and across it.

    The first direction is the tangent (the chord between the neighbours), the second the change of
    tangent there, made orthogonal: the plane in which the path bends. A path that does not bend
    takes `across`, or a random direction, in its place.

    Args:
        path: At least two points.
        step: Which of them the frame is centred on; negative counts from the end.
        across: Second direction to use in place of the bend, such as a gradient.
        generator: Draws a second direction where the path is straight and `across` is not given.

    Returns:
        The frame; the neighbours on the path are marked.

    Raises:
        ValueError: If there are fewer than two points, the step is outside, the path stands still
            there, or it is straight and nothing else is given.
    """
    count = len(path)
    if count < 2 or not -count <= step < count:
        raise ValueError(f"step {step} of a path of {count} points has no frame")
    step %= count
    before, after = max(step - 1, 0), min(step + 1, count - 1)
    here = path[step]
    tangent = path[after].to(here).double() - path[before].to(here).double()
    if not float(tangent.norm()) > 0:
        raise ValueError(f"the path stands still at step {step}; take another step")
    tangent /= tangent.norm()
    second, name = None, "across"
    if across is not None:
        second = across.to(here).double()
    elif before < step < after:
        second = path[after].to(here).double() - 2 * here.double() + path[before].to(here).double()
        name = "bend"
    bent = None if second is None else _across(second, tangent)
    if bent is None:
        if generator is None:
            raise ValueError(
                f"the path is straight at step {step}; pass across= or generator= for a second "
                "direction"
            )
        draw = torch.randn(
            here.shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        bent, name = _across(draw.to(here.device), tangent), "random, across"
    assert bent is not None
    made = Directions(
        origin=here,
        vectors=torch.stack([tangent, bent], dim=1).to(here.dtype),
        names=("along the path", name),
        kind="frame",
        origin_label=f"step {step}",
        note="a frame that moves along the path",
    )
    near = {f"step {k}": path[k] for k in dict.fromkeys((before, after)) if k != step}
    places = made.project([point.to(here) for point in near.values()])[0].tolist()
    points = {name: tuple(c) for name, c in zip(near, places, strict=True)}
    return dataclasses.replace(made, points=points)


def _across(vector: Tensor, tangent: Tensor) -> Tensor | None:
    """Give the unit part of a vector across a unit tangent, or None where there is almost none."""
    size = float(vector.norm())
    rest = vector - torch.dot(vector, tangent) * tangent
    rest -= torch.dot(rest, tangent) * tangent
    if not float(rest.norm()) > 1e-6 * max(size, 1e-300):
        return None
    return rest / rest.norm()


def moving_frame(
    objective: Objective,
    path: Float[Tensor, "T P"] | Sequence[Float[Tensor, " P"]],
    *,
    count: int = 4,
    nodes: int = 11,
    reach: float = 2.0,
    label: str = "",
    generator: torch.Generator,
) -> MovingFrame:
    """Evaluate a small plane at points along a path: along it and across it.

    Args:
        objective: Whose loss.
        path: Points of a run, in order.
        count: How many frames, evenly spaced along the path, its last point among them.
        nodes: Nodes per side.
        reach: Half-width of every frame, in chords: distances between its neighbouring points.
        label: Name of the run.
        generator: Draws a second direction where the path is straight or ends.

    Returns:
        The frames, with the path's own points near each marked. Points where the path stands still
        have no frame and are left out.

    Raises:
        ValueError: If no point of the path has a frame.
    """
    if count < 1 or not reach > 0:
        raise ValueError(f"count ≥ 1 and reach > 0 are needed, got {count}, {reach}")
    steps, frames = [], []
    for step in np.unique(np.linspace(0, len(path) - 1, min(count, len(path))).round().astype(int)):
        before, after = max(step - 1, 0), min(step + 1, len(path) - 1)
        chord = float((path[after].double() - path[before].double()).norm()) / (after - before)
        if not chord > 0:
            continue
        directions = frame_directions(path, int(step), generator=generator)
        axis = np.linspace(-reach * chord, reach * chord, nodes)
        axis[nodes // 2] = 0.0 if nodes % 2 else axis[nodes // 2]
        frames.append(
            evaluate_plane(
                objective, directions, a=axis, b=axis, fields=("loss",), checks=False,
                label=f"{label} step {step}".strip(),
            )
        )  # fmt: skip
        steps.append(int(step))
    if not frames:
        raise ValueError("the path does not move; there is no frame to follow it")
    return MovingFrame(label=label, steps=tuple(steps), frames=tuple(frames))
