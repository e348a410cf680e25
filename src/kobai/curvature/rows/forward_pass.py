"""One forward pass of a network over a batch, and the gradient rows that are pulled out of it."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows.interface import DenseRows, Rows
from kobai.curvature.rows.layer_calls import example_rows
from kobai.curvature.rows.outer_products import EmbeddingRows, OuterRows
from kobai.curvature.rows.parts import Part
from kobai.curvature.rows.pullback import Pullback
from kobai.layers import LayerUse, Watch, scale_rows
from kobai.problem import Batch, EmpiricalRisk, pure

_ROWS_TOGETHER = 64
"""Cotangents whose backward passes may be vectorised together: bounds the memory of their batch."""


@final
class ForwardPass:
    """One forward pass over a batch with its graph, and the rows pulled out of it.

    Args:
        objective: The network and its data.
        theta: The point.
        batch: The examples.
        parts: The partition of θ.

    Attributes:
        examples: Number of examples that have rows of their own: one if they are coupled.
        outputs: The network's outputs.
        places: For each part, how often an example uses it; known once rows were made.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        theta: Float[Tensor, " P"],
        batch: Batch,
        parts: tuple[Part, ...],
    ) -> None:
        self.parts = parts
        self.coupled = objective.coupled
        self.examples = 1 if self.coupled else batch.size
        self.size = batch.size
        pieces = objective.space.unflatten(theta)
        alone = [part.parameters[0] for part in parts if part.kind == "jacobian"]
        self.sizes = {name: piece.numel() for name, piece in pieces.items()}
        self.spans = {name: self.sizes[name] for name in alone}
        modules = {module for part in parts for _, module in part.modules}
        with torch.enable_grad():
            self.leaves = {
                name: piece.detach().requires_grad_()
                for name, piece in pieces.items()
                if name not in self.spans
            }
            self.flat = None
            parameters = dict(self.leaves)
            if alone:
                self.flat = torch.cat([pieces[name].reshape(-1) for name in alone])
                self.flat = self.flat.detach().requires_grad_()
                cut = self.flat.split(list(self.spans.values()))
                for name, piece in zip(alone, cut, strict=True):
                    parameters[name] = piece.view(pieces[name].shape)
            self.watch = Watch()
            handles = self.watch.attach(objective.model, modules)
            try:
                with pure(objective.model, coupled=self.coupled):
                    self.outputs = objective.forward_parameters(parameters, batch)
            finally:
                for handle in handles:
                    handle.remove()
        self.places: list[int] = [1] * len(parts)

    def uses(self, cotangents: Tensor, vectorised: bool) -> list[list[LayerUse]]:
        """Uses of every part's matrices with their gradients for cotangents (Q, N, *outputs).

        Raises:
            RuntimeError: If torch cannot vectorise the pass.
        """
        shared = self._singles(cotangents) if self.coupled else cotangents
        edges = self.watch.edges
        if not edges:
            return [[] for _ in self.parts]
        if vectorised and len(shared) > 1 and self.watch.size * len(shared) <= 4_000_000:
            gradients = self._pulled(shared, batched=True)
        else:
            passes = [self._pulled(one, batched=False) for one in shared]
            gradients = [
                None if several[0] is None else torch.stack(several)  # pyright: ignore
                for several in zip(*passes, strict=True)
            ]
        by_slot: dict[tuple[str, str], list[LayerUse]] = {}
        for use in self.watch.uses(gradients, batched=True):
            by_slot.setdefault((use.layer, use.slot), []).append(use)
        return [
            [
                use
                for (path, _), slot in zip(part.modules, part.slots, strict=True)
                for use in by_slot.get((path, slot), [])
            ]
            for part in self.parts
        ]

    def rows(self, cotangents: Tensor, vectorised: bool) -> list[Rows | None]:
        """Rows of every part for cotangents (Q, N, *outputs); None where calls do not fit.

        Raises:
            RuntimeError: If torch cannot vectorise the pass.
        """
        uses = self.uses(cotangents, vectorised)
        singles = self._singles(cotangents)
        count = len(singles) if self.coupled else len(cotangents)
        jacobians = self._jacobians(singles)
        found: list[Rows | None] = []
        for position, (part, own) in enumerate(zip(self.parts, uses, strict=True)):
            rows = self._part_rows(part, own, count, jacobians)
            if isinstance(rows, OuterRows):
                self.places[position] = rows.places
            elif isinstance(rows, EmbeddingRows):
                self.places[position] = rows.tokens.shape[1]
            found.append(rows)
        return found

    def mixed(self, cotangents: Tensor, vectorised: bool) -> list[list[LayerUse] | Rows]:
        """Uses of parts that multiply by a matrix, rows of all others."""
        uses = self.uses(cotangents, vectorised)
        singles = self._singles(cotangents)
        count = len(singles) if self.coupled else len(cotangents)
        jacobians = self._jacobians(singles)
        found: list[list[LayerUse] | Rows] = []
        for part, own in zip(self.parts, uses, strict=True):
            if part.form is not None:
                found.append(own)
                continue
            rows = self._part_rows(part, own, count, jacobians)
            if rows is None:
                raise ValueError(
                    f"{part.parameters}: called differently than on the first examples"
                )
            found.append(rows)
        return found

    def _pulled(self, cotangents: Tensor, *, batched: bool) -> list[Tensor | None]:
        return list(
            torch.autograd.grad(
                self.outputs, self.watch.edges, cotangents,
                retain_graph=True, allow_unused=True, is_grads_batched=batched,
            )
        )  # fmt: skip

    def failures(self, cotangents: Tensor, vectorised: bool) -> list[Part]:
        """Parts whose rows do not add up to what autograd says, by one combination of all rows."""
        try:
            rows = self.rows(cotangents, vectorised)
        except RuntimeError:
            return list(self.parts)
        count = len(cotangents) * self.size
        weights = torch.cos(
            torch.arange(1, count + 1, dtype=self.outputs.dtype, device=self.outputs.device) ** 2
        )
        arranged = weights.view(self.size, -1).T.reshape(
            len(cotangents), self.size, *(1,) * (self.outputs.ndim - 1)
        )
        leaves = list(self.leaves.values())
        expected = dict(
            zip(
                self.leaves,
                torch.autograd.grad(
                    self.outputs, leaves, (arranged * cotangents).sum(0),
                    retain_graph=True, materialize_grads=True,
                ),
                strict=True,
            )
        ) if leaves else {}  # fmt: skip
        wrong = []
        for part, own in zip(self.parts, rows, strict=True):
            if part.kind == "jacobian":
                continue
            if own is None:
                wrong.append(part)
                continue
            truth = [expected[name] for name in part.parameters]
            error = own.transpose(weights.unsqueeze(1)).squeeze(1)
            _subtract(part, error, truth)
            square = own.square() if isinstance(own, OuterRows) else own.squares().sum()
            lengths = torch.stack([torch.linalg.vector_norm(piece) for piece in truth])
            scale = square.sqrt() + torch.linalg.vector_norm(lengths)
            limit = torch.finfo(error.dtype).eps ** 0.5 * scale
            if not bool(torch.linalg.vector_norm(error) <= limit):
                wrong.append(part)
        return wrong

    def _singles(self, cotangents: Tensor) -> Tensor:
        """One cotangent a row, (R, N, *outputs): each concerns one example's outputs only."""
        if not self.coupled and self.flat is None:
            return cotangents[:0]
        apart = cotangents.new_zeros(self.size, len(cotangents), *cotangents.shape[1:])
        place = torch.arange(self.size, device=cotangents.device)
        apart[place, :, place] = cotangents.transpose(0, 1)
        return apart.flatten(0, 1)

    def _jacobians(self, singles: Tensor) -> dict[str, Tensor]:
        """Rows of the parameters without a layer, (R, size) each, by one backward pass per row."""
        if self.flat is None:
            return {}
        pull = Pullback(self.outputs, self.flat)
        matrix = torch.cat([pull(piece) for piece in singles.split(_ROWS_TOGETHER)])
        return dict(zip(self.spans, matrix.split(list(self.spans.values()), 1), strict=True))

    def _part_rows(
        self, part: Part, uses: list[LayerUse], count: int, jacobians: dict[str, Tensor]
    ) -> Rows | None:
        """Rows of a part from the uses of its matrices; zero where it was not called."""
        if part.kind == "jacobian":
            return DenseRows(jacobians[part.parameters[0]], part.indices)
        if not uses:
            return DenseRows(self.outputs.new_zeros(self.examples * count, part.size), part.indices)
        if part.kind == "scale":
            return self._scale(part, uses)
        assert part.form is not None
        return example_rows(part.form, uses, self.examples, self.outputs.dtype, part.indices)

    def _scale(self, part: Part, uses: list[LayerUse]) -> Rows | None:
        names = [name.rpartition(".")[2] for name in part.parameters]
        total = None
        for use in uses:
            assert use.module is not None
            gradients = use.gradients.to(self.outputs.dtype)
            rows = scale_rows(use.module, names, use.inputs, gradients, self.examples)
            if rows is None or rows.shape[2] != part.shape[1]:
                return None
            total = rows if total is None else total + rows
        return None if total is None else DenseRows(total.flatten(2).flatten(0, 1), part.indices)


def _subtract(part: Part, total: Float[Tensor, " p"], gradients: list[Tensor]) -> None:
    """Subtract the gradients of a part's parameters in place, in the order of its columns."""
    if part.kind == "matrix" and part.form is not None:
        matrix = total.view(part.shape)
        weight = part.form.weight_part(matrix)
        weight -= gradients[0].reshape(weight.shape)
        if part.form.bias:
            column = part.form.bias_part(matrix)
            column -= gradients[1].reshape(column.shape)
    elif part.kind == "scale":
        total -= torch.stack([g.reshape(-1) for g in gradients], 1).reshape(-1)
    else:
        total -= gradients[0].reshape(-1)
