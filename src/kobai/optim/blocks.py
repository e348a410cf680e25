"""Curvature blocks as an optimizer holds them: moving averages, inverses and momentum side by side.

Blocks of equal shape lie in one stack, so that one batched factorisation and two batched products
serve all of them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kobai.curvature.kronecker import KroneckerFactors, LayerForm
from kobai.optim.coverage import DiagonalParameter, KroneckerLayer, Plan
from kobai.optim.state import copy_entry
from kobai.optim.statistics import LayerSums, Sums, factor_dtype

STATISTICS_DECAY = 0.95
"""Weight of the past in a moving average once it is older than twenty updates; younger ones are
plain means, which is the bias correction of Martens and Grosse 2015, §5."""


def past_weight(count: int) -> float:
    """Weight of the past when update number `count` (from 1) enters a moving average."""
    return min(1.0 - 1.0 / count, STATISTICS_DECAY)


@dataclasses.dataclass(slots=True, eq=False)
class Span:
    """Where a layer's groups lie in a stack.

    Attributes:
        position: The layer's position in the plan.
        layer: The layer.
        slice: Its entries of the stack.
        momenta: The parts of the momentum that belong to weight and bias, shaped like them; views.
        directions: Likewise of the preconditioned momentum.
        count: How many updates its moving averages have had.
        inverted: Whether its inverses have been computed.
    """

    position: int
    layer: KroneckerLayer
    slice: slice
    momenta: list[Tensor]
    directions: list[Tensor]
    count: int = 0
    inverted: bool = False

    @property
    def active(self) -> bool:
        """Whether the layer has a gradient."""
        return any(p.grad is not None for p in self.layer.tensors)


class KroneckerStack:
    """Kronecker-factored blocks of equal shape.

    Args:
        layers: Positions in the plan with their layers; equal forms up to the number of groups,
            equal dtype and device.
        group: Index of the parameter group they all belong to.
    """

    def __init__(self, layers: Sequence[tuple[int, KroneckerLayer]], group: int) -> None:
        self.group = group
        self.form: LayerForm = layers[0][1].form
        size = sum(layer.form.groups for _, layer in layers)
        weight = layers[0][1].weight
        dtype = factor_dtype(weight.dtype)
        m, k = self.form.outputs, self.form.inputs

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(size, *shape, dtype=dtype, device=weight.device)

        self.factors = KroneckerFactors(inputs=zeros(k, k), outputs=zeros(m, m))
        self.input_inverses, self.output_inverses = zeros(k, k), zeros(m, m)
        self.momentum, self.direction = zeros(m, k), zeros(m, k)
        self.spans: list[Span] = []
        start = 0
        for position, layer in layers:
            entries = slice(start, start + layer.form.groups)
            start += layer.form.groups
            self.spans.append(
                Span(
                    position,
                    layer,
                    entries,
                    _parts(layer, self.momentum[entries]),
                    _parts(layer, self.direction[entries]),
                )
            )

    def update(self, span: Span, sums: LayerSums, weight: float) -> bool:
        """Take new second moments into the moving averages; False if they are not finite."""
        if sums.inputs is None or sums.outputs is None:
            return False
        # A second moment that is finite on its diagonal is finite.
        traces = (m.diagonal(dim1=1, dim2=2).sum() for m in (sums.inputs, sums.outputs))
        if not all(math.isfinite(float(trace)) for trace in traces):
            return False
        span.count += 1
        past = past_weight(span.count)
        for average, total, number in (
            (self.factors.inputs[span.slice], sums.inputs, sums.rows),
            (self.factors.outputs[span.slice], sums.outputs, weight),
        ):
            average.mul_(past).add_(total, alpha=(1 - past) / number)
        return True

    def tensors(self) -> dict[str, Tensor]:
        """The stack's tensors by the names they are saved under."""
        return {
            "input_factor": self.factors.inputs,
            "output_factor": self.factors.outputs,
            "input_inverse": self.input_inverses,
            "output_inverse": self.output_inverses,
            "momentum_buffer": self.momentum,
        }

    def fits(self) -> bool:
        """Whether the parameters are still where, and of the kind, the stack was made for."""
        weight = self.spans[0].layer.weight
        return self.momentum.device == weight.device and self.momentum.dtype == factor_dtype(
            weight.dtype
        )

    def precondition(
        self, momentum: float, damping: float
    ) -> tuple[float, list[nn.Parameter], list[Tensor], int]:
        """Take gradients into the momentum m and precondition it; resting layers are left alone.

        Args:
            momentum: Share of m that is kept.
            damping: λ; Kronecker-factored blocks have it in their inverses already.

        Returns:
            mᵀ(F + λ)⁻¹m; the parameters that have gradients, with their parts of (F + λ)⁻¹m, valid
            until the next call; and the number of layers that have a gradient but no inverse yet.
        """
        del damping
        present = [span for span in self.spans if span.active]
        active = [span for span in present if span.inverted]
        if not active:
            return 0.0, [], [], len(present)
        whole = len(active) == len(self.spans)
        # One product for the whole stack, or one for each layer that takes part.
        pieces = [slice(None)] if whole else [span.slice for span in active]
        for piece in pieces:
            self.momentum[piece].mul_(momentum)
        parameters, directions = [], []
        for span in active:
            for p, part, direction in zip(
                span.layer.tensors, span.momenta, span.directions, strict=True
            ):
                if p.grad is not None:
                    part.add_(p.grad)
                    parameters.append(p)
                    directions.append(direction)
        size = 0.0
        for piece in pieces:
            m, v = self.momentum[piece], self.direction[piece]
            torch.bmm(self.output_inverses[piece], m @ self.input_inverses[piece], out=v)
            size += inner(m, v)
        return size, parameters, directions, len(present) - len(active)

    def invert(self, damping: float) -> tuple[int, int, int]:
        """Recompute the inverses of all blocks that have statistics.

        Returns:
            Numbers of blocks that needed float64, that needed more damping, and that could not be
            inverted and keep their old inverse.
        """
        ready = [span for span in self.spans if span.count]
        if not ready:
            return 0, 0, 0
        inverse = self.factors.inverse(damping)
        counts = [0, 0, 0]
        for span in ready:
            status = int(inverse.status[span.slice].max())
            if status:
                counts[status - 1] += 1
            if status < 3:
                self.input_inverses[span.slice] = inverse.inputs[span.slice]
                self.output_inverses[span.slice] = inverse.outputs[span.slice]
                span.inverted = True
        return counts[0], counts[1], counts[2]


def _parts(layer: KroneckerLayer, matrices: Tensor) -> list[Tensor]:
    """The parts of a layer's matrices that belong to its parameters, as views shaped like them."""
    parts = [layer.form.weight_part(matrices).view(layer.weight.shape)]
    if layer.bias is not None:
        parts.append(layer.form.bias_part(matrices).view(layer.bias.shape))
    return parts


def inner(a: Tensor, b: Tensor) -> float:
    """Inner product of all entries, in float64 where its own precision overflows."""
    value = float(torch.dot(a.reshape(-1), b.reshape(-1)))
    if math.isfinite(value):
        return value
    return float(torch.dot(a.reshape(-1).double(), b.reshape(-1).double()))


def flush_(tensor: Tensor) -> None:
    """Set entries that are subnormal numbers, or about to become so, to zero, in place.

    Averages of what has ceased (a dead unit, a pixel that is always black, a certain prediction)
    decay into numbers that processors multiply many times slower than others.
    """
    torch.hardshrink(tensor, torch.finfo(tensor.dtype).tiny * 2.0**20, out=tensor)


@dataclasses.dataclass(slots=True, eq=False)
class DiagonalBlock:
    """A parameter with a diagonal Fisher matrix.

    Attributes:
        position: Its position in the plan.
        entry: The parameter.
        group: Index of its parameter group.
        fisher: Moving average of the diagonal, shaped like the parameter.
        momentum: Momentum, shaped like the parameter.
        count: How many updates the average has had.
    """

    position: int
    entry: DiagonalParameter
    group: int
    fisher: Tensor
    momentum: Tensor
    count: int = 0

    @classmethod
    def empty(cls, position: int, entry: DiagonalParameter, group: int) -> "DiagonalBlock":
        """A block without statistics."""
        dtype = factor_dtype(entry.parameter.dtype)
        zeros = torch.zeros_like(entry.parameter, dtype=dtype, requires_grad=False)
        return cls(position, entry, group, zeros, zeros.clone())

    def precondition(
        self, momentum: float, damping: float
    ) -> tuple[float, list[nn.Parameter], list[Tensor], int]:
        """See `KroneckerStack.precondition`."""
        parameter = self.entry.parameter
        if parameter.grad is None:
            return 0.0, [], [], 0
        if not self.count:
            return 0.0, [], [], 1
        self.momentum.mul_(momentum).add_(parameter.grad)
        direction = self.momentum / (self.fisher + damping)
        return inner(self.momentum, direction), [parameter], [direction], 0

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors by the names they are saved under."""
        return {"fisher": self.fisher, "momentum_buffer": self.momentum}

    def update(self, squares: Tensor, weight: float) -> bool:
        """Take new squared scores into the moving average; False if they are not finite."""
        if not bool(torch.isfinite(squares.sum())):
            return False
        self.count += 1
        past = past_weight(self.count)
        self.fisher.mul_(past).add_(squares, alpha=(1 - past) / weight)
        return True


class Blocks:
    """All blocks of a plan, with room for their statistics.

    Args:
        plan: Which parameter has which block.
        group_of: Index of the parameter group by ``id(parameter)``.
    """

    def __init__(self, plan: Plan, group_of: dict[int, int]) -> None:
        together: dict[tuple, list[tuple[int, KroneckerLayer]]] = {}
        for position, layer in enumerate(plan.layers):
            form, weight = layer.form, layer.weight
            group = group_of[id(weight)]
            key = (group, form.outputs, form.inputs, form.bias, weight.dtype, weight.device)
            together.setdefault(key, []).append((position, layer))
        self.plan = plan
        self.stacks = [KroneckerStack(layers, key[0]) for key, layers in together.items()]
        self.diagonals = [
            DiagonalBlock.empty(position, entry, group_of[id(entry.parameter)])
            for position, entry in enumerate(plan.diagonals)
        ]

    def update(self, sums: Sums) -> int:
        """Take gathered sums into the moving averages; the number of blocks that were refused."""
        refused = 0
        for stack in self.stacks:
            for span in stack.spans:
                new = sums.layers.get(span.position)
                if new is not None and not stack.update(span, new, sums.weight):
                    refused += 1
        for block in self.diagonals:
            squares = sums.diagonals.get(block.position)
            if squares is not None and not block.update(squares, sums.weight):
                refused += 1
        return refused

    def flush(self) -> None:
        """Keep decayed averages and momentum out of the subnormal numbers."""
        for stack in self.stacks:
            for tensor in (stack.factors.inputs, stack.factors.outputs, stack.momentum):
                flush_(tensor)
        for block in self.diagonals:
            flush_(block.fisher)
            flush_(block.momentum)

    def forget_momentum(self) -> None:
        """Set all momentum to zero."""
        for stack in self.stacks:
            stack.momentum.zero_()
        for block in self.diagonals:
            block.momentum.zero_()

    def entries(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """What is to be saved, by parameter; tensors are views, not copies."""
        for stack in self.stacks:
            for span in stack.spans:
                yield (
                    span.layer.weight,
                    {
                        "updates": span.count,
                        "inverted": span.inverted,
                        **{name: tensor[span.slice] for name, tensor in stack.tensors().items()},
                    },
                )
        for block in self.diagonals:
            yield block.entry.parameter, {"updates": block.count, **block.tensors()}

    def restore(self, parameter: nn.Parameter, entry: dict[str, Any]) -> None:
        """Put back what `entries` gave for a parameter.

        Raises:
            ValueError: If it does not fit the parameter's block.
        """
        for stack in self.stacks:
            for span in stack.spans:
                if span.layer.weight is parameter:
                    for name, tensor in stack.tensors().items():
                        copy_entry(tensor[span.slice], name, span.layer.name, entry)
                    span.count = int(entry["updates"])
                    span.inverted = bool(entry["inverted"])
                    return
        for block in self.diagonals:
            if block.entry.parameter is parameter:
                for name, tensor in block.tensors().items():
                    copy_entry(tensor, name, block.entry.name, entry)
                block.count = int(entry["updates"])
                return
