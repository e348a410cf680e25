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

from kobai.curvature.rows.interface import DenseRows, Rows, Stacked
from kobai.curvature.rows.layer_calls import joint_uses, outer_rows
from kobai.curvature.rows.outer_products import EmbeddingRows, OuterRows, concatenated
from kobai.curvature.rows.parts import Part, plan_parts
from kobai.curvature.rows.pullback import Pullback
from kobai.curvature.scores import Scores
from kobai.layers import LayerUse, Watch, scale_rows
from kobai.problem import Batch, EmpiricalRisk, pure

_ROWS_TOGETHER = 64

_CACHED_BYTES = 2**24

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
        outputs: f(θ) of all examples, (N, *outputs), once all rows were made; None before.
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
        self.theta = objective.theta() if theta is None else theta.detach().clone()
        if self.theta.shape != (objective.space.dimension,):
            raise ValueError(
                f"theta must have shape ({objective.space.dimension},), "
                f"got {tuple(self.theta.shape)}"
            )
        self._vectorised = True
        self.outputs: Tensor | None = None
        self._probe()
        self.count = objective.size * self.each

    def __iter__(self) -> Iterator[list[Rows]]:
        """One list a batch, or a piece of one, with the rows of each part."""
        for run, cotangents in self._passes():
            yield self._complete(run.rows(cotangents, self._vectorised))

    def compact(self) -> Iterator[list[Rows]]:
        """Like iteration, with rows written out where that takes fewer numbers than their factors.

        So it is with convolutions on many places. Their gradients are then made for a few examples
        at a time, which stay in the cache, and never kept.
        """
        dense = [
            part.form is not None
            and not part.form.lookup
            and places * (part.shape[2] + self.each * part.shape[1]) > self.each * part.size
            for part, places in zip(self.parts, self.places, strict=True)
        ]
        if self.objective.coupled or not any(dense):
            yield from self
            return
        pieces = []
        for run, cotangents in self._passes(_CACHED_BYTES):
            rows = self._complete(run.rows(cotangents, self._vectorised))
            pieces.append(
                [
                    DenseRows(own.dense(), own.indices) if written else own
                    for own, written in zip(rows, dense, strict=True)
                ]
            )
        joined = [concatenated(own) for own in zip(*pieces, strict=True)]
        if any(own is None for own in joined):
            yield from pieces
        else:
            yield [own for own in joined if own is not None]

    def uses(self) -> Iterator[tuple[int, list[list[LayerUse] | Rows]]]:
        """Like iteration, but for parts that multiply by a matrix every use, not yet unfolded.

        Yields:
            The number of examples (one if they are coupled), and for each part its uses, none if
            it was not called, or its rows.
        """
        for run, cotangents in self._passes():
            yield run.examples, run.mixed(cotangents, self._vectorised)

    def _passes(self, memory: int | None = None) -> "Iterator[tuple[_Pass, Tensor]]":
        """Forward passes over all data in pieces that fit, with their cotangents."""
        cotangents = self.scores.start()
        seen: list[Tensor] = []
        memory = MEMORY_BOUND if memory is None else memory
        limit = max(1, int(memory / max(1.0, self.each * self._bytes_per_example)))
        for batch in self.objective.batches:
            if self.objective.coupled or batch.size <= limit:
                run = _Pass(self, batch, self.parts)
                seen.append(run.outputs.detach())
                yield run, cotangents(run.outputs, batch.targets.to(run.outputs.device))
                continue
            if self.scores.labels != "sampled":
                for start in range(0, batch.size, limit):
                    piece = batch.take(slice(start, start + limit))
                    run = _Pass(self, piece, self.parts)
                    seen.append(run.outputs.detach())
                    yield run, cotangents(run.outputs, piece.targets.to(run.outputs.device))
                continue
            # Labels are drawn for the whole batch, as everywhere, and cut with it.
            with torch.no_grad(), pure(self.objective.model):
                outputs = self.objective.forward(self.theta, batch)
            seen.append(outputs)
            own = cotangents(outputs, batch.targets.to(outputs.device))
            for start in range(0, batch.size, limit):
                chosen = slice(start, start + limit)
                yield _Pass(self, batch.take(chosen), self.parts), own[:, chosen]
        self.outputs = torch.cat(seen)

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
            called = run.watch.layers
            for part in wrong:
                unseen = not any(path in called for path, _ in part.modules)
                why = "used without a call of its module" if unseen else "not by calls alone"
                # The bias of a demoted weight gets another chance of its own.
                for name in part.parameters[: 1 if part.kind == "matrix" else 2]:
                    demoted[name] = f"{part.reason}, {why}"
        self.outputs_per_example = outputs[0].numel()
        self.each = self.scores.count(self.outputs_per_example)
        self.places = run.places
        self._bytes_per_example = run.watch.size / batch.size * self.theta.itemsize


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
        """Rows of the parameters without a layer, (R, size) each, by a backward pass a row."""
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
        if part.kind == "embedding":
            return self._embedding(part, uses)
        if part.kind == "scale":
            return self._scale(part, uses)
        inputs, gradients = [], []
        assert part.form is not None
        for joint in joint_uses(uses):
            found = outer_rows(part.form, joint, self.examples, self.outputs.dtype)
            if found is None:
                return None
            inputs.append(found[0])
            gradients.append(found[1])
        if len(inputs) == 1:
            return OuterRows(inputs[0], gradients[0], part.indices)
        return OuterRows(torch.cat(inputs, 2), torch.cat(gradients, 3), part.indices)

    def _embedding(self, part: Part, uses: list[LayerUse]) -> Rows | None:
        tokens, gradients = [], []
        for use in uses:
            if use.inputs.numel() % self.examples:
                return None
            ids = use.inputs.reshape(self.examples, -1)
            g = use.unpadded(use.gradients)
            g = g.reshape(len(g), self.examples, -1, part.shape[2])
            tokens.append(ids)
            gradients.append(g.transpose(0, 1))
        return EmbeddingRows(
            torch.cat(tokens, 1), torch.cat(gradients, 2), part.indices, part.shape[1]
        )

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
