"""Kronecker-factored eigenbases as EKFAC holds them: averages, bases, second moments, momentum."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.linalg import eigh
from kobai.optim.averages import factor_dtype, inner, past_weight
from kobai.optim.coverage import KroneckerLayer
from kobai.optim.device_step import kept_share
from kobai.optim.inversions import Inversions
from kobai.optim.kronecker_stack import (
    Preconditioned,
    Span,
    begin,
    fits,
    like,
    ready_entries,
    settled,
    spans_of,
    take_gradients,
)


@final
class EigenStack:
    """Blocks of equal shape in the eigenbases of their Kronecker factors.

    The block is (Q_B ⊗ Q_A) diag(s) (Q_B ⊗ Q_A)ᵀ with s the mean square of the gradients turned
    into the basis. When the basis is renewed, s starts at the products of the factors' eigenvalues,
    which count as one observation.

    Args:
        layers: See `KroneckerStack`.
        group: Index of the parameter group they all belong to.
        precision: See `KroneckerStack`; eigenvectors are kept in that of the momentum.
    """

    def __init__(
        self,
        layers: Sequence[tuple[int, KroneckerLayer]],
        group: int,
        precision: torch.dtype | None = None,
    ) -> None:
        self.group = group
        self.form = layers[0][1].form
        self.size = sum(layer.form.groups for _, layer in layers)
        weight = layers[0][1].weight
        dtype = factor_dtype(weight.dtype)
        m, k = self.form.outputs, self.form.inputs

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(self.size, *shape, dtype=dtype, device=weight.device)

        self.factors = KroneckerFactors(
            inputs=zeros(k, k).to(precision or dtype), outputs=zeros(m, m).to(precision or dtype)
        )
        self.input_basis, self.output_basis = zeros(k, k), zeros(m, m)
        self.squares, self.momentum, self.direction = zeros(m, k), zeros(m, k), zeros(m, k)
        self.corrections = zeros()
        self.spans = spans_of(layers, self.momentum, self.direction)

    @property
    def cost(self) -> float:
        """Multiplications to find the bases of one of the blocks, roughly."""
        return 10.0 * (self.form.outputs**3 + self.form.inputs**3)

    def update(self, span: Span, sums: FactorSums, weight: float) -> bool:
        """Take new second moments into the moving averages; False if they are not finite."""
        own = self.factors.inputs[span.slice], self.factors.outputs[span.slice]
        if not sums.into(own, past_weight(span.count + 1), weight):
            return False
        span.count += 1
        return True

    def correct(self, span: Span, squares: Tensor, weight: float) -> bool:
        """Take new second moments in the present bases into their averages; see `update`."""
        if not bool(torch.isfinite(squares.sum())):
            return False
        self.corrections[span.slice] += 1
        past = past_weight(int(self.corrections[span.slice.start]) + 1)
        self.squares[span.slice].mul_(past).add_(squares, alpha=(1 - past) / weight)
        return True

    def bases(self, span: Span) -> tuple[Tensor, Tensor] | None:
        """Q_B and Q_A of a layer, once known."""
        if not span.inverted:
            return None
        return self.output_basis[span.slice], self.input_basis[span.slice]

    def tensors(self) -> dict[str, Tensor]:
        """The stack's tensors by the names they are saved under."""
        return {
            "input_factor": self.factors.inputs,
            "output_factor": self.factors.outputs,
            "input_basis": self.input_basis,
            "output_basis": self.output_basis,
            "squares": self.squares,
            "corrections": self.corrections,
            "momentum_buffer": self.momentum,
        }

    def averages(self) -> list[Tensor]:
        """What decays: moving averages and momentum."""
        return [self.factors.inputs, self.factors.outputs, self.squares, self.momentum]

    def fits(self) -> bool:
        """See `KroneckerStack.fits`."""
        return fits(self.momentum, self.spans[0].layer.weight)

    def precondition(
        self, momentum: float, damping: float, finite: Tensor | None = None
    ) -> Preconditioned:
        """See `KroneckerStack.precondition`; the damping is exact."""
        pieces, active, late = begin(self.spans, self.momentum, kept_share(momentum, finite))
        parameters, directions = take_gradients(active, finite)
        size = 0.0
        for piece in pieces:
            outer, within = self.output_basis[piece], self.input_basis[piece]
            m, v = self.momentum[piece], self.direction[piece]
            turned = outer.mT @ (m @ within)
            turned /= self.squares[piece] + damping
            torch.bmm(outer, turned @ within.mT, out=v)
            size += inner(m, v)
        return size, parameters, like(parameters, directions), late

    def ready(self) -> list[int]:
        """Entries of the stack that have statistics."""
        return ready_entries(self.spans)

    def renew(self, damping: float, entries: Sequence[int]) -> dict[int, int]:
        """Renew the bases of some entries of the stack; see `KroneckerStack.renew`."""
        del damping
        own, dtype = list(entries), self.momentum.dtype
        left = eigh(self.factors.outputs[own], precision=self.factors.outputs.dtype)
        right = eigh(self.factors.inputs[own], precision=self.factors.inputs.dtype)
        statuses = {}
        for i, entry in enumerate(own):
            good = left.statuses[i] == right.statuses[i] == "ok"
            statuses[entry] = 0 if good else 3
            if good:
                self.output_basis[entry] = left.vectors[i].to(dtype)
                self.input_basis[entry] = right.vectors[i].to(dtype)
                b, a = left.values[i].clamp(min=0), right.values[i].clamp(min=0)
                self.squares[entry] = torch.outer(b, a).to(dtype)
        return statuses

    def settle(self, statuses: dict[int, int]) -> Inversions:
        """Note which layers have bases now; second moments in them start afresh."""
        for entry, status in statuses.items():
            if status < 3:
                self.corrections[entry] = 0
        return settled(self.spans, statuses)

    def shared(self) -> list[Tensor]:
        """What one process computes for all, entry by entry."""
        return [self.output_basis, self.input_basis, self.squares]
