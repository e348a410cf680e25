"""Gradient rows of every part of a network, batch by batch, from captured layers where possible.

One forward pass notes what layers were called with; one backward pass per cotangent gives the
gradients in their outputs for all examples at once, without any parameter gradient. Parts without a
layer that is understood take one backward pass per row. Peak memory: the activations of a batch,
and for each part what its rows are kept as.
"""

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows.forward_pass import ForwardPass
from kobai.curvature.rows.interface import DenseRows, Rows, Stacked
from kobai.curvature.rows.outer_products import concatenated
from kobai.curvature.rows.parts import plan_parts
from kobai.curvature.scores import Scores
from kobai.layers import LayerUse
from kobai.problem import EmpiricalRisk, pure

_CACHED_BYTES = 2**24
"""Bytes of gradients that stay in a processor's cache while rows are written out."""

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
        each: Number of rows per example.

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
        """Yield for each batch, or piece of one, the rows of each part."""
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

    def _passes(self, memory: int | None = None) -> Iterator[tuple[ForwardPass, Tensor]]:
        """Forward passes over all data in pieces that fit, with their cotangents."""
        cotangents = self.scores.start()
        seen: list[Tensor] = []
        memory = MEMORY_BOUND if memory is None else memory
        limit = max(1, int(memory / max(1.0, self.each * self._bytes_per_example)))
        for batch in self.objective.batches:
            if self.objective.coupled or batch.size <= limit:
                run = ForwardPass(self.objective, self.theta, batch, self.parts)
                seen.append(run.outputs.detach())
                yield run, cotangents(run.outputs, batch.targets.to(run.outputs.device))
                continue
            if self.scores.labels != "sampled":
                for start in range(0, batch.size, limit):
                    piece = batch.take(slice(start, start + limit))
                    run = ForwardPass(self.objective, self.theta, piece, self.parts)
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
                yield (
                    ForwardPass(self.objective, self.theta, batch.take(chosen), self.parts),
                    own[:, chosen],
                )
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
            run = ForwardPass(self.objective, self.theta, batch, self.parts)
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
