"""All curvature blocks of an optimizer: who is stacked with whom, averages, products, memory."""

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.curvature.blocks import (
    Block,
    DenseBlock,
    DiagonalBlock,
    EigenBlock,
    KroneckerBlock,
    TableBlock,
    UnitBlock,
)
from kobai.curvature.blocks.interface import factor_dtype, flush_
from kobai.layers import LayerForm
from kobai.optim.kfac.gradient_rows import GradientRows
from kobai.optim.kfac.plan import (
    DiagonalParameter,
    KroneckerLayer,
    Plan,
    PlanEntry,
    UnitLayer,
    block_kind,
)
from kobai.optim.kfac.settings import KFACSettings
from kobai.optim.kfac.stack import Preconditioned, Span, Stack

_LEAST_ALONE = 100_000
"""Entries of a matrix from which on a CPU nothing is gained by handling several together, and
something by choosing a route for each: products from rows, or in two pieces."""


@final
class Preconditioner:
    """The blocks of a plan, with room for their statistics and momentum.

    Args:
        plan: Which parameter belongs to which entry.
        group_of: Index of the parameter group by ``id(parameter)``.
        settings: Structure and precisions.

    Attributes:
        stacks: Blocks of equal kind and shape together.
    """

    def __init__(self, plan: Plan, group_of: dict[int, int], settings: KFACSettings) -> None:
        self.plan = plan
        together: dict[tuple[Any, ...], list[tuple[int, PlanEntry]]] = {}
        for position, entry in enumerate(plan.entries):
            weight = entry.tensors[0]
            key: tuple[Any, ...] = (group_of[id(weight)], position)
            if settings.factored and isinstance(entry, KroneckerLayer) and not entry.form.lookup:
                form = entry.form
                own = position if stands_alone(form, weight.device) else None
                key = (key[0], form.outputs, form.inputs, weight.dtype, weight.device, own)
            together.setdefault(key, []).append((position, entry))
        # Layers first, those of equal shape together, as they were met; then tables, units, others.
        order = sorted(together.items(), key=lambda item: _rank(item[1][0][1]))
        self.stacks = [
            Stack(_block([entry for _, entry in layers], settings), layers, key[0])
            for key, layers in order
        ]
        self._places: dict[int, tuple[Stack, Span]] = {
            span.position: (stack, span) for stack in self.stacks for span in stack.spans
        }

    def block(self, position: int) -> Block:
        """Return the block that an entry of the plan belongs to."""
        return self._places[position][0].block

    def takes_factors(self, position: int) -> bool:
        """Say whether an entry's block is made of factors, not of gradients example by example."""
        return isinstance(self.block(position), KroneckerBlock | EigenBlock | TableBlock)

    def fits(self) -> bool:
        """Say whether all parameters are where, and of the kind, the blocks were made for."""
        return all(stack.fits() for stack in self.stacks)

    def average(
        self, moments: Mapping[int, Any], squares: Mapping[int, Tensor], weight: float
    ) -> int:
        """Take gathered sums into the moving averages.

        Args:
            moments: Sums by position in the plan.
            squares: Second moments in eigenbases, by position.
            weight: Their normaliser.

        Returns:
            The number of sums that were refused, because they were not finite.
        """
        refused = 0
        for position, (stack, span) in self._places.items():
            if position in moments:
                refused += not stack.average(span, moments[position], weight)
            if position in squares and isinstance(stack.block, EigenBlock | TableBlock):
                refused += not stack.block.correct(span.slice, squares[position], weight)
        return refused

    def bases(self) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Return eigenbases (Q_B, Q_A) in which second moments are wanted, by position.

        Q_A is None for tables, whose lines are a basis already.
        """
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        for position, (stack, span) in self._places.items():
            block = stack.block
            if span.inverted and (
                isinstance(block, EigenBlock)
                or (isinstance(block, TableBlock) and block.squares is not None)
            ):
                found[position] = block.bases(span.slice)
        return found

    def wide(self) -> dict[int, KroneckerLayer]:
        """Return layers in stacks of their own, by position, whose steps rows may serve for."""
        return {
            position: span.entry
            for position, (stack, span) in self._places.items()
            if isinstance(stack.block, KroneckerBlock)
            and stack.block.alone
            and isinstance(span.entry, KroneckerLayer)
        }

    def hand_over(self, rows: Mapping[int, GradientRows]) -> None:
        """Give stacks the rows whose product the present gradients are, for the coming step."""
        for position, own in rows.items():
            self._places[position][0].rows = own

    def precondition(
        self, groups: list[dict[str, Any]], settings: KFACSettings, finite: Tensor | None
    ) -> list[tuple[dict[str, Any], Preconditioned]]:
        """Precondition the gradients of all stacks with the settings of their groups.

        Args:
            groups: Parameter groups.
            settings: Whether there is a heavy ball, and whether it looks ahead.
            finite: See `Stack.precondition`.
        """
        found = []
        for stack in self.stacks:
            group = groups[stack.group]
            momentum = 0.0 if settings.lr == "auto" else group["momentum"]
            own = stack.precondition(momentum, group["damping"], settings.nesterov, finite)
            found.append((group, own))
        return found

    def flush(self) -> None:
        """Keep decayed averages and momentum out of the subnormal numbers."""
        for stack in self.stacks:
            for tensor in stack.averages():
                flush_(tensor)

    def forget_momentum(self) -> None:
        """Set all momentum to zero."""
        for stack in self.stacks:
            stack.forget_momentum()

    def saved(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """Return what is to be saved, by parameter; tensors are views, not copies."""
        for stack in self.stacks:
            yield from stack.saved()

    def restore(self, parameter: nn.Parameter, entry: dict[str, Any]) -> None:
        """Put back what `saved` gave for a parameter.

        Raises:
            ValueError: If it does not fit the parameter's block.
        """
        for stack, span in self._places.values():
            if span.tensors[0] is parameter:
                stack.restore(span, entry)

    def takes(self, parameter: nn.Parameter, entry: dict[str, Any]) -> bool:
        """Say whether a saved entry is of the kind of block that the parameter has now."""
        return any(
            span.tensors[0] is parameter and stack.names() <= set(entry)
            for stack, span in self._places.values()
        )


def stands_alone(form: LayerForm, device: torch.device) -> bool:
    """Say whether a layer is better off in a stack of its own."""
    return (
        form.groups == 1
        and min(form.outputs, form.inputs) > 1
        and form.outputs * form.inputs >= _LEAST_ALONE
        and device.type == "cpu"
    )


def _rank(entry: PlanEntry) -> int:
    if isinstance(entry, KroneckerLayer):
        return 1 if entry.form.lookup else 0
    return 2 if isinstance(entry, UnitLayer) else 3


def _block(entries: list[PlanEntry], settings: KFACSettings) -> Block:
    """Make the block of entries that lie in one stack."""
    first = entries[0]
    weight = first.tensors[0]
    own: dict[str, Any] = {"dtype": factor_dtype(weight.dtype), "device": weight.device}
    kind = block_kind(first, settings.structure)
    if isinstance(first, UnitLayer):
        shape = 1, weight.numel(), len(first.tensors)
    elif isinstance(first, DiagonalParameter):
        shape = 1, 1, weight.numel()
    elif first.form.lookup:
        shape = 1, first.form.inputs, first.form.outputs
        if kind in ("kronecker", "ekfac"):
            return TableBlock(shape, **own, eigen=kind == "ekfac", method=settings.inverse)
    else:
        groups = sum(e.form.groups for e in entries if isinstance(e, KroneckerLayer))
        shape = groups, first.form.outputs, first.form.inputs
        if kind == "ekfac":
            return EigenBlock(shape, **own, precision=settings.precision)
        if kind == "kronecker":
            return KroneckerBlock(
                shape,
                **own,
                precision=settings.precision,
                product_dtype=settings.product_precision,
                method=settings.inverse,
                alone=groups == 1 and stands_alone(first.form, weight.device),
            )
    return {"diagonal": DiagonalBlock, "unit": UnitBlock, "layer": DenseBlock}[kind](shape, **own)
