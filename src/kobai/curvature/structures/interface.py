"""The interface of Fisher structures, and the layers that they speak of."""

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar

from kobai.curvature.coverage import Coverage, Covered
from kobai.curvature.rows import Joined, Rows
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.rows.parts import Part
from kobai.linalg.operators.solvable import SolvableOperator


class Structure(ABC):
    """How much of a Fisher matrix is kept (interface).

    A structure says what it will keep and cost, then builds the operator from gradient rows. The
    operator works on vectors in the order of θ.

    Attributes:
        definite: Whether what is built is positive semi-definite, as a Fisher matrix is.
    """

    definite: ClassVar[bool] = True

    @abstractmethod
    def coverage(self, source: ScoreRows) -> Coverage:
        """One line for the blocks of each layer or part; nothing is built."""

    @abstractmethod
    def build(self, source: ScoreRows) -> SolvableOperator:
        """The operator. Cost: one pass over the rows (two for "ekfac") and what coverage says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """Parts whose parameters belong to one module.

    Attributes:
        name: Path of the module, "(root)" for the model itself.
        positions: Which of the source's parts.
        parameters: Names.
        size: Number of coordinates.
    """

    name: str
    positions: tuple[int, ...]
    parameters: tuple[str, ...]
    size: int

    def rows(self, parts: list[Rows]) -> Rows:
        """The layer's rows from those of all parts."""
        return Joined([parts[i] for i in self.positions])


def layers_of(source: ScoreRows) -> tuple[Layer, ...]:
    """The layers in the order of their parameters in the module."""
    groups: dict[str, list[int]] = {}
    for position, part in enumerate(source.parts):
        groups.setdefault(part.parameters[0].rpartition(".")[0], []).append(position)
    return tuple(
        Layer(
            name=name or "(root)",
            positions=tuple(positions),
            parameters=tuple(n for i in positions for n in source.parts[i].parameters),
            size=sum(source.parts[i].size for i in positions),
        )
        for name, positions in groups.items()
    )


def row_numbers(source: ScoreRows, part: Part, places: int) -> int:
    """Numbers that the rows of a part are kept as."""
    groups, outer, inner = part.shape
    if part.kind in ("matrix", "bias"):
        return groups * source.objective.size * places * (inner + source.each * outer)
    if part.kind == "embedding":
        return source.objective.size * places * (1 + source.each * inner)
    return source.count * part.size


def gram_cost(source: ScoreRows, part: Part, places: int) -> float:
    """Multiplications of a part's Gram matrix by the cheaper order."""
    groups, outer, inner = part.shape
    count = float(source.count)
    written = count * part.size * (count + places)
    if part.kind not in ("matrix", "bias"):
        return written
    examples = float(source.objective.size)
    pairs = groups * places**2 * (examples**2 * inner + count**2 * (outer + 1))
    return min(pairs, written)


def covered_layer(source: ScoreRows, layer: Layer, block: str) -> Covered:
    """The line of a layer with one block of its own, on its smaller side."""
    count, size = source.count, layer.size
    chosen = [(source.parts[i], source.places[i]) for i in layer.positions]
    reason = "; ".join(dict.fromkeys(part.reason for part, _ in chosen))
    if size <= count:
        return Covered(
            parameters=layer.parameters, block=block, size=f"{size}×{size}",
            numbers=2 * size * size, build=float(count) * size * (size + 1),
            solve=size**3 / 3, reason=reason,
        )  # fmt: skip
    return Covered(
        parameters=layer.parameters, block=block,
        size=f"{size}×{size} by {count} rows",
        numbers=2 * count * count + sum(row_numbers(source, p, t) for p, t in chosen),
        build=sum(gram_cost(source, p, t) for p, t in chosen),
        solve=count**3 / 3, reason=f"{reason}; solved on the side of the rows",
    )  # fmt: skip
