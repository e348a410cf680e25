"""Layers whose curvature blocks have one shape: their block, momentum and steps, in one stack."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.curvature.blocks import Block, Inversions, KroneckerBlock
from kobai.curvature.blocks.interface import factor_dtype, past_weight
from kobai.curvature.blocks.shifted_inverse import REPLACED
from kobai.optim.kfac.gradient_rows import GradientRows
from kobai.optim.kfac.plan import DiagonalParameter, KroneckerLayer, PlanEntry, UnitLayer
from kobai.optim.state import copy_entry


@final
@dataclasses.dataclass(frozen=True, slots=True)
class Preconditioned:
    """Steps of the layers of a stack, before anybody has said how far to go.

    Attributes:
        size: mᵀ(F + λ)⁻¹m; on a device a tensor that nobody has waited for.
        parameters: Those that have gradients.
        directions: Their parts of (F + λ)⁻¹m, valid until the next step.
        waiting: Layers that have a gradient but no inverse yet.
    """

    size: float | Tensor
    parameters: list[nn.Parameter]
    directions: list[Tensor]
    waiting: int


@dataclasses.dataclass(slots=True, eq=False)
class Span:
    """A layer's place in a stack.

    Attributes:
        position: Position of the layer in the plan.
        entry: The layer, unit or parameter.
        slice: Its entries of the stack.
        tensors: Its parameters.
        momenta: The parts of the momentum that belong to its parameters; views.
        directions: The parts of the preconditioned momentum; views.
        count: How many updates its moving averages have had.
        inverted: Whether the block can solve for it.
    """

    position: int
    entry: PlanEntry
    slice: slice
    tensors: tuple[nn.Parameter, ...]
    momenta: list[Tensor]
    directions: list[Tensor]
    count: int = 0
    inverted: bool = False

    @property
    def active(self) -> bool:
        """Say whether a parameter of it has a gradient."""
        return any(p.grad is not None for p in self.tensors)


@final
class Stack:
    """Layers of one parameter group with blocks of one shape.

    Args:
        block: Their blocks.
        layers: Positions in the plan with what lies there, in the order of the block's entries.
        group: Index of the parameter group they all belong to.

    Attributes:
        momentum: m, (S, M, K), weights with their biases as the last column.
        direction: (F + λ)⁻¹m.
        rows: Rows that the present gradient is the product of, where they are known and cheaper;
            the next step takes them.
        settled: Whether `direction` is the preconditioned momentum and stays so, as a moving
            average of its own, while the inverses do.
    """

    def __init__(self, block: Block, layers: Sequence[tuple[int, PlanEntry]], group: int) -> None:
        self.block, self.group = block, group
        weight = layers[0][1].tensors[0]
        dtype = factor_dtype(weight.dtype)
        self._made_for = weight.dtype, weight.device
        self.momentum = torch.zeros(block.shape, dtype=dtype, device=weight.device)
        self.direction = torch.zeros_like(self.momentum)
        self.rows: GradientRows | None = None
        self.settled = False
        self.spans: list[Span] = []
        start = 0
        for position, entry in layers:
            groups = 1
            if isinstance(entry, KroneckerLayer) and not entry.form.lookup:
                groups = entry.form.groups
            own = slice(start, start + groups)
            start = own.stop
            momenta, directions = (_parts(entry, m[own]) for m in (self.momentum, self.direction))
            self.spans.append(Span(position, entry, own, entry.tensors, momenta, directions))

    def fits(self) -> bool:
        """Say whether the parameters are where, and of the kind, the stack was made for."""
        weight = self.spans[0].tensors[0]
        return (weight.dtype, weight.device) == self._made_for

    def average(self, span: Span, moments: Any, weight: float) -> bool:
        """Take a layer's new second moments in; False if they are not finite."""
        past = past_weight(span.count + 1)
        if not self.block.average(span.slice, moments, past, weight):
            return False
        span.count += 1
        span.inverted |= not self.block.factored
        return True

    def precondition(
        self, momentum: float, damping: float, nesterov: bool = False, finite: Tensor | None = None
    ) -> Preconditioned:
        """Take gradients into the momentum m and precondition m, or gradient + momentum · m.

        Layers without gradient or inverse are left alone. With m ← μm + g Nesterov's step goes
        along g + μm. A share of momentum is kept by which m arrives at (g + μm)/(1 + μ) instead;
        what that left out is put back afterwards, so that there is no further product.

        Args:
            momentum: Share μ of m that is kept.
            damping: λ.
            nesterov: Whether to look ahead.
            finite: Whether the gradients are finite, where that is known on the device alone; if
                not the momentum stays as it is. Not beside `nesterov`.

        Source: Sutskever et al. 2013, On the importance of initialization and momentum in deep
        learning (§2); Bengio et al. 2012, Advances in optimizing recurrent networks (§3.5).
        """
        ahead = 1 + momentum if nesterov and momentum else 1.0
        kept = momentum if ahead == 1.0 else momentum**2 / ahead
        present = [span for span in self.spans if span.active]
        active = [span for span in present if span.inverted]
        # One product for the whole stack, or one for each layer that takes part.
        whole = len(active) == len(self.spans)
        pieces = [slice(0, len(self.momentum))] if whole else [span.slice for span in active]
        before = self.momentum.clone() if ahead != 1.0 else None
        for piece in pieces:
            self.momentum[piece].mul_(_kept_share(kept, finite))
        parameters, directions = self._take_gradients(active, finite)
        rows, self.rows = self.rows, None
        size: float | Tensor = 0.0
        for piece in pieces:
            m, v = self.momentum[piece], self.direction[piece]
            self._solve(m, v, piece, kept, damping, rows)
            size += inner(m, v)
        if before is not None:
            self.settled = False  # what was preconditioned is not the momentum that is kept
            for piece in pieces:
                self.momentum[piece].add_(before[piece], alpha=momentum / ahead)
            size, directions = size * ahead**2, [step.mul_(ahead) for step in directions]
        steps = [
            step if step.shape == p.shape else step.reshape(p.shape)
            for p, step in zip(parameters, directions, strict=True)
        ]
        return Preconditioned(size, parameters, steps, len(present) - len(active))

    def _solve(
        self, m: Tensor, v: Tensor, piece: slice, momentum: float, damping: float,
        rows: GradientRows | None,
    ) -> None:  # fmt: skip
        """Write (F + λ)⁻¹m to v, from rows of the gradient where those are given and exact."""
        block = self.block
        if not isinstance(block, KroneckerBlock):
            block.solve(m, damping, piece, v)
            return
        if rows is not None and block.exact and (self.settled or not momentum):
            block.add_solved_product(rows.gradients, rows.inputs, rows.scale, v, momentum)
            rows.used = True
        else:
            block.solve(m, damping, piece, v)
        self.settled = block.alone and block.exact and momentum > 0

    def _take_gradients(
        self, spans: Sequence[Span], finite: Tensor | None
    ) -> tuple[list[nn.Parameter], list[Tensor]]:
        """Add gradients to the momenta; parameters that have one, and where their steps will be."""
        parameters, directions = [], []
        for span in spans:
            for p, part, direction in zip(span.tensors, span.momenta, span.directions, strict=True):
                if p.grad is not None:
                    own = p.grad if finite is None else p.grad.masked_fill(~finite, 0.0)
                    part.add_(own if own.shape == part.shape else own.reshape(part.shape))
                    parameters.append(p)
                    directions.append(direction)
        return parameters, directions

    def ready(self) -> list[int]:
        """Entries of the stack that have statistics."""
        return [
            i for span in self.spans if span.count for i in range(span.slice.start, span.slice.stop)
        ]

    def factor(self, damping: float, entries: Sequence[int]) -> dict[int, int]:
        """Recompute the inverses of some entries; see `Block.factor`."""
        return self.block.factor(damping, entries, self.momentum)

    def renewed(self, statuses: dict[int, int]) -> Inversions:
        """Note which layers have new inverses, and count how they were come by."""
        self.settled = False
        self.block.renewed([entry for entry, status in statuses.items() if status % REPLACED < 3])
        total = Inversions()
        for span in self.spans:
            entries = range(span.slice.start, span.slice.stop)
            own = [statuses[i] for i in entries if i in statuses]
            if own:
                found = Inversions.of(*own)
                span.inverted |= not found.failed
                total += found
        return total

    def averages(self) -> list[Tensor]:
        """Return what decays: moving averages and momentum."""
        kept = [*self.block.averages(), self.momentum]
        return [*kept, self.direction] if self.settled else kept

    def forget_momentum(self) -> None:
        """Set the momentum to zero."""
        self.momentum.zero_()
        self.settled = False

    def saved(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """Return what is to be saved, by first parameter; tensors are views."""
        for span in self.spans:
            entry = {name: tensor[span.slice] for name, tensor in self._tensors()}
            if self.settled:
                entry["preconditioned"] = self.direction[span.slice]
            yield span.tensors[0], {"updates": span.count, "inverted": span.inverted, **entry}

    def restore(self, span: Span, entry: dict[str, Any]) -> None:
        """Put back what `saved` gave for a layer.

        Raises:
            ValueError: If it does not fit.
        """
        for name, tensor in self._tensors():
            copy_entry(tensor[span.slice], name, span.entry.name, entry)
        span.count = int(entry["updates"])
        span.inverted = bool(entry.get("inverted", span.count > 0))
        if "preconditioned" in entry:
            copy_entry(self.direction[span.slice], "preconditioned", span.entry.name, entry)
            self.settled = True

    def names(self) -> set[str]:
        """Return the names of what is saved of every layer."""
        return {name for name, _ in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are saved, with the stack's entries in front."""
        for name, tensor in (*self.block.tensors().items(), ("momentum_buffer", self.momentum)):
            yield name, tensor if len(tensor) == len(self.momentum) else tensor.unsqueeze(0)


def _parts(entry: PlanEntry, matrices: Tensor) -> list[Tensor]:
    """Cut a layer's matrices into its parameters, shaped like them where views can be."""
    if isinstance(entry, UnitLayer):
        return [matrices[0, :, i].view(p.shape) for i, p in enumerate(entry.tensors)]
    weight = entry.tensors[0]
    if isinstance(entry, DiagonalParameter) or entry.form.lookup:
        return [matrices.view(weight.shape)]
    if entry.bias is None and entry.form.bias:
        return [matrices.view(weight.shape)]  # a bias alone
    part = entry.form.weight_part(matrices)
    parts = [part if entry.form.transposed else part.view(weight.shape)]
    if entry.bias is not None:
        parts.append(entry.form.bias_part(matrices).view(entry.bias.shape))
    return parts


def _kept_share(momentum: float, finite: Tensor | None) -> float | Tensor:
    """Share of the momentum that is kept: all of it where the gradient is not taken."""
    # Numbers of the host enter kernels as arguments; as tensors they would have to be copied.
    return momentum if finite is None else 1.0 - (1.0 - momentum) * finite.to(torch.float64)


def waits(tensor: Tensor) -> bool:
    """Say whether the host, to read a number of a tensor, waits for a device."""
    return tensor.device.type != "cpu"


def inner(a: Tensor, b: Tensor) -> float | Tensor:
    """Return the inner product of all entries, in float64 where its own precision overflows.

    On a device a tensor without axes, for which nobody has waited; it may have overflowed.
    """
    product = torch.dot(a.reshape(-1), b.reshape(-1))
    if waits(product):
        return product.double()
    value = float(product)
    if math.isfinite(value):
        return value
    return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))
