"""Self-checks: what a landscape must satisfy whatever the model is.

Each compares a number on the surface with the same number found in another way. They are stored
with the result, so that a picture carries its own proof.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn

from kobai.landscape.backends.evaluator import Evaluator
from kobai.landscape.backends.passes import Point
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.grid.blocks import Collector, scattered_node, sweep
from kobai.problem import Objective
from kobai.results import Check, Line, Plane, Volume


def raise_if_failed(checks: Line | Plane | Volume | Iterable[Check]) -> None:
    """Raise `RuntimeError` naming every failed check, with its numbers.

    Args:
        checks: A line, plane or volume, or its `checks`.
    """
    if isinstance(checks, Line | Plane | Volume):
        checks = checks.checks
    failed = [
        f"{c.name}: {c.value:.3g} exceeds {c.tolerance:.3g} ({c.detail})"
        for c in checks
        if not c.passed
    ]
    if failed:
        raise RuntimeError("the landscape fails its self-checks: " + "; ".join(failed))


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleState:
    """A copy of all that an evaluation must leave as it was."""

    tensors: dict[str, torch.Tensor]
    gradients: dict[str, tuple[int, int] | None]
    modes: dict[str, tuple[bool, bool]]
    random: torch.Tensor

    @classmethod
    def of(cls, module: nn.Module) -> "ModuleState":
        """Copy parameters and buffers; note gradients, modes and the global random state."""
        named = [*module.named_parameters(), *module.named_buffers()]
        return cls(
            tensors={name: tensor.detach().clone() for name, tensor in named},
            gradients={
                name: None if p.grad is None else (id(p.grad), p.grad._version)
                for name, p in module.named_parameters()
            },
            modes={
                name: (part.training, "forward" in part.__dict__)
                for name, part in module.named_modules()
            },
            random=torch.get_rng_state(),
        )

    def changes(self, module: nn.Module) -> list[str]:
        """List what differs now."""
        now = ModuleState.of(module)
        found = [
            name
            for name, tensor in self.tensors.items()
            if name not in now.tensors or not _same_bits(tensor, now.tensors[name])
        ]
        found += [f"{n}.grad" for n, g in self.gradients.items() if now.gradients.get(n) != g]
        found += [
            f"mode of {n or 'the module'}" for n, m in self.modes.items() if now.modes[n] != m
        ]
        if not torch.equal(self.random, now.random):
            found.append("global random state")
        return found


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare to the bit, NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def untouched(before: ModuleState, module: nn.Module) -> Check:
    """Check that parameters, buffers, gradients, modes and global random state are as before."""
    changes = before.changes(module)
    return Check(
        name="model untouched",
        passed=not changes,
        value=float(len(changes)),
        tolerance=0.0,
        detail="parameters, buffers, gradients, modes and random state compared to the bit"
        + (f"; changed: {', '.join(changes[:5])}" if changes else ""),
    )


def rounding(objective: Objective, value: float) -> float:
    """Bound by how much two exact computations of a loss of this size may differ.

    Relative 1e-6 in float32 and finer in float64, with a floor for losses near zero, where the
    outputs' own rounding is all that is left.
    """
    epsilon = torch.finfo(objective.space.dtype).eps
    return max(8 * epsilon, min(1e-6, 1e4 * epsilon)) * abs(value) + 2 * epsilon


Plain = Callable[[Point], float]
"""The loss at coordinates, computed without anything the surface was computed with."""


def plain_value(objective: Objective, directions: Directions) -> Plain:
    """Make the objective's own value a function of coordinates."""
    return lambda point: float(objective.value(directions.at(point)))


def centre(
    objective: Objective,
    directions: Directions,
    evaluator: Evaluator,
    *,
    plain: Plain | None = None,
) -> Check:
    """Check the surface at coordinates zero against the loss at the origin, computed alone."""
    zero = (0.0,) * directions.count
    alone = (plain or plain_value(objective, directions))(zero)
    found = evaluator.loss(*zero)
    return _agreement("centre", [(alone, found)], objective, "loss at the centre")


def nodes(
    objective: Objective,
    directions: Directions,
    axes: Sequence[np.ndarray],
    losses: np.ndarray,
    *,
    count: int = 4,
    evaluated: np.ndarray | None = None,
    plain: Plain | None = None,
) -> Check:
    """Check scattered nodes, two corners among them, against the plain loss at the same θ.

    Nodes are scattered by the golden-ratio sequence, which needs no random numbers. Far out, where
    outputs are large, rounding takes ten times what it may take at the centre. Of a grid that was
    partly evaluated, the nearest node that was is taken.
    """
    shape = losses.shape
    plain = plain or plain_value(objective, directions)
    corners = [tuple(0 for _ in shape), tuple(n - 1 for n in shape)]
    picks = corners + [scattered_node(shape, k) for k in range(1, count - 1)]
    if evaluated is not None:
        there = np.argwhere(evaluated)
        picks = [tuple(there[((there - pick) ** 2).sum(1).argmin()].tolist()) for pick in picks]
    pairs = []
    for index in dict.fromkeys(picks):
        found = float(losses[index])
        point = tuple(float(axis[i]) for axis, i in zip(axes, index, strict=True))
        pairs.append((plain(point), found))
    return _agreement(
        "nodes", pairs, objective, f"{len(pairs)} nodes and the plain loop", slack=10.0
    )


def _agreement(
    name: str,
    pairs: Sequence[tuple[float, float]],
    objective: Objective,
    what: str,
    *,
    slack: float = 1.0,
) -> Check:
    """Find the worst pair (plain, found) of losses, measured in units of its tolerance."""
    worst, shown = -1.0, (0.0, 0.0, 0.0, 0.0)
    for plain, found in pairs:
        tolerance = slack * rounding(objective, plain if math.isfinite(plain) else 0.0)
        if math.isfinite(plain) and math.isfinite(found):
            difference = abs(plain - found)
        else:
            same = plain == found or (math.isnan(plain) and math.isnan(found))
            difference = 0.0 if same else math.inf
        if difference / tolerance > worst:
            worst, shown = difference / tolerance, (difference, tolerance, plain, found)
    difference, tolerance, plain, found = shown
    return Check(
        name=name,
        passed=difference <= tolerance,
        value=difference,
        tolerance=tolerance,
        detail=f"{what}: {plain:.9g} alone, {found:.9g} on the surface (worst)",
    )


def determinism(evaluator: Evaluator, point: Point, losses: np.ndarray | None = None) -> Check:
    """Check that a node measured twice has the same bits; name the hash of all losses."""
    first, second = evaluator.measure([point]), evaluator.measure([point])
    same = _same_bits(first, second)
    gap = float((first - second).abs().nan_to_num(0.0).max())
    return Check(
        name="determinism",
        passed=same,
        value=0.0 if same else max(gap, 5e-324),
        tolerance=0.0,
        detail="one node evaluated twice, compared to the bit"
        + ("" if losses is None else f"; SHA-256 of the losses {fingerprint(losses)}"),
    )


def fingerprint(losses: np.ndarray) -> str:
    """Compute SHA-256 of an array of numbers: the same surface has the same one."""
    return hashlib.sha256(np.ascontiguousarray(losses, dtype="<f8").tobytes()).hexdigest()


class _Probe(Evaluator):
    """Says where θ lies, as a number that no exchange or shift of axes leaves alone."""

    name = "probe"
    fields = ("probe",)

    def __init__(self, directions: Directions) -> None:
        self.directions = directions

    def measure(self, points: Sequence[Point]) -> torch.Tensor:
        """Sum the coordinates of θ(c) weighted by 1, π, π²."""
        found = self.directions.project(self.directions.at(point) for point in points)[0]
        weights = [[math.pi**k] for k in range(found.shape[1])]
        return found @ torch.tensor(weights, dtype=torch.float64)


def orientation(directions: Directions, axes: Sequence[np.ndarray]) -> Check:
    """Check that a function of θ that tells the axes apart comes out at the right nodes.

    The same sweep runs over a small grid of unequal sides cut from the axes, with an evaluator that
    reads off θ where it is.
    """
    small = []
    for k, axis in enumerate(axes):
        picks = np.unique(np.linspace(0, len(axis) - 1, 3 + k).round().astype(int))
        small.append(axis[picks])
    if len({len(axis) for axis in small}) < len(small):  # axes of two nodes each
        small[0] = np.append(small[0], 2 * small[0][-1] - small[0][0])
    found = sweep(small, Collector(_Probe(directions))).fields["probe"]
    expected = sum(math.pi**k * grid for k, grid in enumerate(np.meshgrid(*small, indexing="ij")))
    largest = max(float(np.abs(axis).max()) for axis in small)
    # θ is rounded to its own dtype before its coordinates are read off.
    size = float(directions.origin.double().norm())
    grain = torch.finfo(directions.origin.dtype).eps * (largest + size / min(directions.norms))
    error = float(np.abs(found - expected).max())
    return Check(
        name="orientation",
        passed=error <= 100 * grain,
        value=error,
        tolerance=100 * grain,
        detail=f"coordinates read back from θ on a {' x '.join(str(len(s)) for s in small)} grid",
    )


def direction_norms(directions: Directions) -> Check:
    """Check that the directions are finite, not zero and apart (by the largest |cosine|)."""
    cosines = directions.cosine_matrix() - torch.eye(directions.count).to(directions.vectors.device)
    largest = float(cosines.abs().max())
    norms = ", ".join(f"{norm:.4g}" for norm in directions.norms)
    return Check(
        name="directions",
        passed=largest <= 0.999,
        value=largest,
        tolerance=0.999,
        detail=f"largest |cosine| between directions; norms {norms}",
    )
