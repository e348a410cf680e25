"""One pass over the data at one set of parameters: where θ lies, the outputs, and their sums."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk, ParameterSpace

Point = tuple[float, ...]
Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Outputs (K, n, …) at K points, targets (n, …) and weights (n,) to sums (K, sums)."""

WAITING = 2**18
"""Numbers in outputs that wait for the next chunk's, so that small ones are reduced together."""


@dataclasses.dataclass(eq=False)
class AffineSum:
    """A tensor that is affine in the coordinates, base + Σ cᵢ partᵢ.

    The sum over all coordinates but the last is kept: along a row of a grid, a point costs one
    addition. Terms are summed in the order of `Directions.at`.

    Attributes:
        base: The tensor at the origin.
        parts: What each coordinate adds; None for nothing.
    """

    base: Tensor
    parts: Sequence[Tensor | None]
    _row: tuple[Point, Tensor] | None = None

    def at(self, point: Point, out: Tensor | None = None) -> Tensor:
        """Compute a fresh tensor at the coordinates, or overwrite the one given."""
        before, last, part = point[:-1], point[-1], self.parts[-1]
        if self._row is None or self._row[0] != before:
            total = self.base
            for value, other in zip(before, self.parts, strict=False):
                if other is not None:
                    total = torch.add(total, other, alpha=value)
            self._row = (before, total)
        row = self._row[1]
        return row.clone() if part is None else torch.add(row, part, alpha=last, out=out)


class MovedParameters:
    """Parameters at coordinates, in a buffer that is used again and again.

    Args:
        space: The parameters.
        directions: The subspace.
    """

    def __init__(self, space: ParameterSpace, directions: Directions) -> None:
        self.space = space
        self._sum = AffineSum(directions.origin, list(directions.vectors.T.contiguous()))
        self._buffer = torch.empty_like(directions.origin)

    def theta(self, point: Point) -> Tensor:
        """Compute θ(c), valid until the next call."""
        return self._sum.at(tuple(point), out=self._buffer)

    def at(self, point: Point) -> dict[str, Tensor]:
        """Compute θ(c) and cut it into the module's parameters."""
        return self.space.unflatten(self.theta(point))


def one_pass(
    objective: EmpiricalRisk,
    parameters: dict[str, Tensor],
    chunks: Sequence[Chunk],
    reduce: Reduce,
    *,
    before: Callable[[Chunk], None] | None = None,
) -> Tensor:
    """Go over the data at the parameters given and return all sums (sums,).

    Args:
        objective: The empirical risk.
        parameters: Its parameters by name.
        chunks: The data.
        reduce: From outputs to sums; outputs of several small chunks are reduced in one call.
        before: Called before each chunk's forward pass.
    """
    shares: list[Tensor] = []
    waiting: list[tuple[Tensor, Chunk]] = []
    for chunk in chunks:
        if before is not None:
            before(chunk)
        outputs = objective.forward_parameters(parameters, chunk.batch)
        if waiting and waiting[0][0].shape[1:] != outputs.shape[1:]:
            shares.append(_reduced(waiting, reduce))
            waiting = []
        waiting.append((outputs, chunk))
        if sum(outputs.numel() for outputs, _ in waiting) > WAITING:
            shares.append(_reduced(waiting, reduce))
            waiting = []
    if waiting:
        shares.append(_reduced(waiting, reduce))
    return torch.stack(shares).sum(0)


def _reduced(waiting: Sequence[tuple[Tensor, Chunk]], reduce: Reduce) -> Tensor:
    outputs = _joined([outputs for outputs, _ in waiting])
    targets = _joined([chunk.batch.targets for _, chunk in waiting])
    weights = _joined([chunk.weights for _, chunk in waiting])
    return reduce(outputs.unsqueeze(0), targets, weights)[0]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleSums:
    """Sums over examples from which loss, standard error and accuracy follow; a `Reduce`.

    Attributes:
        objective: The empirical risk.
        classes: Sum the losses of this many classes as well; 0 for none.
    """

    objective: EmpiricalRisk
    classes: int = 0

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """Give the type that losses are computed in, whatever that of the outputs."""
        return self.objective.space.dtype

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Compute (Σ l, Σ l², Σ l w, Σ w², correct, Σ l of each class) at K points, float64."""
        likelihood = self.objective.likelihood
        count, size = outputs.shape[:2]
        outputs = outputs.to(self.dtype).flatten(0, 1)
        repeated = targets.expand(count, *targets.shape).flatten(0, 1)
        nll = likelihood.nll(outputs, repeated).double().view(count, size)
        right = likelihood.correct(outputs, repeated)
        sums = torch.stack(
            (
                nll.sum(1),
                nll.square().sum(1),
                nll @ weights,
                torch.dot(weights, weights).expand(count),
                nll.new_full((count,), float("nan"))
                if right is None
                else right.double().view(count, size).sum(1),
            ),
            dim=1,
        )
        if not self.classes:
            return sums
        of_class = nll.new_zeros(count, self.classes).index_add_(1, targets.long(), nll)
        return torch.cat((sums, of_class), dim=1)

    def values(self, sums: Tensor, size: int, terms: float, members: Tensor) -> Tensor:
        """Turn sums over all data (K, 5 + classes) into fields (K, 3 + classes).

        Args:
            sums: From all examples.
            size: Number of examples.
            terms: Number of terms that are not ignored.
            members: Number of examples of each class.
        """
        total, squares, cross, weights, correct = sums[:, :5].unbind(1)
        weight = self.objective.weight
        loss = total / weight
        spread = (squares - 2 * loss * cross + loss.square() * weights).clamp(min=0.0)
        correction = size / (size - 1) if size > 1 else float("nan")
        stderr = (spread * correction).sqrt() / weight
        values = torch.stack((loss, stderr, correct / terms), dim=1)
        # A class without examples has no loss: 0 / 0 is NaN.
        return torch.cat((values, sums[:, 5:] / members), dim=1)
