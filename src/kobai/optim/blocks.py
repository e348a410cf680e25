"""Curvature blocks as an optimizer holds them: moving averages, inverses and momentum side by side.

Blocks of equal shape lie in one stack, so that one batched factorisation and two batched products
serve all of them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kobai.curvature.kronecker import KroneckerFactors, LayerForm
from kobai.optim.coverage import DiagonalParameter, KroneckerLayer, Plan
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
        count: How many updates its moving averages have had.
        inverted: Whether its inverses have been computed.
    """

    position: int
    layer: KroneckerLayer
    slice: slice
    count: int = 0
    inverted: bool = False


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
        self.spans: list[Span] = []
        size = 0
        for position, layer in layers:
            self.spans.append(Span(position, layer, slice(size, size + layer.form.groups)))
            size += layer.form.groups
        weight = layers[0][1].weight
        dtype = factor_dtype(weight.dtype)
        m, k = self.form.outputs, self.form.inputs

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(size, *shape, dtype=dtype, device=weight.device)

        self.factors = KroneckerFactors(inputs=zeros(k, k), outputs=zeros(m, m))
        self.input_inverses, self.output_inverses = zeros(k, k), zeros(m, m)
        self.momentum = zeros(m, k)

    def update(self, span: Span, sums: LayerSums, weight: float) -> bool:
        """Take new second moments into the moving averages; False if they are not finite."""
        if sums.inputs is None or sums.outputs is None:
            return False
        if not bool(torch.isfinite(sums.inputs.sum() + sums.outputs.sum())):
            return False
        span.count += 1
        past = past_weight(span.count)
        for average, total, number in (
            (self.factors.inputs[span.slice], sums.inputs, sums.rows),
            (self.factors.outputs[span.slice], sums.outputs, weight),
        ):
            average.mul_(past).add_(total, alpha=(1 - past) / number)
            flush_(average)
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

    def active(self) -> list[Span]:
        """Layers that have gradients and inverses."""
        return [span for span in self.spans if span.inverted and _has_gradient(span.layer)]

    def waiting(self) -> int:
        """Number of layers that have gradients but no inverses yet."""
        return sum(not span.inverted and _has_gradient(span.layer) for span in self.spans)

    def precondition(self, active: Sequence[Span], momentum: float) -> tuple[Tensor, Tensor]:
        """Take the gradients of active layers into their momentum and precondition it.

        Returns:
            The active layers' momentum m and (F + λ)⁻¹ m, both (S', M, K) in the order of `active`.
        """
        whole = len(active) == len(self.spans)
        if whole:
            self.momentum.mul_(momentum)
        targets, gradients = [], []
        for span in active:
            block, layer = self.momentum[span.slice], span.layer
            if not whole:
                block.mul_(momentum)
            if layer.weight.grad is not None:
                part = self.form.weight_part(block)
                targets.append(part)
                gradients.append(layer.weight.grad.reshape(part.shape))
            if layer.bias is not None and layer.bias.grad is not None:
                part = self.form.bias_part(block)
                targets.append(part)
                gradients.append(layer.bias.grad.reshape(part.shape))
        for part, gradient in zip(targets, gradients, strict=True):
            part.add_(gradient)
        if whole:
            inputs, outputs, m = self.input_inverses, self.output_inverses, self.momentum
        else:
            index = torch.cat(
                [
                    torch.arange(s.slice.start, s.slice.stop, device=self.momentum.device)
                    for s in active
                ]
            )
            inputs, outputs = self.input_inverses[index], self.output_inverses[index]
            m = self.momentum[index]
        return m, outputs @ (m @ inputs)

    def parts(
        self, active: Sequence[Span], matrices: Tensor
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Cut matrices in the order of `active` into tensors for their parameters."""
        start = 0
        for span in active:
            layer = span.layer
            part = matrices[start : start + layer.form.groups]
            start += layer.form.groups
            yield layer.weight, self.form.weight_part(part)
            if layer.bias is not None:
                yield layer.bias, self.form.bias_part(part)

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


def _has_gradient(layer: KroneckerLayer) -> bool:
    return layer.weight.grad is not None or (layer.bias is not None and layer.bias.grad is not None)


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

    def precondition(self, momentum: float, damping: float) -> Tensor:
        """Take the gradient into the momentum; (F + λ)⁻¹ times the momentum."""
        gradient = self.entry.parameter.grad
        assert gradient is not None
        self.momentum.mul_(momentum).add_(gradient)
        return self.momentum / (self.fisher + damping)

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
        flush_(self.fisher)
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

    def flush_momentum(self) -> None:
        """Keep decayed momentum out of the subnormal numbers."""
        for stack in self.stacks:
            flush_(stack.momentum)
        for block in self.diagonals:
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
                        _copy(tensor[span.slice], name, span.layer.name, entry)
                    span.count = int(entry["updates"])
                    span.inverted = bool(entry["inverted"])
                    return
        for block in self.diagonals:
            if block.entry.parameter is parameter:
                for name, tensor in block.tensors().items():
                    _copy(tensor, name, block.entry.name, entry)
                block.count = int(entry["updates"])
                return


def _copy(target: Tensor, name: str, owner: str, entry: dict[str, Any]) -> None:
    value = entry.get(name)
    if not isinstance(value, Tensor) or value.shape != target.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
        raise ValueError(
            f"the saved state of {owner} has {found} for {name}, this model needs "
            f"{tuple(target.shape)}; it belongs to another model or another optimizer"
        )
    target.copy_(value)
