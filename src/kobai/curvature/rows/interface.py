"""Rows of a Jacobian in some of the coordinates, known by what can be done with them.

A block of a Fisher matrix is Gᵀ G / W with one row of G for each example and cotangent. Layers know
G in factors much smaller than itself, so rows are an interface: products with G and Gᵀ, Gram
matrices G Gᵀ (never forming G where the layer allows), sums of squares, and G itself on request.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Rows(ABC):
    """A matrix G of `count` rows and `size` columns (interface).

    Attributes:
        indices: The coordinates of θ that the columns stand for, in the columns' order, (size,).
        count: Number of rows; those of one example follow each other.
    """

    indices: Int[Tensor, " p"]
    count: int

    @property
    def size(self) -> int:
        """Number of columns."""
        return int(self.indices.numel())

    @abstractmethod
    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V."""

    @abstractmethod
    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U."""

    @abstractmethod
    def gram(self, other: "Rows | None" = None) -> Float[Tensor, "R S"]:
        """G Hᵀ with the rows of another batch in the same coordinates; None: with itself."""

    @abstractmethod
    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "R p"]:
        """G, written out."""


@final
class DenseRows(Rows):
    """Rows that are stored.

    Args:
        matrix: G, (R, p).
        indices: Coordinates of its columns, (p,).
    """

    def __init__(self, matrix: Float[Tensor, "R p"], indices: Int[Tensor, " p"]) -> None:
        self.matrix, self.indices = matrix, indices
        self.count = int(matrix.shape[0])

    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V."""
        return self.matrix @ columns

    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U."""
        return self.matrix.T @ weights

    def gram(self, other: Rows | None = None) -> Float[Tensor, "R S"]:
        """G Hᵀ."""
        return self.matrix @ (self.matrix if other is None else other.dense()).T

    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns."""
        return self.matrix.square().sum(0)

    def dense(self) -> Float[Tensor, "R p"]:
        """The stored matrix."""
        return self.matrix


@final
class Stacked(Rows):
    """The rows of several batches below each other, in the same coordinates.

    Args:
        pieces: One a batch, of the same coordinates.
    """

    def __init__(self, pieces: Sequence[Rows]) -> None:
        if not pieces:
            raise ValueError("stacked rows need at least one batch, got none")
        self.pieces = tuple(pieces)
        self.indices = pieces[0].indices
        self.counts = [piece.count for piece in pieces]
        self.count = sum(self.counts)

    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V."""
        return torch.cat([piece.product(columns) for piece in self.pieces])

    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U."""
        parts = weights.split(self.counts)
        total = self.pieces[0].transpose(parts[0])
        for piece, part in zip(self.pieces[1:], parts[1:], strict=True):
            total = total + piece.transpose(part)
        return total

    def gram(self, other: Rows | None = None) -> Float[Tensor, "R S"]:
        """G Hᵀ, batch by batch; of its own Gram the upper half is computed."""
        if other is not None:
            others = other.pieces if isinstance(other, Stacked) else (other,)
            return torch.cat([torch.cat([p.gram(o) for o in others], 1) for p in self.pieces])
        if len(self.pieces) == 1:
            return self.pieces[0].gram()
        blocks: dict[tuple[int, int], Tensor] = {}
        for i, piece in enumerate(self.pieces):
            blocks[i, i] = piece.gram()
            for j in range(i + 1, len(self.pieces)):
                blocks[i, j] = piece.gram(self.pieces[j])
                blocks[j, i] = blocks[i, j].T
        places = range(len(self.pieces))
        return torch.cat([torch.cat([blocks[i, j] for j in places], 1) for i in places])

    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns."""
        return torch.stack([piece.squares() for piece in self.pieces]).sum(0)

    def dense(self) -> Float[Tensor, "R p"]:
        """G, written out."""
        return torch.cat([piece.dense() for piece in self.pieces])


@final
class Joined(Rows):
    """The same rows in several sets of coordinates, side by side: the parts of a layer.

    Args:
        parts: With equal numbers of rows and no coordinate in common.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        if not parts or len({part.count for part in parts}) != 1:
            raise ValueError(
                "joined rows need parts with one number of rows, got "
                f"{[part.count for part in parts]}"
            )
        self.parts = tuple(parts)
        self.indices = torch.cat([part.indices for part in parts])
        self.sizes = [part.size for part in parts]
        self.count = parts[0].count

    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V."""
        pieces = columns.split(self.sizes)
        total = self.parts[0].product(pieces[0])
        for part, piece in zip(self.parts[1:], pieces[1:], strict=True):
            total = total + part.product(piece)
        return total

    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U."""
        return torch.cat([part.transpose(weights) for part in self.parts])

    def gram(self, other: Rows | None = None) -> Float[Tensor, "R S"]:
        """G Hᵀ, the sum over parts."""
        if other is None:
            others: Sequence[Rows | None] = [None] * len(self.parts)
        elif isinstance(other, Joined):
            others = other.parts
        else:
            raise TypeError(f"rows of several parts meet rows of the same parts, got {other!r}")
        total = self.parts[0].gram(others[0])
        for part, partner in zip(self.parts[1:], others[1:], strict=True):
            total = total + part.gram(partner)
        return total

    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns."""
        return torch.cat([part.squares() for part in self.parts])

    def dense(self) -> Float[Tensor, "R p"]:
        """G, written out."""
        return torch.cat([part.dense() for part in self.parts], 1)
