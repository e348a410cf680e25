"""The table of blocks that Fisher matrices and optimizers print: kind, size, cost and reason.

It is known before anything is allocated.
"""

import dataclasses
from typing import final


@dataclasses.dataclass(frozen=True, kw_only=True)
class Covered:
    """One line of a coverage table: the blocks of some parameters.

    Attributes:
        parameters: Names; every trainable parameter is in exactly one line.
        block: Kind of block, such as "kronecker" or "diagonal".
        size: Sizes of the matrices kept, such as "6×6 ⊗ 5×5" or "4 of 3×3".
        numbers: Floating-point numbers kept for products and solves; of an optimizer also those of
            averages, momentum and step.
        build: Multiplications to build it from captured gradients, those of forward and backward
            passes left out; 0 where they depend on the batches to come.
        solve: Multiplications to factorise once.
        reason: Why this kind of block.
    """

    parameters: tuple[str, ...]
    block: str
    size: str
    numbers: int
    build: float | int = 0
    solve: float | int
    reason: str

    @property
    def shape(self) -> str:
        """The former name of `size`."""
        return self.size

    @property
    def refresh(self) -> float | int:
        """The former name of `solve`."""
        return self.solve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The memory and work that a Fisher matrix takes.

    Attributes:
        memory: Bytes kept.
        passes: Backward passes over the data that building takes.
        build: Multiplications beyond these passes.
        solve: Multiplications of one factorisation.
    """

    memory: int
    passes: int
    build: float | int
    solve: float | int

    def __str__(self) -> str:
        return (
            f"{human_bytes(self.memory)}, {self.passes} backward passes, "
            f"{self.build:.1e} multiplications to build, {self.solve:.1e} to factorise"
        )


@final
class Coverage(tuple[Covered, ...]):
    """The lines of a coverage table; prints as a table."""

    __slots__ = ()

    def table(self, bytes_per_number: int = 8) -> str:
        """The table as text.

        Args:
            bytes_per_number: Size of the dtype in which blocks are kept.
        """
        head = ("parameters", "block", "size", "memory", "why")
        lines = [head] + [
            (
                ", ".join(line.parameters),
                line.block,
                line.size,
                human_bytes(line.numbers * bytes_per_number),
                line.reason,
            )
            for line in self
        ]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def summary(self, bytes_per_number: int = 8) -> str:
        """Memory of all blocks and multiplications to factorise them, in words."""
        numbers, solve = sum(line.numbers for line in self), sum(line.solve for line in self)
        return (
            f"{human_bytes(numbers * bytes_per_number)}, "
            f"{float(solve):.1e} multiplications to refresh"
        )

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__


def human_bytes(count: float | int) -> str:
    """A number of bytes in B, KiB, MiB, GiB or TiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
