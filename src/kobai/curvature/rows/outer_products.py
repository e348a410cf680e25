"""Rows that are sums of outer products: layers that multiply by a matrix, and embeddings.

A layer with weight matrix (M, K) that multiplies the inputs a_t at places t (one for a plain
linear layer; tokens, positions of a convolution or repeated calls otherwise) has the gradient
Σ_t g_t a_tᵀ, g_t being the gradient in its output at t. The Gram matrix of such rows,

    ⟨Σ_t g_t a_tᵀ, Σ_s g'_s a'_sᵀ⟩ = Σ_{t,s} ⟨g_t, g'_s⟩ ⟨a_t, a'_s⟩,

needs no row of length M K; with many places writing the rows out can be cheaper, and the smaller
count of multiplications decides.
"""

from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kobai.curvature.rows.interface import DenseRows, Rows

_WORKSPACE = 2**24
"""Numbers that an intermediate result of a Gram matrix may have."""

_CACHED = 2**19
"""Numbers of a block that is multiplied entry by entry, few enough to stay in a cache."""

_NARROWEST = 64
"""Rows below which matrix products lose speed."""

_WIDEST = 200
"""Rows above which too much below the diagonal is computed as well."""


def example_blocks(examples: int, each: int, columns: int) -> Iterator[tuple[int, int]]:
    """Cut examples into ranges whose block of a Gram matrix with `columns` rows fits a cache."""
    rows = min(_WIDEST, max(_CACHED // max(1, columns), _NARROWEST))
    step = max(1, rows // each)
    for start in range(0, examples, step):
        yield start, min(start + step, examples)


def add_product(
    result: Float[Tensor, "R S"],
    left: Float[Tensor, "R p"],
    right: Float[Tensor, "S p"],
    *,
    half: bool,
) -> None:
    """Add L Rᵀ to a matrix in place; `half`: what lies above the diagonal at least."""
    if not half:
        result.addmm_(left, right.T)
        return
    step = max(_NARROWEST, -(-len(left) // 8))
    for start in range(0, len(left), step):
        rows = slice(start, start + step)
        result[rows, start:].addmm_(left[rows], right[start:].T)


def mirrored(result: Float[Tensor, "R R"]) -> Float[Tensor, "R R"]:
    """The same matrix with what is above the diagonal copied below it, in place."""
    step = 256
    for start in range(0, len(result), step):
        stop = start + step
        square = result[start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).T)
        # Tile by tile: a transposed strip would be written across the cache.
        for after in range(stop, len(result), step):
            tile = slice(after, after + step)
            result[tile, start:stop] = result[start:stop, tile].T
    return result


@final
class OuterRows(Rows):
    """Rows Σ_t g_t a_tᵀ, written row by row as (groups, M, K).

    Args:
        inputs: a, (groups, E, T, K) for E examples and T places, the bias's one counted.
        gradients: g, (groups, E, Q, T, M) for Q cotangents an example; R = E Q rows.
        indices: Coordinates of the (groups, M, K) entries in θ, flat.
    """

    def __init__(
        self,
        inputs: Float[Tensor, "G E T K"],
        gradients: Float[Tensor, "G E Q T M"],
        indices: Int[Tensor, " GMK"],
    ) -> None:
        self.inputs, self.gradients, self.indices = inputs, gradients, indices
        self.groups, self.examples, self.places, self.inner = inputs.shape
        self.each, self.outer = gradients.shape[2], gradients.shape[4]
        self.count = self.examples * self.each

    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V: the layer's output for the weights V, against g."""
        weights = columns.T.reshape(-1, self.groups, self.outer, self.inner)
        outputs = torch.einsum("getk,cgmk->cgetm", self.inputs, weights)
        return torch.einsum("cgetm,geqtm->eqc", outputs, self.gradients).flatten(0, 1)

    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U: combine the gradients, then one product with the inputs."""
        stack = weights.reshape(self.examples, self.each, -1)
        combined = torch.einsum("geqtm,eqc->cgetm", self.gradients, stack)
        matrices = torch.einsum("cgetm,getk->cgmk", combined, self.inputs)
        return matrices.reshape(weights.shape[1], -1).T

    def gram(self, other: Rows | None = None) -> Float[Tensor, "R S"]:
        """G Hᵀ by the cheaper of two orders of contraction; of G Gᵀ one half is computed."""
        if other is not None and not isinstance(other, OuterRows):
            return self.dense() @ other.dense().T
        result = self.inputs.new_zeros(self.count, (self if other is None else other).count)
        self.add_gram(result, other)
        return result if other is not None else mirrored(result)

    def add_gram(self, result: Float[Tensor, "R S"], other: "OuterRows | None" = None) -> None:
        """Add G Hᵀ to a matrix in place; without `other` G Gᵀ, above the diagonal at least.

        Nothing below the diagonal blocks of `row_blocks` is then touched; `mirrored` completes it.
        Workspace: a few million numbers whatever the sizes.
        """
        if self.single(other):
            add_single(result, [(self, other)])
        elif self._dearer(self if other is None else other):
            self._add_written(result, other)
        else:
            self._add_pairs(result, other)

    def single(self, other: "OuterRows | None") -> bool:
        """Tell whether `add_single` makes the Gram matrix: no repeated places, and cheapest."""
        return (
            self.places == 1
            and (other is None or other.places == 1)
            and not self._dearer(self if other is None else other)
        )

    def _add_pairs(self, result: Tensor, other: "OuterRows | None") -> None:
        """All places of the other side meet those of a few examples of this side at a time."""
        half = other is None
        other = self if other is None else other
        width = self.places * self.each * other.count * other.places
        step = max(1, _WORKSPACE // max(1, width))
        for start in range(0, self.examples, step):
            chosen = slice(start, start + step)
            rows = slice(start * self.each, (start + step) * self.each)
            rest = slice(start if half else 0, None)
            target = result[rows, rest.start * other.each :]
            for g in range(self.groups):
                target += _pairs(
                    self.inputs[g, chosen], self.gradients[g, chosen],
                    other.inputs[g, rest], other.gradients[g, rest],
                )  # fmt: skip

    def _add_written(self, result: Tensor, other: "OuterRows | None") -> None:
        """Rows written out for a few output units at a time; no entry is computed twice."""
        count = self.count + (0 if other is None else other.count)
        step = max(1, _WORKSPACE // max(1, count * self.inner))
        for g in range(self.groups):
            for start in range(0, self.outer, step):
                units = slice(start, start + step)
                left = self._written_units(g, units)
                right = left if other is None else other._written_units(g, units)
                add_product(result, left, right, half=other is None)

    def _written_units(self, group: int, units: slice) -> Float[Tensor, "R mK"]:
        """The entries of some output units in all rows."""
        inputs, gradients = self.inputs[group], self.gradients[group, ..., units]
        width = gradients.shape[3]
        written = inputs.new_empty(self.examples, self.each, width, self.inner)
        for q in range(self.each):
            # One cotangent at a time: all of them share the inputs, which are never repeated.
            written[:, q] = torch.bmm(gradients[:, q].mT, inputs)
        return written.view(self.count, -1)

    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns; without repeated places two small products."""
        if self.places == 1:
            weights = self.gradients.square().sum(2)[:, :, 0]
            return torch.einsum("gem,gek->gmk", weights, self.inputs[:, :, 0].square()).reshape(-1)
        step = max(1, _WORKSPACE // max(1, self.each * self.size))
        total = self.inputs.new_zeros(self.size)
        for start in range(0, self.examples, step):
            total += self._written(slice(start, start + step)).square().sum(0)
        return total

    def square(self) -> Float[Tensor, ""]:
        """Σ of the squares of all entries; without repeated places from the factors' lengths."""
        if self.places == 1:
            lengths = self.gradients.square().sum((2, 3, 4)) * self.inputs.square().sum((2, 3))
            return lengths.sum()
        return self.squares().sum()

    def unit_moments(self) -> Float[Tensor, "GM K K"]:
        """Σ over rows of the outer products of each unit's K entries, (groups · M, K, K)."""
        if self.places == 1:
            weights = self.gradients[:, :, :, 0].square().sum(2)
            inputs = self.inputs[:, :, 0]
            stacks = [
                a.T @ (w.unsqueeze(1) * a)
                for a, own in zip(inputs, weights, strict=True)
                for w in own.mT
            ]
            return torch.stack(stacks)
        total = self.inputs.new_zeros(self.groups * self.outer, self.inner, self.inner)
        step = max(1, _WORKSPACE // max(1, self.each * self.size))
        for start in range(0, self.examples, step):
            rows = self._written(slice(start, start + step))
            stacks = rows.view(-1, self.groups * self.outer, self.inner).transpose(0, 1)
            total += stacks.mT @ stacks
        return total

    def dense(self) -> Float[Tensor, "R p"]:
        """G, written out."""
        groups = [self._written_units(g, slice(None)) for g in range(self.groups)]
        return groups[0] if len(groups) == 1 else torch.cat(groups, 1)

    def rotated(
        self, outer: Float[Tensor, "G M M2"], inner: Float[Tensor, "G K K2"]
    ) -> "OuterRows":
        """The rows in other bases: g Q and a P for orthogonal Q and P a group."""
        return OuterRows(
            torch.einsum("getk,gkj->getj", self.inputs, inner),
            torch.einsum("geqtm,gmi->geqti", self.gradients, outer),
            self.indices,
        )

    def _written(self, chosen: slice) -> Float[Tensor, "r p"]:
        inputs, gradients = self.inputs[:, chosen], self.gradients[:, chosen]
        rows = torch.einsum("geqtm,getk->eqgmk", gradients, inputs)
        return rows.reshape(-1, self.size)

    def _dearer(self, other: "OuterRows") -> bool:
        """Tell whether meeting all places costs more multiplications than writing the rows out."""
        places = self.places * other.places
        pairs = (
            self.groups
            * places
            * (
                self.examples * other.examples * self.inner
                + self.count * other.count * (self.outer + 1)
            )
        )
        written = self.size * (
            self.count * self.places + other.count * other.places + self.count * other.count
        )
        return pairs > written


def add_single(
    result: Float[Tensor, "R S"], sides: Sequence[tuple[OuterRows, OuterRows | None]]
) -> None:
    """Add Σ G Hᵀ for rows without repeated places: two small Gram matrices, entry by entry.

    What all of them add to one block of the result is summed while it is in the cache.

    Args:
        result: What is added to.
        sides: The rows and those of the columns, of the same examples in every pair; None instead
            of the latter throughout: what is above the diagonal is added at least.
    """
    factors = []
    for own, other in sides:
        partner = own if other is None else other
        inner = own.inputs[:, :, 0] @ partner.inputs[:, :, 0].mT
        left = own.gradients[:, :, :, 0].flatten(1, 2)
        right = left if other is None else partner.gradients[:, :, :, 0].flatten(1, 2)
        factors += zip(inner, left, right, strict=True)
    own, other = sides[0]
    half, width = other is None, (own if other is None else other).each
    for start, stop in example_blocks(own.examples, own.each, result.shape[1]):
        rows = slice(start * own.each, stop * own.each)
        first = start if half else 0
        columns = slice(first * width, None)
        target = result[rows, columns].unflatten(0, (-1, own.each))
        for inner, left, right in factors:
            outer = (left[rows] @ right[columns].T).unflatten(0, (-1, own.each))
            weights = inner[start:stop, first:].repeat_interleave(width, 1)
            target.addcmul_(outer, weights.unsqueeze(1))


def _pairs(
    inputs: Float[Tensor, "e T K"],
    gradients: Float[Tensor, "e Q T M"],
    other_inputs: Float[Tensor, "f S K"],
    other_gradients: Float[Tensor, "f P S M"],
) -> Float[Tensor, "eQ fP"]:
    """Σ_{t,s} ⟨g_t, g'_s⟩ ⟨a_t, a'_s⟩ for one group."""
    examples, each, places, _ = gradients.shape
    others, other_each, other_places, _ = other_gradients.shape
    inner = inputs.flatten(0, 1) @ other_inputs.flatten(0, 1).T
    outer = gradients.flatten(0, 2) @ other_gradients.flatten(0, 2).T
    inner = inner.view(examples, 1, places, others, 1, other_places)
    outer = outer.view(examples, each, places, others, other_each, other_places)
    return (outer * inner).sum((2, 5)).reshape(examples * each, others * other_each)


@final
class EmbeddingRows(Rows):
    """Rows of an embedding table: the gradient at each place belongs to one line of the table.

    Nothing of the vocabulary's size squared is formed, and no rows unless asked for.

    Args:
        tokens: Lines looked up, (E, T).
        gradients: (E, Q, T, D); zero where the lookup passes no gradient (padding).
        indices: Coordinates of the (V, D) table in θ, flat.
        lines: V.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "E T"],
        gradients: Float[Tensor, "E Q T D"],
        indices: Int[Tensor, " VD"],
        lines: int,
    ) -> None:
        self.tokens, self.gradients, self.indices = tokens, gradients, indices
        self.lines, self.width = lines, gradients.shape[3]
        self.examples, self.each = gradients.shape[:2]
        self.count = self.examples * self.each

    def product(self, columns: Float[Tensor, "p k"]) -> Float[Tensor, "R k"]:
        """G V: look V up and meet the gradients."""
        table = columns.reshape(self.lines, self.width, -1)
        return torch.einsum("etdc,eqtd->eqc", table[self.tokens], self.gradients).flatten(0, 1)

    def transpose(self, weights: Float[Tensor, "R k"]) -> Float[Tensor, "p k"]:
        """Gᵀ U: add the combined gradients to their lines."""
        stack = weights.reshape(self.examples, self.each, -1)
        combined = torch.einsum("eqtd,eqc->etdc", self.gradients, stack).flatten(0, 1)
        table = combined.new_zeros(self.lines, *combined.shape[1:])
        return table.index_add(0, self.tokens.reshape(-1), combined).flatten(0, 1)

    def gram(self, other: Rows | None = None) -> Float[Tensor, "R S"]:
        """G Hᵀ, summed over pairs of places that look up the same line."""
        other = self if other is None else other
        if not isinstance(other, EmbeddingRows):
            return self.dense() @ other.dense().T
        result = []
        width = self.tokens.shape[1] * self.each * other.count * other.tokens.shape[1]
        step = max(1, _WORKSPACE // max(1, width))
        for start in range(0, self.examples, step):
            tokens = self.tokens[start : start + step]
            gradients = self.gradients[start : start + step]
            same = (tokens[:, :, None, None] == other.tokens).to(gradients.dtype)
            meet = torch.einsum("eqtd,fpsd->eqtfps", gradients, other.gradients)
            result.append(torch.einsum("eqtfps,etfs->eqfp", meet, same).flatten(2).flatten(0, 1))
        return torch.cat(result)

    def squares(self) -> Float[Tensor, " p"]:
        """Sums of squares of the columns, a row at a time over the examples."""
        total = self.gradients.new_zeros(self.lines, self.width)
        for tokens, gradients in zip(self.tokens, self.gradients, strict=True):
            for one in gradients:
                table = torch.zeros_like(total).index_add(0, tokens, one)
                total += table.square()
        return total.reshape(-1)

    def dense(self) -> Float[Tensor, "R p"]:
        """G, written out."""
        unit = torch.eye(self.count, dtype=self.gradients.dtype, device=self.gradients.device)
        return self.transpose(unit).T


def concatenated(pieces: Sequence[Rows]) -> Rows | None:
    """Rows of several batches in the same coordinates as those of one; None if their forms differ.

    Args:
        pieces: At least one.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    dense = [piece for piece in pieces if isinstance(piece, DenseRows)]
    if len(dense) == len(pieces):
        return DenseRows(torch.cat([piece.matrix for piece in dense]), first.indices)
    outer = [piece for piece in pieces if isinstance(piece, OuterRows)]
    if len(outer) == len(pieces) and len({piece.places for piece in outer}) == 1:
        inputs = torch.cat([piece.inputs for piece in outer], 1)
        return OuterRows(inputs, torch.cat([piece.gradients for piece in outer], 1), first.indices)
    tables = [piece for piece in pieces if isinstance(piece, EmbeddingRows)]
    if len(tables) == len(pieces) and len({piece.tokens.shape[1] for piece in tables}) == 1:
        tokens = torch.cat([piece.tokens for piece in tables])
        gradients = torch.cat([piece.gradients for piece in tables])
        return EmbeddingRows(tokens, gradients, first.indices, tables[0].lines)
    return None
