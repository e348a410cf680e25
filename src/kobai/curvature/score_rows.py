"""Gradient rows of every part of a network, batch by batch, from captured layers where possible.

One forward pass notes what layers were called with; one backward pass a cotangent gives the
gradients in their outputs for all examples at once, without any parameter gradient. Parts without a
layer that is understood take one backward pass a row. Peak memory: the activations of a batch, and
for each part what its rows are kept as.
"""

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.layer_inputs import (
    matrix_gradients,
    matrix_inputs,
    normalised_inputs,
    per_unit,
    scale_axis,
)
from kobai.curvature.outer_rows import EmbeddingRows, OuterRows
from kobai.curvature.parts import Part, plan_parts
from kobai.curvature.pullback import Pullback
from kobai.curvature.rows import DenseRows, Rows, Stacked
from kobai.curvature.scores import Scores
from kobai.problem import Batch, Call, Capture, EmpiricalRisk, capture, pure

_ROWS_TOGETHER = 64

MEMORY_BOUND = 2**30
"""Bytes that the gradients in all layers' outputs may take at a time; batches are cut to fit."""


@final
class ScoreRows:
    """All rows (Jₙᵀu)ᵀ of an objective, in parts: a Fisher matrix is Σ rows' outer products / W.

    Rows follow the examples, then the cotangents of each. If the objective is coupled (examples
    depend on each other), every row has a backward pass of its own.

    Args:
        objective: The network and data.
        theta: Where; default: the module's parameters now.
        scores: The cotangents.

    Attributes:
        parts: A partition of θ.
        places: For each part, how often an example uses it (tokens, positions, repeated calls).
        count: Number of rows R over all data.
        each: Number of rows an example.

    Raises:
        ValueError: If θ has the wrong shape or the module is not a function of θ.
    """

    def __init__(
        self, objective: EmpiricalRisk, theta: Float[Tensor, " P"] | None, scores: Scores
    ) -> None:
        self.objective, self.scores = objective, scores
        self.theta = (objective.theta() if theta is None else theta).detach().clone()
        if self.theta.shape != (objective.space.dimension,):
            raise ValueError(
                f"theta must have shape ({objective.space.dimension},), "
                f"got {tuple(self.theta.shape)}"
            )
        self._vectorised = True
        self._probe()
        self.count = objective.size * self.each

    def __iter__(self) -> Iterator[list[Rows]]:
        """One list a batch, or a piece of one, with the rows of each part."""
        cotangents = self.scores.start()
        limit = max(1, int(MEMORY_BOUND / max(1.0, self.each * self._bytes_per_example)))
        for batch in self.objective.batches:
            if self.objective.coupled or batch.size <= limit:
                run = _Pass(self, batch, self.parts)
                own = cotangents(run.outputs, batch.targets.to(run.outputs.device))
                yield self._complete(run.rows(own, self._vectorised))
                continue
            # Cotangents are drawn for the whole batch, as everywhere, and cut with it.
            with torch.no_grad(), pure(self.objective.model):
                outputs = self.objective.forward(self.theta, batch)
            own = cotangents(outputs, batch.targets.to(outputs.device))
            for start in range(0, batch.size, limit):
                chosen = slice(start, start + limit)
                run = _Pass(self, batch.take(chosen), self.parts)
                yield self._complete(run.rows(own[:, chosen], self._vectorised))

    def _complete(self, rows: list[Rows | None]) -> list[Rows]:
        """The same rows, or an error that names the parts which have none."""
        missing = [p.parameters for p, r in zip(self.parts, rows, strict=True) if r is None]
        if missing:
            raise ValueError(
                f"the layers of {missing} were called differently on this batch than on the "
                "first examples; evaluate the model in batches of equal form"
            )
        return [row for row in rows if row is not None]

    def stacked(self) -> list[Rows]:
        """The rows of each part over all data, kept in memory."""
        batches = list(self)
        return [Stacked(pieces) for pieces in zip(*batches, strict=True)]

    def _probe(self) -> None:
        """Decide on the parts by two examples: claims of layers against a backward pass."""
        batch = next(iter(self.objective.batches))
        if not self.objective.coupled:
            batch = batch.take(slice(0, 2))
        demoted: dict[str, str] = {}
        while True:
            self.parts = plan_parts(self.objective.space, demoted)
            run = _Pass(self, batch, self.parts)
            outputs = run.outputs
            waves = torch.arange(2 * outputs.numel(), dtype=outputs.dtype, device=outputs.device)
            cotangents = torch.cos(1.0 + waves + 0.1 * waves**2).view(2, *outputs.shape)
            wrong = run.failures(cotangents, True)
            self._vectorised = not wrong
            if wrong:
                wrong = run.failures(cotangents, False)
            if not wrong:
                break
            called = {call.layer for call in run.record.calls}
            for part in wrong:
                unseen = not any(path in called for path, _ in part.modules)
                why = "used without a call of its module" if unseen else "not by calls alone"
                # The bias of a demoted weight gets another chance of its own.
                for name in part.parameters[: 1 if part.kind == "matrix" else 2]:
                    demoted[name] = f"{part.reason}, {why}"
        self.outputs_per_example = outputs[0].numel()
        self.each = self.scores.count(self.outputs_per_example)
        self.places = run.places
        seen = sum(call.shape.numel() for call in run.record.calls)
        self._bytes_per_example = seen / batch.size * self.theta.itemsize


@final
class _Pass:
    """One forward pass over a batch with its graph, and the rows pulled out of it."""

    def __init__(self, source: ScoreRows, batch: Batch, parts: tuple[Part, ...]) -> None:
        objective = source.objective
        self.parts = parts
        self.coupled = objective.coupled
        self.examples = 1 if self.coupled else batch.size
        self.size = batch.size
        pieces = objective.space.unflatten(source.theta)
        alone = [part.parameters[0] for part in parts if part.kind == "jacobian"]
        self.spans = dict(zip(alone, [pieces[name].numel() for name in alone], strict=True))
        modules = {module for part in parts for _, module in part.modules}
        with torch.enable_grad():
            self.leaves = {
                name: piece.detach().clone().requires_grad_()
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
            with (
                capture(objective.model, modules.__contains__) as record,
                pure(objective.model, coupled=self.coupled),
            ):
                self.outputs = objective.forward_parameters(parameters, batch)
        self.record: Capture = record
        self.places: list[int] = [1] * len(parts)

    def rows(self, cotangents: Tensor, vectorised: bool) -> list[Rows | None]:
        """Rows of every part for cotangents (Q, N, *outputs); None where calls do not fit.

        Raises:
            RuntimeError: If torch cannot vectorise the pass.
        """
        singles = self._singles(cotangents)
        shared = singles if self.coupled else cotangents
        if vectorised and len(shared) > 1:
            gradients = self.record.output_gradients(self.outputs, shared, batched=True)
        else:
            passes = [self.record.output_gradients(self.outputs, one) for one in shared]
            gradients = [
                None if several[0] is None else torch.stack(several)  # pyright: ignore
                for several in zip(*passes, strict=True)
            ]
        calls: dict[str, list[tuple[Call, Tensor]]] = {}
        for call, gradient in zip(self.record.calls, gradients, strict=True):
            if gradient is not None:
                calls.setdefault(call.layer, []).append((call, gradient))
        jacobians = self._jacobians(singles)
        found: list[Rows | None] = []
        for position, part in enumerate(self.parts):
            if part.kind == "jacobian":
                found.append(DenseRows(jacobians[part.parameters[0]], part.indices))
                continue
            own = [
                (module, call, gradient)
                for path, module in part.modules
                for call, gradient in calls.get(path, [])
            ]
            rows = self._part_rows(part, own, len(shared))
            if isinstance(rows, OuterRows):
                self.places[position] = rows.places
            elif isinstance(rows, EmbeddingRows):
                self.places[position] = rows.tokens.shape[1]
            found.append(rows)
        return found

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
            truth = _arranged(part, expected)
            claim = own.transpose(weights.unsqueeze(1)).squeeze(1)
            scale = torch.linalg.vector_norm(own.squares().sqrt()) + torch.linalg.vector_norm(truth)
            limit = torch.finfo(truth.dtype).eps ** 0.5 * scale
            if not bool(torch.linalg.vector_norm(claim - truth) <= limit):
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
        """Rows of the parameters without a layer, (R, size) each, by a backward pass a row."""
        if self.flat is None:
            return {}
        pull = Pullback(self.outputs, self.flat)
        matrix = torch.cat([pull(piece) for piece in singles.split(_ROWS_TOGETHER)])
        return dict(zip(self.spans, matrix.split(list(self.spans.values()), 1), strict=True))

    def _part_rows(self, part: Part, calls: list, count: int) -> Rows | None:
        """Rows of a part from its layers' calls; zero where it was not called."""
        if not calls:
            return DenseRows(self.outputs.new_zeros(self.examples * count, part.size), part.indices)
        if part.kind == "embedding":
            return self._embedding(part, calls)
        if part.kind == "scale":
            return self._scale(part, calls)
        inputs, gradients = [], []
        for module, call, gradient in calls:
            g = matrix_gradients(module, gradient, self.examples)
            if g is None:
                return None
            if part.kind == "bias":
                # A bias is an input that is always one, whatever the groups of its layer.
                g = g.permute(1, 2, 3, 0, 4).flatten(3).unsqueeze(0)
                a = g.new_ones(1, self.examples, g.shape[3], 1)
            else:
                a = matrix_inputs(module, call.inputs.to(g.dtype), self.examples)
                if a is None or a.shape[2] != g.shape[3]:
                    return None
                if part.bias:
                    a = torch.cat([a, torch.ones_like(a[..., :1])], 3)
            inputs.append(a)
            gradients.append(g)
        return OuterRows(torch.cat(inputs, 2), torch.cat(gradients, 3), part.indices)

    def _embedding(self, part: Part, calls: list) -> Rows | None:
        tokens, gradients = [], []
        for module, call, gradient in calls:
            if call.inputs.numel() % self.examples:
                return None
            ids = call.inputs.reshape(self.examples, -1)
            g = gradient.reshape(gradient.shape[0], self.examples, -1, part.shape[2])
            if module.padding_idx is not None:
                g = g * (ids != module.padding_idx).unsqueeze(-1)
            tokens.append(ids)
            gradients.append(g.transpose(0, 1))
        return EmbeddingRows(
            torch.cat(tokens, 1), torch.cat(gradients, 2), part.indices, part.shape[1]
        )

    def _scale(self, part: Part, calls: list) -> Rows | None:
        total = None
        for module, call, gradient in calls:
            axis = scale_axis(module)
            assert axis is not None
            gradient = gradient.to(self.outputs.dtype)
            columns = []
            for name in part.parameters:
                values = gradient
                if name.rpartition(".")[2] == "weight":
                    values = values * normalised_inputs(module, call.inputs)
                split = per_unit(values, axis, gradient.ndim - 1, self.examples)
                if split is None or split.shape[3] != part.shape[1]:
                    return None
                columns.append(split.sum(2).transpose(0, 1).flatten(0, 1))
            rows = torch.stack(columns, 2).flatten(1)
            total = rows if total is None else total + rows
        return None if total is None else DenseRows(total, part.indices)


def _arranged(part: Part, gradients: dict[str, Tensor]) -> Tensor:
    """The gradients of a part's parameters in the order of its columns."""
    flat = [gradients[name].reshape(-1) for name in part.parameters]
    groups, outer, inner = part.shape
    if part.kind == "scale":
        return torch.stack(flat, 1).reshape(-1)
    if len(flat) == 1:
        return flat[0]
    weight = flat[0].view(groups, outer, inner - 1)
    return torch.cat([weight, flat[1].view(groups, outer, 1)], 2).reshape(-1)
