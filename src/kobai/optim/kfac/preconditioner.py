"""All curvature blocks of an optimizer: who is stacked with whom, updates, inversions, memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kobai.curvature.blocks.shifted_inverse import InverseMethod
from kobai.optim.averages import flush_
from kobai.optim.coverage import KroneckerLayer, Plan
from kobai.optim.eigen_stack import EigenStack
from kobai.optim.gradient_rows import GradientRows
from kobai.optim.inversions import Inversions
from kobai.optim.kronecker_stack import KroneckerStack, Span, saved_span, stands_alone
from kobai.optim.small_blocks import DiagonalBlock, TableBlock, UnitBlock
from kobai.optim.state import copy_entry
from kobai.optim.statistics import Sums

Stack = KroneckerStack | EigenStack
Block = Stack | TableBlock | UnitBlock | DiagonalBlock


class Blocks:
    """All blocks of a plan, with room for their statistics.

    Args:
        plan: Which parameter has which block.
        group_of: Index of the parameter group by ``id(parameter)``.
        corrected: Whether to keep second moments in eigenbases (EKFAC) instead of inverses.
        product_dtype: See `KroneckerStack`.
        method: How factors are inverted.
        precision: Of Kronecker factors; see `KroneckerStack`.

    Attributes:
        stacks: Kronecker-factored blocks, those of equal shape together.
        tables: Embeddings.
        units: Scale and shift of normalisations.
        diagonals: The remaining parameters.
    """

    def __init__(
        self,
        plan: Plan,
        group_of: dict[int, int],
        corrected: bool = False,
        product_dtype: torch.dtype | None = None,
        method: InverseMethod = "cholesky",
        precision: torch.dtype | None = None,
    ) -> None:
        together: dict[tuple, list[tuple[int, KroneckerLayer]]] = {}
        self.tables: list[TableBlock] = []
        for position, layer in enumerate(plan.layers):
            form, weight = layer.form, layer.weight
            group = group_of[id(weight)]
            if form.lookup:
                self.tables.append(TableBlock(position, layer, group, corrected, method))
                continue
            own = position if stands_alone(form, weight.device) else None
            key = (group, form.outputs, form.inputs, weight.dtype, weight.device, own)
            together.setdefault(key, []).append((position, layer))
        self.plan = plan
        self.stacks: list[Stack] = [
            EigenStack(layers, key[0], precision)
            if corrected
            else KroneckerStack(layers, key[0], product_dtype, method, precision)
            for key, layers in together.items()
        ]
        self.units = [
            UnitBlock(position, entry, group_of[id(entry.tensors[0])])
            for position, entry in enumerate(plan.units)
        ]
        self.diagonals = [
            DiagonalBlock.empty(position, entry, group_of[id(entry.parameter)])
            for position, entry in enumerate(plan.diagonals)
        ]

    @property
    def every(self) -> tuple[Block, ...]:
        """All blocks; each preconditions the parameters of one parameter group."""
        return (*self.stacks, *self.tables, *self.units, *self.diagonals)

    def fits(self) -> bool:
        """Whether all parameters are still where, and of the kind, the blocks were made for."""
        return all(block.fits() for block in self.every)

    def update(self, sums: Sums) -> int:
        """Take gathered sums into the moving averages; the number of blocks that were refused."""
        refused, weight = 0, sums.weight
        for stack in self.stacks:
            for span in stack.spans:
                new = sums.layers.get(span.position)
                if new is not None:
                    refused += not stack.update(span, new, weight)
                squares = sums.squares.get(span.position)
                if squares is not None and isinstance(stack, EigenStack):
                    refused += not stack.correct(span, squares, weight)
        for table in self.tables:
            new = sums.layers.get(table.position)
            if new is not None:
                refused += not table.update(new, weight)
            squares = sums.squares.get(table.position)
            if squares is not None:
                refused += not table.correct(squares, weight)
        for unit in self.units:
            moments = sums.units.get(unit.position)
            if moments is not None:
                refused += not unit.update(moments, weight)
        for block in self.diagonals:
            squares = sums.diagonals.get(block.position)
            if squares is not None:
                refused += not block.update(squares, weight)
        return refused

    def invert(self, damping: Callable[[int], float]) -> Inversions:
        """Recompute all inverses (or eigenbases) from the averages.

        Args:
            damping: λ by the index of the parameter group.
        """
        total = Inversions()
        for stack in self.stacks:
            entries = stack.ready()
            if entries:
                total += stack.settle(stack.renew(damping(stack.group), entries))
        return total + self.invert_tables(damping)

    def invert_tables(self, damping: Callable[[int], float]) -> Inversions:
        """Recompute the inverses (or eigenbases) of embeddings alone."""
        total = Inversions()
        for table in self.tables:
            total += table.invert(damping(table.group))
        return total

    def bases(self) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Eigenbases (Q_B, Q_A) in which second moments are wanted, by position of the layer.

        Q_A is None for tables, whose lines are a basis already.
        """
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        for stack in self.stacks:
            if isinstance(stack, EigenStack):
                for span in stack.spans:
                    own = stack.bases(span)
                    if own is not None:
                        found[span.position] = own
        for table in self.tables:
            if table.basis is not None:
                found[table.position] = table.basis, None
        return found

    def wide(self) -> dict[int, KroneckerLayer]:
        """Layers in stacks of their own, by position, whose steps rows may be handed over for."""
        return {
            stack.spans[0].position: stack.spans[0].layer
            for stack in self.stacks
            if isinstance(stack, KroneckerStack) and stack.alone
        }

    def hand_over(self, rows: Mapping[int, GradientRows]) -> None:
        """Rows whose product the present gradients are, by position, for the coming step."""
        for stack in self.stacks:
            if isinstance(stack, KroneckerStack):
                stack.rows = rows.get(stack.spans[0].position)

    def flush(self) -> None:
        """Keep decayed averages and momentum out of the subnormal numbers."""
        for block in self.every:
            for tensor in block.averages():
                flush_(tensor)

    def forget_momentum(self) -> None:
        """Set all momentum to zero."""
        for block in self.every:
            block.momentum.zero_()
            if isinstance(block, KroneckerStack):
                block.follows = False

    def entries(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """What is to be saved, by parameter; tensors are views, not copies."""
        for stack in self.stacks:
            for span in stack.spans:
                entry = saved_span(span, stack.tensors())
                if isinstance(stack, KroneckerStack) and stack.follows:
                    entry["preconditioned"] = stack.direction[span.slice]
                yield span.layer.weight, entry
        for block in (*self.tables, *self.units, *self.diagonals):
            counts = block.counts() if isinstance(block, TableBlock) else {"updates": block.count}
            yield block.parameter, {**counts, **block.tensors()}

    def restore(self, parameter: nn.Parameter, entry: dict[str, Any]) -> None:
        """Put back what `entries` gave for a parameter.

        Raises:
            ValueError: If it does not fit the parameter's block.
        """
        found = self._place(parameter)
        if found is None:
            return
        block, span = found
        if span is not None and isinstance(block, KroneckerStack | EigenStack):
            for name, tensor in block.tensors().items():
                copy_entry(tensor[span.slice], name, span.layer.name, entry)
            span.count, span.inverted = int(entry["updates"]), bool(entry["inverted"])
            if isinstance(block, KroneckerStack) and "preconditioned" in entry:
                target = block.direction[span.slice]
                copy_entry(target, "preconditioned", span.layer.name, entry)
                block.follows = True
            return
        assert isinstance(block, TableBlock | UnitBlock | DiagonalBlock)
        for name, tensor in block.tensors().items():
            copy_entry(tensor, name, block.name, entry)
        block.count = int(entry["updates"])
        if isinstance(block, TableBlock):
            block.inverted = bool(entry["inverted"])
            block.corrections = int(entry["corrections"])

    def takes(self, parameter: nn.Parameter, entry: dict[str, Any]) -> bool:
        """Whether an entry is of the kind of block that the parameter has now."""
        found = self._place(parameter)
        return found is not None and set(found[0].tensors()) <= set(entry)

    def _place(self, parameter: nn.Parameter) -> tuple[Block, Span | None] | None:
        for stack in self.stacks:
            for span in stack.spans:
                if span.layer.weight is parameter:
                    return stack, span
        for block in (*self.tables, *self.units, *self.diagonals):
            if block.parameter is parameter:
                return block, None
        return None
