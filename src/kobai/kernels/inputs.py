"""From what users pass as points (nothing, tensors, an objective) to the network's risk there."""

from collections.abc import Mapping

from torch import Tensor

from kobai.problem import Batch, EmpiricalRisk, Gaussian
from kobai.problem.batch import input_tensors

Points = EmpiricalRisk | Batch | Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def at_points(objective: EmpiricalRisk, points: Points | None) -> EmpiricalRisk:
    """The objective's network on other inputs; targets play no part.

    Args:
        objective: The network, and the examples that None stands for.
        points: Inputs in the form the model takes, a `Batch`, an objective of the same model such
            as ``problem.objective(split="test")``, or None.

    Returns:
        A risk in chunks of the objective's size.

    Raises:
        TypeError: If the objective has no network outputs.
        ValueError: If the points belong to another model, or examples depend on each other.
    """
    if not isinstance(objective, EmpiricalRisk):
        raise TypeError(
            "kernels of a network need its outputs; got "
            f"{type(objective).__name__}; make an EmpiricalRisk by Problem(...).objective()"
        )
    if points is None:
        return objective
    if isinstance(points, EmpiricalRisk):
        if points.space.module is not objective.space.module:
            raise ValueError("both objectives must belong to one module")
        return points
    if objective.coupled:
        raise ValueError(
            "this objective is coupled: outputs depend on all of its examples together, so there "
            "are none at other inputs; leave x1 and x2 out"
        )
    if not isinstance(points, Batch):
        first = input_tensors(points)[0]
        points = Batch(points, objective.theta().new_zeros(first.shape[0]))
    batch = Batch(points.inputs, objective.theta().new_zeros(points.size))
    chunk = max(own.size for own in objective.batches)
    return EmpiricalRisk(
        objective.model, Gaussian(), tuple(batch.chunks(chunk)), space=objective.space
    )


def in_blocks(objective: EmpiricalRisk, size: int) -> list[EmpiricalRisk]:
    """The same examples as several risks of at most `size` examples, in order."""
    blocks: list[EmpiricalRisk] = []
    pieces: list[Batch] = []
    held = 0
    for batch in objective.batches:
        start = 0
        while start < batch.size:
            taken = batch.take(slice(start, start + size - held))
            pieces.append(taken)
            held += taken.size
            start += taken.size
            if held == size:
                blocks.append(_risk(objective, pieces))
                pieces, held = [], 0
    if pieces:
        blocks.append(_risk(objective, pieces))
    return blocks


def _risk(objective: EmpiricalRisk, pieces: list[Batch]) -> EmpiricalRisk:
    return EmpiricalRisk(
        objective.model, objective.likelihood, tuple(pieces), space=objective.space
    )
